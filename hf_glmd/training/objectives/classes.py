"""Classes: what a teacher's classification head says of whole texts, as soft labels; a number, where it is a regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import ClassCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.losses.classification import class_loss, class_scores
from hf_glmd.models.class_heads import check_same_classes, is_classifier, problem_of
from hf_glmd.training.datasets import token_rows
from hf_glmd.training.objectives.base import Objective
from hf_glmd.training.token_mean import summed_over_examples


class Classes(Objective):
    """Cross-entropy of two `AutoModelForSequenceClassification`s; of regressions the squared difference.

    Attributes:
        problem: what the outputs mean, as in `config.problem_type`.
    """

    name = "soft_label"
    default_temperature = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problem = problem_of(self.student.config)
        if self.head.size != self.teacher.size:
            raise UsageError(
                f"the student has {self.head.size} outputs, the teacher {self.teacher.size}. Set num_labels={self.teacher.size} "
                "in the student's configuration."
            )
        if self.teacher.mixes_probabilities and self.problem != "single_label_classification":
            raise UsageError(f"several teachers of a {self.problem} cannot be averaged as probabilities. Use one of them.")
        for other in self.teacher.models:
            check_same_classes(self.student.config, other.config)

    @classmethod
    def suits(cls, name: str, model: nn.Module) -> bool:
        return name == cls.name and is_classifier(model)

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> ClassCollator:
        return ClassCollator(tokenizer)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        return token_rows(dataset, self.processing_class, self.args, length, limit, classes=True, input_rows=self.input_rows)

    def check_metrics(self) -> None:
        if self.problem != "single_label_classification":
            raise UsageError(f"compute_metrics gets the argmax, and {self.problem} has none. Read eval_loss instead.")

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.teacher_logits(inputs, self.args.temperature)

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        return self.head.of_logits(model, model_inputs(inputs), compute)

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return summed_over_examples(class_loss(student, teacher, self.problem, self.args.temperature), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        plain = self.plain_logits(teacher, inputs)
        loss = class_loss(student, teacher, self.problem, self.args.temperature)
        chosen = {"student_choice": student.argmax(-1), "teacher_choice": plain.argmax(-1)}
        return {"loss": loss} | class_scores(student, plain, self.problem) | chosen
