"""What every objective of a distillation answers: its rows, batches, loss and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import model_inputs
from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.data.rows import LossMasked
from hf_glmd.errors import UsageError
from hf_glmd.models.class_heads import class_kind, head_of
from hf_glmd.models.distributed import is_sharded
from hf_glmd.models.encoders import is_encoder
from hf_glmd.models.heads import is_masked_lm
from hf_glmd.teachers.base import Teacher
from hf_glmd.training.datasets import token_rows


class Objective:
    """What a student learns from its teacher, and how near it has come.

    A batch goes through three steps: `teach`, what the teacher says of it; `ask`, the student is run, and inside of its forward,
    where sharded weights are whole, `loss` and `scores` are made of what it says.

    A new objective is one class that overrides these, and one line in `hf_glmd.training.objectives.kinds.OBJECTIVES`.

    Args:
        student: not wrapped (DDP, compiled) yet.
        teacher: of the same kind.
        args: a `GLMDConfig`.
        processing_class: the student's tokenizer.
        known_tokenizers: whether the tokenizers of all teachers are known, and were found to mean the same tokens.
    Attributes:
        name, default_temperature: of `GLMDConfig.objective`, and the temperature where none is said.
        columns: what its collator reads of a row that no model does.
        head: how the student comes to its predictions.
    Raises: UsageError, the two models do not go together, or not with this objective.
    """

    name: ClassVar[str]
    default_temperature: ClassVar[float]
    columns: ClassVar[tuple[str, ...]] = (ORIGINAL_IDS,)

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        args: Any,
        processing_class: PreTrainedTokenizerBase,
        known_tokenizers: bool = True,
    ) -> None:
        self.student, self.teacher, self.args, self.processing_class = student, teacher, args, processing_class
        self.known_tokenizers = known_tokenizers
        self.head = head_of(student)
        weight = getattr(student.get_input_embeddings(), "weight", None)
        self.input_rows = None if weight is None or is_sharded(weight) else len(weight)
        kind = kind_of(student)
        for other in teacher.models:
            if kind_of(other) != kind:
                raise UsageError(
                    f"the student {type(student).__name__} ({kind}) and the teacher {type(other).__name__} ({kind_of(other)}) do "
                    "not predict the same words. Use two models of one kind."
                )

    @classmethod
    def suits(cls, name: str, model: nn.Module) -> bool:
        """Whether it is what `objective=name` means for a model."""
        return name == cls.name

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Callable[[list[Any]], dict[str, Any]]:
        """Makes batches of its rows: what models read; `prediction_mask`, the positions that are learnt. Raises: UsageError."""
        raise NotImplementedError(f"{cls.__name__} does not say how rows become batches.")

    def adapted(self, collator: Callable[..., Any]) -> Callable[..., Any]:
        """A collator of the user's choice, with the loss mask that its batches lack."""
        ours = type(collator).__module__.startswith("hf_glmd.")
        start = getattr(self.student.config, "decoder_start_token_id", None)
        return collator if ours else LossMasked(collator, kind_of(self.student), start)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        """A dataset as its rows: text is tokenised, the rest is looked at.

        Args:
            dataset: None, one, or several by name.
            length: token ids per row of text.
            limit: the most token ids that both models can read.
        Raises: UsageError.
        """
        return token_rows(dataset, self.processing_class, self.args, length, limit, input_rows=self.input_rows)

    def rebound(self, student: nn.Module) -> Objective:
        """The same for another student of the same shape, as a search makes one for each trial."""
        return type(self)(student, self.teacher, self.args, self.processing_class, self.known_tokenizers)

    @contextmanager
    def saving(self, folder: Path, weights: Mapping[str, Tensor] | None) -> Iterator[Mapping[str, Tensor] | None]:
        """Inside this context the student is written to a folder for use, not to go on from, and is nothing but itself.

        Args:
            weights: gathered from the processes, by name; None: they are not sharded.
        Returns: those of the student.
        """
        yield weights

    def check_metrics(self) -> None:
        """Raises: UsageError, it has no choices that `compute_metrics` could get."""

    @property
    def slow_parts(self) -> list[tuple[str, str]]:
        """(whose, why): which model's logits are all computed, though a cheaper way was asked for."""
        return []

    def teach(self, inputs: Mapping[str, Any]) -> Any:
        """What the teacher says of a batch."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it asks the teacher for.")

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Any], Any]) -> Any:
        """Runs the student, and gives what it says of a batch to `compute`, whose result is returned.

        A scalar with gradients also becomes the model's output: so DDP, which takes parameters that the output does not depend
        on for unused, knows that they are used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it asks the student for.")

    def loss(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The loss summed over the positions, or examples, that count: a scalar, with gradients.

        Args:
            student, teacher: what `ask` and `teach` found.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it costs to differ.")

    def scores(self, student: Any, teacher: Any, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        """What evaluation averages, `loss` among it: name -> [N], or a pair of [N] and bool [N], where there is such a value.

        Args:
            choices: also return `student_choice` and `teacher_choice`, int64 [N], for `compute_metrics`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how near the student is.")

    def loss_and_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss as of `loss`, and the student's logits at all positions, [B, S, K] with gradients, of one forward.

        Raises: UsageError, the teacher predicts no logits.
        """
        if self.teacher.has_top_tokens:
            raise UsageError("return_outputs=True needs a teacher with all logits, and the cache holds top tokens only.")
        told, kept = self.teacher_logits(inputs, self.args.temperature), []

        def compute(logits: Tensor) -> Tensor:
            kept.append(logits)
            return self.loss_of_logits(logits, told, inputs)

        return self.head.of_logits(model, model_inputs(inputs), compute), kept[0]

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The loss as of `loss`, from the student's logits at all positions, [B, S, K], and what `teacher_logits` are."""
        return self.loss(logits, teacher, inputs)

    def teacher_logits(self, inputs: Mapping[str, Any], temperature: float) -> Tensor:
        """At the positions that count, [N, K], fp32."""
        return self.teacher.logits(self.teacher_inputs(inputs), inputs["prediction_mask"], temperature).float()

    def teacher_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that the teacher reads."""
        read = model_inputs(inputs)
        if ORIGINAL_IDS in inputs and not self.args.teacher_reads_replaced:
            read[ORIGINAL_IDS] = inputs[ORIGINAL_IDS]
        return read

    def plain_logits(self, told: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The teacher's logits at temperature 1; `told` are those at the loss's temperature, mostly the same."""
        depends = self.teacher.mixes_probabilities and self.args.temperature != 1.0
        return self.teacher_logits(inputs, 1.0) if depends else told


def kind_of(model: nn.Module) -> str:
    """In words, what a model predicts."""
    if is_encoder(model):
        return "text encoder"
    if (kind := class_kind(model)) is not None:
        return kind
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "masked language model" if is_masked_lm(model) else "causal language model"
