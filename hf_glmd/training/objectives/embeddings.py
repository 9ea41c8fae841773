"""Embeddings: a text encoder learns where its teacher puts whole texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import ClassCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.models.encoders import POOLINGS, is_encoder
from hf_glmd.training.datasets import token_rows
from hf_glmd.training.objectives.base import Objective
from hf_glmd.training.token_mean import summed_over_examples


class Embeddings(Objective):
    """The squared difference of two encoders' pooled states, the mean over their width; or one less their cosine.

    Source: Reimers and Gurevych, arXiv:2004.09813, equation 1, for the squared difference (`MSELoss` of sentence-transformers).
    """

    name = "embedding"
    default_temperature = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for model in (self.student, *self.teacher.models):
            if not is_encoder(model):
                raise UsageError(
                    f"objective='{self.name}' is about text encoders, and {type(model).__name__} is none. Load it with "
                    "AutoModel, or leave the objective out to distil what it predicts."
                )
        if len(self.teacher.models) != 1:
            raise UsageError(f"objective='{self.name}' needs one teacher that is run. Pass an encoder.")
        if self.head.size != self.teacher.size:
            raise UsageError(
                f"the student's embeddings are {self.head.size} wide, the teacher's {self.teacher.size}, and nothing would say "
                f"which dimension is which. Use a student of width {self.teacher.size}, as build_student makes them."
            )
        if self.args.temperature != 1.0:
            raise UsageError(f"objective='{self.name}' has no softmax, so temperature={self.args.temperature} would do nothing.")

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> ClassCollator:
        return ClassCollator(tokenizer)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        return token_rows(dataset, self.processing_class, self.args, length, limit, classes=True, input_rows=self.input_rows)

    def check_metrics(self) -> None:
        raise UsageError(f"compute_metrics gets the argmax, and objective='{self.name}' has none. Read eval_cosine instead.")

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, H], fp32 or wider."""
        states = self.teacher.logits(self.teacher_inputs(inputs), inputs["prediction_mask"])
        return POOLINGS[self.args.pooling](states, inputs["attention_mask"])

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        def pooled(states: Tensor) -> Any:
            return compute(POOLINGS[self.args.pooling](states, inputs["attention_mask"]))

        return self.head.of_logits(model, model_inputs(inputs), pooled)

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return summed_over_examples(self._losses(student, teacher), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        cosine = nn.functional.cosine_similarity(student.float(), teacher.float())
        return {"loss": self._losses(student, teacher), "cosine": cosine}

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        pool = POOLINGS[self.args.pooling]
        return self.loss(*(pool(states, inputs["attention_mask"]) for states in (logits, teacher)), inputs)

    def _losses(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[B]."""
        if self.args.embedding_loss == "cosine":
            return 1.0 - nn.functional.cosine_similarity(student, teacher)
        return (student - teacher).square().mean(-1)
