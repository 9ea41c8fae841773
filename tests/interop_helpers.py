"""Checkpoints as this package writes them, for others' tools to read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
import vocab_helpers
from transformers import AutoTokenizer

from hf_glmd import GLMDConfig, GLMDTrainer, VocabMap, build_student
from hf_glmd.models.loading import load_checkpoint
from hf_glmd.shrinking.command import ShrinkOptions, shrink_checkpoint

TEXTS = vocab_helpers.texts(60)
TRANSFORMERS_JS = Path(sys.prefix) / "node" / "node_modules" / "@huggingface" / "transformers"
"""Where `make test-interop` puts it."""


@dataclass(frozen=True)
class Pair:
    """A checkpoint and the smaller one that was made of it."""

    original: Path
    small: Path

    @cached_property
    def original_model(self) -> Any:
        return load_checkpoint(self.original).eval()

    @cached_property
    def small_model(self) -> Any:
        return load_checkpoint(self.small).eval()

    @cached_property
    def original_tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.original)

    @cached_property
    def small_tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.small)

    @cached_property
    def vocab_map(self) -> VocabMap:
        return VocabMap.load(self.small)

    def kept_texts(self, texts: list[str] = TEXTS) -> list[str]:
        """Those whose tokens all stayed."""
        kept = [text for text in texts if self.vocab_map.keeps(self.original_tokenizer(text)["input_ids"]).all()]
        assert kept, "no text kept all of its tokens"
        return kept


def shrunk(folder: Path, name: str, tokenizer: Any, size: int, prepare: Any = None, **settings: Any) -> Pair:
    """A tiny model of `vocab_helpers.MODELS`, or of a class of transformers, cut as `hf-glmd shrink` does.

    Args:
        folder: is filled.
        name: of the model.
        tokenizer: is saved beside it.
        size: tokens that stay.
        prepare: called with the folder of the original before that is cut.
        settings: of the model's config.
    """
    original, small, corpus = folder / "original", folder / "small", folder / "corpus.txt"
    opinionated(name, len(tokenizer), **settings).save_pretrained(original)
    tokenizer.save_pretrained(original)
    corpus.write_text("\n".join(TEXTS), encoding="utf-8")
    if prepare is not None:
        prepare(original)
    options = ShrinkOptions(model=str(original), output=str(small), corpus=[str(corpus)], size=size)
    shrink_checkpoint(options, progress=False)
    return Pair(original, small)


def opinionated(name: str, size: int, **settings: Any) -> Any:
    """A tiny random model that finds some words much likelier than others."""
    if name in vocab_helpers.MODELS:
        model = vocab_helpers.tiny_model(name, size, **settings)
    else:
        torch.manual_seed(0)
        model = vocab_helpers.tiny_class(name, vocab_helpers._SMALL | settings, size)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(15.0)
    return model


def masked(folder: Path) -> Pair:
    return shrunk(folder, "bert", vocab_helpers.generic_tokenizer(), 131)


def causal(folder: Path) -> Pair:
    tokenizer = vocab_helpers.fast_tokenizer(
        "bpe bytes", pad_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]", model_max_length=40
    )
    settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    settings |= {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64}  # what 4-bit kernels take
    return shrunk(folder, "llama", tokenizer, 307, **settings)


def encoder(folder: Path) -> Pair:
    """Without a head that predicts words."""
    return shrunk(folder, "BertModel", vocab_helpers.generic_tokenizer(model_max_length=40), 131)


def distilled(pair: Pair, folder: Path) -> Path:
    """A student of two layers with the smaller vocabulary, after two steps."""
    torch.manual_seed(0)
    tokenizer = pair.small_tokenizer
    student = build_student(pair.small_model, num_layers=2)
    rows = datasets.Dataset.from_dict({"input_ids": tokenizer(TEXTS, truncation=True, max_length=16)["input_ids"]})
    args = GLMDConfig(str(folder), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = GLMDTrainer(student, pair.small_model, args, rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(folder)
    return folder


def fresh_process(code: str, *arguments: Any, python: str = sys.executable) -> Any:
    """What a process without this package prints as JSON in its last line."""
    without = "import sys; sys.modules['hf_glmd'] = None\n"
    command = [python, "-W", "ignore", "-c", without + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
