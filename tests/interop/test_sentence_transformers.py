"""A repository of sentence-transformers, cut: all of its modules still work, and embeddings stay the same."""

from pathlib import Path

import interop_helpers
import numpy as np
import pytest
import torch
import vocab_helpers

pytestmark = pytest.mark.interop


def with_modules(folder: Path) -> None:
    """Makes the encoder in the folder a repository of sentence-transformers with pooling, a dense layer and normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    parts = [
        modules.Transformer(str(folder), max_seq_length=24),
        modules.Pooling(16, "mean"),
        modules.Dense(16, 7),
        modules.Normalize(),
    ]
    SentenceTransformer(modules=parts, prompts={"query": "markness: "}, similarity_fn_name="dot").save(str(folder))


def test_embeddings(tmp_path, tool):
    tool(
        "sentence-transformers",
        "shrunk `SentenceTransformer`: modules, prompts, embeddings of text of kept tokens",
    )
    from sentence_transformers import SentenceTransformer

    tokenizer = vocab_helpers.generic_tokenizer(model_max_length=40)
    pair = interop_helpers.shrunk(tmp_path, "BertModel", tokenizer, 131, prepare=with_modules)
    original, small = (SentenceTransformer(str(folder)) for folder in (pair.original, pair.small))
    assert [type(module) for module in small] == [type(module) for module in original] and len(small) == 4
    assert small.max_seq_length == original.max_seq_length == 24
    assert small.prompts == original.prompts and small.similarity_fn_name == "dot"
    texts = pair.kept_texts()
    for options in ({}, {"prompt_name": "query"}):
        embeddings = small.encode(texts, **options)
        assert embeddings.shape == (len(texts), 7) and np.ptp(embeddings, axis=0).min() > 0.01
        np.testing.assert_allclose(embeddings, original.encode(texts, **options), rtol=0, atol=1e-6)
    long = " ".join(texts)  # cut off at 24 tokens by both
    np.testing.assert_allclose(small.encode(long), original.encode(long), rtol=0, atol=1e-6)


def test_embeddings_with_one_entry_per_token(tmp_path, tool):
    tool(
        "sentence-transformers",
        "shrunk `SparseEncoder` (SPLADE): entries of the kept tokens, for text of kept tokens",
    )
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import modules

    def with_splade(folder: Path) -> None:
        encoder = SparseEncoder(modules=[modules.MLMTransformer(str(folder)), modules.SpladePooling("max")])
        encoder.encode(["walking"])  # it learns how many tokens there are, and saves that
        encoder.save(str(folder))

    tokenizer = vocab_helpers.generic_tokenizer(model_max_length=40)
    pair = interop_helpers.shrunk(tmp_path, "bert", tokenizer, 131, prepare=with_splade)
    original, small = (SparseEncoder(str(folder)) for folder in (pair.original, pair.small))
    assert (original.get_embedding_dimension(), small.get_embedding_dimension()) == (211, 131)
    texts = pair.kept_texts()
    before, after = (model.encode(texts, convert_to_sparse_tensor=False).numpy() for model in (original, small))
    np.testing.assert_allclose(after, before[:, pair.vocab_map.kept_ids], rtol=1e-5, atol=1e-6)
    assert (after > 0).any()


def test_cross_encoder(tmp_path, tool):
    tool("sentence-transformers", "shrunk `CrossEncoder`: scores of pairs of texts of kept tokens")
    from sentence_transformers import CrossEncoder

    def as_cross_encoder(folder: Path) -> None:
        CrossEncoder(str(folder), num_labels=1).save(str(folder))

    tokenizer = vocab_helpers.generic_tokenizer(model_max_length=40)
    pair = interop_helpers.shrunk(tmp_path, "bert-classifier", tokenizer, 131, prepare=as_cross_encoder, num_labels=1)
    texts = pair.kept_texts()
    pairs = list(zip(texts, reversed(texts), strict=True))
    before, after = (
        CrossEncoder(str(folder)).predict(pairs, activation_fn=torch.nn.Identity()) for folder in (pair.original, pair.small)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert np.ptp(before) > 1e-3
