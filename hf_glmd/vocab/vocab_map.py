"""VocabMap: which id of the large vocabulary is which of the small one; and the most similar kept token of a removed one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX
from hf_glmd.utils.files import check_sha256, replaced, sha256_of

logger = logging.getLogger(__name__)

FILE_NAME = "vocab_map.safetensors"
REMOVED_MODES = ("resegment", "nearest", "unk")

CANDIDATES = 8_192
"""Kept tokens that removed ones are compared with at once, a multiple of `BLOCK`."""

BLOCK = 64
"""Neighbouring similarities of which the largest is taken first."""

_FORMAT = "hf_glmd.vocab_map"
_VERSION = "2"
_READ = ("1", "2")
"""Version 1 listed the kept ids; 2 has a bit per token of the large vocabulary, compressed."""


@dataclass(frozen=True)
class MapOrigin:
    """What a map was made of, and what came of it: enough to make it again, and to see that it is the same.

    Attributes:
        base: Hub name or folder of the model that was cut.
        revision: its commit; empty: it is not known, as of a folder.
        tokenizer_sha256: of the base, see `tokenizer_fingerprint`.
        files: name -> SHA-256, of the weights and tokenizer.json that were written.
        versions: of the libraries that wrote them.
    """

    base: str
    revision: str
    tokenizer_sha256: str
    files: dict[str, str]
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"{self.base}@{self.revision}" if self.revision else self.base


class VocabMap:
    """Old and new ids of a vocabulary that was cut.

    Row k of the small model is row `kept_ids[k]` of the large one. The order is kept: what was before another still is.

    Args:
        kept_ids: [K] strictly increasing ids of the large vocabulary.
        original_size: V > max(kept_ids).
        removed: what becomes of a removed id. "resegment": it does not occur, for the small tokenizer splits its text otherwise.
            "nearest", "unk": it becomes the kept id in `old_to_small`.
        old_to_small: int64 [V], the small id of every old one. Only for, and then needed by, "nearest" and "unk".
        similarity: by what "nearest" was measured; kept for the record.
        origin: what it was made of, if that is known.
    Raises: UsageError, the ids do not fit together.
    """

    def __init__(
        self,
        kept_ids: Iterable[int] | np.ndarray,
        original_size: int,
        removed: str = "resegment",
        old_to_small: np.ndarray | None = None,
        similarity: str | None = None,
        origin: MapOrigin | None = None,
    ) -> None:
        kept = np.array(kept_ids if isinstance(kept_ids, np.ndarray) else list(kept_ids))
        if kept.ndim != 1 or kept.size == 0 or kept.dtype.kind not in "iu":
            raise UsageError(f"kept_ids must be a vector of at least one id, not {kept.dtype} {list(kept.shape)}.")
        kept = kept.astype(np.int64)
        if (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= original_size:
            raise UsageError(f"kept_ids must be strictly increasing ids from 0 to {original_size - 1}.")
        if removed not in REMOVED_MODES:
            raise UsageError(f"removed={removed!r} is unknown: use one of {', '.join(REMOVED_MODES)}.")
        if (old_to_small is None) != (removed == "resegment"):
            raise UsageError(f"removed={removed!r} goes {'without' if removed == 'resegment' else 'with'} old_to_small.")
        own = np.full(original_size, -1, dtype=np.int64)
        own[kept] = np.arange(kept.size)
        if old_to_small is not None:
            full = np.array(old_to_small, dtype=np.int64)
            if full.shape != (original_size,) or full.min() < 0 or full.max() >= kept.size:
                raise UsageError(
                    f"old_to_small must hold a small id (0 to {kept.size - 1}) for each of {original_size} old ones."
                )
            if (full[kept] != own[kept]).any():
                raise UsageError("old_to_small must map every kept id to itself.")
            own = full
        kept.setflags(write=False)
        own.setflags(write=False)
        self.kept_ids: np.ndarray = kept
        self.original_size = int(original_size)
        self.removed = removed
        self.similarity = similarity
        self.origin = origin
        self._to_small = own

    @property
    def size(self) -> int:
        """K, the number of kept tokens."""
        return int(self.kept_ids.size)

    def __repr__(self) -> str:
        return f"VocabMap(size={self.size}, original_size={self.original_size}, removed={self.removed!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, VocabMap)
            and self.removed == other.removed
            and np.array_equal(self.kept_ids, other.kept_ids)
            and np.array_equal(self._to_small, other._to_small)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_original(self, ids: Any) -> Any:
        """Small ids -> original ids; -100 stays.

        Args:
            ids: a tensor or array of integers of any shape, a (nested) list of ints, or an int.
        Returns: the same kind, with the dtype and device it came with.
        Raises: UsageError, an id is not one of the small vocabulary, or the dtype cannot hold the original ids.
        """
        return self._convert(ids, self.kept_ids, "small")

    def to_small(self, ids: Any) -> Any:
        """Original ids -> small ids; -100 stays.

        Args, returns: as `to_original`.
        Raises: UsageError, an id is not one of the original vocabulary, or (under "resegment") its token was removed.
        """
        return self._convert(ids, self._to_small, "original")

    def keeps(self, ids: Any) -> np.ndarray:
        """bool, the shape of `ids`: which original ids are kept tokens. Ids outside of the vocabulary are not."""
        ids = np.asarray(ids, dtype=np.int64)
        inside = (ids >= 0) & (ids < self.original_size)
        small = self._to_small[np.where(inside, ids, 0)]
        return inside & (small >= 0) & (self.kept_ids[np.maximum(small, 0)] == ids)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes `vocab_map.safetensors` into the folder `path` (created), or the file `path` if it ends in .safetensors.

        Returns: the file written.
        """
        file = map_file(path)
        bits = np.zeros(self.original_size, dtype=bool)
        bits[self.kept_ids] = True
        tensors = {"kept_bits": np.frombuffer(zlib.compress(np.packbits(bits).tobytes(), 9), dtype=np.uint8).copy()}
        if self.removed != "resegment":
            tensors["old_to_small"] = self._to_small
        metadata = {"format": _FORMAT, "version": _VERSION, "removed": self.removed, "original_size": str(self.original_size)}
        if self.similarity is not None:
            metadata["similarity"] = self.similarity
        if self.origin is not None:
            metadata["origin"] = json.dumps(dataclasses.asdict(self.origin))
        with replaced(file) as unfinished:
            save_file(tensors, unfinished, metadata=metadata | {"sha256": sha256_of(tensors, metadata)})
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VocabMap:
        """Reads what `save` wrote, from the folder or the file.

        Raises: UsageError, there is none, or it holds something else.
        """
        file = map_file(path)
        if not file.is_file():
            raise UsageError(f"There is no vocabulary map at '{file}': give the folder that ShrunkVocab.save_pretrained wrote.")
        try:
            with safe_open(file, framework="np") as reader:
                metadata = reader.metadata() or {}
                tensors = {name: reader.get_tensor(name) for name in reader.keys()}
        except Exception as error:  # safetensors raises its own class
            raise UsageError(f"'{file}' does not hold a vocabulary map ({error}): save it again.") from error
        if metadata.get("format") != _FORMAT or not tensors.keys() & {"kept_ids", "kept_bits"}:
            raise UsageError(f"'{file}' does not hold a vocabulary map: give the folder that ShrunkVocab.save_pretrained wrote.")
        if metadata.get("version") not in _READ:
            known = " and ".join(_READ)
            raise UsageError(f"'{file}' has format version {metadata.get('version')}, this package reads {known}: save again.")
        if metadata["version"] == "1":
            logger.warning("'%s' is of version 1, which has no checksum: damage would not be noticed. Save it again.", file)
        else:
            check_sha256(tensors, metadata, file, "Save the vocabulary again.")
        rows = int(metadata["original_size"])
        origin = MapOrigin(**json.loads(metadata["origin"])) if "origin" in metadata else None
        return cls(
            tensors["kept_ids"] if "kept_ids" in tensors else _unpacked(tensors["kept_bits"], rows, file),
            rows,
            removed=metadata["removed"],
            old_to_small=tensors.get("old_to_small"),
            similarity=metadata.get("similarity"),
            origin=origin,
        )

    def _convert(self, ids: Any, table: np.ndarray, kind: str) -> Any:
        if isinstance(ids, torch.Tensor):
            return self._convert_tensor(ids, table, kind)
        if isinstance(ids, np.ndarray):
            return self._convert_array(ids, table, kind)
        if isinstance(ids, (list, tuple)):
            if any(isinstance(item, (list, tuple)) for item in ids):
                return [self._convert(item, table, kind) for item in ids]
            if not all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in ids):
                raise UsageError("A list of ids must hold whole numbers only.")
            return self._convert_array(np.array(ids, dtype=np.int64), table, kind).tolist()
        if isinstance(ids, (int, np.integer)) and not isinstance(ids, bool):
            return int(self._convert_array(np.array([ids], dtype=np.int64), table, kind)[0])
        raise UsageError(f"Token ids are integers in a tensor, an array or a list, not {type(ids).__name__}.")

    def _convert_array(self, ids: np.ndarray, table: np.ndarray, kind: str) -> np.ndarray:
        if ids.dtype.kind not in "iu":
            raise UsageError(f"Token ids are integers, not {ids.dtype}.")
        wide = ids.astype(np.int64)
        counted = wide != IGNORE_INDEX
        bad = counted & ((wide < 0) | (wide >= table.size))
        if bad.any():
            raise self._outside(int(wide[bad][0]), table, kind)
        result = np.where(counted, table[np.where(counted, wide, 0)], IGNORE_INDEX)
        gone = counted & (result < 0)
        if gone.any():
            raise self._gone(int(wide[gone][0]))
        return _fitting(result, ids.dtype.itemsize < 4, np.iinfo(ids.dtype), ids.dtype).astype(ids.dtype)

    def _convert_tensor(self, ids: torch.Tensor, table: np.ndarray, kind: str) -> torch.Tensor:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(f"Token ids are integers, not {ids.dtype}.")
        lookup = torch.from_numpy(table.copy()).to(ids.device)
        wide = ids.long()
        counted = wide != IGNORE_INDEX
        bad = counted & ((wide < 0) | (wide >= lookup.numel()))
        if bad.any():
            raise self._outside(int(wide[bad][0]), table, kind)
        result = torch.where(counted, lookup[torch.where(counted, wide, 0)], IGNORE_INDEX)
        gone = counted & (result < 0)
        if gone.any():
            raise self._gone(int(wide[gone][0]))
        return _fitting(result, ids.dtype.itemsize < 4, torch.iinfo(ids.dtype), ids.dtype).to(ids.dtype)

    def _outside(self, token_id: int, table: np.ndarray, kind: str) -> UsageError:
        return UsageError(
            f"{token_id} is not an id of the {kind} vocabulary (0 to {table.size - 1}): they come from another tokenizer, or are "
            "converted already."
        )

    def _gone(self, token_id: int) -> UsageError:
        return UsageError(
            f"The token with the original id {token_id} was removed, so it has no small id: tokenize the text with the small "
            "tokenizer instead, or name the token in keep=."
        )


