"""Token classes: what a teacher's classification head says of each token (names, parts of speech), as soft labels.

Source: Hinton et al., arXiv:1503.02531, section 2, at each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import TokenClassCollator
from hf_glmd.errors import UsageError
from hf_glmd.losses.classification import class_loss, class_scores
from hf_glmd.models.class_heads import TOKEN_CLASSIFIER, check_same_names
from hf_glmd.models.heads import at_positions
from hf_glmd.training.objectives.classes import HeadObjective

PROBLEM = "single_label_classification"
"""What transformers takes the outputs of every token classifier for, whatever `config.problem_type`."""


class TokenClasses(HeadObjective):
    """T^2 * cross-entropy of two `AutoModelForTokenClassification`s' classes; the mean is over the tokens that count.

    Raises: UsageError, as `HeadObjective`; or there is one class alone, the classes have other names, or `problem_type` is none
        that a token classifier has.
    """

    name = "token_label"
    kind = TOKEN_CLASSIFIER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.head.size < 2:
            raise UsageError(
                f"num_labels={self.head.size}: of one class the probability is always 1, and nothing is learnt. Use token "
                "classifiers of 2 classes or more."
            )
        for model in (self.student, *self.teacher.models):
            if model.config.problem_type not in (None, PROBLEM):
                raise UsageError(
                    f"problem_type='{model.config.problem_type}' of {type(model).__name__}: a token classifier chooses one class "
                    f"for each token. Set config.problem_type to None or '{PROBLEM}'."
                )
        for other in self.teacher.models:
            check_same_names(self.student.config, other.config)

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> TokenClassCollator:
        return TokenClassCollator(tokenizer, args.positions)

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Of [N, C], N tokens that count."""
        return class_loss(student, teacher, PROBLEM, self.args.temperature).sum()

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return self.loss(at_positions(logits, inputs["prediction_mask"]), teacher, inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        plain = self.plain_logits(teacher, inputs)
        loss = class_loss(student, teacher, PROBLEM, self.args.temperature)
        chosen = {"student_choice": student.argmax(-1), "teacher_choice": plain.argmax(-1)}
        return {"loss": loss} | class_scores(student, plain, PROBLEM) | chosen
