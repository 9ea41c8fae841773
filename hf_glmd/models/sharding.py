"""Whole weights of a model whose weights are spread over the processes, by DeepSpeed ZeRO-3 or by FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.distributed.tensor import DTensor


def is_sharded(weight: Tensor) -> bool:
    """Whether this process holds but a part of a weight, outside of the forward of its module."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def whole(weight: Tensor) -> Tensor:
    """A weight of FSDP2, gathered from all processes, which all have to ask; any other as it is."""
    # Weights that were put off to the CPU are exchanged on the device.
    return weight.to(weight.device_mesh.device_type).full_tensor() if isinstance(weight, DTensor) else weight


@contextmanager
def gathered(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside this context the weights that ZeRO-3 shards are whole; all processes have to enter it. Others are as they were."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
