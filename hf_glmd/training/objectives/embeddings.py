"""Embeddings: a text encoder learns where its teacher puts whole texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import ClassCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.models.encoders import is_encoder
from hf_glmd.models.sentence_modules import Pooled, write_modules
from hf_glmd.training.datasets import token_rows
from hf_glmd.training.objectives.base import Objective
from hf_glmd.training.token_mean import summed_over_examples

PROJECTION = "embedding_projection"
"""Under which name the student holds what makes its embeddings as wide as its teacher's."""


class Embeddings(Objective):
    """The squared difference of two encoders' embeddings, the mean over their width; or one less their cosine.

    An encoder that comes from a `SentenceTransformer` is pooled, and its embedding normalised, as that says; any other as
    `GLMDConfig.pooling` says, or like the teacher, and is normalised if the teacher's is.

    Where the student is narrower or wider than its teacher, a linear projection [H_t, H_s] without bias is trained along, between
    pooling and normalising (as TinyBERT's, arXiv:1909.10351, equation 9). It begins orthogonal, so that angles between the
    student's embeddings are what they were. It is part of checkpoints, to go on from; a model that is saved for use is the plain
    encoder, and beside it lie the modules of sentence-transformers, the projection among them: `AutoModel` loads the encoder,
    `SentenceTransformer` what was compared with the teacher.

    Raises: UsageError, a model is no text encoder, there are several teachers, a temperature is set, or widths differ and the
        student has adapters.
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
        if self.args.temperature != 1.0:
            raise UsageError(f"objective='{self.name}' has no softmax, so temperature={self.args.temperature} would do nothing.")
        ours, theirs = (getattr(model, "own_pooling", None) for model in (self.student, self.teacher.models[0]))
        self.teacher_pooled = theirs or Pooled(self.args.pooling or "mean")
        self.pooled = ours or Pooled(self.args.pooling or self.teacher_pooled.pooling, self.teacher_pooled.normalized)
        self.args.pooling = self.pooled.pooling
        if self.head.size != self.teacher.size:
            self._add_projection()

    def _add_projection(self) -> None:
        if hasattr(self.student, "peft_config"):
            raise UsageError(
                f"the student's embeddings are {self.head.size} wide, the teacher's {self.teacher.size}, and beside adapters no "
                f"projection is trained. Use a student of width {self.teacher.size}, or train it without adapters."
            )
        if getattr(self.student, PROJECTION, None) is not None:  # of a training that is gone on with
            return
        dtype = torch.promote_types(self.student.dtype, torch.float32)
        projection = nn.Linear(self.head.size, self.teacher.size, bias=False, device=self.student.device, dtype=dtype)
        generator = torch.Generator(self.student.device).manual_seed(self.args.seed)
        nn.init.orthogonal_(projection.weight, generator=generator)
        self.student.add_module(PROJECTION, projection)

    @property
    def projection(self) -> nn.Module | None:
        """[B, H_s] -> [B, H_t]; None: both are as wide."""
        return getattr(self.student, PROJECTION, None) if self.head.size != self.teacher.size else None

    @classmethod
    def collator(cls, args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> ClassCollator:
        return ClassCollator(tokenizer)

    def rows(self, dataset: Any, length: int, limit: int) -> Any:
        return token_rows(dataset, self.processing_class, self.args, length, limit, classes=True, input_rows=self.input_rows)

    def check_metrics(self) -> None:
        raise UsageError(f"compute_metrics gets the argmax, and objective='{self.name}' has none. Read eval_cosine instead.")

    def teach(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, H_t], fp32 or wider."""
        states = self.teacher.logits(self.teacher_inputs(inputs), inputs["prediction_mask"])
        return self.teacher_pooled(states, inputs["attention_mask"])

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any]) -> Any:
        return self.head.of_logits(model, model_inputs(inputs), lambda states: compute(self._embedded(states, inputs)))

    def _embedded(self, states: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The student's hidden states as what is compared with the teacher, [B, H_t]."""
        with torch.autocast(states.device.type, enabled=False):
            return self.pooled(states, inputs["attention_mask"], self.projection)

    def loss(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return summed_over_examples(self._losses(student, teacher), inputs)

    @torch.no_grad()
    def scores(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        cosine = nn.functional.cosine_similarity(student.float(), teacher.float())
        return {"loss": self._losses(student, teacher), "cosine": cosine}

    def loss_of_logits(self, logits: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        mask = inputs["attention_mask"]
        return self.loss(self._embedded(logits, inputs), self.teacher_pooled(teacher, mask), inputs)

    @contextmanager
    def saving(self, folder: Path, weights: Mapping[str, Tensor] | None) -> Iterator[Mapping[str, Tensor] | None]:
        projection, name = self.projection, f"{PROJECTION}.weight"
        if projection is None:
            yield weights
            matrix = None
        else:
            delattr(self.student, PROJECTION)
            try:
                yield weights and {other: weight for other, weight in weights.items() if other != name}
            finally:
                self.student.add_module(PROJECTION, projection)
            matrix = projection.weight if weights is None else weights[name]
        if (folder / "config.json").is_file():  # no folder of adapters
            write_modules(folder, self.head.size, self.pooled, matrix)

    def _losses(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[B]."""
        if self.args.embedding_loss == "cosine":
            return 1.0 - nn.functional.cosine_similarity(student, teacher)
        return (student - teacher).square().mean(-1)
