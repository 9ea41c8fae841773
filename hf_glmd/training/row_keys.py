"""What a row of a batch is found by: its content, without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from hf_glmd.corpora.blocks import ORIGINAL_IDS
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
