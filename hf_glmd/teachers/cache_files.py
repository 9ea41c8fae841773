"""The files of a teacher cache: what it is, its shards, and how they are written so that a kill leaves nothing half.

`cache.json` says what the cache is, `head.safetensors` is the output embedding, `shard-RANK-NUMBER.safetensors` hold the rows and
count once the .json beside them is there, which is written last; `whole.json` lists them when all are there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import HeadInputs
from hf_glmd.teachers.cache_format import VERSION, CacheSettings
from hf_glmd.teachers.keys import differences
from hf_glmd.utils.files import one_line_of, read_json, remove_partial, replaced, sha256, write_json
from hf_glmd.vocab.vocab_map import VocabMap

SETTINGS_FILE, HEAD_FILE, WHOLE_FILE = "cache.json", "head.safetensors", "whole.json"
REMEDY = "Delete it, and build the cache again with the same settings."


class Writer:
    """Collects rows and writes a shard whenever there are enough; batches are not divided."""

    def __init__(self, directory: Path, rank: int, shard_bytes: float) -> None:
        self.directory, self.rank, self.shard_bytes = directory, rank, shard_bytes
        self.number = 0
        self._forget()

    def _forget(self) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.bytes = 0
        self.per_shard: dict[str, Tensor] = {}

    def add(self, stored: dict[str, Tensor], keys: np.ndarray, lengths: Tensor) -> None:
        self.parts.append({**stored, "keys": torch.from_numpy(keys), "lengths": lengths.to(torch.int32)})
        self.bytes += sum(tensor.nbytes for tensor in self.parts[-1].values())
        if self.bytes >= self.shard_bytes:
            self.write()

    def write(self) -> None:
        if not self.parts:
            return
        tensors = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        while (file := self.directory / f"shard-{self.rank:05d}-{self.number:05d}.safetensors").with_suffix(".json").exists():
            self.number += 1
        write_tensors(file, tensors | self.per_shard)
        facts = {"rows": len(tensors["keys"]), "positions": int(tensors["lengths"].sum())}
        write_json(file.with_suffix(".json"), {**facts, "bytes": file.stat().st_size, "sha256": sha256(file)})
        self._forget()


class Shard:
    """A shard's tensors, mapped into memory: what is not read is not loaded.

    Raises: UsageError, it is missing, or not what was written.
    """

    def __init__(self, directory: Path, name: str, verify: bool = False) -> None:
        file, facts_file = directory / f"{name}.safetensors", directory / f"{name}.json"
        remedy = f"Delete '{facts_file}' if it is there, and build the cache again with the same settings: it mends that shard."
        if not facts_file.exists() or not file.exists():
            raise UsageError(f"shard '{file}' is missing. {remedy}")
        facts = read_json(facts_file, remedy)
        try:
            self.rows, self.positions, self.file_bytes = facts["rows"], facts["positions"], facts["bytes"]
            wanted = facts["sha256"]
        except (KeyError, TypeError) as error:
            raise UsageError(f"'{facts_file}' is damaged: it lacks {error}. {remedy}") from error
        if file.stat().st_size != self.file_bytes:
            raise UsageError(f"shard '{file}' has {file.stat().st_size} bytes, {self.file_bytes} were written. {remedy}")
        if verify and sha256(file) != wanted:
            raise UsageError(f"shard '{file}' is corrupt: its checksum differs from the one written. {remedy}")
        try:
            with safe_open(file, "pt") as reader:
                self.tensors = {name: reader.get_tensor(name) for name in reader.keys()}
        except SafetensorError as error:
            raise UsageError(f"shard '{file}' is corrupt ({error}). {remedy}") from error
        if (self.rows, self.positions) != (len(self.tensors["keys"]), int(self.tensors["lengths"].sum())):
            raise UsageError(f"'{facts_file}' is damaged: it counts other rows than '{file}' holds. {remedy}")

    def at(self, places: Tensor) -> dict[str, Tensor]:
        """What is stored for some positions, int64 [n]; and for all of the shard."""
        stored = {name: tensor for name, tensor in self.tensors.items() if name not in ("keys", "lengths")}
        return {name: tensor if name == "channel" else tensor.index_select(0, places) for name, tensor in stored.items()}


class Index:
    """Key -> shard, and place of the row's first position in it."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        keys = np.concatenate([_sortable(shard.tensors["keys"].numpy()) for shard in shards])
        lengths = [shard.tensors["lengths"].numpy().astype(np.int64) for shard in shards]
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(rows) for rows in lengths])[order]
        self.first = np.concatenate([np.cumsum(rows) - rows for rows in lengths])[order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """uint8 [R, 16] -> int64 [R], -1 where there is no such row."""
        keys = _sortable(keys)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


def _sortable(keys: np.ndarray) -> np.ndarray:
    """uint8 [R, 16] -> [R]. numpy sorts byte strings; that it ignores zeros at their end is no matter where all have 16 bytes."""
    return np.ascontiguousarray(keys).view("S16")[:, 0]


def as_bytes(keys: np.ndarray) -> list[bytes]:
    return np.ascontiguousarray(keys).view("V16")[:, 0].tolist()


def begin(directory: Path, settings: CacheSettings) -> None:
    """Claims the directory, or finds that it is this cache's already; it is not whole from here on."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is a file: give a folder for the cache.")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / SETTINGS_FILE).exists():
        found = differences(dataclasses.asdict(read_settings(directory)), dataclasses.asdict(settings))
        if found:
            raise UsageError(f"'{directory}' holds another cache: {'; '.join(found)}. Give another folder, or delete it.")
    else:
        write_json(directory / SETTINGS_FILE, dataclasses.asdict(settings))
    (directory / WHOLE_FILE).unlink(missing_ok=True)
    remove_partial(directory)


def read_settings(directory: Path) -> CacheSettings:
    file = directory / SETTINGS_FILE
    if not file.exists():
        raise UsageError(f"there is no cache at '{directory}'. Write one with TeacherCache.build first.")
    content = read_json(file, REMEDY)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UsageError(f"'{file}' does not describe a cache of version {VERSION}, which this package reads: build it again.")
    try:
        return CacheSettings(**content)
    except TypeError as error:
        raise UsageError(f"'{file}' is damaged ({one_line_of(error)}). {REMEDY}") from error


def shard_names(directory: Path) -> list[str]:
    return sorted(file.stem for file in directory.glob("shard-*.json"))


def write_head(directory: Path, head: HeadInputs) -> None:
    """All V rows of the output embedding, whatever rows the teacher predicts."""
    tensors = {"weight": head.weight, "bias": head.bias}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    write_tensors(directory / HEAD_FILE, tensors, {"transform": json.dumps([head.scale, head.softcap])})


def read_head(directory: Path, vocab_map: VocabMap | None) -> HeadInputs:
    """The output embedding, the kept rows of it, and no hidden states."""
    file = directory / HEAD_FILE
    try:
        with safe_open(file, "pt") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}
            scale, softcap = json.loads(reader.metadata()["transform"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UsageError(
            f"'{file}' is missing or corrupt ({error}). Delete it, and build the cache again with the same settings."
        ) from error
    if vocab_map is not None:
        kept = torch.from_numpy(vocab_map.kept_ids.copy())
        tensors = {name: tensor.index_select(0, kept) for name, tensor in tensors.items()}
    weight = tensors["weight"]
    return HeadInputs(weight.new_empty(0, weight.shape[1]), weight, tensors.get("bias"), scale, softcap)


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with replaced(file) as unfinished:
        save_file(tensors, unfinished, metadata)  # of one entry at most, for their order changes from run to run
