"""Classes: what a teacher's classification head says of whole texts, as soft labels; a number, where it is a regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import ClassCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.losses.classification import class_loss, class_scores
from hf_glmd.models.class_heads import CLASSIFIER, check_same_classes, check_trained_head, class_kind, problem_of
from hf_glmd.models.encoders import is_encoder
from hf_glmd.training.datasets import token_rows
from hf_glmd.training.objectives.base import Objective, kind_of
from hf_glmd.training.token_mean import summed_over_examples


class HeadObjective(Objective):
    """What objectives have in common whose models end in a head of a few outputs that was trained with labels.

    They are what `objective="soft_label"` means for models of their kind.

    Attributes:
        kind: of both models, see `hf_glmd.models.class_heads.class_kind`.
    Raises: UsageError, a model is of another kind, the teacher's head is untrained, or the outputs are not the same.
    """

    default_temperature = 1.0
    kind: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self.student).__name__
        if is_encoder(self.student):
            raise UsageError(
                f"objective='{self.args.objective}' is about what a head predicts, and {name} has none. Use "
                "objective='embedding', or a checkpoint that was trained with a head."
            )
        if class_kind(self.student) != self.kind:
            raise UsageError(
                f"objective='{self.args.objective}' is about a {self.kind}, and {name} is a {kind_of(self.student)}. Use "
                "objective='soft_label', which goes by the model."
            )
        if self.head.size != self.teacher.size:
            raise UsageError(
                f"the student has {self.head.size} outputs, the teacher {self.teacher.size}. Set num_labels={self.teacher.size} "
                "in the student's configuration."
            )
        for other in self.teacher.models:
            check_trained_head(other)

    @classmethod
    def suits(cls, name: str, model: nn.Module) -> bool:
        return name in (cls.name, "soft_label") and class_kind(model) == cls.kind

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Callable[[list[Any]], dict[str, Any]]:
        return ClassCollator(tokenizer)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        return token_rows(dataset, self.processing_class, self.args, length, limit, classes=True, input_rows=self.input_rows)

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.teacher_logits(inputs, self.args.temperature)

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        return self.head.of_logits(model, model_inputs(inputs), compute, inputs["prediction_mask"])


class Classes(HeadObjective):
    """Cross-entropy of two `AutoModelForSequenceClassification`s; of regressions the squared difference.

    Attributes:
        problem: what the outputs mean, as in `config.problem_type`.
    """

    name = "soft_label"
    kind = CLASSIFIER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problem = problem_of(self.student.config)
        if self.teacher.mixes_probabilities and self.problem != "single_label_classification":
            raise UsageError(f"several teachers of a {self.problem} cannot be averaged as probabilities. Use one of them.")
        for other in self.teacher.models:
            check_same_classes(self.student.config, other.config)

    def check_metrics(self) -> None:
        if self.problem != "single_label_classification":
            raise UsageError(f"compute_metrics gets the argmax, and {self.problem} has none. Read eval_loss instead.")

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return summed_over_examples(class_loss(student, teacher, self.problem, self.args.temperature), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        plain = self.plain_logits(teacher, inputs)
        loss = class_loss(student, teacher, self.problem, self.args.temperature)
        chosen = {"student_choice": student.argmax(-1), "teacher_choice": plain.argmax(-1)}
        return {"loss": loss} | class_scores(student, plain, self.problem) | chosen
