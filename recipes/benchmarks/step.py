"""A whole training step beside what cannot be saved of it: both bodies, and the four products of the head.

    python recipes/benchmarks/step.py            # the quickstart's teacher and student, a minute

Timed in turns in one process, the median counts: a step of GLMDTrainer's loss (teacher and student forward, loss, backward), the
student's body forward and backward, the teacher's body forward, and the four matrix products. Target: at most 1.10 of their sum.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from losses import Inputs, four_products
from tqdm.auto import tqdm

from hf_glmd import GLMDConfig, GLMDTrainer, build_student
from hf_glmd.models.loading import load_word_model
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
TARGET = 1.10


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(ROOT / "recipes" / "quickstart_teacher"))
    parser.add_argument("--num-layers", type=int, default=2, help="of the student, default 2")
    parser.add_argument("--batch", type=int, nargs=2, default=(32, 128), metavar=("ROWS", "TOKENS"), help="default 32 128")
    parser.add_argument("--repeats", type=int, default=9, help="passes of which the median counts, default 9")
    parser.add_argument("--output", type=Path, default=Path("results/step.json"), help="default results/step.json")
    options = parser.parse_args(words)
    teacher = load_word_model(options.teacher, dtype=torch.float32)
    student = build_student(teacher, num_layers=options.num_layers)
    args = GLMDConfig("unused", use_cpu=True, report_to="none", mlm_probability=0.0)
    row = {"input_ids": [5]}
    trainer = GLMDTrainer(student, teacher, args, [row], processing_class=load_tokenizer(options.teacher))
    student.train()
    rows, length = options.batch
    vocabulary, width = student.get_output_embeddings().weight.shape
    ids = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "prediction_mask": torch.ones_like(ids).bool()}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    teacher_width = teacher.get_output_embeddings().weight.shape[1]
    products = Inputs.made((rows * length, width, teacher_width, vocabulary), "cpu", torch.float32, 15.0)

    def step() -> None:
        student.zero_grad()
        trainer.compute_loss(student, dict(batch)).backward()

    def student_body() -> None:
        student.zero_grad()
        trainer.head.collect(student, inputs, lambda head: head.hidden.sum()).backward()

    def teacher_body() -> None:
        trainer.teacher.head_inputs(inputs, batch["prediction_mask"])

    parts: dict[str, Callable[[], None]] = {
        "whole step": step,
        "student's body, forward and backward": student_body,
        "teacher's body, forward": teacher_body,
        "four products": lambda: four_products(products),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in tqdm(range(options.repeats + 1), desc="Timing", disable=None):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if number:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = found["whole step"] / (sum(found.values()) - found["whole step"])
    for name, value in found.items():
        print(f"{name:<38} {1000 * value:8,.0f} ms")
    print(f"{'whole step / sum of its parts':<38} {ratio:8.3f}    (target {TARGET})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"batch": options.batch, "V": vocabulary, "seconds": found, "ratio": ratio, "torch": torch.__version__}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
