"""Several teachers as one: the mean of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_glmd.errors import UsageError
from hf_glmd.teachers.base import Teacher
from hf_glmd.vocab.vocab_map import VocabMap


class TeacherEnsemble(Teacher):
    """Several teachers of one vocabulary: the mean of their distributions at the temperature that is asked for.

    Args:
        teachers: at least one.
        weights: positive, one per teacher; they are divided by their sum. None: all alike.
    Raises: UsageError, the teachers predict different numbers of tokens, or a weight makes no sense.
    """

    fallback = "several teachers are averaged, for which all of their logits are needed"
    mixes_probabilities = True

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if not teachers or len(weights) != len(teachers) or not all(weight > 0 for weight in weights):
            raise UsageError(f"{len(teachers)} teachers with the weights {weights}: give one positive weight per teacher.")
        if len({teacher.size for teacher in teachers}) > 1:
            sizes = " and ".join(str(teacher.size) for teacher in teachers)
            raise UsageError(f"the teachers predict {sizes} tokens: only teachers of one vocabulary can be averaged.")
        self.teachers = list(teachers)
        self.weights = [weight / sum(weights) for weight in weights]

    @property
    def size(self) -> int:
        return self.teachers[0].size

    @property
    def models(self) -> list[nn.Module]:
        return [model for teacher in self.teachers for model in teacher.models]

    @property
    def vocab_map(self) -> VocabMap | None:
        return self.teachers[0].vocab_map

    @property
    def epochs(self) -> int | None:
        """How many choices of masked tokens all of them know; None: any."""
        return min((teacher.epochs for teacher in self.teachers if teacher.epochs is not None), default=None)

    def check_fits(self, tokenizer: Any, objective: str, temperature: float) -> None:
        for teacher in self.teachers:
            teacher.check_fits(tokenizer, objective, temperature)

    def check_rows(self, datasets: Mapping[str, Any], collator: Callable[..., Any], read: Callable[..., dict[str, Any]]) -> None:
        for teacher in self.teachers:
            teacher.check_rows(datasets, collator, read)

    def with_first_rows(self, size: int) -> TeacherEnsemble:
        self.teachers = [teacher.with_first_rows(size) for teacher in self.teachers]
        return self

    def fingerprint(self) -> str:
        return " ".join([*(teacher.fingerprint() for teacher in self.teachers), str(self.weights)])

    def to(self, device: torch.device) -> TeacherEnsemble:
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def prepare(self, accelerator: Accelerator) -> TeacherEnsemble:
        for teacher in self.teachers:
            teacher.prepare(accelerator)
        return self

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits whose softmax at `temperature` is the weighted mean of the teachers' softmaxes at `temperature`."""
        mixture: Tensor | None = None
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            share = torch.softmax(teacher.logits(inputs, positions, temperature) / temperature, dim=-1).mul_(weight)
            mixture = share if mixture is None else mixture.add_(share)
        return mixture.log_().mul_(temperature)
