"""How many tokens a text takes with a part of a vocabulary: measured by splitting it with that part, many parts in seconds."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hf_glmd.vocab.closure import bare
from hf_glmd.vocab.rewrite import is_byte_level, shrink_tokenizer_json
from hf_glmd.vocab.scripts import script_of

LOOKUPS = 8_000_000
"""Substrings of all words that are looked up at most; of longer words candidates keep every token."""


@dataclass(frozen=True)
class Split:
    """What texts are split into: tokens, how many of them are the unknown one, and how many characters these stand for."""

    tokens: int
    unknown: int
    unknown_characters: int


class HeldOutTexts:
    """Named texts, and what parts of a vocabulary split them into.

    A model splits each word by itself, so each different word is split once, and only if one of its tokens was removed: the
    result is that of encoding the texts with the candidate tokenizer. Tokens that do not occur in any of the words that are split
    cannot change it and are left out of the candidates, which makes them small. Added tokens within a text only separate what is
    measured.

    Args:
        backend: of the original tokenizer, and `data` its tokenizer.json, parsed.
        vocabulary: token -> id.
        texts: by the name of the corpus.
        required: ids that every part holds.
    """

    def __init__(
        self,
        backend: Tokenizer,
        data: Mapping[str, Any],
        vocabulary: Mapping[str, int],
        texts: Mapping[str, Sequence[str]],
        required: np.ndarray,
    ) -> None:
        self.names = list(texts)
        words = {name: _words(backend, data, part) for name, part in texts.items()}
        self._words = list(dict.fromkeys(itertools.chain.from_iterable(words.values())))
        self._times = np.array([[counter[word] for word in self._words] for counter in words.values()], dtype=np.int64)
        split = [backend.model.tokenize(word) for word in self._words]
        self._ids = np.array([token.id for tokens in split for token in tokens], dtype=np.int64)
        self._word_of = np.repeat(np.arange(len(split)), [len(tokens) for tokens in split])
        unknown = _unknown_id(data)
        in_bytes = is_byte_level(data) and backend.decoder is not None
        self._text_of = (lambda word: backend.decoder.decode([word])) if in_bytes else str
        self._before = np.array([_lengths_of(*pair, unknown) for pair in zip(self._words, split, strict=True)])
        self.before = self._totals(self._before)
        rows = max(vocabulary.values()) + 1
        self._always = np.zeros(rows, dtype=bool)
        self._always[required] = True
        self._occurring, self._occurs_in, everywhere = _occurring(self._words, data, vocabulary)
        self._always[everywhere] = True
        relevant = self._always.copy()
        relevant[self._occurring] = relevant[self._ids] = True
        self._relevant = np.flatnonzero(relevant)
        self._data = shrink_tokenizer_json(data, self._relevant, vocabulary)

    def covered(self, kept_ids: np.ndarray) -> dict[str, float]:
        """By corpus, the share of its tokens that are among these."""
        kept = np.isin(self._ids, kept_ids)
        shares = self._times[:, self._word_of] @ kept / np.maximum(self._times[:, self._word_of].sum(1), 1)
        return dict(zip(self.names, shares.tolist(), strict=True))

    def split(self, kept_ids: np.ndarray) -> dict[str, Split]:
        """Tokens of each corpus with only `kept_ids` in the vocabulary, int64 [K], closed under merges, with all required ids."""
        return self._totals(self._lengths(kept_ids))

    def by_script(self, kept_ids: np.ndarray) -> dict[str, tuple[int, int]]:
        """Tokens of all texts before and with these tokens alone, by the script of the word."""
        scripts = np.array([script_of(self._text_of(word)) for word in self._words])
        times, after = self._times.sum(0), self._lengths(kept_ids)
        found = {}
        for script in np.unique(scripts):
            here = times * (scripts == script)
            found[str(script)] = int(here @ self._before[:, 0]), int(here @ after[:, 0])
        return found

    def _lengths(self, kept_ids: np.ndarray) -> np.ndarray:
        """`_lengths_of` each word with these tokens alone, int64 [words, 3]."""
        kept = np.zeros(self._always.size, dtype=bool)
        kept[kept_ids] = True
        affected = np.unique(self._word_of[~kept[self._ids]])
        lengths = self._before.copy()
        if affected.size:
            is_read = np.zeros(len(self._words), dtype=bool)
            is_read[affected] = True
            used = self._always.copy()
            used[self._occurring[is_read[self._occurs_in]]] = True
            data = shrink_tokenizer_json(self._data, np.flatnonzero((kept & used)[self._relevant]))
            model, unknown = Tokenizer.from_str(json.dumps(data, ensure_ascii=False)).model, _unknown_id(data)
            words = [self._words[at] for at in affected.tolist()]
            lengths[affected] = [_lengths_of(word, model.tokenize(word), unknown) for word in words]
        return lengths

    def _totals(self, lengths: np.ndarray) -> dict[str, Split]:
        """From [words, 3]."""
        totals = self._times @ lengths.reshape(-1, 3)
        return {name: Split(*row) for name, row in zip(self.names, totals.tolist(), strict=True)}


def _words(backend: Tokenizer, data: Mapping[str, Any], texts: Sequence[str]) -> Counter[str]:
    """What the model is handed, and how often."""
    added = sorted((token["content"] for token in data.get("added_tokens") or ()), key=len, reverse=True)
    parts = re.compile("|".join(map(re.escape, added))).split if added else lambda text: [text]
    words: Counter[str] = Counter()
    for part in itertools.chain.from_iterable(map(parts, texts)):
        if part:
            normal = backend.normalizer.normalize_str(part) if backend.normalizer else part
            pieces = backend.pre_tokenizer.pre_tokenize_str(normal) if backend.pre_tokenizer else [(normal, None)]
            words.update(word for word, _ in pieces if word)
    return words


def _lengths_of(word: str, tokens: list[Any], unknown: int | None) -> tuple[int, int, int]:
    """Tokens, unknown ones, and characters of these."""
    missing = [] if unknown is None else [token for token in tokens if token.id == unknown]
    if not missing:
        return len(tokens), 0, 0
    written = word.encode()
    texts = (written[slice(*token.offsets)].decode(errors="ignore").strip("▁") for token in missing)
    return len(tokens), len(missing), sum(map(len, texts))


def _unknown_id(data: Mapping[str, Any]) -> int | None:
    model = data["model"]
    return model.get("unk_id") if isinstance(model["vocab"], list) else model["vocab"].get(model.get("unk_token"))


def _occurring(
    words: Sequence[str], data: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Which tokens are substrings of which words: token ids and word indices, int64 [pairs] each; and ids never left out: all of
    them where the words are too long to look."""
    model = data["model"]
    prefix, suffix = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    bodies: dict[str, list[int]] = {}
    for token, token_id in vocabulary.items():
        bodies.setdefault(bare(token, prefix, suffix), []).append(token_id)
    longest = max(map(len, bodies))
    if sum(len(word) * min(len(word), longest) for word in words) > LOOKUPS:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), list(vocabulary.values())
    ids: list[int] = []
    sizes: list[int] = []
    for word in words:
        length = len(word)
        parts = {word[at:end] for at in range(length) for end in range(at + 1, min(length, at + longest) + 1)}
        found = [token_id for part in bodies.keys() & parts for token_id in bodies[part]]
        ids += found
        sizes.append(len(found))
    return np.array(ids, dtype=np.int64), np.repeat(np.arange(len(words)), sizes), []
