"""Text encoders: models without a head, whose last hidden states are pooled into one vector per text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING

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
    """[B, S, H], padded on the right -> the first token's, [B, H], fp32 or wider."""
    return states[:, 0].to(torch.promote_types(states.dtype, torch.float32))


def last_pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H], int64 [B, S] padded on the right -> the last token's before the padding, [B, H], fp32 or wider."""
    last = attention_mask.sum(1).clamp(min=1) - 1
    return states[torch.arange(len(states), device=states.device), last].to(torch.promote_types(states.dtype, torch.float32))


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_pooled, "cls": first_pooled, "lasttoken": last_pooled}
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
        """What `compute` makes of the hidden states, as `WordHead.of_logits`."""
        return compute(self.logits(model, inputs))

    def rows(self, token_ids: Tensor) -> None:
        """Nothing: the width is the same, whichever tokens were kept."""
