"""Models that predict no words but classes (of a text or of each token), a number, or where an answer stands: what their outputs
mean, and how they are asked for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from hf_glmd.errors import UsageError
from hf_glmd.models.distributed import is_sharded
from hf_glmd.models.encoders import EncoderHead, is_encoder
from hf_glmd.models.heads import HeadRows, WordHead, at_positions

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
"""What a classifier's outputs mean, in the words of `config.problem_type`."""


CLASSIFIER, TOKEN_CLASSIFIER, QUESTION_ANSWERER = "classifier", "token classifier", "question answerer"

_MAPPINGS = {
    CLASSIFIER: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    TOKEN_CLASSIFIER: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    QUESTION_ANSWERER: MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}


def class_kind(model: nn.Module) -> str | None:
    """`CLASSIFIER`, `TOKEN_CLASSIFIER` or `QUESTION_ANSWERER`, by the Auto class that loads it; None: none of these."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = (kind for kind, known in _MAPPINGS.items() if isinstance(model, known.get(type(model.config), ())))
    return next(kinds, None)


def is_classifier(model: nn.Module) -> bool:
    """Whether a model is one that `AutoModelForSequenceClassification` loads."""
    return class_kind(model) == CLASSIFIER


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
    reads_last_token = True
    """Whether a causal model of this kind looks for the end of a text."""

    def __init__(self, model: nn.Module) -> None:
        self.size = model.config.num_labels
        unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = set(inspect.signature(unwrapped.forward).parameters)
        causal = "past_key_values" in self._accepted and not model.config.is_encoder_decoder
        if self.reads_last_token and causal and model.config.get_text_config().pad_token_id is None:
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
        return self._output(model, inputs).logits

    def _output(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        return model(**{name: value for name, value in inputs.items() if name in self._accepted})

    def of_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any], positions: Tensor | None = None
    ) -> Any:
        """What `compute` makes of the logits, as `WordHead.of_logits`."""
        return compute(self.logits(model, inputs, positions))

    def rows(self, token_ids: Tensor) -> None:
        """Nothing: the classes are the same, whichever tokens were kept."""


class TokenClassHead(ClassHead):
    """A token classifier, as trainers and teachers use models."""

    reads_last_token = False

    def logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> Tensor:
        """What `model(**inputs)` says of each token.

        Args:
            positions: bool [B, S], N of them True. None: everywhere.
            rows: of `WordHead.logits`; a class has none.
        Returns: [N, C], or [B, S, C] without positions.
        """
        logits = super().logits(model, inputs)
        return logits if positions is None else at_positions(logits, positions)


class SpanHead(ClassHead):
    """A question answerer, as trainers and teachers use models: its classes are the places where an answer may begin and end."""

    fallback = "an answer's ends are few, so nothing is gained from hidden states"
    reads_last_token = False

    def logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> Tensor:
        """Logits of an answer's first and last token, [B, 2, S], fp32 or wider; -inf at padding, where no answer is.

        Args:
            positions, rows: of `WordHead.logits`; an answer has neither.
        """
        output = self._output(model, inputs)
        ids = inputs["input_ids"]
        ends = torch.stack([output.start_logits, output.end_logits], 1)[..., -ids.shape[1] :]
        ends = ends.to(torch.promote_types(ends.dtype, torch.float32))
        mask = inputs.get("attention_mask")
        return ends if mask is None else ends.masked_fill(mask[:, None] == 0, -torch.inf)


_HEADS: dict[str, type[ClassHead]] = {CLASSIFIER: ClassHead, TOKEN_CLASSIFIER: TokenClassHead, QUESTION_ANSWERER: SpanHead}


def head_of(model: nn.Module) -> WordHead | ClassHead | EncoderHead:
    """What a model predicts with. Raises: UsageError, it predicts neither words nor classes nor answers and is no encoder."""
    if is_encoder(model):
        return EncoderHead(model)
    kind = class_kind(model)
    return WordHead(model) if kind is None else _HEADS[kind](model)


def check_trained_head(model: nn.Module) -> None:
    """Refuses a head that `from_pretrained` has made up: the checkpoint had another, or none, and nothing has trained it since.

    A model that was made from a configuration alone is not looked at. Nor is it noticed of a head without biases.

    Raises: UsageError, the class is none that the checkpoint names, and all biases of its head are 0, as they are made.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, name = model.config, type(model).__name__
    if not config.name_or_path or not config.architectures or name in config.architectures:
        return
    body = f"{model.base_model_prefix}."
    biases = [part for path, part in model.named_parameters() if path.endswith("bias") and not path.startswith(body)]
    if not biases or any(is_sharded(bias) or bias.is_meta or bool(bias.any()) for bias in biases):
        return
    raise UsageError(
        f"'{config.name_or_path}' was saved as {' / '.join(config.architectures)}: its head for {name} is newly initialised, and "
        f"what it says is random. Train it with labels first, or use a checkpoint of {name}."
    )


def check_same_names(student: Any, teacher: Any) -> None:
    """Gives the student the teacher's names of classes, where it has none of its own.

    Args:
        student, teacher: configurations with as many classes.
    Raises: UsageError, both have names, and others.
    """
    ours, theirs = (_names(config) for config in (student, teacher))
    if _unnamed(ours):
        student.id2label, student.label2id = dict(enumerate(theirs)), {name: number for number, name in enumerate(theirs)}
    elif not _unnamed(theirs) and ours != theirs:
        raise UsageError(
            f"the student's classes are {ours}, the teacher's {theirs}. Give the student the teacher's id2label and label2id."
        )


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
    check_same_names(student, teacher)


def _names(config: Any) -> list[str]:
    return [config.id2label[number] for number in range(config.num_labels)]


def _unnamed(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]
