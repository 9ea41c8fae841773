"""Models that predict classes, or a number, of a whole text: what their outputs mean, and how they are asked for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from hf_glmd.errors import UsageError
from hf_glmd.models.encoders import EncoderHead, is_encoder
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

    def of_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any], positions: Tensor | None = None
    ) -> Any:
        """What `compute` makes of the logits, as `WordHead.of_logits`."""
        return compute(self.logits(model, inputs))

    def rows(self, token_ids: Tensor) -> None:
        """Nothing: the classes are the same, whichever tokens were kept."""


def head_of(model: nn.Module) -> WordHead | ClassHead | EncoderHead:
    """What a model predicts with. Raises: UsageError, it predicts neither words nor classes and is no encoder."""
    if is_encoder(model):
        return EncoderHead(model)
    return ClassHead(model) if is_classifier(model) else WordHead(model)


def check_same_classes(student: Any, teacher: Any) -> None:
    """Gives the student the teacher's names of classes, where it has none of its own.

    Args:
        student, teacher: configurations of classifiers with as many outputs.
    Raises: UsageError, an output of the student means another thing than the teacher's.
    """
    if problem_of(student) != problem_of(teacher):
        raise UsageError(
            f"the student is made for {problem_of(student)}, the teacher for {problem_of(teacher)}. "
            "Set problem_type in the student's configuration."
        )
    ours, theirs = (_names(config) for config in (student, teacher))
    if _unnamed(ours):
        student.id2label, student.label2id = dict(enumerate(theirs)), {name: number for number, name in enumerate(theirs)}
    elif not _unnamed(theirs) and ours != theirs:
        raise UsageError(
            f"the student's classes are {ours}, the teacher's {theirs}. Give the student the teacher's id2label and label2id."
        )


def _names(config: Any) -> list[str]:
    return [config.id2label[number] for number in range(config.num_labels)]


def _unnamed(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]
