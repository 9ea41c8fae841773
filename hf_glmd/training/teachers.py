"""The teacher of a distillation: frozen, in the student's vocabulary, computed only where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import HeadRows, output_embedding, word_logits
from hf_glmd.vocab.vocab_map import VocabMap


class LiveTeacher:
    """A model that is run beside the student.

    It reads the student's token ids, turned back into its own, and predicts the student's tokens only: rows of its output
    embedding that the student lacks are never multiplied.

    Args:
        model: a model with an output embedding, or its Hub name or path. It is frozen and put into evaluation mode.
        vocab_map: the student's vocabulary. None: both share one.
    """

    def __init__(self, model: PreTrainedModel | str | PathLike[str], vocab_map: VocabMap | None = None) -> None:
        if not isinstance(model, PreTrainedModel):
            # Checkpoints in half precision are slow and coarse on a CPU.
            model = load_word_model(model, **({} if torch.accelerator.is_available() else {"dtype": torch.float32}))
        self.model = model
        self.model.requires_grad_(False)
        self.model.eval()
        self.vocab_map = vocab_map
        rows = output_embedding(self.model).weight.shape[0]
        if vocab_map is not None and vocab_map.original_size > rows:
            raise UsageError(
                f"the vocabulary map comes from {vocab_map.original_size} tokens, the teacher predicts {rows}. "
                "Pass the map that was made from this teacher's tokenizer."
            )
        self._rows: HeadRows | None = None

    @property
    def size(self) -> int:
        """Number of tokens it predicts for: columns of its logits."""
        return self.vocab_map.size if self.vocab_map is not None else output_embedding(self.model).weight.shape[0]

    def to(self, device: torch.device) -> LiveTeacher:
        self.model.to(device)
        self._rows = None
        return self

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """What it predicts at the chosen positions.

        Args:
            inputs: keyword arguments of the model, `input_ids` [B, S] in the student's ids.
            positions: bool [B, S], N of them True.
        Returns: [N, K].
        """
        rows = None
        if self.vocab_map is not None:
            inputs = {**inputs, "input_ids": self.vocab_map.to_original(inputs["input_ids"])}
            if self._rows is None:
                self._rows = HeadRows(self.model, torch.tensor(self.vocab_map.kept_ids))
            rows = self._rows
        return word_logits(self.model, inputs, positions, rows)


AUTO_CLASSES = (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM)


def word_model_class(config) -> type:
    """The auto class a configuration's model predicts words with: by its `architectures`, else the first that knows it.

    Raises: UsageError, none does.
    """
    known = [auto for auto in AUTO_CLASSES if type(config) in auto._model_mapping]
    for name in config.architectures or ():
        for auto in known:
            classes = auto._model_mapping[type(config)]
            if name in {c.__name__ for c in (classes if isinstance(classes, tuple) else (classes,))}:
                return auto
    if config.architectures or not known:
        raise UsageError(
            f"{config.name_or_path or config.model_type} is {' / '.join(config.architectures or [config.model_type])}, which "
            "predicts no words. Use a checkpoint of a masked, causal or sequence-to-sequence language model."
        )
    return known[0]


def load_word_model(name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a model with its word-prediction head, in the dtype of the checkpoint unless `dtype` is given.

    Raises: UsageError, there is no such model, or it predicts no words.
    """
    config = load_config(name_or_path, kwargs.get("revision"))
    return word_model_class(config).from_pretrained(str(name_or_path), **kwargs)


def load_config(name_or_path: str | PathLike[str], revision: str | None = None):
    """The configuration of a Hub model or a folder. Raises: UsageError, there is none."""
    try:
        return AutoConfig.from_pretrained(str(name_or_path), revision=revision)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no model at '{name_or_path}': {_first_line(error)} Give a folder with config.json, or a model on the Hub."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
