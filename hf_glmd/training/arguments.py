"""What a trainer was given, as what it works with; what makes no sense is refused before anything is loaded."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from os import PathLike
from typing import Any

import peft
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_teacher_model
from hf_glmd.models.sentence_modules import encoder_inside
from hf_glmd.training.config import GLMDConfig
from hf_glmd.vocab.tokenizer_files import set_missing_pad_token

logger = logging.getLogger(__name__)


def check_arguments(args: GLMDConfig, options: dict[str, Any]) -> None:
    """Raises: UsageError, an argument of `transformers.Trainer` would do nothing here.

    Args:
        options: of the Trainer, by name.
    """
    if not isinstance(args, GLMDConfig):
        raise UsageError(f"args is a {type(args).__name__}. Pass a GLMDConfig: it takes every field of TrainingArguments.")
    if options.get("preprocess_logits_for_metrics") is not None:
        raise UsageError(
            "preprocess_logits_for_metrics has nothing to do: no logits are kept. Leave it out; compute_metrics gets the "
            "top-1 tokens of both models."
        )
    if options.get("compute_loss_func") is not None:
        raise UsageError(
            "compute_loss_func is not called: the loss is made from the teacher. Leave it out; to add a loss of your own, "
            "override compute_loss and take logits from super().compute_loss(model, inputs, return_outputs=True)."
        )
    if args.fp16 and args.device.type == "cpu":
        raise UsageError("fp16=True does nothing on a CPU, without a word from accelerate. Use bf16=True, or leave it out.")


def as_tokenizer(processing_class: Any) -> Any:
    """The student's tokenizer: itself, that of a processor, or a `tokenizers.Tokenizer` as one of transformers.

    Raises: UsageError, there is none.
    """
    if isinstance(processing_class, ProcessorMixin):
        processing_class = getattr(processing_class, "tokenizer", None)
    if isinstance(processing_class, Tokenizer):
        processing_class = PreTrainedTokenizerFast(tokenizer_object=processing_class, **_roles(processing_class))
    if processing_class is None:
        raise UsageError("processing_class is missing. Pass the student's tokenizer, e.g. vocab.tokenizer.")
    set_missing_pad_token(processing_class)
    return processing_class


def _roles(tokenizer: Tokenizer) -> dict[str, str]:
    """Which token pads, masks, ... by the names that are in use: a `tokenizers.Tokenizer` does not say."""
    known = {
        "pad_token": ("[PAD]", "<pad>", "<|pad|>"),
        "mask_token": ("[MASK]", "<mask>"),
        "unk_token": ("[UNK]", "<unk>"),
        "cls_token": ("[CLS]",),
        "sep_token": ("[SEP]",),
        "bos_token": ("<s>", "<|startoftext|>"),
        "eos_token": ("</s>", "<|endoftext|>"),
    }
    found = {
        role: next((name for name in names if tokenizer.token_to_id(name) is not None), None) for role, names in known.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def warn_of_low_precision(model: PreTrainedModel) -> None:
    """Says that the optimizer would step in half precision, where small steps change nothing."""
    low = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad and weight.dtype.itemsize < 4}
    if low:
        logger.warning(
            "The student's weights are %s, in which small steps of the optimizer change nothing. Load it with "
            "dtype=torch.float32, and pass bf16=True to compute in half precision.",
            " and ".join(sorted(name.removeprefix("torch.") for name in low)),
        )


def as_student(
    model: PreTrainedModel | str | PathLike[str] | None,
    model_init: Callable[..., PreTrainedModel] | None,
    peft_config: Any = None,
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """A student to look at, and what `transformers.Trainer` is given as `model`.

    Args:
        model: also its Hub name or path, loaded in float32; of a `SentenceTransformer` its encoder. None: `model_init` makes it.
        model_init: as of the Trainer, also called for each trial of a hyperparameter search.
        peft_config: of adapters that it is to get.
    Raises: UsageError, there is neither, or both; or it has adapters already.
    """
    if model is None and model_init is None:
        raise UsageError("the student is missing. Pass model=, or model_init=, a function that makes one.")
    if model is not None and model_init is not None:
        raise UsageError("model and model_init are both passed. Leave one out: model_init makes the student of each trial.")
    if model is None and peft_config is not None:
        raise UsageError("peft_config and model_init are both passed. Let model_init make the student with its adapters.")
    if model is None:
        takes_trial = len(inspect.signature(model_init).parameters) > 0  # as the Trainer decides it
        return model_init(None) if takes_trial else model_init(), None
    if isinstance(model, (str, PathLike)):
        model = load_teacher_model(model, dtype=torch.float32)
    model = encoder_inside(model)
    if peft_config is not None:
        model = _with_adapters(model, peft_config)
    return model, model


def _with_adapters(model: PreTrainedModel, peft_config: Any) -> Any:
    if not isinstance(peft_config, peft.PeftConfig):
        raise UsageError(f"peft_config is a {type(peft_config).__name__}. Pass a peft.PeftConfig, e.g. peft.LoraConfig(r=8).")
    if hasattr(model, "peft_config"):
        raise UsageError("peft_config is passed, and the student has adapters already. Leave it out to train those.")
    return peft.get_peft_model(model, peft_config)
