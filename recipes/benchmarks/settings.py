"""Which temperature, positions and learning rate teach in a short run: the same rows, steps and student for every setting.

    python recipes/benchmarks/settings.py        # the quickstart's teacher on docstrings, about 10 minutes on two CPU cores

For each setting, half the layers and half the vocabulary of a small BERT learn for as many steps on the same rows in the same
order. KL to the teacher (temperature 1, nats) and accuracy are of masked words in held-out text, before and after; "visible" is
how often both models have the same top-1 token where nothing is masked, before and after.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed

from hf_glmd import GLMDConfig, GLMDTrainer, LiveTeacher, VocabShrinker, build_student, docstring_corpus
from hf_glmd.data.packing import pack_blocks
from hf_glmd.evaluation.words import compare_word_predictions
from hf_glmd.models.loading import load_word_model
from hf_glmd.reports.records import WordScores
from hf_glmd.training.config import SHORT
from hf_glmd.utils.system import hardware, has_fast_bf16
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
MASKED = {"positions": "masked", "mlm_probability": 0.25}
SETTINGS: dict[str, dict[str, Any]] = {
    "GLMDConfig(): T = 15, all positions, 5e-5": {},
    "T = 15, all positions, 1e-3": SHORT | {"temperature": 15.0},
    "T = 1, all positions, 1e-3: GLMDConfig.short()": SHORT,
    "T = 1, masked positions, 5e-4": SHORT | MASKED | {"learning_rate": 5e-4},
    "T = 1, masked positions, 1e-3": SHORT | MASKED,
    "T = 1, masked positions, 2e-3": SHORT | MASKED | {"learning_rate": 2e-3},
    "the same, 0.1 of them visible": SHORT | MASKED | {"learning_rate": 2e-3, "mask_replace_prob": 0.9},
    "the same, 0.2 of them visible": SHORT | MASKED | {"learning_rate": 2e-3, "mask_replace_prob": 0.8},
    "the same, 0.4 of them visible": SHORT | MASKED | {"learning_rate": 2e-3, "mask_replace_prob": 0.6},
    "T = 1, masked positions, 4e-3": SHORT | MASKED | {"learning_rate": 4e-3},
    "the same, 0.2 of them visible, 4e-3": SHORT | MASKED | {"learning_rate": 4e-3, "mask_replace_prob": 0.8},
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "recipes" / "quickstart_teacher"), help="a masked language model")
    parser.add_argument("--texts", type=int, default=8_000, help="docstrings to train on, default 8000")
    parser.add_argument("--held-out", type=int, default=96, help="rows to score, default 96")
    parser.add_argument("--length", type=int, default=128, help="tokens per row, default 128")
    parser.add_argument("--layers", type=int, default=2, help="of the student, default 2")
    parser.add_argument("--steps", type=int, default=60, help="default 60")
    parser.add_argument("--seed", type=int, default=0, help="of rows and masks, default 0")
    parser.add_argument("--batch", type=int, default=16, help="rows per step, default 16")
    parser.add_argument(
        "--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="numbers of the settings, default all"
    )
    parser.add_argument("--output", type=Path, default=Path("results/settings.json"), help="default results/settings.json")
    options = parser.parse_args(words)
    tokenizer, teacher = load_tokenizer(options.model), load_word_model(options.model)
    corpus = docstring_corpus()
    texts = corpus["train"].select(range(min(options.texts, len(corpus["train"]))))
    vocab = VocabShrinker(tokenizer).count(texts["text"][:]).shrink(size=0.5)
    rows = pack_blocks(texts, vocab.tokenizer, options.length)
    held_out = pack_blocks(corpus["test"], vocab.tokenizer, options.length)
    held_out = held_out.select(range(min(options.held_out, len(held_out))))
    found = []
    for name in [list(SETTINGS)[number] for number in options.settings]:
        found.append({"setting": name, **trained(SETTINGS[name], teacher, vocab, rows, held_out, options)})
        row = found[-1]
        print(
            f"{name:<48} KL {row['kl_before']:.3f} -> {row['kl']:.3f}   accuracy {row['accuracy_before']:.1%} -> "
            f"{row['accuracy']:.1%} (teacher {row['teacher_accuracy']:.1%}, n={row['positions']:,})   visible "
            f"{row['visible_before']:.1%} -> {row['visible']:.1%}",
            flush=True,
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    told = {name: getattr(options, name) for name in ("model", "texts", "length", "layers", "steps", "batch", "seed")}
    told |= {"hardware": hardware(), "bf16": has_fast_bf16(torch.device("cpu"))}
    options.output.write_text(json.dumps({**told, "rows": found, "torch": torch.__version__}, indent=1) + "\n", encoding="utf-8")
    return 0


def trained(
    setting: dict[str, Any],
    teacher: Any,
    vocab: Any,
    rows: datasets.Dataset,
    held_out: datasets.Dataset,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What a setting came to."""
    set_seed(options.seed)
    student = build_student(teacher, num_layers=options.layers, vocab=vocab)
    seen_by = LiveTeacher(teacher, vocab.vocab_map)
    before, before_visible = scores(student, seen_by, vocab, held_out)
    with tempfile.TemporaryDirectory() as folder:
        args = GLMDConfig(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=max(1, options.steps // 3),
            dataloader_pin_memory=False,
            use_cpu=True,
            bf16=has_fast_bf16(torch.device("cpu")),
            **setting,
        )
        started = time.perf_counter()
        GLMDTrainer(student, teacher, args, rows, processing_class=vocab.tokenizer, vocab_map=vocab.vocab_map).train()
        seconds = time.perf_counter() - started
    after, after_visible = scores(student, seen_by, vocab, held_out)
    return {
        "kl_before": before.kl,
        "kl": after.kl,
        "accuracy_before": before.accuracy,
        "accuracy": after.accuracy,
        "teacher_accuracy": after.teacher_accuracy,
        "visible_before": before_visible.agreement,
        "visible": after_visible.agreement,
        "positions": after.positions,
        "seconds": seconds,
    }


def scores(student: Any, teacher: LiveTeacher, vocab: Any, held_out: datasets.Dataset) -> list[WordScores]:
    """Of masked and of visible words."""
    return [compare_word_predictions(student, teacher, vocab.tokenizer, held_out, visible=visible) for visible in (False, True)]


if __name__ == "__main__":
    raise SystemExit(main())
