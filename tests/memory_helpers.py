"""How many bytes of tensors live at once, on any device: counted, not asked of an allocator."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside of this context until they are freed.

    Attributes:
        peak: the most bytes that were there at once, what was there before (`before`) included.
    """

    def __init__(self, before: int = 0) -> None:
        super().__init__()
        self.live = self.peak = before
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or storage.data_ptr() == 0:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def parameter_bytes(*models: torch.nn.Module) -> int:
    """Of all parameters and buffers together, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for model in models
        for tensor in [*model.parameters(), *model.buffers()]
    }
    return sum(storages.values())
