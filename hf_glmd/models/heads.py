"""The output embedding of any model, computed only where it is needed: at chosen positions and for chosen tokens.

Almost all of the time and memory of a small model's forward goes into [tokens, vocabulary] logits. One mechanism serves every
architecture: for the length of one forward the output embedding multiplies only the rows that are asked for, and whatever the
model does to its logits afterwards (softcap, scale) happens to those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from hf_glmd.errors import UsageError


def output_embedding(model: nn.Module) -> nn.Linear:
    """The layer that turns hidden states into logits.

    Raises: UsageError, the model predicts no words (a bare encoder or a classifier).
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear):
        raise UsageError(
            f"{type(model).__name__} predicts no words: it has no output embedding. "
            "Load it with AutoModelForMaskedLM, AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    return head


def is_masked_lm(model: nn.Module) -> bool:
    """Whether a model predicts hidden words from both sides, rather than the next word."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    classes = MODEL_FOR_MASKED_LM_MAPPING.get(type(model.config), ())
    return isinstance(model, classes)


class HeadRows:
    """The rows of a frozen output embedding for some tokens, gathered once.

    Args:
        model: a model with an output embedding of V rows.
        token_ids: int64 [K], rows to keep, in the order of the wanted logits. None: all.
    """

    def __init__(self, model: nn.Module, token_ids: Tensor | None = None) -> None:
        head = output_embedding(model)
        self.weight = head.weight.detach()
        self.bias = head.bias.detach() if head.bias is not None else None
        if token_ids is not None:
            token_ids = token_ids.to(self.weight.device)
            self.weight = self.weight.index_select(0, token_ids)
            self.bias = None if self.bias is None else self.bias.index_select(0, token_ids)


@contextmanager
def restricted_head(model: nn.Module, positions: Tensor | None = None, rows: HeadRows | None = None) -> Iterator[None]:
    """Inside this context the model's logits are [N, K] rather than [B, S, V].

    They are fp32, or wider where the model is.

    Args:
        model: unwrapped or not (DDP): the output embedding itself is what changes, so hooks fire as ever.
        positions: bool [B, S], N of them True; logits are computed at those alone. None: everywhere, [B, S, K].
        rows: the output rows to use instead of the model's own, for frozen models. None: the model's own, V of them.
    """
    head = output_embedding(getattr(model, "module", model))
    before = head.__dict__.get("forward")  # accelerate, too, replaces the forward of a module, in the module's own attributes

    def forward(hidden: Tensor) -> Tensor:
        if positions is not None:
            hidden = hidden[positions]
        weight, bias = (head.weight, head.bias) if rows is None else (rows.weight, rows.bias)
        # fp32 even under autocast and from low-precision weights: at T = 15 the two softmaxes differ by less than bf16 can tell.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before  # type: ignore[method-assign]


def word_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
) -> Tensor:
    """Logits of `model(**inputs)` at the chosen positions for the chosen rows: [N, K], or [B, S, K] without positions."""
    with restricted_head(model, positions, rows):
        return model(**inputs).logits


def answer_logits(logits: Tensor, candidate_ids: Tensor) -> Tensor:
    """Each example's candidates out of the logits at its blank.

    Args:
        logits: [B, K].
        candidate_ids: int64 [B, C], -100 where an example has fewer candidates.
    Returns: [B, C], -inf where there is no candidate.
    """
    missing = candidate_ids < 0
    return logits.gather(1, candidate_ids.clamp(min=0)).masked_fill(missing, -torch.inf)
