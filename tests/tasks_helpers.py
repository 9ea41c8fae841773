"""Tokenizers and models for the tests of tasks: several tokens per word, masked and causal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import vocab_helpers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_glmd.models.heads import WordHead

TOKENIZER = vocab_helpers.generic_tokenizer()
CPU = torch.device("cpu")
DATA = os.environ.get("HF_GLMD_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="HF_GLMD_TEST_DATA is unset: no real data")


def byte_level_tokenizer(mask: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which a space belongs to the word that follows; it begins texts with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>"] + (["<mask>"] if mask else [])
    texts = ["yes no maybe Answer: yes Question: no", *vocab_helpers.texts(40)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=397, special_tokens=special, initial_alphabet=alphabet))
    names = {"bos_token": "<s>", "pad_token": "<pad>"} | ({"mask_token": "<mask>"} if mask else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def opinionated(name: str, size: int) -> torch.nn.Module:
    """A tiny model that finds some words much likelier than others."""
    model = vocab_helpers.tiny_model(name, size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def logits_at(model: torch.nn.Module) -> Any:
    head = WordHead(model)
    return lambda inputs, positions: head.logits(model, inputs, positions)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
