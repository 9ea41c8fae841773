"""What a row of a batch is found by: its content, without padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.vocab.vocab_map import VocabMap


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


def differences(there: Mapping[str, Any], here: Mapping[str, Any], only_here: bool = False) -> list[str]:
    """Keys whose values differ, one sentence each; with `only_here`, keys that `here` lacks are left out."""
    there, here = (_flat(json.loads(json.dumps(values, default=str))) for values in (there, here))
    names = list(here) if only_here else list(there | here)
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


def missing_rows(
    cache: HoldsRows, dataset: Any, collator: Callable[..., Any], read: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[int, int]:
    """How many rows of a dataset are not in a cache, and how many were looked up: of a large dataset some, evenly spread.

    Args:
        cache: to look in, at the collator's epoch 0.
        dataset: rows of token ids; anything without a length is not looked at.
        collator: makes a batch of rows.
        read: the part of a batch that the teacher reads.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return 0, 0
    chosen = torch.linspace(0, len(dataset) - 1, min(len(dataset), CHECKED_ROWS)).long().unique().tolist()
    missing = 0
    for start in range(0, len(chosen), _CHECKED_AT_ONCE):
        batch = collator([dataset[number] for number in chosen[start : start + _CHECKED_AT_ONCE]])
        missing += int((~cache.holds(read(batch), batch["prediction_mask"])).sum())
    return missing, len(chosen)


class HoldsRows(Protocol):
    def holds(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """Whether a row is there, or has no position that counts: bool [B]."""


CHECKED_ROWS = 1024
"""Rows of a dataset that are looked for in a cache before training begins."""


_CHECKED_AT_ONCE = 64
