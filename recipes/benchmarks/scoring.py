"""Scoring candidate answers beside the bare forward passes of the same padded batches.

    python recipes/benchmarks/scoring.py         # the quickstart's teacher, a minute

Two kinds of questions, written in random words of the model's vocabulary: words of one token, of which all are looked up in one
blank, and candidates of one to four tokens that each example brings along. Timed in turns in one process, in its CPU seconds, the
median counts. Scoring reads the rows, pads them, runs the model and looks the candidates up; bare is `model(**batch)` alone, all
logits included. Target: at most 1.3 times the bare passes.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hf_glmd.models.heads import WordHead
from hf_glmd.models.loading import load_word_model
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.scoring import score_candidates
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
TARGET = 1.3
CPU = torch.device("cpu")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "recipes" / "quickstart_teacher"))
    parser.add_argument("--questions", type=int, default=256, help="of each kind, default 256")
    parser.add_argument("--length", type=int, nargs=2, default=(20, 100), metavar=("LEAST", "MOST"), help="words, default 20 100")
    parser.add_argument("--batch", type=int, default=64, help="sequences per forward pass, default 64")
    parser.add_argument("--repeats", type=int, default=5, help="passes of which the median counts, default 5")
    parser.add_argument("--output", type=Path, default=Path("results/scoring.json"), help="default results/scoring.json")
    options = parser.parse_args(words)
    model, tokenizer = load_word_model(options.model, dtype=torch.float32).eval(), load_tokenizer(options.model)
    found = [
        {"questions": kind, **timed(model, tokenizer, task, data, options)}
        for kind, (task, data) in kinds(tokenizer, options.questions, options.length).items()
    ]
    print(f"{'questions':<28} {'sequences':>9} {'tokens':>9} {'bare s':>8} {'scoring s':>10} {'ratio':>7}    (target {TARGET})")
    for row in found:
        print(
            f"{row['questions']:<28} {row['sequences']:>9,} {row['tokens']:>9,} {row['bare_s']:>8.2f} {row['scoring_s']:>10.2f} "
            f"{row['ratio']:>7.3f}"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": options.model, "batch": options.batch, "rows": found, "target": TARGET, "torch": torch.__version__}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def kinds(tokenizer, count: int, length: tuple[int, int]) -> dict[str, tuple[ClozeTask, datasets.Dataset]]:
    """Each kind of question with its data: words of one token, and candidates of several."""
    special = set(tokenizer.all_special_tokens)
    vocabulary = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and word not in special]
    draw = np.random.default_rng(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(vocabulary, draw.integers(least, most + 1)))

    columns = {"text": [text(*length) for _ in range(count)]}
    columns |= {f"choice{number}": [text(1, 4) for _ in range(count)] for number in range(4)}
    data = datasets.Dataset.from_dict(columns)
    single = {f"answer {number}": word for number, word in enumerate(draw.choice(vocabulary, 4, replace=False))}
    return {
        "4 words of one token": (ClozeTask("words", "{text} So {mask}.", single), data),
        "4 candidates of 1 to 4": (ClozeTask("candidates", "{text} So {mask}.", candidates=list(columns)[1:]), data),
    }


def timed(model, tokenizer, task: ClozeTask, data: datasets.Dataset, options: argparse.Namespace) -> dict[str, float]:
    rows = task.encode(data, tokenizer, model.config.max_position_embeddings)
    logits_at = partial(WordHead(model).logits, model)
    batches: list[dict[str, torch.Tensor]] = []

    def recorded(inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        batches.append(dict(inputs))
        return logits_at(inputs, positions)

    score_candidates(recorded, rows, tokenizer, CPU, options.batch)

    def bare() -> None:
        with torch.no_grad():
            for inputs in batches:
                model(**inputs)

    parts: dict[str, Callable[[], object]] = {
        "bare_s": bare,
        "scoring_s": lambda: score_candidates(logits_at, rows, tokenizer, CPU, options.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in tqdm(range(options.repeats + 1), desc=f"Timing {task.name}", disable=None):
        for name, part in parts.items():
            start = time.process_time()
            part()
            if number:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    shapes = [inputs["input_ids"].shape for inputs in batches]
    return {
        "sequences": sum(shape[0] for shape in shapes),
        "tokens": sum(shape.numel() for shape in shapes),
        **found,
        "ratio": found["scoring_s"] / found["bare_s"],
    }


if __name__ == "__main__":
    sys.exit(main())
