"""What a teacher cache can be, what it stores of a position, and what it reads back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.losses.topk import top_tokens
from hf_glmd.teachers.base import Teacher
from hf_glmd.utils.options import cache_kind
from hf_glmd.vocab.vocab_map import VocabMap

TORCH_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def encoded_hidden(
    teacher: Teacher, inputs: Mapping[str, Tensor], positions: Tensor, settings: CacheSettings, per_shard: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What enters the output embedding at N positions.

    Args:
        teacher, inputs, positions: as of `Teacher.head_inputs`.
        settings: of the cache; its dtype decides.
        per_shard: what all positions of a shard share; the first batch of a shard writes it.
    Returns: `hidden` [N, H], and for int8 `scale` fp32 [N].
    Raises: UsageError, a value is not finite in that dtype.
    """
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
        stored = {"hidden": hidden.to(TORCH_DTYPE[settings.dtype])}
        finite = torch.isfinite(stored["hidden"]).all()
    if not finite:
        raise UsageError(f"the teacher's hidden states are not finite as {settings.dtype}. Check its weights and its dtype.")
    return stored


def encoded_top_tokens(
    teacher: Teacher, inputs: Mapping[str, Tensor], positions: Tensor, settings: CacheSettings, per_shard: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The top tokens at N positions, and the mass of all others. Arguments as of `encoded_hidden`.

    Returns: `ids` int16 or int32 [N, k], `logits` [N, k], `log_tail` fp32 [N].
    Raises: UsageError, the teacher predicts NaN.
    """
    logits = teacher.logits(inputs, positions, settings.temperature)
    if logits.isnan().any():
        raise UsageError("the teacher predicts NaN. Check its weights and its dtype.")
    top = top_tokens(logits, settings.k, settings.temperature)
    id_dtype = torch.int16 if settings.size <= 2**15 else torch.int32
    return {"ids": top.ids.to(id_dtype), "logits": top.logits.to(TORCH_DTYPE[settings.dtype]), "log_tail": top.log_tail.float()}


def decoded(read: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hidden states of int8 become fp32; what else is stored is used as it is."""
    if "scale" not in read:
        return read
    return {"hidden": read["hidden"].float().mul_(read["scale"][:, None]).mul_(read["channel"])}


VERSION = 1
DTYPES = {"hidden": ("int8", "bf16", "fp16", "fp32"), "topk": ("fp16", "fp32")}
"""What each kind can be stored as, the default first."""

DEFAULT_K = 64


@dataclass(frozen=True)
class CacheSettings:
    """What a cache holds.

    Attributes:
        kind: "hidden" or "topk".
        dtype: of the hidden states, or of the top tokens' logits.
        size: rows of the output embedding; for "topk": the tokens among which the top ones were sought.
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
    version: int = VERSION


def settings_of(
    teacher: Teacher,
    kind: str,
    dtype: str | None,
    k: int | None,
    temperature: float | None,
    fingerprint: Mapping[str, Any] | None,
) -> CacheSettings:
    """Raises: UsageError, a setting makes no sense, or not with the others."""
    kind = cache_kind(kind)
    if kind not in DTYPES:
        raise UsageError(f"kind={kind!r} is unknown. Use 'hidden' or 'topk'.")
    dtype = DTYPES[kind][0] if dtype is None else dtype
    if dtype not in DTYPES[kind]:
        raise UsageError(f"dtype={dtype!r} is unknown for kind={kind!r}. Use one of {', '.join(DTYPES[kind])}.")
    if not teacher.models:
        raise UsageError(f"{type(teacher).__name__} runs no model, so there is nothing to cache. Give a live teacher.")
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
        made_from["teacher"] = teacher.fingerprint()
    kept = kept_hash(teacher.vocab_map) if kind == "topk" else None
    return CacheSettings(kind, dtype, size, k, temperature, kept, json.loads(json.dumps(made_from, default=str)))


def kept_hash(vocab_map: VocabMap | None) -> str | None:
    return None if vocab_map is None else hashlib.sha256(vocab_map.kept_ids.astype("<i8").tobytes()).hexdigest()
