"""Fine-tuning of a teacher on a cloze task: the one place where labels train anything."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_glmd.data.collators import QUESTION_COLUMNS, model_inputs
from hf_glmd.models.heads import WordHead
from hf_glmd.tasks.candidates import candidate_log_probs, candidate_scores, label_loss
from hf_glmd.training.token_mean import TokenMeanTrainer, summed_over_examples


class LabelTrainer(TokenMeanTrainer):
    """Cross-entropy of the candidates in the blank with the label.

    Rows are those of `ClozeTask.encode(..., labelled=True)`, collated by `CandidateCollator`.
    """

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        self.head = WordHead(model)
        super().__init__(model, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        def loss_of(logits: Tensor) -> Tensor:
            return summed_over_examples(label_loss(candidate_scores(logits, inputs), inputs["right"]), inputs)

        with self.accelerator.autocast():
            summed = self.head.of_logits(model, model_inputs(inputs), loss_of, inputs["prediction_mask"])
        loss = self.mean_over_batch(summed, inputs, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            scores = candidate_log_probs(partial(self.head.logits, model), inputs)
        right = inputs["right"]
        return {
            "loss": label_loss(scores, right),
            "accuracy": right.gather(1, scores.argmax(-1, keepdim=True))[:, 0].float(),
        }

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = (*QUESTION_COLUMNS, "answer")
        self._signature_columns += [name for name in ours if name not in self._signature_columns]
