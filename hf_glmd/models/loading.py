"""Checkpoints by name: a configuration, a model that predicts words, or whatever class a checkpoint was saved as."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import peft
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from hf_glmd.errors import UsageError
from hf_glmd.models.sentence_modules import pooled_in_files
from hf_glmd.utils.files import check_sums
from hf_glmd.utils.remote_code import REMEDY, reason, trust_remote_code

logger = logging.getLogger(__name__)

AUTO_CLASSES = (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM)
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_CLASS_AUTO_CLASSES = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering)
_AUTO_CLASSES = (AutoModelForPreTraining, *AUTO_CLASSES, *_CLASS_AUTO_CLASSES, AutoModel)


def word_model_class(config) -> type:
    """The auto class a configuration's model predicts words with: by its `architectures`, else the first that knows it.

    Raises: UsageError, none does.
    """
    own = [auto for auto in _own_classes(config) if auto in AUTO_CLASSES]
    if own:
        return own[0]
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

    Of a folder of adapters (PEFT), the model they belong to, with them.

    Raises: UsageError, there is no such model, or it predicts no words.
    """
    if is_adapter(name_or_path):
        base, revision = base_of(name_or_path)
        return with_adapter(load_word_model(base, **kwargs | {"revision": revision}), name_or_path)
    config = load_config(name_or_path, kwargs.get("revision"))
    return _loaded_whole(word_model_class(config), name_or_path, **kwargs)


