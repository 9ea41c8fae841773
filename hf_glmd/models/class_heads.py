"""Models that predict classes, or a number, of a whole text: what their outputs mean, and how they are asked for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import HeadRows, WordHead

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
"""What a classifier's outputs mean, in the words of `config.problem_type`."""


def is_classifier(model: nn.Module) -> bool:
    """Whether a model is one that `AutoModelForSequenceClassification` loads."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return isinstance(model, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), ()))


def problem_of(config: Any) -> str:
    """What a classifier's outputs mean: one of `PROBLEMS`. One output without a name for it is a number, as in transformers."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


class ClassHead:
    """A classifier, as trainers and teachers use models: `WordHead` for what predicts classes instead of words.

    Attributes:
        size: number of outputs.
        fallback: why no hidden states are handed over.

    Args:
        model: not wrapped (DDP, compiled) yet; what is called later may be.
    Raises: UsageError, the model looks for the end of a text by a padding token that its configuration does not name.
    """

    fallback = "classes are few, so nothing is gained from hidden states"

    def __init__(self, model: nn.Module) -> None:
        self.size = model.config.num_labels
        unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = set(inspect.signature(unwrapped.forward).parameters)
        causal = "past_key_values" in self._accepted and not model.config.is_encoder_decoder
        if causal and model.config.get_text_config().pad_token_id is None:
            raise UsageError(
                f"{type(unwrapped).__name__} reads the class off the last token before the padding, and its configuration has no "
                "pad_token_id. Set model.config.pad_token_id = tokenizer.pad_token_id."
            )

    def logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> Tensor:
        """What `model(**inputs)` says of each text, [B, C]. Inputs that the model does not take (`token_type_ids`) are left out.

        Args:
            positions, rows: of `WordHead.logits`; a class has neither.
        """
        return model(**{name: value for name, value in inputs.items() if name in self._accepted}).logits

    def loss_of_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], loss: Callable[[Tensor], Tensor], positions: Tensor | None = None
    ) -> Tensor:
        """A scalar made of the logits, as `WordHead.loss_of_logits`."""
        return loss(self.logits(model, inputs))

    def rows(self, token_ids: Tensor) -> None:
        """Nothing: the classes are the same, whichever tokens were kept."""


def head_of(model: nn.Module) -> WordHead | ClassHead:
    """What a model predicts with. Raises: UsageError, it predicts neither words nor classes."""
    return ClassHead(model) if is_classifier(model) else WordHead(model)
