"""Fine-tuning of a teacher on a cloze task: the one place where gold answers train anything."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_glmd.models.heads import WordHead, answer_logits
from hf_glmd.training.token_mean import TokenMeanTrainer, model_inputs


class GoldAnswerTrainer(TokenMeanTrainer):
    """Cross-entropy of the candidates at the blank with the gold answer.

    Rows are those of `ClozeTask.encode(..., labelled=True)`, collated by `AnswerCollator`.
    """

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        self.head = WordHead(model)
        super().__init__(model, *args, **kwargs)

    def summed_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return F.cross_entropy(self._answers(model, inputs), inputs["answer"], reduction="sum")

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        answers = self._answers(model, inputs)
        return {
            "loss": F.cross_entropy(answers, inputs["answer"], reduction="none"),
            "accuracy": (answers.argmax(-1) == inputs["answer"]).float(),
        }

    def _answers(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():
            logits = self.head.logits(model, model_inputs(inputs), inputs["prediction_mask"])
        return answer_logits(logits, inputs["candidate_ids"]).float()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in ("blank", "candidate_ids", "answer") if c not in self._signature_columns]
