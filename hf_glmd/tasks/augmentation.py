"""More text where a task has little: copies of its examples in which the teacher replaced some words by likely ones.

The student needs no labels, so it does not matter that such a copy may have another one: the teacher answers it as it is.
Source: TinyBERT, arXiv:1909.10351, section 3.2 (data augmentation).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import padded
from hf_glmd.data.packing import boundary_ids
from hf_glmd.tasks.candidates import LogitsAt
from hf_glmd.tasks.examples import answer_ids

TOP_TOKENS = 10
"""A word is replaced by one of so many that the teacher finds most probable, each as often as it says."""

LEAST_WORDS = 4
"""Shorter texts (a pronoun, a conjunction, the word that a question is about) stay as they are."""


@dataclass(frozen=True)
class _Text:
    """A text with the words to replace.

    Attributes:
        ids: as the teacher reads it, those words hidden.
        spans: where in the text they stand, from first to last.
        words: their ids.
        seeds: of what replaces them.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int]
    seeds: tuple[int, ...]


class WordReplacer:
    """Replaces words by what a masked language model finds likely in their place.

    Only words that are one token are replaced, only by words that are one token, and all else stays letter by letter.

    Args:
        logits_at: model inputs, bool positions [B, S] -> logits [N, V], e.g. `LiveTeacher.logits`.
        tokenizer: the model's.
        max_length: token ids per text; what is further behind stays as it is.
        share: of the words of a text that are replaced, in (0, 1).
        untouched: ids that are neither replaced nor put in the place of others: verbalizers and the pattern's own words.
        seed: of what is drawn; beside it only the text and the number of the copy count.
    """

    def __init__(
        self,
        logits_at: LogitsAt,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        share: float,
        untouched: Collection[int],
        seed: int,
    ) -> None:
        self.logits_at, self.tokenizer, self.max_length, self.share, self.seed = logits_at, tokenizer, max_length, share, seed
        self.words = _whole_words(tokenizer, untouched)

    def copies(
        self, data: datasets.Dataset, columns: Sequence[str], count: int, device: torch.device, batch_size: int = 64
    ) -> datasets.Dataset:
        """`count` copies of the examples, with words replaced in some columns; those in which none was replaced are left out."""
        made = [self._copy(data, columns, number, device, batch_size) for number in range(count)]
        return datasets.concatenate_datasets(made) if made else data.select([])

    def _copy(
        self, data: datasets.Dataset, columns: Sequence[str], number: int, device: torch.device, batch_size: int
    ) -> datasets.Dataset:
        changed, rewritten = np.zeros(len(data), dtype=bool), data.to_dict()
        for column in columns:
            texts = rewritten[column]
            drawn = [self._drawn(text, number) for text in texts]
            rows = sorted((row for row, text in enumerate(drawn) if text.words), key=lambda row: len(drawn[row].ids))
            for start in tqdm(range(0, len(rows), batch_size), desc=f"Replacing words of {column}", leave=False, disable=None):
                part = rows[start : start + batch_size]
                for row, text in zip(part, self._replaced([drawn[row] for row in part], device), strict=True):
                    texts[row], changed[row] = text, True
        return datasets.Dataset.from_dict(rewritten, features=data.features).select(np.flatnonzero(changed))

    def _drawn(self, text: str, number: int) -> _Text:
        seeds = (self.seed, number, zlib.crc32(text.encode()))
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        start, end = boundary_ids(self.tokenizer)
        room = self.max_length - len(start) - len(end)
        ids, spans, places = encoded["input_ids"][:room], encoded["offset_mapping"], encoded.word_ids()
        tokens_of = Counter(places)
        alone = [
            place
            for place, token in enumerate(ids)
            if token in self.words and tokens_of[places[place]] == 1 and text[slice(*spans[place])].strip().isalpha()
        ]
        chosen = [
            place for place, draw in zip(alone, np.random.default_rng(seeds).random(len(alone)), strict=True) if draw < self.share
        ]
        if len(tokens_of) < LEAST_WORDS:
            chosen = []
        words = [ids[place] for place in chosen]
        for place in chosen:
            ids[place] = self.tokenizer.mask_token_id
        return _Text(text, [*start, *ids, *end], [spans[place] for place in chosen], words, (*seeds, 1))

    @torch.no_grad()
    def _replaced(self, texts: Sequence[_Text], device: torch.device) -> list[str]:
        batch = {
            name: value.to(device) for name, value in padded([{"input_ids": text.ids} for text in texts], self.tokenizer).items()
        }
        logits = self.logits_at(batch, batch["input_ids"] == self.tokenizer.mask_token_id).float()
        allowed = torch.tensor(sorted(self.words), device=device)
        logits = logits[:, allowed]
        original = torch.tensor([word for text in texts for word in text.words], device=device)
        logits.masked_fill_(allowed == original[:, None], -torch.inf)
        chances, top = logits.softmax(-1).topk(min(TOP_TOKENS, len(allowed) - 1))
        chances, top = chances.double().cpu().numpy(), allowed[top].cpu().numpy()
        found, row = [], 0
        for text in texts:
            draw, written, end = np.random.default_rng(text.seeds), "", 0
            for first, last in text.spans:
                place = int(np.searchsorted(np.cumsum(chances[row]) / chances[row].sum(), draw.random()))
                word = self.words[int(top[row, min(place, len(top[row]) - 1)])]
                space = len(text.text[first:last]) - len(text.text[first:last].lstrip())  # of tokens that begin with one
                written += text.text[end : first + space] + word
                end, row = last, row + 1
            found.append(written + text.text[end:])
        return found


def _whole_words(tokenizer: PreTrainedTokenizerBase, untouched: Collection[int]) -> dict[int, str]:
    """Token id -> the word it is: of letters only, and this one token in the middle of a text."""
    forbidden = {*untouched, *tokenizer.all_special_ids}
    ids = [token for token in tokenizer.get_vocab().values() if token not in forbidden]
    texts = {token: text for token, text in zip(ids, _decoded(tokenizer, ids), strict=True) if text.isalpha()}
    split = answer_ids(list(texts.values()), True, tokenizer)
    return {token: text for (token, text), found in zip(texts.items(), split, strict=True) if found == [token]}


def _decoded(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode([[token] for token in ids])]
