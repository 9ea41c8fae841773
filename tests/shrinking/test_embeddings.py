"""How far embeddings moved: the same figures from whole forwards, one text at a time."""

import json

import numpy as np
import pytest
import torch
import vocab_helpers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from hf_glmd import VocabShrinker
from hf_glmd.cli import main
from hf_glmd.models.encoders import mean_pooled
from hf_glmd.models.sentence_modules import Pooled, pooled_to_compare, write_modules
from hf_glmd.shrinking.embeddings import compare_embeddings, embedding_scores
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

TEXTS = [text for text in vocab_helpers.texts(40) if text][:17]


def encoder(**settings):
    return vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL | settings, vocab_helpers.V)


def alone(model, tokenizer, text):
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=20)
    return model(input_ids=inputs["input_ids"]).last_hidden_state[0].double().mean(0)


def cosine(a, b):
    return float((a @ b) / (a.norm() * b.norm()))


@torch.no_grad()
def test_figures_are_those_of_one_text_at_a_time():
    tokenizer = vocab_helpers.generic_tokenizer()
    models = encoder(), encoder(num_hidden_layers=1).train()
    scores = compare_embeddings(*models, (tokenizer, tokenizer), TEXTS, max_length=20, batch_size=5)
    assert models[1].training
    own, theirs = ([alone(model.eval(), tokenizer, text) for text in TEXTS] for model in models)
    cosines = [cosine(*pair) for pair in zip(own, theirs, strict=True)]
    assert scores.texts == 17 and scores.held_out is None
    assert scores.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    assert scores.worst_cosine == pytest.approx(min(cosines), abs=1e-5) and scores.worst_cosine < 0.999
    same = compare_embeddings(models[0], models[0], (tokenizer, tokenizer), TEXTS, max_length=20, batch_size=3)
    assert same.worst_cosine == pytest.approx(1) and same.similarity_correlation == pytest.approx(1)


@given(st.integers(3, 12), st.integers(0, 10_000))
def test_rank_correlation_is_spearmans(count, seed):
    drawn = np.random.default_rng(seed)
    own, theirs = drawn.integers(-2, 3, (count, 3)) + 0.5, drawn.normal(size=(count, 2))
    own[0] = own[1]  # ties
    found = embedding_scores(torch.tensor(own), torch.tensor(theirs))
    assert found.mean_cosine is None and found.worst_cosine is None and len(found.rows()) <= 2
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    values = [[round(cosine(torch.tensor(x[a]), torch.tensor(x[b])), 6) for a, b in pairs] for x in (own, theirs)]
    ranks = [[sum(v < w for v in side) + (sum(v == w for v in side) + 1) / 2 for w in side] for side in values]
    if found.similarity_correlation is not None and len(set(values[0])) > 1:
        assert found.similarity_correlation == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_padding_is_no_part_of_a_mean():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = mean_pooled(states, mask)
    torch.testing.assert_close(found, torch.stack([states[0, :2].mean(0), states[1].mean(0)]))
    assert mean_pooled(states.bfloat16(), mask).dtype == torch.float32


def test_a_cut_encoder_says_how_far_it_moved_and_evaluate_says_the_same(tmp_path, capsys):
    tokenizer = vocab_helpers.generic_tokenizer()
    encoder().save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    texts = vocab_helpers.texts(120)
    (tmp_path / "text.txt").write_text("\n".join(texts))
    words = ["shrink", str(tmp_path / "encoder"), "--corpus", f"mine={tmp_path / 'text.txt'}", "--size", "95"]
    assert main([*words, "--output", str(tmp_path / "small"), "--json"]) == 0
    moved = json.loads(capsys.readouterr().out)["vocabulary"]["embeddings"]
    assert moved["held_out"] is True and moved["texts"] == 6 and moved["worst_cosine"] < moved["mean_cosine"] < 0.9999
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"{moved['mean_cosine']:.4f}" in card and "6 texts, that were not counted" in card

    shrinker = VocabShrinker(tokenizer).count_corpora({"mine": texts})
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n".join(shrinker.corpora["mine"].held_out))
    words = ["evaluate", str(tmp_path / "small"), "--text", str(held_out), "--no-speed"]
    assert main([*words, "--teacher", str(tmp_path / "encoder"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["embeddings"]
    assert {name: scores[name] for name in ("mean_cosine", "texts")} == {
        "mean_cosine": pytest.approx(moved["mean_cosine"]),
        "texts": 6,
    }
    assert main(words) == 2
    assert "is a text encoder, which predicts no words" in capsys.readouterr().err


def test_embeddings_are_pooled_as_their_modules_say(tmp_path, capsys, caplog):
    """A CLS-pooled encoder that is compared by means would show a shift that nobody will see; modules that do more are named."""
    tokenizer, model = vocab_helpers.generic_tokenizer(), encoder()
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    write_modules(tmp_path / "encoder", model.config.hidden_size, Pooled("cls"))
    (tmp_path / "text.txt").write_text("\n".join(vocab_helpers.texts(60)))
    words = ["shrink", str(tmp_path / "encoder"), "--corpus", str(tmp_path / "text.txt"), "--size", "95", "--json"]
    assert main([*words, "--output", str(tmp_path / "small")]) == 0
    moved = json.loads(capsys.readouterr().out)["vocabulary"]["embeddings"]
    assert moved["pooling"] == "cls" and moved["held_out"] is True and moved["texts"] == 3
    shrinker = VocabShrinker(tokenizer).count_corpora({"text": vocab_helpers.texts(60)})
    small = AutoModel.from_pretrained(tmp_path / "small")
    tokenizers = load_tokenizer(tmp_path / "small"), tokenizer
    held_out = [text for place, text in enumerate(vocab_helpers.texts(60), start=1) if place % 20 == 0]
    for pooled in (Pooled("cls"), Pooled("mean")):
        found = compare_embeddings(small, model, tokenizers, held_out, 24, pooled=pooled).mean_cosine
        assert (found == pytest.approx(moved["mean_cosine"], abs=1e-6)) == (pooled.pooling == "cls")
    assert shrinker.corpora["text"].held_out != held_out  # of named corpora the second text is the first that is held out

    write_modules(tmp_path / "encoder", model.config.hidden_size, Pooled("cls"), torch.eye(model.config.hidden_size))
    assert pooled_to_compare(tmp_path / "encoder") == Pooled("mean")
    assert "compared by the mean" in caplog.text and "Dense" in caplog.text


def test_of_few_texts_all_are_counted(tmp_path, capsys):
    tokenizer = vocab_helpers.generic_tokenizer()
    encoder().save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    for count, held_out in ((19, False), (20, True)):
        (tmp_path / "text.txt").write_text("\n".join(vocab_helpers.texts(count)))
        words = ["shrink", str(tmp_path / "encoder"), "--corpus", str(tmp_path / "text.txt"), "--size", "95", "--json"]
        assert main([*words, "--output", str(tmp_path / str(count))]) == 0
        found = json.loads(capsys.readouterr().out)["vocabulary"]
        assert found["embeddings"]["held_out"] is held_out and bool(found["ledger"]) is held_out
