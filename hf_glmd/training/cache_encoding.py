"""What a cache stores of a position, and what it reads back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.losses.topk import top_tokens
from hf_glmd.training.cache_settings import CacheSettings

if TYPE_CHECKING:
    from hf_glmd.training.teachers import Teacher

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
    """The likeliest tokens at N positions, and the mass of all others. Arguments as of `encoded_hidden`.

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
