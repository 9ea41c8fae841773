"""A teacher that is run once and then read from disk: what enters its output embedding, or its likeliest tokens.

A row is found by its content, so batch size, order, padding and the number of processes play no part. Two kinds:

- "hidden": what enters the output embedding at the counted positions, and the embedding once. Exact, up to how it is stored, at
  any temperature and for any cut of the vocabulary.
- "topk": the k likeliest tokens, and how much all others have together, at one temperature. It does not say how the others share
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
| mass of the 64 likeliest | | 92% | 43% | 4% | 1% |

So: "hidden" in int8, H + 4 bytes; where a teacher is so wide that the disk decides "topk", 4 k or (from 32,769 tokens on) 6 k
bytes, and then at T = 1.

Files of a cache: `cache.json` says what it is, `head.safetensors` is the output embedding, `shard-RANK-NUMBER.safetensors` hold
the rows and count once the .json beside them is there, which is written last; `whole.json` lists them when all are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_glmd.corpora.blocks import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.losses.topk import TopTokens, top_tokens
from hf_glmd.models.heads import HeadInputs, is_masked_lm
from hf_glmd.training.teachers import Teacher
from hf_glmd.training.token_mean import model_inputs
from hf_glmd.vocab.vocab_map import VocabMap

SETTINGS_FILE, HEAD_FILE, WHOLE_FILE = "cache.json", "head.safetensors", "whole.json"
DTYPES = {"hidden": ("int8", "bf16", "fp16", "fp32"), "topk": ("fp16", "fp32")}
"""What each kind can be stored as, the default first."""

DEFAULT_K = 64
_VERSION = 1
_TORCH_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class CacheSettings:
    """What a cache holds.

    Attributes:
        kind: "hidden" or "topk".
        dtype: of the hidden states, or of the likeliest tokens' logits.
        size: rows of the output embedding; for "topk": the tokens among which the likeliest were sought.
        k, temperature: of "topk".
        kept: of "topk": sha256 of the kept ids; None: the whole vocabulary.
        fingerprint: what it was made from.
    """

    kind: str
    dtype: str
    size: int
    k: int | None
    temperature: float | None
    kept: str | None
    fingerprint: dict[str, Any]
    version: int = _VERSION


class TeacherCache:
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

    def __init__(self, directory: Path, settings: CacheSettings, shards: Sequence[_Shard], vocab_map: VocabMap | None) -> None:
        self.directory, self.settings, self.vocab_map = directory, settings, vocab_map
        self.models: list[nn.Module] = []
        self._shards, self._index = shards, _Index(shards)
        self._device = torch.device("cpu")
        self._check_vocabulary()
        self._head = _read_head(directory, vocab_map) if settings.kind == "hidden" else None

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
            kind: "hidden" or "topk".
            dtype: "int8" (default of "hidden", with a scale per token and one per channel and shard), "bf16", "fp16" or "fp32";
                for the logits of "topk" "fp16" (default) or "fp32".
            k: of "topk": how many tokens, default 64.
            temperature: of "topk": the loss's, default 1.
            fingerprint: what made the rows, for `check`, e.g. {"tokenizer": tokenizer_fingerprint(tokenizer), "data": {"corpus":
                "docstrings", "mask_share": 0.15}}. "teacher" is added where it is not given.
            shard_mib: > 0, held in memory before it is written.
        Raises: UsageError, a setting makes no sense, the directory holds another cache, or the teacher predicts NaN.
        """
        if not shard_mib > 0:
            raise UsageError(f"shard_mib={shard_mib} leaves no room for a row. Use e.g. 256.")
        settings = _settings(teacher, kind, dtype, k, temperature, fingerprint)
        encode = _encoded_hidden if kind == "hidden" else _encoded_top_tokens
        directory, state = Path(directory), PartialState()
        vocab_map, device = _vocab_map_of(teacher), next(teacher.models[0].parameters()).device
        with state.main_process_first():
            if state.is_main_process:
                _begin(directory, settings)
        writer = _Writer(directory, state.process_index, shard_mib * 2**20)
        known = {key for name in _shard_names(directory) for key in _as_bytes(_Shard(directory, name).tensors["keys"].numpy())}
        for batch in tqdm(batches, desc="Caching the teacher", unit="batch", disable=not state.is_local_main_process):
            _check_batch(batch, teacher)
            inputs, positions = model_inputs(batch), batch["prediction_mask"].bool().cpu()
            if ORIGINAL_IDS in batch:
                inputs[ORIGINAL_IDS] = batch[ORIGINAL_IDS]
            keys = row_keys(teachers_ids(inputs, vocab_map), positions)
            new = _new_rows(_as_bytes(keys), positions.any(1).tolist(), known)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            if kind == "hidden" and not (directory / HEAD_FILE).exists():
                _write_head(directory, teacher, inputs, positions.to(device), vocab_map)
            if not new.any():
                continue
            # All rows are run, though some may be known: a row's last bits depend on the batch it is in.
            stored = encode(teacher, inputs, positions.to(device), settings, writer.per_shard)
            chosen = new[positions.nonzero()[:, 0]]
            writer.add({name: tensor.cpu()[chosen] for name, tensor in stored.items()}, keys[new.numpy()], positions.sum(1)[new])
        writer.write()
        state.wait_for_everyone()
        if state.is_main_process:
            names = _shard_names(directory)
            if not names:
                raise UsageError("no position of the batches counts, so there is nothing to cache. Give it text to predict.")
            _write_json(directory / WHOLE_FILE, {"shards": names})
        state.wait_for_everyone()
        return cls.load(directory, vocab_map)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        vocab_map: VocabMap | None = None,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        verify: bool = False,
    ) -> TeacherCache:
        """Opens what `build` wrote.

        Args:
            directory: the cache.
            vocab_map: the student's vocabulary. None: that of the batches it was built from was the teacher's.
            fingerprint: what it has to have been made from, as in `check`.
            verify: read every byte and compare checksums, not only sizes.
        Raises: UsageError, there is no cache or an unfinished one, a shard is missing or corrupt, it was made from something
            else, or the vocabulary does not fit.
        """
        directory = Path(directory)
        settings = _read_settings(directory)
        if not (directory / WHOLE_FILE).exists():
            raise UsageError(
                f"the cache '{directory}' is unfinished. Build it again with the same settings: it goes on where it was."
            )
        names = _read_json(directory / WHOLE_FILE)["shards"]
        cache = cls(directory, settings, [_Shard(directory, name, verify) for name in names], vocab_map)
        if fingerprint is not None:
            cache.check(fingerprint)
        return cache

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
    def fallback(self) -> str | None:
        return None if self._head is not None else f"the cache '{self.directory}' holds the likeliest tokens only"

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Raises: UsageError, the cache was made from something else; it says what differs. What is not given is not compared."""
        differences = _differences(self.settings.fingerprint, fingerprint, only_given=True)
        if differences:
            raise UsageError(
                f"the cache '{self.directory}' was made from something else: {'; '.join(differences)}. Build one from what is "
                "used now, or use what it was made from."
            )

    def check_temperature(self, temperature: float) -> None:
        """Raises: UsageError, the cache holds the likeliest tokens for another temperature."""
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
        Raises: UsageError, a row is not in the cache, or the cache holds the likeliest tokens only.
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
        """The teacher's likeliest tokens, for `topk_word_prediction_loss`.

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

    def _check_vocabulary(self) -> None:
        settings, given = self.settings, self.vocab_map
        if settings.kind == "hidden":
            if given is not None and given.original_size > settings.size:
                raise UsageError(
                    f"the vocabulary map comes from {given.original_size} tokens, the teacher of the cache '{self.directory}' "
                    f"predicts {settings.size}. Pass the map that was made from this teacher's tokenizer."
                )
        elif _kept_hash(given) != settings.kept:
            raise UsageError(
                f"the cache '{self.directory}' holds the likeliest of {settings.size} tokens, which are not the "
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
            decoded = _decoded({name: tensor.to(self._device) for name, tensor in read.items()})
            if here.size == shard.size:
                return decoded
            for name, tensor in decoded.items():
                if name not in result:
                    result[name] = tensor.new_empty(shard.size, *tensor.shape[1:])
                result[name][torch.from_numpy(here).to(self._device)] = tensor
        return result

    def _refuse(self, missing: Tensor, rows: int) -> None:
        raise UsageError(
            f"{len(missing)} of {rows} rows are not in the cache '{self.directory}', the first begins with the ids "
            f"{missing[0, :8].tolist()}. It holds other data, was built with another tokenizer, length or choice of positions, "
            "or each epoch masks other words: give the collator the seed and epoch of the build and keep them."
        )


def teacher_fingerprint(model: nn.Module) -> str:
    """sha256 of a model's class, configuration and weights: of every value, whatever the device and the file it came from.

    The same weights in a wider dtype, up to fp32, are the same teacher. A gigabyte takes about a second. Attached adapters count.

    Raises: UsageError, the weights are sharded over processes.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    digest = hashlib.sha256(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    digest.update(type(model).__name__.encode())
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, Tensor):
            continue
        if hasattr(tensor, "ds_id") or hasattr(tensor, "full_tensor"):
            raise UsageError(
                f"'{name}' is sharded over processes, so no process can read all of it. Take teacher_fingerprint before the "
                "model is prepared, and pass it as fingerprint={'teacher': ...}."
            )
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place in seen and tensor.numel():
            continue  # tied
        seen.add(place)
        for part in tensor.detach().reshape(-1).split(2**24):
            part = part.cpu()
            digest.update((part.float() if part.is_floating_point() and part.itemsize < 4 else part).numpy())
    return digest.hexdigest()


_PASSING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_commit_hash"}


def _lasting(config: Any) -> Any:
    """A configuration without what says where it came from and how it was loaded."""
    if isinstance(config, dict):
        lasting = {str(name): value for name, value in config.items() if name not in _PASSING}
        return {name: _lasting(value) for name, value in lasting.items() if "attn_impl" not in name}
    return config


def teachers_ids(inputs: Mapping[str, Tensor], vocab_map: VocabMap | None) -> dict[str, Tensor]:
    """What a teacher reads where the student reads `inputs`: the ids of the original vocabulary, as a live teacher finds them."""
    inputs = dict(inputs)
    original = inputs.pop(ORIGINAL_IDS, None)
    if vocab_map is not None:
        mapped = {name: vocab_map.to_original(inputs[name]) for name in ("input_ids", "decoder_input_ids") if name in inputs}
        inputs |= mapped if original is None else mapped | {"input_ids": original}
    return inputs


def row_keys(inputs: Mapping[str, Tensor], positions: Tensor) -> np.ndarray:
    """128 bits per row, of what the teacher reads in it and of the positions that count, without padding.

    Args:
        inputs: integer [B, S] tables by name, ids as the teacher has them. A table ends, and begins, where `attention_mask`
            (`decoder_attention_mask` for those of the decoder) says so. Without a mask a decoder's or a packed causal row ends
            with the last position that counts, for nothing behind it is seen; any other is read in full.
        positions: bool, of the shape of `decoder_input_ids`, or else of `input_ids`.
    Returns: uint8 [B, 16], BLAKE2b.
    Raises: UsageError, an input is no table of ids, or padding counts.
    """
    counted = positions.cpu().numpy()
    predicting = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    parts = []
    for name in sorted(inputs):
        if name.endswith("attention_mask"):
            continue
        table = inputs[name].cpu().numpy()
        if table.ndim != 2 or table.dtype.kind not in "iu" or len(table) != len(counted):
            raise UsageError(
                f"'{name}' is {table.dtype} {table.shape}, a cached teacher's rows are [B, S] tables of ids. Use a live teacher."
            )
        filled = _filled(name, inputs, counted, table.shape)
        parts.append((table[filled].astype("<i4"), np.cumsum(filled.sum(1))))
        if name == predicting:
            if counted.shape != filled.shape or (counted & ~filled).any():
                raise UsageError(
                    f"prediction_mask {counted.shape} counts positions that '{name}' {table.shape} does not have, or padding. "
                    "Count filled positions only."
                )
            parts.append((counted[filled], parts[-1][1]))
    names = " ".join(sorted(name for name in inputs if not name.endswith("attention_mask"))).encode()
    keys = np.empty((len(counted), 16), dtype=np.uint8)
    for row in range(len(counted)):
        digest = hashlib.blake2b(names, digest_size=16)
        for values, ends in parts:
            piece = values[ends[row - 1] if row else 0 : ends[row]]
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
        keys[row] = np.frombuffer(digest.digest(), dtype=np.uint8)
    return keys


def _filled(name: str, inputs: Mapping[str, Tensor], counted: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool [B, S]: the part of a table that is not padding."""
    of_decoder = name.startswith("decoder_")
    mask = inputs.get("decoder_attention_mask" if of_decoder else "attention_mask")
    if mask is not None:
        if tuple(mask.shape) != shape:
            raise UsageError(
                f"the attention mask {tuple(mask.shape)} does not fit '{name}' {shape}. Give a cached teacher one per token."
            )
        return mask.bool().cpu().numpy()
    if (of_decoder or "position_ids" in inputs) and counted.shape == shape:
        return np.cumsum(counted[:, ::-1], axis=1)[:, ::-1] > 0
    return np.ones(shape, dtype=bool)


class _Index:
    """Key -> shard, and place of the row's first position in it."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
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


def _as_bytes(keys: np.ndarray) -> list[bytes]:
    return np.ascontiguousarray(keys).view("V16")[:, 0].tolist()


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


# What is stored of a position


def _encoded_hidden(
    teacher: Teacher, inputs: Mapping[str, Tensor], positions: Tensor, settings: CacheSettings, per_shard: dict[str, Tensor]
) -> dict[str, Tensor]:
    hidden = teacher.head_inputs(inputs, positions).hidden
    if settings.dtype == "int8":
        # Some channels of a language model are a hundred times larger than others: without a scale of its own each of these would
        # leave a token's other channels no bits. The first batch of a shard sets them.
        if "channel" not in per_shard:
            size = hidden.float().square().mean(0).sqrt()
            per_shard["channel"] = size.clamp(min=0.01 * size.mean().item()).clamp(min=1e-12).cpu()
        scaled = hidden.float() / per_shard["channel"].to(hidden.device)
        scale = scaled.abs().amax(1).clamp(min=1e-12) / 127
        stored = {"hidden": (scaled / scale[:, None]).round().to(torch.int8), "scale": scale}
        finite = torch.isfinite(scale).all()
    else:
        stored = {"hidden": hidden.to(_TORCH_DTYPE[settings.dtype])}
        finite = torch.isfinite(stored["hidden"]).all()
    if not finite:
        raise UsageError(f"the teacher's hidden states are not finite as {settings.dtype}. Check its weights and its dtype.")
    return stored


def _encoded_top_tokens(
    teacher: Teacher, inputs: Mapping[str, Tensor], positions: Tensor, settings: CacheSettings, per_shard: dict[str, Tensor]
) -> dict[str, Tensor]:
    logits = teacher.logits(inputs, positions, settings.temperature)
    if logits.isnan().any():
        raise UsageError("the teacher predicts NaN. Check its weights and its dtype.")
    top = top_tokens(logits, settings.k, settings.temperature)
    id_dtype = torch.int16 if settings.size <= 2**15 else torch.int32
    return {"ids": top.ids.to(id_dtype), "logits": top.logits.to(_TORCH_DTYPE[settings.dtype]), "log_tail": top.log_tail.float()}


def _decoded(read: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hidden states of int8 become fp32; what else is stored is used as it is."""
    if "scale" not in read:
        return read
    return {"hidden": read["hidden"].float().mul_(read["scale"][:, None]).mul_(read["channel"])}


# Files


class _Writer:
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
        _write_tensors(file, tensors | self.per_shard)
        facts = {"rows": len(tensors["keys"]), "positions": int(tensors["lengths"].sum())}
        _write_json(file.with_suffix(".json"), {**facts, "bytes": file.stat().st_size, "sha256": _sha256(file)})
        self._forget()


class _Shard:
    """A shard's tensors, mapped into memory: what is not read is not loaded.

    Raises: UsageError, it is missing, or not what was written.
    """

    def __init__(self, directory: Path, name: str, verify: bool = False) -> None:
        file, facts_file = directory / f"{name}.safetensors", directory / f"{name}.json"
        remedy = f"Delete '{facts_file}' if it is there, and build the cache again with the same settings: it mends that shard."
        if not facts_file.exists() or not file.exists():
            raise UsageError(f"shard '{file}' is missing. {remedy}")
        facts = _read_json(facts_file)
        self.rows, self.positions, self.file_bytes = facts["rows"], facts["positions"], facts["bytes"]
        if file.stat().st_size != self.file_bytes:
            raise UsageError(f"shard '{file}' has {file.stat().st_size} bytes, {self.file_bytes} were written. {remedy}")
        if verify and _sha256(file) != facts["sha256"]:
            raise UsageError(f"shard '{file}' is corrupt: its checksum differs from the one written. {remedy}")
        try:
            with safe_open(file, "pt") as reader:
                self.tensors = {name: reader.get_tensor(name) for name in reader.keys()}
        except SafetensorError as error:
            raise UsageError(f"shard '{file}' is corrupt ({error}). {remedy}") from error

    def at(self, places: Tensor) -> dict[str, Tensor]:
        """What is stored for some positions, int64 [n]; and for all of the shard."""
        stored = {name: tensor for name, tensor in self.tensors.items() if name not in ("keys", "lengths")}
        return {name: tensor if name == "channel" else tensor.index_select(0, places) for name, tensor in stored.items()}


def _settings(
    teacher: Teacher,
    kind: str,
    dtype: str | None,
    k: int | None,
    temperature: float | None,
    fingerprint: Mapping[str, Any] | None,
) -> CacheSettings:
    if kind not in DTYPES:
        raise UsageError(f"kind={kind!r} is unknown. Use 'hidden' or 'topk'.")
    dtype = DTYPES[kind][0] if dtype is None else dtype
    if dtype not in DTYPES[kind]:
        raise UsageError(f"dtype={dtype!r} is unknown for kind={kind!r}. Use one of {', '.join(DTYPES[kind])}.")
    if not teacher.models:
        raise UsageError(f"{type(teacher).__name__} runs no model, so there is nothing to cache. Give a live teacher.")
    vocab_map = _vocab_map_of(teacher)
    if kind == "hidden":
        if teacher.fallback is not None:
            raise UsageError(f"no hidden states can be cached: {teacher.fallback}. Use kind='topk'.")
        if k is not None or temperature is not None:
            raise UsageError(f"k={k} and temperature={temperature} belong to kind='topk'. Leave them out: 'hidden' holds all.")
        size = teacher.head.size
    else:
        size = teacher.size
        k, temperature = DEFAULT_K if k is None else k, 1.0 if temperature is None else float(temperature)
        if not 1 <= k <= size:
            raise UsageError(f"k={k} is out of range: the teacher predicts {size} tokens. Use 1 to {size}, e.g. {DEFAULT_K}.")
        if not temperature > 0:
            raise UsageError(f"temperature={temperature} is not positive. Use the loss's, e.g. 1.0.")
    made_from = dict(fingerprint or {})
    if "teacher" not in made_from:
        made_from["teacher"] = " ".join(teacher_fingerprint(model) for model in teacher.models)
        if hasattr(teacher, "weights"):
            made_from["teacher"] += f" {teacher.weights}"
    kept = _kept_hash(vocab_map) if kind == "topk" else None
    return CacheSettings(kind, dtype, size, k, temperature, kept, json.loads(json.dumps(made_from, default=str)))


def _vocab_map_of(teacher: Any) -> VocabMap | None:
    return teacher.vocab_map if hasattr(teacher, "vocab_map") else _vocab_map_of(teacher.teachers[0])


def _kept_hash(vocab_map: VocabMap | None) -> str | None:
    return None if vocab_map is None else hashlib.sha256(vocab_map.kept_ids.astype("<i8").tobytes()).hexdigest()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], only_given: bool = False) -> list[str]:
    """What the two have otherwise, in words; of what `here` does not name nothing is said if `only_given`."""
    there, here = (_flat(json.loads(json.dumps(values, default=str))) for values in (there, here))
    names = list(here) if only_given else list(there | here)
    return [
        f"{name} is {_short(there, name)} there and {_short(here, name)} here"
        for name in names
        if (name in there, there.get(name)) != (name in here, here.get(name))
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(values: Mapping[str, Any], name: str) -> str:
    text = repr(values[name]) if name in values else "not recorded"
    return text if len(text) <= 40 else f"{text[:16]}..."


def _begin(directory: Path, settings: CacheSettings) -> None:
    """Claims the directory, or finds that it is this cache's already; it is not whole from here on."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is a file: give a folder for the cache.")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / SETTINGS_FILE).exists():
        differences = _differences(dataclasses.asdict(_read_settings(directory)), dataclasses.asdict(settings))
        if differences:
            raise UsageError(f"'{directory}' holds another cache: {'; '.join(differences)}. Give another folder, or delete it.")
    else:
        _write_json(directory / SETTINGS_FILE, dataclasses.asdict(settings))
    (directory / WHOLE_FILE).unlink(missing_ok=True)
    for partial in directory.glob(".*.partial"):
        partial.unlink()


def _read_settings(directory: Path) -> CacheSettings:
    file = directory / SETTINGS_FILE
    if not file.exists():
        raise UsageError(f"there is no cache at '{directory}'. Write one with TeacherCache.build first.")
    content = _read_json(file)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise UsageError(f"'{file}' does not describe a cache of version {_VERSION}, which this package reads: build it again.")
    return CacheSettings(**content)


def _shard_names(directory: Path) -> list[str]:
    return sorted(file.stem for file in directory.glob("shard-*.json"))


def _write_head(
    directory: Path, teacher: Any, inputs: Mapping[str, Tensor], positions: Tensor, vocab_map: VocabMap | None
) -> None:
    """All V rows of the output embedding, whatever rows the teacher predicts."""

    def write(head: HeadInputs) -> None:  # inside of the forward, where sharded weights are whole
        tensors = {"weight": head.weight, "bias": head.bias}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        _write_tensors(directory / HEAD_FILE, tensors, {"transform": json.dumps([head.scale, head.softcap])})

    teacher.head.collect(teacher.model, teachers_ids(inputs, vocab_map), write, positions)


def _read_head(directory: Path, vocab_map: VocabMap | None) -> HeadInputs:
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


def _write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    partial = _partial(file)
    save_file(tensors, partial, metadata)  # of one entry at most, for their order changes from run to run
    os.replace(partial, file)


def _write_json(file: Path, content: Any) -> None:
    partial = _partial(file)
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, file)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"'{file}' cannot be read ({error}). Delete it, and build the cache again with the same settings."
        ) from error


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}.partial")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as reader:
        while block := reader.read(2**22):
            digest.update(block)
    return digest.hexdigest()
