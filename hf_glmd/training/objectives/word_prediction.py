"""Word prediction: KL to the teacher's distribution over the tokens, at each position that counts.

Source: GLMD, arXiv:2306.06625.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import TargetCollator, WordPredictionCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.losses.functional import kl_loss, word_prediction_loss_from_logits, word_prediction_scores
from hf_glmd.losses.reference import IGNORE_INDEX, dense_word_prediction_loss
from hf_glmd.losses.topk import TopTokens, topk_word_prediction_loss, topk_word_prediction_scores
from hf_glmd.models.class_heads import QUESTION_ANSWERER, class_kind
from hf_glmd.models.encoders import is_encoder
from hf_glmd.models.heads import HeadInputs, at_positions, is_masked_lm
from hf_glmd.teachers.vocabularies import first_rows_of, with_shared_rows
from hf_glmd.training.objectives.base import Objective, kind_of

DEFAULT_MLM_PROBABILITY = 0.15  # as BERT was trained


class WordPrediction(Objective):
    """KL(teacher || student) over the tokens; from hidden states, a slice of tokens at a time, or else from all logits.

    Which way depends on what the two models, or the cache, can give: see `_Way`.
    """

    name = "word_prediction"
    default_temperature = 15.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if is_encoder(self.student):
            raise UsageError(
                f"objective='{self.name}' is about words, and {type(self.student).__name__} predicts none: it has no head. Use "
                "objective='embedding', or a checkpoint that was trained with a head for words."
            )
        if (kind := class_kind(self.student)) is not None:
            predicted = "answers" if kind == QUESTION_ANSWERER else "classes"
            raise UsageError(
                f"objective='{self.name}' is about words, and {type(self.student).__name__} predicts {predicted}. Use "
                "objective='soft_label', or distil the words first, with a model that predicts them."
            )
        mapped = self.teacher.vocab_map is not None
        self.teacher = with_shared_rows(self.head.size, self.teacher, self.processing_class, self.known_tokenizers, mapped)
        way = _TopTokens if self.teacher.has_top_tokens else _HiddenStates if self._fused else _Logits
        self._way = way(self)

    @property
    def _fused(self) -> bool:
        return self.args.fused_loss and self.head.fallback is None and self.teacher.fallback is None

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Callable[[list[Any]], dict[str, Any]]:
        check_nothing_masked(args, model)
        if kind_of(model) == "encoder-decoder":
            return TargetCollator(tokenizer, model.config.decoder_start_token_id, args.seed)
        default = DEFAULT_MLM_PROBABILITY if is_masked_lm(model) else 0.0
        probability = args.mlm_probability if args.mlm_probability is not None else default
        causal = kind_of(model) == "causal language model"
        replaced = args.mask_replace_prob
        return WordPredictionCollator(tokenizer, args.positions, probability, args.seed, causal, mask_replace_prob=replaced)

    @property
    def slow_parts(self) -> list[tuple[str, str]]:
        if not self.args.fused_loss or self.teacher.has_top_tokens:
            return []
        parts = (("student", self.head.fallback), ("teacher", self.teacher.fallback))
        return [(whose, why) for whose, why in parts if why is not None]

    def teach(self, inputs: Mapping[str, Any]) -> Any:
        return self._way.teach(inputs)

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Any], Any]) -> Any:
        return self._way.ask(model, inputs, compute)

    def loss(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        return self._way.loss(student, teacher)

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        student = at_positions(logits, inputs["prediction_mask"])[..., : self.teacher.size]
        return word_prediction_loss_from_logits(student, teacher, self.args.temperature, "sum")

    def scores(self, student: Any, teacher: Any, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        return self._way.scores(student, teacher, inputs, choices)


class _Way:
    """How two predictions are compared: what is asked of both models, and what is made of it."""

    def __init__(self, objective: WordPrediction) -> None:
        self.objective, self.head, self.teacher = objective, objective.head, objective.teacher
        self.temperature = objective.args.temperature
        self.chunk_mib = objective.args.loss_chunk_mib

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[HeadInputs], Any]) -> Any:
        def at_head(head: HeadInputs) -> Any:
            return compute(first_rows_of(head, self.teacher.size))

        return self.head.collect(model, model_inputs(inputs), at_head, inputs["prediction_mask"])


class _HiddenStates(_Way):
    """From what enters both output embeddings: no [N, K] tensor is held."""

    def teach(self, inputs: Mapping[str, Any]) -> HeadInputs:
        return self.teacher.head_inputs(self.objective.teacher_inputs(inputs), inputs["prediction_mask"])

    def loss(self, student: HeadInputs, teacher: HeadInputs) -> Tensor:
        return kl_loss(student, teacher, self.temperature, reduction="sum", chunk_mib=self.chunk_mib, check_teacher=False)

    def scores(self, student: HeadInputs, teacher: HeadInputs, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        targets = inputs["targets"][inputs["prediction_mask"]] if "targets" in inputs else None
        options = {"targets": targets, "choices": choices, "chunk_mib": self.chunk_mib}
        scores = word_prediction_scores(student, teacher, self.temperature, **options)
        if targets is not None:
            scores["cross_entropy"] = (scores["cross_entropy"], targets != IGNORE_INDEX)
        return scores


class _TopTokens(_Way):
    """From the student's hidden states and the top tokens that a cache holds."""

    def teach(self, inputs: Mapping[str, Any]) -> TopTokens:
        return self.teacher.top_tokens(self.objective.teacher_inputs(inputs), inputs["prediction_mask"], self.temperature)

    def loss(self, student: HeadInputs, teacher: TopTokens) -> Tensor:
        return topk_word_prediction_loss(student, teacher, "sum", chunk_mib=self.chunk_mib)

    def scores(self, student: HeadInputs, teacher: TopTokens, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        return topk_word_prediction_scores(student, teacher, choices=choices, chunk_mib=self.chunk_mib)


class _Logits(_Way):
    """From all logits of both models, [N, K]."""

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.objective.teacher_logits(inputs, self.temperature)

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        def of_logits(logits: Tensor) -> Any:
            return compute(logits[..., : self.teacher.size])

        return self.head.of_logits(model, model_inputs(inputs), of_logits, inputs["prediction_mask"])

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return word_prediction_loss_from_logits(student, teacher, self.temperature, "sum")

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        loss = partial(word_prediction_loss_from_logits, temperature=self.temperature, reduction="none")
        scores = {"loss": loss(student, teacher)} | logit_scores(student, self.objective.plain_logits(teacher, inputs))
        if "targets" in inputs:
            targets = inputs["targets"][inputs["prediction_mask"]]
            found = nn.functional.cross_entropy(student, targets, ignore_index=IGNORE_INDEX, reduction="none")
            scores["cross_entropy"] = (found, targets != IGNORE_INDEX)
        return scores


def logit_scores(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How near two distributions are at temperature 1, [N] each: `kl`, `agreement`, `teacher_entropy`, and both argmaxes.

    Args:
        student, teacher: [N, C]; columns of -inf in both are no candidates.
    """
    student, missing = student.detach(), torch.isinf(teacher)
    choices = {"student_choice": student.argmax(-1), "teacher_choice": teacher.argmax(-1)}
    return {
        "kl": dense_word_prediction_loss(student.masked_fill(missing, -1e30), teacher, 1.0),
        "agreement": (choices["student_choice"] == choices["teacher_choice"]).float(),
        "teacher_entropy": torch.special.entr(torch.softmax(teacher, -1)).sum(-1),
    } | choices


def check_nothing_masked(args: Any, model: nn.Module) -> None:
    """Raises: UsageError, tokens are to be masked for a model that predicts the next one."""
    if not is_masked_lm(model) and (args.positions == "masked" or args.mlm_probability):
        raise UsageError(
            f"positions='{args.positions}' with mlm_probability={args.mlm_probability} masks tokens, but {type(model).__name__} "
            "predicts the next one. Leave both at their defaults."
        )
