"""How far two text encoders' embeddings are from each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_glmd.models.heads import evaluating
from hf_glmd.models.sentence_modules import Pooled
from hf_glmd.reports.records import EmbeddingScores

MEAN = Pooled("mean")

MAX_PAIRS = 100_000
"""Of texts, whose similarities are compared."""


@torch.no_grad()
def text_embeddings(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 32,
    desc: str = "Embedding texts",
    pooled: Pooled = MEAN,
) -> Tensor:
    """The pooled last hidden states of each text, [N, H] on the CPU, fp32 or wider.

    Args:
        model: an encoder without a head; its training mode is left as it is.
        max_length: tokens of a text that are read.
        pooled: how; `hf_glmd.models.sentence_modules.pooled_to_compare` knows that of a checkpoint.
    """
    found = []
    with evaluating(model):
        for batch in tqdm(list(_batches(texts, batch_size)), desc=desc, unit="batch", leave=False):
            inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt").to(model.device)
            read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            found.append(pooled(model(**read).last_hidden_state, inputs["attention_mask"]).cpu())
    return torch.cat(found)


def compare_embeddings(
    model: nn.Module,
    original: nn.Module,
    tokenizers: tuple[Any, Any],
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 32,
    pooled: Pooled = MEAN,
) -> EmbeddingScores:
    """Embeds texts with both encoders.

    Args:
        tokenizers: that of `model` and that of `original`.
        texts: at least one.
        pooled: how both are.
    """
    own, theirs = (
        text_embeddings(one, tokenizer, texts, max_length, batch_size, desc, pooled)
        for one, tokenizer, desc in zip((model, original), tokenizers, ("Embedding texts", "Embedding texts again"), strict=True)
    )
    return dataclasses.replace(embedding_scores(own, theirs), pooling=pooled.pooling)


def embedding_scores(own: Tensor, theirs: Tensor) -> EmbeddingScores:
    """Args: embeddings of the same texts, [N, H] and [N, H'], in pairs."""
    similar = own.shape[1] == theirs.shape[1]
    cosines = nn.functional.cosine_similarity(own.double(), theirs.double()) if similar else None
    return EmbeddingScores(
        texts=len(own),
        mean_cosine=None if cosines is None else float(cosines.mean()),
        worst_cosine=None if cosines is None else float(cosines.min()),
        similarity_correlation=_similarity_correlation(own, theirs),
    )


def _similarity_correlation(own: Tensor, theirs: Tensor) -> float | None:
    """Spearman's, of the cosines of pairs of texts; None: too few texts, or all alike."""
    pairs = torch.combinations(torch.arange(len(own)))
    if len(pairs) < 2:
        return None
    if len(pairs) > MAX_PAIRS:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:MAX_PAIRS]]
    one, other = pairs.unbind(1)
    ranks = []
    for states in (own.double(), theirs.double()):
        values = nn.functional.cosine_similarity(states[one], states[other]).round(decimals=6)  # ties stay ties
        _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        ranks.append((last - (counts - 1) / 2)[inverse])  # equal values share the mean of their ranks
    found = torch.corrcoef(torch.stack(ranks))[0, 1]
    return float(found) if found.isfinite() else None


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])
