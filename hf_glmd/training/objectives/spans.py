"""Spans: where a teacher thinks that the answer to a question begins and ends, as soft labels over the tokens of the row.

Source: Hinton et al., arXiv:1503.02531, section 2; for questions DistilBERT, arXiv:1910.01108, section 4 (its fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.losses.soft_labels import soft_label_loss
from hf_glmd.models.class_heads import QUESTION_ANSWERER
from hf_glmd.training.datasets import columns_of, token_rows
from hf_glmd.training.objectives.classes import HeadObjective
from hf_glmd.training.objectives.word_prediction import logit_scores
from hf_glmd.training.token_mean import summed_over_examples


class Spans(HeadObjective):
    """T^2 * cross-entropy of two `AutoModelForQuestionAnswering`s' distributions over the tokens of a row, padding left out.

    That of an answer's first token plus that of its last; the mean is over the rows.

    Rows of text need `pair_column`: `text_column` holds the questions, `pair_column` what they are about, which alone is cut to
    `max_length`.
    """

    name = "span"
    kind = QUESTION_ANSWERER

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            columns = None if part is None else columns_of(part)
            if columns is not None and "input_ids" not in columns and self.args.pair_column is None:
                raise UsageError(
                    f"pair_column is not set, and the dataset has the columns {columns}. Name the column of the questions as "
                    "text_column and that of the texts they are about as pair_column, or give rows of input_ids."
                )
        options = {"classes": True, "input_rows": self.input_rows, "questions": True}
        return token_rows(dataset, self.processing_class, self.args, length, limit, **options)

    def check_metrics(self) -> None:
        raise UsageError("compute_metrics gets one choice per row, and an answer has two ends. Read eval_agreement instead.")

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Of [B, 2, S], -inf at padding."""
        return summed_over_examples(self._losses(student, teacher), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        """`kl` and `teacher_entropy` are the sums of both ends', as the loss; `agreement` is 1 where both ends are the same."""
        ends = logit_scores(student, self.plain_logits(teacher, inputs))
        sums = {name: ends[name].sum(-1) for name in ("kl", "teacher_entropy")}
        return {"loss": self._losses(student, teacher), "agreement": ends["agreement"].amin(-1)} | sums

    def _losses(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[B]."""
        return soft_label_loss(student, teacher, self.args.temperature, reduction="none").sum(-1)
