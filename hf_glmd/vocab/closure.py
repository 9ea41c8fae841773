"""Which tokens a BPE token is merged from, found by simulating its own merges: what has to be kept so that it stays reachable."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_NEVER = 1 << 62
"""A rank after all ranks."""

_JOINED, _TORN, _UNDECIDED = 1, 0, -1


@dataclass(frozen=True)
class MergeTree:
    """What the tokens of a BPE vocabulary are merged from.

    A set of tokens that holds the parts of each of its tokens is called closed. With only the merges among its own tokens it
    splits a text whose tokens are all in the set as the whole vocabulary does. For each merge that took place lies inside of one
    final token, and what it makes is on the way to that token, so the merge is still there; and since the merges keep their order
    and none is new, the same one is chosen at each step.

    Attributes:
        parts: for each id 0 to V-1 the two ids that its last merge joins, left first; () for a token that no merge makes. (Four
            and more where a string can be spelt in several ways, say with and without the prefix of pieces inside words.)
        never: ids that no text turns into, but for added tokens, increasing: neither a character, a byte, nor reached by merges.
    """

    parts: list[tuple[int, ...]]
    never: list[int]

    @classmethod
    def of(cls, model: Mapping[str, Any], rows: int | None = None) -> MergeTree:
        """Of the `model` part of a BPE tokenizer.json, with merges of either format.

        Args:
            rows: V, where added tokens have ids after those of the model.
        """
        derivations = _Derivations(model)
        derivations.parts += [()] * ((rows or 0) - len(derivations.parts))
        # Such a model takes a whole word that is in its vocabulary before it merges anything.
        never = [] if model.get("ignore_merges") else sorted(derivations.unreachable)
        return cls(derivations.parts, never)

    def closed(self, ids: Iterable[int]) -> list[int]:
        """The ids, each one preceded by those of its parts, and of their parts, that are not yet there: every start is closed."""
        parts = self.parts
        done = bytearray(len(parts))
        order: list[int] = []
        for token in ids:
            waiting = [] if done[token] else [token]
            while waiting:
                token = waiting[-1]
                for part in parts[token]:
                    if not done[part]:
                        waiting.append(part)
                        break
                else:
                    waiting.pop()
                    done[token] = True
                    order.append(token)
        return order


def merge_pairs(merges: list[str] | list[list[str]]) -> list[list[str]]:
    """The merges of tokenizer.json as pairs; those of early releases are written "a b"."""
    if not merges or not isinstance(merges[0], str):
        return merges  # type: ignore[return-value]
    return [merge.split(" ", 1) for merge in merges if not merge.startswith("#version")]  # type: ignore[union-attr]


class _Derivations:
    """Finds the last merge of every token, shorter tokens first, all of one length at once.

    Simulating the merges of 128,000 tokens one by one takes seconds. But the last merge of a token joins two tokens whose own
    merges are known by then, and they took place in the same order as in the token, provided that no merge across the border
    between the two came first. So only the tokens that met at the border are looked at (`_joins`). In the rare cases that this
    does not decide, all merges of the token are simulated (`_simulate`).
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        vocabulary: Mapping[str, int] = model["vocab"]
        self.vocabulary = vocabulary
        self.prefix = model.get("continuing_subword_prefix") or ""
        self.suffix = model.get("end_of_word_suffix") or ""
        self.rows = rows = max(vocabulary.values(), default=-1) + 1
        pairs, cut = merge_pairs(model["merges"]), len(self.prefix)
        lefts = np.array([vocabulary[left] for left, _ in pairs], dtype=np.int64)
        rights = np.array([vocabulary[right] for _, right in pairs], dtype=np.int64)
        self.results = np.array([vocabulary[left + right[cut:]] for left, right in pairs], dtype=np.int64)  # by rank
        keys = lefts * rows + rights
        ranks = np.argsort(keys, kind="stable")
        last = np.diff(keys[ranks], append=rows * rows) > 0  # of equal merges the last one counts
        # Increasing, and closed by a key above all others, so that a search never ends beyond them.
        self.keys, self.ranks = np.append(keys[ranks][last], rows * rows), np.append(ranks[last], _NEVER)

        self.parts: list[tuple[int, ...]] = [()] * rows
        # Of the derivation of each token. The time is the highest rank among its merges: nothing of a higher rank came before.
        self.left, self.right, self.own_rank, self.time = (np.full(rows, -1, dtype=np.int64) for _ in range(4))
        self.reached = np.zeros(rows, dtype=bool)
        self.reached[list(self._first_symbols(model))] = True
        self._run()
        there = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
        self.unreachable: list[int] = sorted(there[~self.reached[there]].tolist())

    def _run(self) -> None:
        symbols = self.reached.copy()
        length = np.zeros(self.rows, dtype=np.int64)
        length[list(self.vocabulary.values())] = list(map(len, self.vocabulary))
        if self.prefix:  # without it, both parts of a token are shorter than the token
            length[[i for token, i in self.vocabulary.items() if token.startswith(self.prefix)]] -= len(self.prefix)
        ranks = self.ranks[:-1]
        order = np.lexsort((ranks, self.results[ranks], length[self.results[ranks]]))
        keys, ranks = self.keys[order], ranks[order]
        for start, end in itertools.pairwise([0, *(np.flatnonzero(np.diff(length[self.results[ranks]])) + 1), ranks.size]):
            left, right = np.divmod(keys[start:end], self.rows)
            possible = self.reached[left] & self.reached[right]
            left, right, rank = left[possible], right[possible], ranks[start:end][possible]
            result = self.results[rank]
            joins = self._joins(left, right)
            for at in np.flatnonzero(joins == _UNDECIDED):
                left[at], right[at], joins[at] = self._simulate(left[at], right[at], result[at])
            found = joins == _JOINED
            left, right, rank, result = left[found], right[found], rank[found], result[found]
            first = np.diff(result, prepend=-1) > 0
            for one in zip(result.tolist(), left.tolist(), right.tolist(), first.tolist(), strict=True):
                self._add_parts(*one)
            # In longer tokens a symbol (a byte, say, whose name can be spelt out as well) is taken as it is.
            new = first & ~symbols[result]
            left, right, rank, result = left[new], right[new], rank[new], result[new]
            rank = self._rank(left, right)
            self.left[result], self.right[result], self.own_rank[result] = left, right, rank
            self.time[result] = np.maximum(rank, np.maximum(self.time[left], self.time[right]))
            self.reached[result] = True

    def _add_parts(self, token: int, left: int, right: int, first: bool) -> None:
        # Unless pieces are marked by their place, characters can be spelt in one way only, so there is one last merge.
        if first:
            self.parts[token] = (left, right)
        elif (self.prefix or self.suffix) and (left, right) != self.parts[token][:2]:
            self.parts[token] += (left, right)

    def _rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The ranks of the merges of these pairs, `_NEVER` where there is none."""
        keys = left * self.rows + right
        at = np.searchsorted(self.keys, keys)
        return np.where(self.keys[at] == keys, self.ranks[at], _NEVER)

    def _joins(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Which pairs of tokens side by side come about without a merge across the border between them.

        Merges next to the border are undone, latest first: of the two tokens there, the one that was made last is taken apart.
        For the pair at the border to merge, it would have had to be chosen before another merge consumed either of its tokens.
        Until a token is there, a merge as late as its time is made, so a pair of a higher rank comes too late; and the merge that
        consumes it has a rank of its own, so a pair of a lower rank comes first.

        Returns: for each pair `_JOINED`, `_TORN`, or `_UNDECIDED`.
        """
        verdict = np.full(left.size, _UNDECIDED)
        at = np.arange(left.size)
        # Time and rank of the merge that consumed the token left (right) of the border; the whole is made last of all.
        left_used, left_rank, right_used, right_rank = (np.full(left.size, _NEVER) for _ in range(4))
        while at.size:
            left_time, right_time = self.time[left], self.time[right]
            go_on = (left_time >= 0) | (right_time >= 0)
            verdict[at[~go_on]] = _JOINED  # down to characters, and nothing came in between
            at, left, right, left_time, right_time, left_used, left_rank, right_used, right_rank = (
                values[go_on] for values in (at, left, right, left_time, right_time, left_used, left_rank, right_used, right_rank)
            )
            left_last = left_time > right_time  # of merges of one rank the leftmost comes first
            left_used, left_rank = np.where(left_last, (left_time, self.own_rank[left]), (left_used, left_rank))
            right_used, right_rank = np.where(left_last, (right_used, right_rank), (right_time, self.own_rank[right]))
            left, right = np.where(left_last, (self.right[left], right), (left, self.left[right]))
            crossing = self._rank(left, right)
            in_time = (crossing < left_used) & (crossing <= right_used)
            verdict[at[in_time & (crossing < left_rank) & (crossing <= right_rank)]] = _TORN
            at, left, right, left_used, left_rank, right_used, right_rank = (
                values[~in_time] for values in (at, left, right, left_used, left_rank, right_used, right_rank)
            )
        return verdict

    def _simulate(self, left: int, right: int, token_id: int) -> tuple[int, int, int]:
        """Merges the symbols of both tokens in order of rank and from the left.

        Returns: the last pair and `_JOINED` if that gives the token, else `_TORN`.
        """
        symbols = np.array([*self._spelt(left), *self._spelt(right)], dtype=np.int64)
        while True:
            ranks = self._rank(symbols[:-1], symbols[1:])
            at = int(ranks.argmin())
            if ranks[at] == _NEVER:
                return left, right, _TORN
            merged = self.results[ranks[at]]
            if symbols.size == 2:
                return int(symbols[0]), int(symbols[1]), _JOINED if merged == token_id else _TORN
            symbols = np.concatenate([symbols[:at], [merged], symbols[at + 2 :]])

    def _spelt(self, token_id: int) -> list[int]:
        waiting, symbols = [int(token_id)], []
        while waiting:
            token_id = waiting.pop()
            if self.left[token_id] < 0:
                symbols.append(token_id)
            else:
                waiting += (int(self.right[token_id]), int(self.left[token_id]))
        return symbols

    def _first_symbols(self, model: Mapping[str, Any]) -> set[int]:
        """What a word consists of before anything is merged: its characters, marked or not; bytes; the unknown token."""
        longest = 1 + len(self.prefix) + len(self.suffix)
        short = [token for token in self.vocabulary if len(token) <= longest]
        symbols = {self.vocabulary[t] for t in short if len(t) == 1 or len(bare(t, self.prefix, self.suffix)) == 1}
        if model.get("byte_fallback"):
            symbols |= {self.vocabulary[name] for name in BYTE_NAMES if name in self.vocabulary}
        if model.get("unk_token") in self.vocabulary:
            symbols.add(self.vocabulary[model["unk_token"]])
        return symbols


BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""What models with `byte_fallback` call the bytes of a character that is not in their vocabulary."""


def bare(token: str, prefix: str, suffix: str) -> str:
    """The token without the marks of its place in the word: the prefix of a piece inside, the suffix of one at the end."""
    if prefix and len(token) > len(prefix):
        token = token.removeprefix(prefix)
    if suffix and len(token) > len(suffix):
        token = token.removesuffix(suffix)
    return token