def nearest_kept(
    embeddings: torch.Tensor | np.ndarray,
    kept_ids: np.ndarray,
    similarity: str = "dot",
    special_ids: Iterable[int] = (),
    original_size: int | None = None,
    chunk_mib: float = 64.0,
) -> np.ndarray:
    """The most similar kept token of each token: itself if kept, otherwise the kept token with the most similar input embedding.

    A special token is never the answer for a removed one. Of equally similar tokens the lowest id is taken.

    Args:
        embeddings: [>= V, H] input rows of the teacher, any float dtype, any device. Rows from V on (padding) are ignored.
        kept_ids: int64 [K] strictly increasing.
        similarity: "dot" (e_a . e_b), "cosine", or "euclidean" (the smallest distance).
        special_ids: original ids that stand for themselves only.
        original_size: V. Default: the number of rows.
        chunk_mib: > 0. Memory of the similarities held at once; changes the result by rounding at most. A table of low
            precision is widened in portions as well.
    Returns: int64 [V], old id -> small id; what `VocabMap` takes as `old_to_small`.
    Raises: UsageError, an unknown similarity, or embeddings that do not fit or are not finite.
    Source: GLMD, arXiv:2306.06625 (vocabulary compression).
    """
    if similarity not in ("dot", "cosine", "euclidean"):
        raise UsageError(f"similarity={similarity!r} is unknown: use 'dot', 'cosine' or 'euclidean'.")
    embeddings = torch.as_tensor(embeddings)
    rows = original_size if original_size is not None else int(embeddings.shape[0])
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or embeddings.shape[0] < rows:
        raise UsageError(
            f"embeddings must be a float [V, H] table, V >= {rows}, not {embeddings.dtype} {list(embeddings.shape)}."
        )
    kept = np.asarray(kept_ids, dtype=np.int64)
    special = np.asarray(sorted(special_ids), dtype=np.int64)
    candidates = np.setdiff1d(kept, special)
    removed = np.setdiff1d(np.arange(rows), kept)
    if np.isin(special, removed).any():
        raise UsageError("A special token must be kept: it has no other token to stand for it.")
    result = np.full(rows, -1, dtype=np.int64)
    result[kept] = np.arange(kept.size)
    if removed.size and not candidates.size:
        raise UsageError("Only special tokens are kept: no token can stand for the removed ones. Keep more.")
    if removed.size:
        best = _best_candidates(embeddings.detach(), removed, candidates, similarity, chunk_mib)
        result[removed] = result[candidates[best]]
    return result


