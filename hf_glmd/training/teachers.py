"""The teacher of a distillation: frozen, in the student's vocabulary, computed only where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_glmd.corpora.blocks import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.models.class_heads import ClassHead, head_of
from hf_glmd.models.heads import HeadInputs, HeadRows, evaluating
from hf_glmd.models.loading import load_teacher_model
from hf_glmd.vocab.vocab_map import VocabMap


class Teacher(Protocol):
    """What a trainer asks of a teacher.

    Attributes:
        size: number of tokens it predicts for, columns of its logits.
        fallback: None: `head_inputs` can be used. Otherwise the reason why only `logits` can.
        models: those that are run; a cache has none.
    """

    size: int
    fallback: str | None
    models: list[nn.Module]

    def to(self, device: torch.device) -> Teacher:
        """Puts what it computes with on a device."""

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        """What it predicts at the chosen positions.

        Args:
            inputs: keyword arguments of a model, `input_ids` [B, S] in the student's ids.
            positions: bool [B, S], N of them True.
            temperature: at which the logits will be used.
        Returns: [N, K].
        """

    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        """What its logits are made of, N positions and K rows of the output embedding. Arguments as of `logits`."""


class LiveTeacher:
    """A model that is run beside the student.

    It reads the student's token ids, turned back into its own, and predicts the student's tokens only: rows of its output
    embedding that the student lacks are never multiplied.

    Args:
        model: a model that predicts words or the classes of texts, or its Hub name or path. It is frozen and put into
            evaluation mode.
        vocab_map: the student's vocabulary. None: both share one.
    """

    def __init__(self, model: PreTrainedModel | str | PathLike[str], vocab_map: VocabMap | None = None) -> None:
        if not isinstance(model, nn.Module):
            # Checkpoints in half precision are slow and coarse on a CPU.
            model = load_teacher_model(model, **({} if torch.accelerator.is_available() else {"dtype": torch.float32}))
        self.model = model
        self._freeze()
        self.vocab_map = vocab_map
        with self._teaching():
            self.head = head_of(self.model)
        self.classifies = isinstance(self.head, ClassHead)
        if vocab_map is not None and not self.classifies and vocab_map.original_size > self.head.size:
            raise UsageError(
                f"the vocabulary map comes from {vocab_map.original_size} tokens, the teacher predicts {self.head.size}. "
                "Pass the map that was made from this teacher's tokenizer."
            )
        self._rows: HeadRows | None = None

    @property
    def size(self) -> int:
        return self.head.size if self.vocab_map is None or self.classifies else self.vocab_map.size

    @property
    def fallback(self) -> str | None:
        return self.head.fallback

    @property
    def models(self) -> list[nn.Module]:
        return [self.model]

    def to(self, device: torch.device) -> LiveTeacher:
        # What was loaded with a device map, or in 8 or 4 bits, is where it belongs.
        if getattr(self.model, "hf_device_map", None) is None and not getattr(self.model, "is_quantized", False):
            self.model.to(device)
        self._rows = None
        return self

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        with self._teaching():
            return self.head.logits(self.model, self._own_ids(inputs), positions, self._kept_rows())

    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        with self._teaching():
            return self.head.inputs(self.model, self._own_ids(inputs), positions, self._kept_rows())

    def _freeze(self) -> None:
        self.model.requires_grad_(False)
        self.model.eval()

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    def _own_ids(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.vocab_map is None:
            return inputs
        if ORIGINAL_IDS in inputs:
            inputs = dict(inputs)
            inputs["input_ids"] = inputs.pop(ORIGINAL_IDS)
            return inputs
        ids = {name: inputs[name] for name in ("input_ids", "decoder_input_ids") if name in inputs}
        return {**inputs, **{name: self.vocab_map.to_original(value) for name, value in ids.items()}}

    def _kept_rows(self) -> HeadRows | None:
        if self.vocab_map is not None and self._rows is None:
            self._rows = self.head.rows(torch.tensor(self.vocab_map.kept_ids))
        return self._rows


class AdaptersOffTeacher(LiveTeacher):
    """The student itself with its adapters switched off: no second copy of the weights.

    Args:
        model: the student, a `peft.PeftModel`.
    Raises: UsageError, it has no adapters, or prompts of its own instead of adapters in its layers.
    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "disable_adapter"):
            raise UsageError(f"{type(model).__name__} has no adapters to switch off. Wrap it with peft.get_peft_model first.")
        super().__init__(model)

    def to(self, device: torch.device) -> AdaptersOffTeacher:
        return self  # it goes where the student goes

    def _freeze(self) -> None:
        """Its adapters are the student's, and are trained."""

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        with torch.no_grad(), evaluating(self.model), self.model.disable_adapter():
            yield


class TeacherEnsemble:
    """Several teachers of one vocabulary: the mean of their distributions at the temperature that is asked for.

    Args:
        teachers: at least one.
        weights: positive, one per teacher; they are divided by their sum. None: all alike.
    Raises: UsageError, the teachers predict different numbers of tokens, or a weight makes no sense.
    """

    fallback = "several teachers are averaged, for which all of their logits are needed"

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

    def to(self, device: torch.device) -> TeacherEnsemble:
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits whose softmax at `temperature` is the weighted mean of the teachers' softmaxes at `temperature`."""
        mixture: Tensor | None = None
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            share = torch.softmax(teacher.logits(inputs, positions, temperature) / temperature, dim=-1).mul_(weight)
            mixture = share if mixture is None else mixture.add_(share)
        return mixture.log_().mul_(temperature)

    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        raise RuntimeError(self.fallback)


def as_teacher(teacher: Any, vocab_map: VocabMap | None = None) -> Teacher:
    """Whatever a trainer was given for a teacher, as one: a model, its name or path, several of these, or a teacher already."""
    if isinstance(teacher, (list, tuple)):
        return TeacherEnsemble([as_teacher(one, vocab_map) for one in teacher])
    if isinstance(teacher, (str, PathLike, nn.Module)):
        return LiveTeacher(teacher, vocab_map)
    if hasattr(teacher, "head_inputs"):
        return teacher
    raise UsageError(f"teacher is a {type(teacher).__name__}. Pass a model, its Hub name or path, a list of these, or a teacher.")
