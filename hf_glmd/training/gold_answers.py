"""Fine-tuning of a teacher on a cloze task: the one place where gold answers train anything."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_glmd.models.heads import WordHead
from hf_glmd.tasks.candidates import QUESTION_COLUMNS, candidate_log_probs, candidate_scores, gold_answer_loss
from hf_glmd.training.token_mean import TokenMeanTrainer, model_inputs, summed_over_examples


class GoldAnswerTrainer(TokenMeanTrainer):
    """Cross-entropy of the candidates in the blank with the gold answer.

    Rows are those of `ClozeTask.encode(..., labelled=True)`, collated by `CandidateCollator`.
    """

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        self.head = WordHead(model)
        super().__init__(model, *args, **kwargs)

    def summed_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        def loss(logits: Tensor) -> Tensor:
            return summed_over_examples(gold_answer_loss(candidate_scores(logits, inputs), inputs["right"]), inputs)

        with self.accelerator.autocast():
            return self.head.loss_of_logits(model, model_inputs(inputs), loss, inputs["prediction_mask"])

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            scores = candidate_log_probs(partial(self.head.logits, model), inputs)
        right = inputs["right"]
        return {
            "loss": gold_answer_loss(scores, right),
            "accuracy": right.gather(1, scores.argmax(-1, keepdim=True))[:, 0].float(),
        }

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = (*QUESTION_COLUMNS, "answer")
        self._signature_columns += [name for name in ours if name not in self._signature_columns]
