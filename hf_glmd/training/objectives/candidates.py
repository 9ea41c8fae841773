"""Candidates: the teacher's answers to cloze examples as soft labels.

Source: GLMD, arXiv:2306.06625 (soft labels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import QUESTION_COLUMNS, CandidateCollator, model_inputs
from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.losses.soft_labels import soft_label_loss
from hf_glmd.models.class_heads import check_trained_head, class_kind
from hf_glmd.models.encoders import is_encoder
from hf_glmd.models.heads import at_positions
from hf_glmd.tasks.candidates import candidate_scores
from hf_glmd.teachers.vocabularies import with_shared_rows
from hf_glmd.training.objectives.base import Objective
from hf_glmd.training.objectives.word_prediction import check_nothing_masked, logit_scores
from hf_glmd.training.token_mean import summed_over_examples


class Candidates(Objective):
    """Cross-entropy of the student's answer distribution with the teacher's, over the candidates of each cloze example."""

    name = "soft_label"
    default_temperature = 1.0
    columns = (*QUESTION_COLUMNS, ORIGINAL_IDS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for model in self.teacher.models:
            check_trained_head(model)
        mapped = self.teacher.vocab_map is not None
        self.teacher = with_shared_rows(self.head.size, self.teacher, self.processing_class, self.known_tokenizers, mapped)

    @classmethod
    def suits(cls, name: str, model: nn.Module) -> bool:
        return name == cls.name and class_kind(model) is None and not is_encoder(model)

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> CandidateCollator:
        check_nothing_masked(args, model)
        return CandidateCollator(tokenizer)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        return dataset  # as `ClozeTask.encode` made them

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.teacher_logits(inputs, self.args.temperature)

    def teacher_logits(self, inputs: Mapping[str, Any], temperature: float) -> Tensor:
        """Scores of the candidates, [B, C], -inf where there is none."""
        return candidate_scores(super().teacher_logits(inputs, temperature), inputs)

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        def of_logits(logits: Tensor) -> Any:
            return compute(candidate_scores(logits[..., : self.teacher.size], inputs))

        return self.head.of_logits(model, model_inputs(inputs), of_logits, inputs["prediction_mask"])

    def adapted(self, collator: Callable[..., Any]) -> Callable[..., Any]:
        return collator  # what cloze rows need, no other collator knows

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        chosen = at_positions(logits, inputs["prediction_mask"])[..., : self.teacher.size]
        return self.loss(candidate_scores(chosen, inputs), teacher, inputs)

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return summed_over_examples(soft_label_loss(student, teacher, self.args.temperature, reduction="none"), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        loss = soft_label_loss(student, teacher, self.args.temperature, reduction="none")
        return {"loss": loss} | logit_scores(student, self.plain_logits(teacher, inputs))
