"""The teacher of a distillation: frozen, in the student's vocabulary, computed only where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.models.class_heads import ClassHead, head_of
from hf_glmd.models.distributed import prepare_frozen
from hf_glmd.models.encoders import EncoderHead
from hf_glmd.models.heads import HeadInputs, HeadRows, evaluating
from hf_glmd.models.loading import load_teacher_model
from hf_glmd.models.sentence_modules import encoder_inside
from hf_glmd.teachers.base import Teacher
from hf_glmd.vocab.vocab_map import VocabMap


class LiveTeacher(Teacher):
    """A model that is run beside the student.

    It reads the student's token ids, turned back into its own, and predicts the student's tokens only: rows of its output
    embedding that the student lacks are never multiplied.

    Args:
        model: a model that predicts words, classes or answers, a text encoder, a `SentenceTransformer`, or the
            Hub name or path of one. It is frozen and put into
            evaluation mode.
        vocab_map: the student's vocabulary. None: both share one.
    """

    def __init__(self, model: PreTrainedModel | str | PathLike[str], vocab_map: VocabMap | None = None) -> None:
        if not isinstance(model, nn.Module):
            # Checkpoints in half precision are slow and coarse on a CPU.
            model = load_teacher_model(model, **({} if torch.accelerator.is_available() else {"dtype": torch.float32}))
        model = encoder_inside(model)
        self.model = self._running = model
        self._freeze()
        self.vocab_map = vocab_map
        with self._teaching():
            self.head = head_of(self.model)
        self.classifies = isinstance(self.head, ClassHead | EncoderHead)  # its outputs are no tokens
        if vocab_map is not None and not self.classifies and vocab_map.original_size > self.head.size:
            raise UsageError(
                f"the vocabulary map comes from {vocab_map.original_size} tokens, the teacher predicts {self.head.size}. "
                "Pass the map that was made from this teacher's tokenizer."
            )
        self._rows: HeadRows | None = None

    @classmethod
    def of(cls, source: Any, vocab_map: VocabMap | None) -> LiveTeacher | None:
        return cls(source, vocab_map) if isinstance(source, (str, PathLike, nn.Module)) else None

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
        if self._is_movable:
            self.model.to(device)
        self._rows = None
        return self

    def prepare(self, accelerator: Accelerator) -> LiveTeacher:
        if self._is_movable:
            self._running = prepare_frozen(self.model, accelerator)
        self._rows = None
        return self

    @property
    def _is_movable(self) -> bool:
        # What was loaded with a device map, or in 8 or 4 bits, is where it belongs.
        return getattr(self.model, "hf_device_map", None) is None and not getattr(self.model, "is_quantized", False)

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        with self._teaching():
            return self.head.logits(self._running, self._own_ids(inputs), positions, self._kept_rows())

    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        with self._teaching():
            return self.head.inputs(self._running, self._own_ids(inputs), positions, self._kept_rows())

    def with_first_rows(self, size: int) -> LiveTeacher:
        self.vocab_map = VocabMap(np.arange(size), self.size)
        return self

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
        if self._rows is None:
            if self.vocab_map is not None:
                self._rows = self.head.rows(torch.tensor(self.vocab_map.kept_ids))
            elif self.head.fallback is None and self.head.is_sharded:
                self._rows = self.head.rows(torch.arange(self.head.size))
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

    def prepare(self, accelerator: Accelerator) -> AdaptersOffTeacher:
        return self

    def _freeze(self) -> None:
        """Its adapters are the student's, and are trained."""

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        with torch.no_grad(), evaluating(self.model), self.model.disable_adapter():
            yield
