"""temporarily_shrunk: fine-tune with a smaller vocabulary, and have the full one back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import TensorCut, places_of, plan_cut, put
from hf_glmd.vocab.vocab_map import VocabMap

_shrunk_now: WeakSet[nn.Module] = WeakSet()


@contextmanager
def temporarily_shrunk(model: Any, vocab: Any) -> Iterator[VocabMap]:
    """Inside this context the model has the smaller vocabulary; afterwards the full one, with the trained rows in their places.

        with temporarily_shrunk(model, vocab):
            Trainer(model, args, train_dataset=tokenized_with_the_small_tokenizer).train()

    The model is changed in place and stays the same object, as do all parameters outside the vocabulary tables. An optimizer
    made inside holds gradients and moments for the kept rows only. The full tables wait in CPU memory. On the way out, after an
    exception too, the very same parameters and buffers as before are back, tied as before, on the device and in the dtype that
    the small ones have by then; every other row of them is what it was, bit for bit (unless the dtype changed). Sizes and token
    ids in modules, config and generation config are again what they were. Saving inside saves the small model.

    An optimizer belongs to one side: one that was made before holds the full tables and trains none of the small ones, one that
    was made inside trains nothing of the full ones. Gradients of the full tables are dropped. Training that shards the
    weights (FSDP, DeepSpeed ZeRO-3) cannot be used with it.

    Args:
        model: as in `hf_glmd.models.surgery.resize_model`, but changed.
        vocab: `ShrunkVocab` or `VocabMap`; how it treats removed tokens makes no difference here.
    Yields: the `VocabMap`; token ids for the model go through `to_small` of it, or come from the small tokenizer.
    Raises: UsageError, the vocabulary of the model cannot be cut, or is already cut by this function, or (on the way out, with
        the full tables back as they were) something inside gave the tables another shape or sharded them.
    """
    vocab_map = getattr(vocab, "vocab_map", vocab)
    if not isinstance(vocab_map, VocabMap):
        raise UsageError(f"vocab must be what VocabShrinker.shrink returns (or its vocab_map), not {type(vocab).__name__}.")
    if isinstance(model, nn.Module) and model in _shrunk_now:
        raise UsageError(f"This {type(model).__name__} has a smaller vocabulary already: leave that temporarily_shrunk first.")
    cut = plan_cut(model, vocab_map, len(vocab.report.without_row) if hasattr(vocab, "report") else 0)
    places = places_of(model, cut.tensors)
    _shrunk_now.add(model)
    try:
        for key, part in cut.tensors.items():
            put(places[key], part.small())
            part.tensor.grad = None
            part.tensor.data = part.tensor.data.cpu()
        for change in cut.settings:
            change.apply()
        yield vocab_map
    finally:
        for change in cut.settings:
            change.undo()
        lost = [places[key][0][1] for key, part in cut.tensors.items() if not _restore(part, places[key])]
        _shrunk_now.discard(model)
        if lost:
            raise UsageError(
                f"Inside temporarily_shrunk {len(lost)} vocabulary tensors ({', '.join(lost)}) got another shape or were "
                "sharded: their training is lost. Neither resize nor shard the model inside."
            )


def _restore(part: TensorCut, places: list[tuple[nn.Module, str]]) -> bool:
    """Puts the full tensor back, with what the small one has become in it; whether that was possible."""
    module, name = places[0]
    small, full = getattr(module, name), part.tensor
    if small is full:  # the context could not be entered
        return True
    put(places, full)
    full.data = full.data.to(device=small.device, dtype=small.dtype)
    expected = (*full.shape[: part.dim], len(part.kept), *full.shape[part.dim + 1 :])
    if type(small) not in (torch.Tensor, nn.Parameter) or small.shape != expected:
        return False
    full.data.index_copy_(part.dim, part.kept.to(small.device), small.detach())
    return True
