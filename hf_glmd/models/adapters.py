"""Adapters (PEFT): a folder that holds only these, and a model that has them for good."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel

from hf_glmd.errors import UsageError

CONFIG_FILE = "adapter_config.json"


def is_adapter(folder: str | PathLike[str]) -> bool:
    """Whether a folder holds adapters to a model that is elsewhere."""
    return (Path(folder) / CONFIG_FILE).is_file() and not (Path(folder) / "config.json").is_file()


def base_of(folder: str | PathLike[str]) -> tuple[str, str | None]:
    """The model that the adapters of a folder belong to: name or path, and revision. Raises: UsageError, it is not said."""
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"'{Path(folder) / CONFIG_FILE}' cannot be read ({error}). Save the adapters once more.") from error
    if not config.base_model_name_or_path:
        raise UsageError(
            f"'{Path(folder) / CONFIG_FILE}' does not name the model it belongs to. Write it there as base_model_name_or_path."
        )
    return config.base_model_name_or_path, config.revision


def with_adapter(base: PreTrainedModel, folder: str | PathLike[str]) -> Any:
    """A model with the adapters of a folder: merged into its weights where these can be, beside them where they are quantised.

    Raises: UsageError, the adapters do not fit the model.
    """
    try:
        model = peft.PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"the adapters of '{folder}' do not fit {base.config.name_or_path}: {reason}") from error
    if getattr(base, "is_quantized", False):
        return model
    return model.merge_and_unload()


def with_new_adapter(model: PreTrainedModel, options: dict[str, Any]) -> Any:
    """A model with fresh adapters, which alone are trained.

    Args:
        options: of `peft.LoraConfig`; modules that are not named are PEFT's own choice for that architecture, or else all linear
            ones but the head.
    Raises: UsageError, no module has such a name.
    """
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    defaults = {} if model.config.model_type in known else {"target_modules": "all-linear"}
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**defaults | options))
    except ValueError as error:
        raise UsageError(f"these adapters do not fit {type(model).__name__}: {str(error).splitlines()[0]}") from error


def merged_copy(model: nn.Module) -> PreTrainedModel:
    """A plain model with the adapters in its weights; the given one is left as it is, bit for bit."""
    return copy.deepcopy(model).merge_and_unload()