def _loaded_whole(auto_class: Any, name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Raises: UsageError, a weight of the head is not in the checkpoint."""
    options = {"trust_remote_code": trust_remote_code()} | kwargs | {"output_loading_info": True}
    model, info = auto_class.from_pretrained(str(name_or_path), **options)
    _refuse_missing(model, info, name_or_path)
    return model


def class_model_class(config) -> Any:
    """The auto class of a model with a head for classes of texts or tokens, or for answers, by the `architectures` of its
    configuration; None: it has no such head."""
    own = [auto for auto in _own_classes(config)[:1] if auto in _CLASS_AUTO_CLASSES]
    return next((auto for auto in (*own, *_CLASS_AUTO_CLASSES) if auto in own or _is_named(auto, config)), None)


def predicts_classes(config) -> bool:
    """Whether a configuration is that of a model with a head for sequence classification, by its `architectures`."""
    return class_model_class(config) is AutoModelForSequenceClassification


def predicts_nothing(config) -> bool:
    """Whether a configuration is that of an encoder without a head, by its `architectures`."""
    return not config.is_encoder_decoder and _is_named(AutoModel, config)


def _is_named(auto_class: Any, config: Any) -> bool:
    """Whether the `architectures` of a configuration name what an auto class loads."""
    known = auto_class._model_mapping
    classes = known[type(config)] if type(config) in known else ()
    names = {found.__name__ for found in (classes if isinstance(classes, tuple) else (classes,))}
    return any(name in names for name in config.architectures or ())


def load_teacher_model(name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a model that predicts words, classes of texts or tokens, or answers to questions; or a text encoder, that of a
    SentenceTransformer among them.

    It is in the dtype of the checkpoint unless `dtype` is given.

    Raises: UsageError, there is no such model, it is none of these, or a weight of its head is not in the checkpoint.
    """
    config = load_config(name_or_path, kwargs.get("revision"))
    if predicts_nothing(config):
        encoder = load_checkpoint(name_or_path, **kwargs)
        encoder.own_pooling = pooled_in_files(name_or_path, kwargs.get("revision"))
        return encoder
    if (auto_class := class_model_class(config)) is not None:
        return _loaded_whole(auto_class, name_or_path, **kwargs)
    return load_word_model(name_or_path, **kwargs)


def load_config(name_or_path: str | PathLike[str], revision: str | None = None):
    """The configuration of a Hub model or a folder, which may hold adapters alone. Raises: UsageError, there is none."""
    if is_adapter(name_or_path):
        name_or_path, revision = base_of(name_or_path)
    check_sums(name_or_path)  # of a folder that we wrote, and that is to be read next
    try:
        return AutoConfig.from_pretrained(str(name_or_path), revision=revision, trust_remote_code=trust_remote_code())
    except (OSError, ValueError, ImportError) as error:
        raise no_model(name_or_path, error) from error


def no_model(name_or_path: str | PathLike[str], error: Exception) -> UsageError:
    """What to say of a model that is not there: of a path that cannot be the name of a repository, not that the Hub lacks it."""
    said = reason(error)
    if not (_REPOSITORY.fullmatch(str(name_or_path)) or Path(name_or_path).exists()):
        said = "there is no such folder."
    remedy = "" if REMEDY in said else " Give a folder with config.json, or a model on the Hub."
    return UsageError(f"no model at '{name_or_path}': {said}{remedy}")


def load_checkpoint(name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a model as the class it was saved as, with whatever head that has, in the dtype of the checkpoint.

    Where the configuration names no class, or one that transformers does not have, it is the class that takes every tensor of
    the checkpoint. Tensors that a named class does not take are named in a warning.

    Raises: UsageError, there is no such model, transformers cannot load its weights, or no class takes all of them.
    """
    config = load_config(name_or_path, kwargs.get("revision"))
    named = [name for name in config.architectures or () if hasattr(transformers, name)]
    options = {"dtype": "auto", "trust_remote_code": trust_remote_code()} | kwargs | {"output_loading_info": True}
    own = _own_classes(config)
    classes = own[:1] or ([getattr(transformers, named[0])] if named else _classes_of(config))
    named = named or [auto.__name__ for auto in own]
    refused: dict[str, list[str]] = {}
    for model_class in classes:
        try:
            model, info = model_class.from_pretrained(str(name_or_path), **options)
        except (OSError, ValueError) as error:
            if not named and len(classes) > 1 and isinstance(error, ValueError):
                continue
            raise UsageError(f"the weights of '{name_or_path}' cannot be loaded: {reason(error)}") from error
        left = sorted(info["unexpected_keys"])
        if named or not (left or info["missing_keys"]):
            if left:
                logger.warning("%s does not take %d tensors of '%s': %s.", named[0], len(left), name_or_path, _some(left))
            _refuse_missing(model, info, name_or_path)
            return model
        refused[model_class.__name__] = left
    least = min(refused, key=lambda name: len(refused[name]), default="AutoModel")
    raise UsageError(
        f"config.json of '{name_or_path}' names no class that transformers has ({config.architectures}), and {least} does not "
        f'take {_some(refused.get(least, []))}. Write the class into config.json as architectures, e.g. ["BertForMaskedLM"].'
    )


def _classes_of(config: Any) -> list[type]:
    """Classes with and without a head that transformers has for a configuration, those with more of a head first."""
    found = [classes for auto in _AUTO_CLASSES if (classes := auto._model_mapping.get(type(config), None)) is not None]
    flat = [one for classes in found for one in (classes if isinstance(classes, tuple) else (classes,))]
    return list(dict.fromkeys(flat))


def _own_classes(config: Any) -> list[Any]:
    """Auto classes that a repository's trusted code has a class for, that of `architectures` first."""
    own = getattr(config, "auto_map", None) or {}
    if not trust_remote_code():
        return []
    found = [auto for auto in _AUTO_CLASSES if auto.__name__ in own]
    return sorted(found, key=lambda auto: own[auto.__name__].rpartition(".")[2] not in (config.architectures or ()))


def _refuse_missing(model: PreTrainedModel, info: dict[str, Any], name: Any) -> None:
    """Raises: UsageError, weights were not in the checkpoint, and would be random."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(info["missing_keys"]) - tied)
    if missing:
        raise UsageError(
            f"'{name}' lacks {len(missing)} weights of {type(model).__name__}, which would be random: {_some(missing)}. Use a "
            "checkpoint that was trained with this head."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


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
    return merged(model)


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
    return merged(copy.deepcopy(model))


def merged(model: Any) -> PreTrainedModel:
    """A plain model with the adapters in its weights, which are changed.

    Adapters of the input or the output table make two tables of a tied one: they are untied, in weights and config.
    """
    base = model.get_base_model()
    tables = [_plain_table(base.get_input_embeddings()), _plain_table(base.get_output_embeddings())]
    adapted = any(table is not part for table, part in zip(tables, _parts(base), strict=True))
    if adapted and None not in tables and tables[0].weight is tables[1].weight:
        tables[1].weight = nn.Parameter(tables[1].weight.detach().clone())
    plain = model.merge_and_unload()
    head, table = plain.get_output_embeddings(), plain.get_input_embeddings()
    config = plain.config.get_text_config()
    if adapted and head is not None and head.weight is not table.weight and config.tie_word_embeddings:
        plain.config.tie_word_embeddings = config.tie_word_embeddings = False
        plain.all_tied_weights_keys = plain.get_expanded_tied_weights_keys(all_submodels=True)
    return plain


def _parts(model: PreTrainedModel) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _plain_table(part: Any) -> Any:
    """The layer inside of what PEFT wrapped around it."""
    if hasattr(part, "original_module"):  # modules_to_save
        part = part.original_module
    return part.get_base_layer() if hasattr(part, "get_base_layer") else part