def _best_candidates(
    table: torch.Tensor, removed: np.ndarray, candidates: np.ndarray, similarity: str, chunk_mib: float
) -> np.ndarray:
    """int64 [removed]: which candidate is most similar; of equal ones the first."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    step = max(1, min(removed.size, int(chunk_mib * 2**20 / (dtype.itemsize * min(CANDIDATES, candidates.size)))))
    row_ids, column_ids = (torch.from_numpy(ids).to(table.device) for ids in (removed, candidates))
    best = torch.full(row_ids.shape, -torch.inf, dtype=dtype, device=table.device)
    index = torch.zeros_like(row_ids)
    in_blocks = candidates.size // BLOCK * BLOCK
    edges = sorted({*range(0, in_blocks, CANDIDATES), in_blocks, candidates.size})
    for first, end in itertools.pairwise(edges):
        columns = table[column_ids[first:end]].to(dtype)
        product = torch.mm
        if similarity == "cosine":  # the length of the removed token's own row does not change which is the largest
            columns = torch.nn.functional.normalize(columns, dim=-1)
        elif similarity == "euclidean":
            # |a - b|^2 = |a|^2 - 2 a.b + |b|^2, and |a|^2 is the same for every b: largest a.b - |b|^2 / 2
            product = partial(torch.addmm, columns.square().sum(-1) / -2)
        # One buffer for all: fresh memory of this size comes from the system each time, a page at a time.
        buffer = torch.empty(step, len(columns), dtype=dtype, device=table.device)
        for start in range(0, removed.size, step):
            chunk = slice(start, start + step)
            rows = table[row_ids[chunk]].to(dtype)
            value, place = _first_maximum(product(rows, columns.T, out=buffer[: len(rows)]))
            better = value > best[chunk]  # not of an equal one: it came first
            best[chunk] = torch.where(better, value, best[chunk])
            index[chunk] = torch.where(better, place + first, index[chunk])
    if not best.isfinite().all():
        raise UsageError(
            "The embeddings hold values that are not finite (NaN or infinity): load the model again, or repair them."
        )
    return index.cpu().numpy()


def _first_maximum(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.max(-1)`, in a quarter of the time on a CPU: there it looks at one number after the other.

    The largest number of each block of a row is found with vector instructions; only the winning block is looked through.
    """
    if scores.shape[-1] % BLOCK:
        value, place = scores.max(-1)
        return value, place
    blocks = scores.unflatten(-1, (-1, BLOCK))
    value, block = blocks.amax(-1).max(-1)
    inside = blocks[torch.arange(len(scores), device=scores.device), block]
    return value, block * BLOCK + inside.argmax(-1)


def _unpacked(bits: np.ndarray, rows: int, file: Path) -> np.ndarray:
    try:
        return np.flatnonzero(np.unpackbits(np.frombuffer(zlib.decompress(bits.tobytes()), dtype=np.uint8), count=rows))
    except (zlib.error, ValueError) as error:
        raise UsageError(f"'{file}' does not hold a vocabulary map ({error}): save it again.") from error


def map_file(path: str | os.PathLike[str]) -> Path:
    """The file of a map, which may be named by its folder."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def _fitting(result: Any, narrow: bool, limits: Any, dtype: Any) -> Any:
    """Ids grow on the way back to the large vocabulary: an int8 or int16 that held the small ones may wrap around silently."""
    if narrow and _count(result) and (int(result.max()) > limits.max or int(result.min()) < limits.min):
        raise UsageError(f"The ids up to {int(result.max())} do not fit {dtype}: use int32 or int64.")
    return result


def _count(array: Any) -> int:
    return array.numel() if isinstance(array, torch.Tensor) else array.size
