"""A tiny student and teacher of one vocabulary, rows to train on, and a trainer: shared by tests and by their processes."""

from __future__ import annotations

from typing import Any

import datasets
import torch
import vocab_helpers

from hf_glmd import GLMDConfig, GLMDTrainer
from hf_glmd.data.packing import pack_blocks

TOKENIZER = vocab_helpers.generic_tokenizer()


def rows(count: int = 23, length: int = 16) -> datasets.Dataset:
    """Rows of different lengths."""
    texts = datasets.Dataset.from_dict({"text": vocab_helpers.texts(80)})
    blocks = pack_blocks(texts, TOKENIZER, length).select(range(count))
    ids = [row[: 4 + 5 * (number % 3)] for number, row in enumerate(blocks["input_ids"])]
    return datasets.Dataset.from_dict({"input_ids": ids, "unused": list(range(len(ids)))})


def student(**settings: Any) -> torch.nn.Module:
    return vocab_helpers.tiny_model("bert", **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **settings})


def teacher() -> torch.nn.Module:
    model = vocab_helpers.tiny_model("bert", hidden_size=24, num_hidden_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # a random model predicts nearly nothing; this one has opinions
    return model


def arguments(folder: Any, **settings: Any) -> GLMDConfig:
    defaults: dict[str, Any] = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 4,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_grad_norm": 1.0,
    }
    return GLMDConfig(output_dir=str(folder), **{**defaults, **settings})


def trainer(folder: Any, **settings: Any) -> GLMDTrainer:
    named = ("model", "teacher", "train_dataset", "eval_dataset", "vocab_map", "processing_class", "data_collator")
    named += ("compute_metrics", "callbacks", "peft_config", "model_init")
    parts = {name: settings.pop(name) for name in named if name in settings}
    return GLMDTrainer(
        **{
            "model": student(),
            "teacher": teacher(),
            "args": arguments(folder, **settings),
            "train_dataset": rows(),
            "eval_dataset": rows(11),
            "processing_class": TOKENIZER,
            **parts,
        }
    )
