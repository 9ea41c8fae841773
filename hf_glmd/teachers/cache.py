"""A teacher that is run once and then read from disk: what enters its output embedding, or its top tokens.

A row is found by its content, so batch size, order, padding and the number of processes play no part. Two kinds:

- "hidden": what enters the output embedding at the counted positions, and the embedding once. Exact, up to how it is stored, at
  any temperature and for any cut of the vocabulary.
- "topk": the top k tokens, and how much all others have together, at one temperature. It does not say how the others share
  theirs, and at T = 15 the softened distribution is nearly flat: the others then have nearly all.

Bytes per position, and the error of the loss (of its gradient) at temperature T beside the live teacher, measured with the
quickstart's: 8,192 tokens, hidden states of 256 (recipes/benchmarks/teacher_cache.py):

| | bytes | T = 1 | T = 2 | T = 5 | T = 15 |
|---|---|---|---|---|---|
| hidden, bf16 | 512 | 0.00% (0.2%) | 0.00% (0.5%) | 0.00% (0.5%) | 0.00% (0.5%) |
| hidden, int8 | 260 | 0.01% (0.8%) | 0.00% (2.0%) | 0.01% (2.1%) | 0.01% (2.0%) |
| topk, k = 16 | 68 | -27% (42%) | -67% (43%) | -96% (95%) | -99% (99%) |
| topk, k = 64 | 260 | -16% (29%) | -56% (37%) | -91% (92%) | -96% (98%) |
| topk, k = 256 | 1,028 | -8% (16%) | -41% (29%) | -80% (86%) | -89% (95%) |
| mass of the top 64 | | 92% | 43% | 4% | 1% |

So: "hidden" in int8, H + 4 bytes; where a teacher is so wide that the disk decides "topk", 4 k or (from 32,769 tokens on) 6 k
bytes, and then at T = 1.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_glmd.data.collators import model_inputs
from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.losses.topk import TopTokens
from hf_glmd.models.heads import HeadInputs, is_masked_lm
from hf_glmd.teachers.base import Teacher
from hf_glmd.teachers.cache_files import (
    HEAD_FILE,
    REMEDY,
    SETTINGS_FILE,
    WHOLE_FILE,
    Index,
    Shard,
    Writer,
    as_bytes,
    begin,
    read_head,
    read_settings,
    shard_names,
    write_head,
)
from hf_glmd.teachers.cache_format import (
    CacheSettings,
    decoded,
    encoded_hidden,
    encoded_top_tokens,
    kept_hash,
    settings_of,
)
from hf_glmd.teachers.keys import differences, missing_rows, row_keys, teachers_ids
from hf_glmd.utils.files import read_json, sha256, write_json
from hf_glmd.vocab.counting import tokenizer_fingerprint
from hf_glmd.vocab.vocab_map import VocabMap


class TeacherCache(Teacher):
    """A teacher that `build` wrote to disk and `load` opens, to be used where a live one is.

    The rows stay in memory-mapped files: memory holds the output embedding and 28 bytes per row, however large the files are.
    A row's ids have to be on the CPU to be looked up, so a batch on a GPU is waited for.

    Which words are masked must not change from epoch to epoch, or the batches of each epoch must be in the cache.

    Attributes:
        settings: what it holds.
        models: none.
        rows, positions: how many there are; a position is a token that counts.
        file_bytes: size of the shards.
    """

    def __init__(self, directory: Path, settings: CacheSettings, shards: Sequence[Shard], vocab_map: VocabMap | None) -> None:
        self.directory, self.settings, self.vocab_map = directory, settings, vocab_map
        self.models: list[nn.Module] = []
        self._shards, self._index = shards, Index(shards)
        self._device = torch.device("cpu")
        self._check_vocabulary()
        self._head = read_head(directory, vocab_map) if settings.kind == "hidden" else None

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        teacher: Teacher,
        batches: Iterable[Mapping[str, Tensor]],
        directory: str | os.PathLike[str],
        kind: str = "hidden",
        dtype: str | None = None,
        *,
        k: int | None = None,
        temperature: float | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        shard_mib: float = 256.0,
        progress: bool = True,
    ) -> TeacherCache:
        """Runs a teacher over batches and writes down what it says.

        Killed and started again with the same arguments it goes on after the last whole shard, and the files become the same,
        byte for byte. Batches can be added to a finished cache in the same way, e.g. those of an epoch with other masked words.
        Of several processes each writes shards of its own, into one directory that all see.

        Args:
            teacher: with a vocabulary map where the batches are in a smaller vocabulary's ids. It runs as it is: in its dtype, on
                its device, under the autocast around this call.
            batches: as collators make them, with `prediction_mask`; of several processes each passes its own. A row that was seen
                before is skipped. If they have `original_input_ids`, it is those that the teacher reads.
            kind: "hidden" or "topk", also written "top_k".
            dtype: "int8" (default of "hidden", with a scale per token and one per channel and shard), "bf16", "fp16" or "fp32";
                for the logits of "topk" "fp16" (default) or "fp32".
            k: of "topk": how many tokens, default 64.
            temperature: of "topk": the loss's, default 1.
            fingerprint: what made the rows, for `check`, e.g. {"tokenizer": tokenizer_fingerprint(tokenizer), "data": {"corpus":
                "docstrings", "mlm_probability": 0.15}}. "teacher" is added where it is missing.
            shard_mib: > 0, held in memory before it is written.
            progress: show a bar.
        Raises: UsageError, a setting makes no sense, the directory holds another cache, or the teacher predicts NaN.
        """
        if not shard_mib > 0:
            raise UsageError(f"shard_mib={shard_mib} leaves no room for a row. Use e.g. 256.")
        settings = settings_of(teacher, kind, dtype, k, temperature, fingerprint)
        encode = encoded_hidden if settings.kind == "hidden" else encoded_top_tokens
        directory, state = Path(directory), PartialState()
        vocab_map, device = teacher.vocab_map, next(teacher.models[0].parameters()).device
        with state.main_process_first():
            if state.is_main_process:
                begin(directory, settings)
        writer = Writer(directory, state.process_index, shard_mib * 2**20)
        known = {key for name in shard_names(directory) for key in as_bytes(Shard(directory, name).tensors["keys"].numpy())}
        for batch in tqdm(
            batches, desc="Caching the teacher", unit="batch", disable=not (progress and state.is_local_main_process)
        ):
            _check_batch(batch, teacher)
            inputs, positions = model_inputs(batch), batch["prediction_mask"].bool().cpu()
            if ORIGINAL_IDS in batch:
                inputs[ORIGINAL_IDS] = batch[ORIGINAL_IDS]
            keys = row_keys(teachers_ids(inputs, vocab_map), positions)
            new = _new_rows(as_bytes(keys), positions.any(1).tolist(), known)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            if kind == "hidden" and not (directory / HEAD_FILE).exists():
                # Inside of the forward, where sharded weights are whole.
                write = partial(write_head, directory)
                teacher.head.collect(teacher.model, teachers_ids(inputs, vocab_map), write, positions.to(device))
            if not new.any():
                continue
            # All rows are run, though some may be known: a row's last bits depend on the batch it is in.
            stored = encode(teacher, inputs, positions.to(device), settings, writer.per_shard)
            chosen = new[positions.nonzero()[:, 0]]
            writer.add({name: tensor.cpu()[chosen] for name, tensor in stored.items()}, keys[new.numpy()], positions.sum(1)[new])
        writer.write()
        state.wait_for_everyone()
        if state.is_main_process:
            names = shard_names(directory)
            if not names:
                raise UsageError("no position of the batches counts, so there is nothing to cache. Give it text to predict.")
            sums = {file: sha256(directory / file) for file in (SETTINGS_FILE, HEAD_FILE) if (directory / file).exists()}
            write_json(directory / WHOLE_FILE, {"shards": names, "sha256": sums})
        state.wait_for_everyone()
        return cls.load(directory, vocab_map)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        vocab_map: VocabMap | None = None,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        verify: bool = True,
    ) -> TeacherCache:
        """Opens what `build` wrote.

        Args:
            directory: the cache.
            vocab_map: the student's vocabulary. None: that of the batches it was built from was the teacher's.
            fingerprint: what it has to have been made from, as in `check`.
            verify: read every byte and compare checksums. False: sizes alone, for a cache that takes long to read.
        Raises: UsageError, there is no cache or an unfinished one, a shard is missing or corrupt, it was made from something
            else, or the vocabulary does not fit.
        """
        directory = Path(directory)
        settings = read_settings(directory)
        if not (directory / WHOLE_FILE).exists():
            raise UsageError(
                f"the cache '{directory}' is unfinished. Build it again with the same settings: it goes on where it was."
            )
        whole = read_json(directory / WHOLE_FILE, REMEDY)
        if not isinstance(whole, dict) or set(whole) != {"shards", "sha256"}:
            raise UsageError(f"'{directory / WHOLE_FILE}' is damaged, or of an earlier version. {REMEDY}")
        for file, wanted in whole["sha256"].items():
            if not (directory / file).is_file() or sha256(directory / file) != wanted:
                raise UsageError(f"'{directory / file}' is missing or corrupt: it is not what was written. {REMEDY}")
        names = tqdm(whole["shards"], desc="Checking the cache", disable=not verify, delay=2.0)
        cache = cls(directory, settings, [Shard(directory, name, verify) for name in names], vocab_map)
        if fingerprint is not None:
            cache.check(fingerprint)
        return cache

    @property
    def epochs(self) -> int:
        """How many choices of masked tokens it holds of each row: those that a collator makes in its epochs 0, 1, ..."""
        return self._said("epochs", 1)

    @property
    def max_length(self) -> int | None:
        """Token ids per row of text when it was built; None: it does not say."""
        return self._said("max_length", None)

    @property
    def made_from(self) -> str:
        """In words, what it says of the data it was made from."""
        data = self.settings.fingerprint.get("data")
        if not isinstance(data, Mapping):
            return "data that it does not name"
        return ", ".join(f"{name} {value}" for name, value in data.items())

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self._shards)

    @property
    def positions(self) -> int:
        return sum(shard.positions for shard in self._shards)

    @property
    def file_bytes(self) -> int:
        return sum(shard.file_bytes for shard in self._shards)

    @property
    def size(self) -> int:
        """Number of tokens it predicts for."""
        return self.vocab_map.size if self.vocab_map is not None else self.settings.size

    @property
    def has_top_tokens(self) -> bool:
        return self.settings.kind == "topk"

    @property
    def fallback(self) -> str | None:
        return None if self._head is not None else f"the cache '{self.directory}' holds the top tokens only"

    def _said(self, name: str, default: Any) -> Any:
        data = self.settings.fingerprint.get("data")
        return data.get(name, default) if isinstance(data, Mapping) else default

    @classmethod
    def of(cls, source: Any, vocab_map: VocabMap | None) -> TeacherCache | None:
        is_cache = isinstance(source, (str, os.PathLike)) and (Path(source) / SETTINGS_FILE).is_file()
        return cls.load(source, vocab_map) if is_cache else None

    def check_fits(self, tokenizer: Any, objective: str, temperature: float) -> None:
        self.check({"tokenizer": tokenizer_fingerprint(tokenizer)})
        self.check_temperature(temperature)
        if objective != "word_prediction":
            raise UsageError(f"objective='{objective}' needs a teacher that runs: a cache holds words only.")

    def check_rows(self, datasets: Mapping[str, Any], collator: Callable[..., Any], read: Callable[..., dict[str, Any]]) -> None:
        choices = getattr(collator, "choices", {})
        # It is written down where it is not 1.
        self.check_recorded({"data": {"mask_replace_prob": 1.0, **choices} if choices else choices})
        for name, dataset in datasets.items():
            missing, looked_up = missing_rows(self, dataset, collator, read)
            if missing:
                raise UsageError(
                    f"{missing} of {looked_up} rows of {name} that were looked up are not in the cache '{self.directory}', which "
                    f"was made from {self.made_from}. Cache these rows too, or train on what it was made from."
                )

    def with_first_rows(self, size: int) -> TeacherCache:
        return self.load(self.directory, VocabMap(np.arange(size), self.size))

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Raises: UsageError, the cache was made from something else; it says what differs. What is not given is not compared."""
        found = differences(self.settings.fingerprint, fingerprint, only_here=True)
        if found:
            raise UsageError(
                f"the cache '{self.directory}' was made from something else: {'; '.join(found)}. Build one from what is "
                "used now, or use what it was made from."
            )

    def check_recorded(self, fingerprint: Mapping[str, Any]) -> None:
        """As `check`, but what the cache does not say about itself is not compared either."""

        def both(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: both(there[name], value) if isinstance(value, Mapping) and isinstance(there[name], Mapping) else value
                for name, value in here.items()
                if name in there
            }

        self.check(both(self.settings.fingerprint, fingerprint))

    def check_temperature(self, temperature: float) -> None:
        """Raises: UsageError, the cache holds the top tokens for another temperature."""
        if self._head is None and temperature != self.settings.temperature:
            raise UsageError(
                f"the cache '{self.directory}' is for temperature {self.settings.temperature}, the loss is at {temperature}. "
                f"Train at {self.settings.temperature}, or build one of kind='hidden', good for any."
            )

    def prepare(self, accelerator: Accelerator) -> TeacherCache:
        return self.to(accelerator.device)

    def to(self, device: torch.device | str) -> TeacherCache:
        """Puts the output embedding on a device; what is read goes there too."""
        self._device = torch.device(device)
        if self._head is not None:
            move = {name: getattr(self._head, name) for name in ("hidden", "weight", "bias")}
            move = {name: None if tensor is None else tensor.to(self._device) for name, tensor in move.items()}
            self._head = dataclasses.replace(self._head, **move)
        return self

    @torch.no_grad()
    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        """What the teacher's logits are made of, N positions and K rows of its output embedding.

        Args:
            inputs: what the models read, `input_ids` [B, S] in the student's ids; `original_input_ids` if the teacher's differ.
            positions: bool [B, S], N of them True.
        Raises: UsageError, a row is not in the cache, or the cache holds the top tokens only.
        """
        if self._head is None:
            raise UsageError(f"{self.fallback}, from which no hidden state can be had. Build one of kind='hidden'.")
        # In the dtype of the embedding, as a live teacher's are, but never coarser than they are stored.
        hidden, dtype = self._read(inputs, positions)["hidden"], self._head.weight.dtype
        dtype = dtype if dtype == hidden.dtype else torch.promote_types(dtype, torch.float32)
        return dataclasses.replace(self._head, hidden=hidden.to(dtype))

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        """The teacher's logits, [N, K]. Arguments and errors as of `head_inputs`; the temperature plays no part."""
        return self.head_inputs(inputs, positions).logits()

    @torch.no_grad()
    def top_tokens(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float) -> TopTokens:
        """The teacher's top tokens, for `topk_word_prediction_loss`.

        Args:
            inputs, positions: as of `head_inputs`.
            temperature: the loss's, which must be the cache's.
        Raises: UsageError, a row is not in the cache, the temperature is another, or the cache holds hidden states.
        """
        if self._head is not None:
            raise UsageError(f"the cache '{self.directory}' holds hidden states, use head_inputs, or build one of kind='topk'.")
        self.check_temperature(temperature)
        read = self._read(inputs, positions)
        return TopTokens(read["ids"].long(), read["logits"].float(), read["log_tail"], temperature)

    def holds(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """Whether a row is in the cache, or has no position that counts: bool [B]. Arguments as of `head_inputs`."""
        positions = positions.bool().cpu()
        found = self._index.find(row_keys(teachers_ids(inputs, self.vocab_map), positions))
        return torch.from_numpy(found >= 0) | ~positions.any(1)

    def _check_vocabulary(self) -> None:
        settings, given = self.settings, self.vocab_map
        if settings.kind == "hidden":
            if given is not None and given.original_size > settings.size:
                raise UsageError(
                    f"the vocabulary map comes from {given.original_size} tokens, the teacher of the cache '{self.directory}' "
                    f"predicts {settings.size}. Pass the map that was made from this teacher's tokenizer."
                )
        elif kept_hash(given) != settings.kept:
            raise UsageError(
                f"the cache '{self.directory}' holds the top ones of {settings.size} tokens, which are not the "
                f"{'whole vocabulary' if given is None else f'{given.size} of the vocabulary map'}. Pass the vocab_map it was "
                "built with, or build one of kind='hidden', good for any."
            )

    def _read(self, inputs: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        """What is stored for each of the N positions, decoded, on the device."""
        positions = positions.bool().cpu()
        counts = positions.sum(1).numpy()
        wanted = np.flatnonzero(counts)  # rows where nothing counts are not stored
        found = self._index.find(row_keys(teachers_ids(inputs, self.vocab_map), positions)[wanted])
        if (found < 0).any():
            self._refuse(inputs["input_ids"][wanted[found < 0]], len(wanted))
        counts = counts[wanted]
        shard = np.repeat(self._index.shard[found], counts)
        # A row's positions lie one after the other.
        place = np.repeat(self._index.first[found] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        result: dict[str, Tensor] = {}
        for number in np.unique(shard) if shard.size else [0]:
            here = np.flatnonzero(shard == number)
            read = self._shards[number].at(torch.from_numpy(place[here]))
            values = decoded({name: tensor.to(self._device) for name, tensor in read.items()})
            if here.size == shard.size:
                return values
            for name, tensor in values.items():
                if name not in result:
                    result[name] = tensor.new_empty(shard.size, *tensor.shape[1:])
                result[name][torch.from_numpy(here).to(self._device)] = tensor
        return result

    def _refuse(self, missing: Tensor, rows: int) -> None:
        raise UsageError(
            f"{len(missing)} of {rows} rows are not in the cache '{self.directory}', the first begins with the ids "
            f"{missing[0, :8].tolist()}. It holds other data, was built with another tokenizer, length or choice of positions, "
            f"or each epoch masks other words: give the collator the seed and epoch of the build and keep them."
        )


def _check_batch(batch: Mapping[str, Tensor], teacher: Teacher) -> None:
    if "prediction_mask" not in batch:
        raise UsageError(
            f"a batch has {', '.join(batch)}, but no prediction_mask, which says what counts. Give batches of a collator, e.g. "
            "WordPredictionCollator."
        )
    if "position_ids" in batch and "attention_mask" not in batch and is_masked_lm(teacher.models[0]):
        raise UsageError(
            "batches with position_ids and without attention_mask are packed texts of a causal model, the teacher "
            f"{type(teacher.models[0]).__name__} reads from both sides. Add the attention_mask."
        )


def _new_rows(keys: Sequence[bytes], counted: Sequence[bool], known: set[bytes]) -> Tensor:
    """bool [B]: rows in which something counts and that are not known; from now on they are."""
    new = []
    for key, counts in zip(keys, counted, strict=True):
        new.append(counts and key not in known)
        if counts:
            known.add(key)
    return torch.tensor(new)
