"""Counts -> kept ids: by size, by coverage, or by count; and which tokens a lossless vocabulary needs besides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Integral, Real

import numpy as np

from hf_glmd.errors import UsageError

_ASCII = frozenset(map(chr, range(33, 127)))


def select(
    counts: np.ndarray,
    *,
    size: int | float | None = None,
    coverage: float | None = None,
    min_count: int | None = None,
    required: Iterable[int] | Mapping[str, Iterable[int]] = (),
    absent: Iterable[int] = (),
    multiple_of: int = 1,
) -> np.ndarray:
    """The ids to keep: the required ones, then the most frequent; of equally frequent ones the lower id.

    All vocabularies chosen from the same counts and required ids lie inside each other: the larger contains the smaller.

    Args:
        counts: [V] integers >= 0.
        size: number of kept tokens, an int in [1, V]; or their share of V, a float in (0, 1], rounded up. Exact.
        coverage: in (0, 1]. The fewest tokens that make up this share of all counted tokens.
        min_count: >= 1. Every token counted at least this often. (Exactly one of the three is given.)
        required: ids that stay whatever their count; or several groups of them, each under the name an error calls it by.
        absent: ids that no token has (gaps in the vocabulary), never kept.
        multiple_of: >= 1. Round the number of tokens up to this multiple by keeping more tokens.
    Returns: int64 [K], strictly increasing.
    Raises: UsageError, a value is out of its range, or the required tokens are more than the size allows.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.size == 0 or (counts < 0).any():
        raise UsageError(f"counts must be a vector of integers >= 0, not {counts.dtype} {list(counts.shape)}.")
    counts = counts.astype(np.int64)
    rows = counts.size
    given = [name for name, value in (("size", size), ("coverage", coverage), ("min_count", min_count)) if value is not None]
    if len(given) != 1:
        raise UsageError(f"Give exactly one of size, coverage and min_count, not {' and '.join(given) or 'none'}.")
    if not _is_whole(multiple_of) or multiple_of < 1:
        raise UsageError(f"multiple_of={multiple_of!r} is not a whole number of at least 1: use e.g. 8, or 1 for any size.")

    gaps = _mask(absent, rows, "absent")
    floor, kinds = _floor(required, rows, gaps)
    tokens = rows - int(gaps.sum())
    # Required first, then by count; lexsort is stable, so of equal counts the lower id comes first. Gaps come last.
    order = np.lexsort((-counts, ~floor, gaps))
    n_floor = int(floor.sum())

    if size is not None:
        wanted = _wanted(size, rows, tokens)
        if wanted < n_floor:
            raise UsageError(
                f"size={size} is smaller than the {n_floor} tokens that must stay ({kinds})"
                + ("" if _is_whole(size) else f": it is {wanted} of {rows} tokens")
                + f". Use size={n_floor} or more, or let fewer be required."
            )
    elif coverage is not None:
        wanted = max(n_floor, _covering(counts[order], n_floor, coverage))
    else:
        assert min_count is not None
        if not _is_whole(min_count) or min_count < 1:
            raise UsageError(f"min_count={min_count!r} is not a whole number of at least 1.")
        wanted = int((floor | (counts >= min_count)).sum())

    kept = -(-wanted // int(multiple_of)) * int(multiple_of)
    if kept > tokens:
        raise UsageError(
            f"multiple_of={multiple_of} rounds {wanted} up to {kept}, more than the {tokens} tokens there are: "
            f"use a smaller size or multiple_of=1."
        )
    return np.sort(order[:kept]).astype(np.int64)


def single_characters(
    vocabulary: Mapping[str, int],
    counts: np.ndarray,
    alphabet: str = "seen",
    prefix: str = "##",
    skip: Iterable[int] = (),
) -> np.ndarray:
    """The one-character tokens out of which every removed token can be spelt, at the start of a word and inside it.

    With them a text whose characters are all kept never turns into an unknown token, whatever else is removed. Where the
    vocabulary itself lacks the one-character token a longer token would be spelt with, that longer token is returned instead.

    Args:
        vocabulary: token -> id, of the tokens that spell text.
        counts: [V].
        alphabet: "seen": characters of the counted tokens, and printable ASCII. "all": every character. "none": nothing, so that
            rare characters may become unknown.
        prefix: what a token inside a word begins with.
        skip: ids that are not spelt at all, e.g. special tokens.
    Returns: int64 ids, increasing.
    Raises: UsageError, the alphabet is none of the three.
    """
    if alphabet not in ("seen", "all", "none"):
        raise UsageError(f"alphabet={alphabet!r} is unknown: use 'seen', 'all' or 'none'.")
    if alphabet == "none":
        return np.zeros(0, dtype=np.int64)
    skipped = set(skip)
    kept: set[int] = set()
    for token, token_id in vocabulary.items():
        if token_id in skipped:
            continue
        inside = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        body = token[len(prefix) :] if inside else token
        wanted = alphabet == "all" or counts[token_id] > 0
        if not wanted and not (len(body) == 1 and body in _ASCII):
            continue
        spelling = [vocabulary.get(c if i == 0 and not inside else prefix + c) for i, c in enumerate(body)]
        if None in spelling:
            kept.add(token_id)
        # Both forms: the character may begin a word after what stood before it was split off.
        pieces = {vocabulary.get(form) for c in body for form in (c, prefix + c)}
        kept.update(piece for piece in pieces if piece is not None and piece not in skipped)
    return np.array(sorted(kept), dtype=np.int64)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def _is_share(value: object) -> bool:
    # NaN fails the comparison
    return isinstance(value, Real) and not isinstance(value, (Integral, bool, np.bool_)) and 0 < float(value) <= 1


def _wanted(size: int | float, rows: int, tokens: int) -> int:
    if _is_whole(size):
        if size < 1:
            raise UsageError(f"size={size} is not a number of tokens: use 1 to {tokens}, or a share such as 0.5.")
        if size > tokens:
            raise UsageError(f"size={size} is more than the {tokens} tokens of the vocabulary: use {tokens} or less.")
        return int(size)
    if not _is_share(size):
        raise UsageError(
            f"size={size!r} is neither a share in (0, 1] nor a number of tokens: use e.g. 0.5 or {max(1, rows // 2)}."
        )
    # As the decimal the user wrote: 0.07 * 100 is 7, not 7.000000000000001 rounded up to 8.
    return min(tokens, math.ceil(Fraction(repr(float(size))) * rows))


def _covering(ordered: np.ndarray, n_floor: int, coverage: float) -> int:
    if not _is_share(coverage) and not (_is_whole(coverage) and coverage == 1):
        raise UsageError(f"coverage={coverage!r} is not a share in (0, 1]: use e.g. 0.999.")
    covered = np.cumsum(ordered)
    if covered[-1] == 0:
        raise UsageError(f"coverage={coverage} of nothing: no token was counted. Count a corpus first, or use size.")
    needed = math.ceil(Fraction(repr(float(coverage))) * int(covered[-1]))
    return int(np.searchsorted(covered, needed, side="left")) + 1


def _mask(ids: Iterable[int], rows: int, name: str) -> np.ndarray:
    index = np.asarray(list(ids), dtype=np.int64)
    outside = index[(index < 0) | (index >= rows)]
    if outside.size:
        raise UsageError(f"{name} names the id {int(outside[0])}, but the vocabulary has the ids 0 to {rows - 1}.")
    mask = np.zeros(rows, dtype=bool)
    mask[index] = True
    return mask


def _floor(required: Iterable[int] | Mapping[str, Iterable[int]], rows: int, gaps: np.ndarray) -> tuple[np.ndarray, str]:
    """[V] which ids must stay, and in words how many of each kind; an id of several kinds counts for the first."""
    groups = required if isinstance(required, Mapping) else {"required": required}
    floor = np.zeros(rows, dtype=bool)
    words = []
    for name, ids in groups.items():
        mask = _mask(ids, rows, name)
        if (mask & gaps).any():
            raise UsageError(f"{name} names the id {int(np.flatnonzero(mask & gaps)[0])}, which no token has: remove it there.")
        words.append(f"{int((mask & ~floor).sum())} {name}")
        floor |= mask
    return floor, ", ".join(words)
