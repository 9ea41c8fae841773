"""Text encoders: models without a head, whose last hidden states are pooled into one vector per text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING
from transformers.modeling_outputs import BaseModelOutput

from hf_glmd.models.heads import HeadRows


def is_encoder(model: nn.Module) -> bool:
    """Whether a model is one that `AutoModel` loads, and reads a text from both sides or at least to its end."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = MODEL_MAPPING.get(type(model.config), ())
    return isinstance(model, known) and not getattr(model.config, "is_encoder_decoder", False)


def mean_pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H], int64 [B, S] -> the mean over what is no padding, [B, H], fp32 or wider."""
    mask = attention_mask.unsqueeze(-1).to(torch.promote_types(states.dtype, torch.float32))
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def first_pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H], int64 [B, S] -> the first token's behind padding on the left, if there is any, [B, H], fp32 or wider."""
    return _at(states, attention_mask.argmax(1))


def last_pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H], int64 [B, S] -> the last token's before the padding, [B, H], fp32 or wider."""
    return _at(states, attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1))


def max_pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H], int64 [B, S] -> the largest of each dimension over what is no padding, [B, H], fp32 or wider."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    return states.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.finfo(states.dtype).min).amax(1)


def _at(states: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    return states[rows, places].to(torch.promote_types(states.dtype, torch.float32))


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_pooled,
    "cls": first_pooled,
    "max": max_pooled,
    "lasttoken": last_pooled,
}
"""By the names of sentence-transformers."""


class EncoderHead:
    """An encoder, as trainers and teachers use models: `WordHead` for what predicts nothing.

    Attributes:
        size: H, the width of the hidden states.
        fallback: why no inputs of a head are handed over.
    """

    fallback = "there is no head"

    def __init__(self, model: nn.Module) -> None:
        self.size = model.config.get_text_config().hidden_size
        unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = set(inspect.signature(unwrapped.forward).parameters)
        self._model = model
        self._hook: Any = None
        self._compute: Callable[[Tensor], Any] | None = None
        self._computed: list[Any] = []

    def logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> Tensor:
        """The last hidden states, [B, S, H]. Inputs that the model does not take are left out.

        Args:
            positions, rows: of `WordHead.logits`; a text as a whole has neither.
        """
        return model(**{name: value for name, value in inputs.items() if name in self._accepted}).last_hidden_state

    def of_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any], positions: Tensor | None = None
    ) -> Any:
        """What `compute` makes of the hidden states, in the model's forward, as `WordHead.of_logits`."""
        if self._hook is None:
            self._hook = self._model.register_forward_hook(self._at_output)
        self._compute, self._computed = compute, []
        try:
            states = self.logits(model, inputs)
            (result,) = self._computed or [compute(states)]
            # A loss is returned as the model's output, so that the hooks of DDP and FSDP see its backward.
            return states if isinstance(result, Tensor) and result.requires_grad else result
        finally:
            self._compute, self._computed = None, []

    @torch.compiler.disable  # it does something else each time, so a compiled model has to leave it alone
    def _at_output(self, module: nn.Module, read: Any, output: Any) -> Any:
        """Where the result is a loss, it alone is the output: DDP takes the pooler, which nothing is made of, for unused then."""
        if self._compute is None:
            return None
        result = self._compute(output.last_hidden_state)
        self._computed.append(result)
        return BaseModelOutput(last_hidden_state=result) if isinstance(result, Tensor) and result.requires_grad else None

    def rows(self, token_ids: Tensor) -> None:
        """Nothing: the width is the same, whichever tokens were kept."""
