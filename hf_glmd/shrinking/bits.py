"""Bits per character: what a cut costs a language model in the prediction of text, whatever tokens the text takes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_glmd.models.heads import WordHead, evaluating, is_masked_lm
from hf_glmd.models.lengths import readable, row_length
from hf_glmd.vocab.counting import vocabulary_rows

TEXT_CHARACTERS = 200
"""Of each text so many are read, so that the smaller vocabulary's tokens fit in as well."""

WORDS = 4
"""Of each text that many are masked, for models that predict masked tokens."""

LOGITS = 2**25
"""At a time, at most; of one row as many as it has."""

SMALL = 10**9
"""Weights of a model that is computed in fp32 where its own numbers would be slow."""


@dataclass(frozen=True)
class Bits:
    """Bits per character of the same characters under two models.

    Attributes:
        texts: so many were measured; texts with unknown tokens are left out.
        before, after: of the original and of the cut model.
    """

    texts: int
    before: float
    after: float


@dataclass(frozen=True)
class _Row:
    """Token ids, and where which ones are predicted."""

    ids: list[int]
    positions: list[int]
    targets: list[int]


def predicts_text(model: nn.Module) -> bool:
    """Whether it is a masked or a causal language model, whose bits can be compared."""
    return model.get_output_embeddings() is not None and not model.config.is_encoder_decoder


def compare_bits(
    models: tuple[nn.Module, nn.Module], tokenizers: tuple[Any, Any], texts: Sequence[str], seed: int = 0, desc: str = ""
) -> Bits | None:
    """Measures an original and the cut model on the beginnings of the same texts; None: no text is without unknown tokens.

    Of causal models all tokens are predicted, each from those before it; the first one from the tokenizer's token for the
    beginning or the end of a text, or not at all. Of masked ones some words of each text, the same under both: each token of a
    word from all but itself and what follows it in the word, or a word of several pieces would be told by its other pieces
    (Kauf and Ivanova, arXiv:2305.10588, after Salazar et al., arXiv:1910.14659).

    Args:
        models: original and cut; both causal, or both masked.
        tokenizers: theirs.
        seed: of the words drawn.
    """
    length = min(row_length(None, readable(models), tokenizer) for tokenizer in tokenizers)
    rows: tuple[list[_Row], list[_Row]] = ([], [])
    characters = measured = 0
    for number, text in enumerate(texts):
        text = text[:TEXT_CHARACTERS]
        encoded = [tokenizer(text, truncation=False, verbose=False) for tokenizer in tokenizers]
        # Shorter than the models can read, for a causal one may be given a token for the beginning.
        is_read = [
            1 < len(one["input_ids"]) < length and tokenizer.unk_token_id not in one["input_ids"]
            for one, tokenizer in zip(encoded, tokenizers, strict=True)
        ]
        if not all(is_read):
            continue
        if is_masked_lm(models[0]):
            words = _drawn_words(encoded, np.random.default_rng((seed, number)))
            characters += sum(end - start for start, end in words)
            made = [list(_masked_rows(one, words, tokenizer)) for one, tokenizer in zip(encoded, tokenizers, strict=True)]
        else:
            characters += len(text)
            made = [[_causal_row(one, tokenizer)] for one, tokenizer in zip(encoded, tokenizers, strict=True)]
        measured += 1
        for found, new in zip(rows, made, strict=True):
            found += new
    if not characters:
        return None
    before, after = (
        _bits(model, tokenizer, found, desc) / characters
        for model, tokenizer, found in zip(models, tokenizers, rows, strict=True)
    )
    return Bits(measured, before, after)


def _drawn_words(encoded: Sequence[Any], drawn: np.random.Generator) -> list[tuple[int, int]]:
    """Characters (start, end) of words that both tokenizers find in the text, at most `WORDS`."""
    both = sorted(set.intersection(*({span for span, _ in _words(one)} for one in encoded)))
    return [both[at] for at in sorted(drawn.permutation(len(both))[:WORDS])]


def _words(encoding: Any) -> list[tuple[tuple[int, int], list[int]]]:
    """Of each word its characters and the places of its tokens."""
    found = []
    places = [(word, place) for place, word in enumerate(encoding.word_ids(0)) if word is not None]
    for _, group in itertools.groupby(places, key=lambda one: one[0]):
        tokens = [place for _, place in group]
        spans = [encoding.token_to_chars(0, place) for place in tokens]
        known = [span for span in spans if span is not None and span.end > span.start]
        if known:
            found.append(((known[0].start, known[-1].end), tokens))
    return found


def _masked_rows(encoding: Any, words: Sequence[tuple[int, int]], tokenizer: Any) -> Iterator[_Row]:
    chosen = set(words)
    for span, places in _words(encoding):
        for number, place in enumerate(places if span in chosen else ()):
            ids = list(encoding["input_ids"])
            for hidden in places[number:]:
                ids[hidden] = tokenizer.mask_token_id
            yield _Row(ids, [place], [encoding["input_ids"][place]])


def _causal_row(encoding: Any, tokenizer: Any) -> _Row:
    ids = list(encoding["input_ids"])
    special = set(tokenizer.all_special_ids)
    start = next((one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None), None)
    if ids[0] not in special and start is not None:
        ids.insert(0, start)
    targets = [(place, one) for place, one in enumerate(ids[1:]) if one not in special]
    return _Row(ids, [place for place, _ in targets], [one for _, one in targets])


@contextlib.contextmanager
def _in_fp32(model: nn.Module) -> Iterator[None]:
    """Inside this context a small model on the CPU has fp32 weights: there fp16 takes tens of times as long."""
    weights = [
        one for one in itertools.chain(model.parameters(), model.buffers()) if one.dtype in (torch.float16, torch.bfloat16)
    ]
    if sum(one.numel() for one in weights) > SMALL or not all(one.device.type == "cpu" for one in weights):
        weights = []
    kept = [one.data for one in weights]
    try:
        for one in weights:
            one.data = one.data.float()
        yield
    finally:
        for one, data in zip(weights, kept, strict=True):
            one.data = data


@torch.no_grad()
def _bits(model: nn.Module, tokenizer: Any, rows: Sequence[_Row], desc: str) -> float:
    """Of all predicted tokens together."""
    head, device, size = WordHead(model), next(model.parameters()).device, vocabulary_rows(tokenizer)
    rows = sorted(rows, key=lambda row: len(row.ids))
    nats = 0.0
    bar = tqdm(total=len(rows), desc=desc, unit="row", leave=False, disable=not desc)
    with evaluating(model), _in_fp32(model), bar:
        while rows:
            count = max(1, min(32, LOGITS // (head.size * max(len(row.positions) for row in rows[:32]))))
            batch, rows = rows[:count], rows[count:]
            # Padded by hand: not every tokenizer has a token for that.
            ids = torch.zeros(len(batch), len(batch[-1].ids), dtype=torch.int64)
            mask, predicted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for number, row in enumerate(batch):
                ids[number, : len(row.ids)] = torch.tensor(row.ids)
                mask[number, : len(row.ids)] = 1
                predicted[number, row.positions] = True
            targets = torch.tensor([target for row in batch for target in row.targets], device=device)
            inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
            # Rows of the table that the tokenizer cannot address are no words.
            logits = head.logits(model, inputs, predicted.to(device))[:, :size]
            nats += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
            bar.update(count)
    return nats / math.log(2)
