"""Counts -> kept ids: by size, by coverage, or by count; and which tokens a lossless vocabulary needs besides."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_glmd.errors import UsageError
from hf_glmd.utils.files import check_sha256, replaced, sha256_of
from hf_glmd.vocab.closure import MergeTree, bare
from hf_glmd.vocab.scripts import is_written_in, scripts_in_use

ORDERS = ("count", "leaf")
_ASCII = frozenset(map(chr, range(33, 127)))
_FORMAT = "hf_glmd.order"
_VERSION = "1"


def select(
    counts: np.ndarray,
    *,
    size: int | float | None = None,
    coverage: float | None = None,
    min_count: int | None = None,
    required: Iterable[int] | Mapping[str, Iterable[int]] = (),
    absent: Iterable[int] = (),
    multiple_of: int = 1,
    order: str | np.ndarray = "count",
    merges: MergeTree | None = None,
) -> np.ndarray:
    """The ids to keep: the required ones, then the first of the order, by default the most frequent (of equal ones the lower id).

    All vocabularies chosen from the same counts and required ids lie inside each other: the larger contains the smaller. With
    `merges` each of them holds what its tokens are merged from.

    Args:
        counts: [V] integers >= 0.
        size: number of kept tokens, an int in [1, V]; or their share of V, a float in (0, 1], rounded up. Exact.
        coverage: in (0, 1]. The fewest tokens of the order that make up this share of all counted tokens.
        min_count: >= 1. The fewest tokens of the order that hold every token counted at least this often. (Exactly one of the
            three is given.)
        required: ids that stay whatever their count; or several groups of them, each under the name an error calls it by.
        absent: ids that no token has (gaps in the vocabulary), never kept.
        multiple_of: >= 1. Round the number of tokens up to this multiple by keeping more tokens.
        order: "count" or "leaf", see `token_order`; or all ids in an order of one's own.
        merges: of a BPE vocabulary.
    Returns: int64 [K], strictly increasing.
    Raises: UsageError, a value is out of its range, or the required tokens are more than the size allows.
    """
    counts = _checked_counts(counts)
    rows = counts.size
    given = [name for name, value in (("size", size), ("coverage", coverage), ("min_count", min_count)) if value is not None]
    if len(given) != 1:
        raise UsageError(f"Give exactly one of size, coverage and min_count, not {' and '.join(given) or 'none'}.")
    if not _is_whole(multiple_of) or multiple_of < 1:
        raise UsageError(f"multiple_of={multiple_of!r} is not a whole number of at least 1: use e.g. 8, or 1 for any size.")

    ids, n_floor, kinds = whole_order(counts, required, absent, order, merges)
    tokens = ids.size

    if size is not None:
        wanted = _wanted(size, rows, tokens)
        if wanted < n_floor:
            raise UsageError(
                f"size={size} is smaller than the {n_floor} tokens that must stay ({kinds})"
                + ("" if _is_whole(size) else f": it is {wanted} of {rows} tokens")
                + f". Use size={n_floor} or more, or let fewer be required."
            )
    elif coverage is not None:
        wanted = max(n_floor, _covering(counts[ids], coverage))
    else:
        assert min_count is not None
        if not _is_whole(min_count) or min_count < 1:
            raise UsageError(f"min_count={min_count!r} is not a whole number of at least 1.")
        often = np.flatnonzero(counts[ids] >= min_count)
        wanted = max(n_floor, int(often[-1]) + 1 if often.size else 0)

    kept = -(-wanted // int(multiple_of)) * int(multiple_of)
    if kept > tokens:
        raise UsageError(
            f"multiple_of={multiple_of} rounds {wanted} up to {kept}, more than the {tokens} tokens there are: "
            f"use a smaller size or multiple_of=1."
        )
    return np.sort(ids[:kept])


def whole_order(
    counts: np.ndarray,
    required: Iterable[int] | Mapping[str, Iterable[int]] = (),
    absent: Iterable[int] = (),
    order: str | np.ndarray = "count",
    merges: MergeTree | None = None,
) -> tuple[np.ndarray, int, str]:
    """All ids, the required ones first: `ids[:k]` is what `select` keeps at size k, for each k that holds the required ones.

    Args: as of `select`.
    Returns: int64 [V - absent]; how many are required; and of which kinds these are, in words.
    Raises: UsageError, an id or the order does not fit.
    """
    gaps = _mask(absent, counts.size, "absent")
    floor, kinds = _floor(required, counts.size, gaps, merges)
    if isinstance(order, str):
        ids = token_order(counts, order, merges, np.flatnonzero(gaps))
    else:
        ids = _checked_order(order, gaps, merges)
    # What is required may stand anywhere in the order. It is closed, so with it in front every start is still closed.
    return np.concatenate([ids[floor[ids]], ids[~floor[ids]]]), int(floor.sum()), kinds


def token_order(counts: np.ndarray, by: str = "count", merges: MergeTree | None = None, absent: Iterable[int] = ()) -> np.ndarray:
    """All ids, the one to keep first in front. With `merges` every start of the order holds what its tokens are merged from.

    Args:
        counts: [V] integers >= 0.
        by: "count": the most frequent token first, each preceded by those it is merged from that are still missing. More texts
            keep all their tokens. "leaf": made backwards; of the tokens from which none that is left is merged, the rarest goes,
            and its occurrences pass on to the two parts it falls into. Texts come out slightly shorter. Without merges there is
            no difference. Of equal tokens the lower id comes first.
        merges: of a BPE vocabulary. Tokens that no text turns into come last.
        absent: ids that no token has.
    Returns: int64 [V - absent].
    Raises: UsageError, `by` is neither.
    Source: "leaf": Teaching Old Tokenizers New Words, arXiv:2512.03989 (leaf-based frequency pruning).
    """
    counts = _checked_counts(counts)
    if by not in ORDERS:
        raise UsageError(f"order={by!r} is unknown: use 'count', 'leaf', a file that save_order wrote, or an array of all ids.")
    there, last = np.ones(counts.size, dtype=bool), np.zeros(counts.size, dtype=bool)
    there[_ids(absent)] = False
    last[_ids(merges.never if merges else ())] = True
    ids = np.flatnonzero(there)
    if merges is None or by == "count":
        ids = ids[np.lexsort((-counts[ids], last[ids]))]  # stable: of equal ones the lower id
        return ids if merges is None else np.array(merges.closed(ids.tolist()), dtype=np.int64)
    return _leaf_order(counts, ids, last, merges)


def save_order(order: np.ndarray, path: str | os.PathLike[str], fingerprint: str) -> None:
    """Writes an order of all ids to one safetensors file, whole or not at all, with the fingerprint of their tokenizer."""
    metadata = {"format": _FORMAT, "version": _VERSION, "tokenizer_sha256": fingerprint}
    tensors = {"order": np.asarray(order, dtype=np.int64)}
    with replaced(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata | {"sha256": sha256_of(tensors, metadata)})


def load_order(path: str | os.PathLike[str], fingerprint: str) -> np.ndarray:
    """Reads what `save_order` wrote.

    Raises: UsageError, there is no such file, it holds no order, or that of another tokenizer.
    """
    if not Path(path).is_file():
        raise UsageError(f"There is no order at '{path}': use 'count', 'leaf', or a file that VocabShrinker.save_order wrote.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            order = file.get_tensor("order")
    except Exception as error:  # safetensors raises its own class for a file that is none, or lacks the tensor
        raise UsageError(f"'{path}' does not hold an order of tokens ({error}): save it again.") from error
    if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
        raise UsageError(f"'{path}' does not hold an order of tokens in format version {_VERSION}: save it again.")
    check_sha256({"order": order}, metadata, path, "Save it again.")
    if metadata["tokenizer_sha256"] != fingerprint:
        raise UsageError(
            f"The order in '{path}' is that of another tokenizer (sha256 {metadata['tokenizer_sha256'][:12]}, not "
            f"{fingerprint[:12]}): save one with this tokenizer, or load the one it was saved with."
        )
    return order


ALPHABETS = ("seen", "scripts", "all", "none")


def single_characters(
    vocabulary: Mapping[str, int],
    counts: np.ndarray,
    alphabet: str = "seen",
    prefix: str = "##",
    suffix: str = "",
    skip: Iterable[int] = (),
    spelt_in_bytes: bool = False,
) -> np.ndarray:
    """The one-character tokens out of which every removed token can be spelt, wherever in a word its characters stand.

    With them a text whose characters are all kept never turns into an unknown token, whatever else is removed. Where the
    vocabulary itself lacks the one-character token a longer token would be spelt with, that longer token is returned instead.

    Args:
        vocabulary: token -> id, of the tokens that spell text.
        counts: [V].
        alphabet: "seen": characters of the counted tokens, and printable ASCII. "scripts": these, the letters of each script that
            at least a hundredth of the counted text is in (but for Han and Hangul, of which there are thousands), punctuation,
            figures, currency and mathematical signs. "all": every character. "none": nothing, so that rare characters may become
            unknown.
        prefix: what a token inside a word begins with.
        suffix: what a token at the end of a word ends with.
        skip: ids that are not spelt at all, e.g. special tokens.
        spelt_in_bytes: a character without a token is spelt in bytes, so that no token is returned for want of one.
    Returns: int64 ids, increasing.
    Raises: UsageError, the alphabet is none of the four.
    """
    if alphabet not in ALPHABETS:
        raise UsageError(f"alphabet={alphabet!r} is unknown: use 'seen', 'scripts', 'all' or 'none'.")
    if alphabet == "none":
        return np.zeros(0, dtype=np.int64)
    skipped, seen = set(skip), counts.tolist()
    wanted = [
        (token, token_id)
        for token, token_id in vocabulary.items()
        if (alphabet == "all" or seen[token_id]) and token_id not in skipped
    ]
    characters = set().union(*(bare(token, prefix, suffix) for token, _ in wanted))
    if alphabet == "scripts":
        bodies = [bare(token, prefix, suffix) for token, _ in wanted]
        scripts = scripts_in_use(bodies, counts[[token_id for _, token_id in wanted]])
        single = {
            body
            for token, token_id in vocabulary.items()
            if token_id not in skipped
            if len(body := bare(token, prefix, suffix)) == 1
        }
        characters |= {character for character in single if is_written_in(character, scripts)}
    # All forms, for a character may come to begin or end a word's piece once what stood beside it is split off.
    forms = {c: {m + c + e for m in {"", prefix} for e in {"", suffix}} for c in characters | _ASCII}
    kept = {vocabulary[form] for c in forms for form in forms[c] if form in vocabulary} - skipped
    in_all_forms = {c for c in characters if all(form in vocabulary for form in forms[c])}
    for token, token_id in () if spelt_in_bytes else wanted:
        body = bare(token, prefix, suffix)
        if not in_all_forms.issuperset(body) and not _can_be_spelt(token, body, vocabulary, prefix, suffix):
            kept.add(token_id)
    return np.array(sorted(kept), dtype=np.int64)


def _can_be_spelt(token: str, body: str, vocabulary: Mapping[str, int], prefix: str, suffix: str) -> bool:
    starts = not (prefix and token.startswith(prefix) and len(token) > len(prefix))
    ends = bool(suffix) and token.endswith(suffix) and len(token) > len(suffix)
    last = len(body) - 1
    return all(
        ("" if at == 0 and starts else prefix) + character + (suffix if at == last and ends else "") in vocabulary
        for at, character in enumerate(body)
    )


def _leaf_order(counts: np.ndarray, ids: np.ndarray, last: np.ndarray, merges: MergeTree) -> np.ndarray:
    frequency = counts.tolist()
    merged_from = [0] * counts.size  # how many of the tokens that are left this one is a part of
    for parts in merges.parts:
        for part in set(parts):
            merged_from[part] += 1
    # A token's occurrences are complete once it is a leaf: all that it was part of has gone. So each enters the heap once.
    leaves = [
        (not never, frequency[i], -i) for i, never in zip(ids.tolist(), last[ids].tolist(), strict=True) if not merged_from[i]
    ]
    heapq.heapify(leaves)
    gone = []
    while leaves:
        _, passed_on, negative = heapq.heappop(leaves)
        gone.append(-negative)
        parts = merges.parts[-negative]
        for part in parts[:2]:
            frequency[part] += passed_on
        for part in set(parts):
            merged_from[part] -= 1
            if not merged_from[part]:
                heapq.heappush(leaves, (True, frequency[part], -part))
    return np.array(gone[::-1], dtype=np.int64)


def _checked_counts(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.size == 0 or (counts < 0).any():
        raise UsageError(f"counts must be a vector of integers >= 0, not {counts.dtype} {list(counts.shape)}.")
    return counts.astype(np.int64)


def _checked_order(order: np.ndarray, gaps: np.ndarray, merges: MergeTree | None) -> np.ndarray:
    order = np.asarray(order)
    tokens = np.flatnonzero(~gaps)
    if order.ndim != 1 or order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), tokens):
        raise UsageError(f"order must hold each of the {tokens.size} ids of the vocabulary once, the one to keep first in front.")
    return order.astype(np.int64) if merges is None else np.array(merges.closed(order.tolist()), dtype=np.int64)


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


def _covering(ordered: np.ndarray, coverage: float) -> int:
    if not _is_share(coverage) and not (_is_whole(coverage) and coverage == 1):
        raise UsageError(f"coverage={coverage!r} is not a share in (0, 1]: use e.g. 0.999.")
    covered = np.cumsum(ordered)
    if covered[-1] == 0:
        raise UsageError(f"coverage={coverage} of nothing: no token was counted. Count a corpus first, or use size.")
    needed = math.ceil(Fraction(repr(float(coverage))) * int(covered[-1]))
    return int(np.searchsorted(covered, needed, side="left")) + 1


def _mask(ids: Iterable[int], rows: int, name: str) -> np.ndarray:
    index = _ids(ids)
    outside = index[(index < 0) | (index >= rows)]
    if outside.size:
        raise UsageError(f"{name} names the id {int(outside[0])}, but the vocabulary has the ids 0 to {rows - 1}.")
    mask = np.zeros(rows, dtype=bool)
    mask[index] = True
    return mask


def _ids(ids: Iterable[int]) -> np.ndarray:
    return ids.astype(np.int64) if isinstance(ids, np.ndarray) else np.array(list(ids), dtype=np.int64)


def _floor(
    required: Iterable[int] | Mapping[str, Iterable[int]], rows: int, gaps: np.ndarray, merges: MergeTree | None
) -> tuple[np.ndarray, str]:
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
    if merges is not None:
        named = int(floor.sum())
        floor[merges.closed(np.flatnonzero(floor).tolist())] = True
        if floor.sum() > named:
            words.append(f"{int(floor.sum()) - named} that these are merged from")
    return floor, ", ".join(words)
