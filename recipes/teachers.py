"""Every kind of teacher, on real text: docstrings of installed libraries, the quickstart's teacher, a student of half its depth.

python recipes/teachers.py                      # all kinds, minutes on two CPU cores, offline
python recipes/teachers.py --kinds cache several --steps 200
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from hf_glmd import AdaptersOffTeacher, GLMDConfig, GLMDTrainer, LiveTeacher, build_student, docstring_corpus
from hf_glmd.cli import main as hf_glmd
from hf_glmd.models.loading import load_word_model
from hf_glmd.reports.run_card import markdown_table
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

TEACHER = str(Path(__file__).parent / "quickstart_teacher")


def live(folder: Path, student: Any) -> Any:
    """A model, or its path or Hub name."""
    return TEACHER


def cache(folder: Path, student: Any, *options: str) -> Any:
    """What the teacher said, from disk: exact at any temperature, 260 bytes per token."""
    text = [str(folder.parent / f"{split}.jsonl") for split in ("train", "held_out")]
    settings = ["--positions", "masked", "--mlm-probability", "0.25", "--max-length", "128", "--epochs", "2"]
    if hf_glmd(["cache", TEACHER, "--data", *text, "--output", str(folder / "cache"), *settings, *options]):
        raise SystemExit(2)
    return folder / "cache"


def top_k(folder: Path, student: Any) -> Any:
    """Its 64 top tokens and the mass of the others, from disk, for T = 1."""
    return cache(folder, student, "--kind", "top_k")


def several(folder: Path, student: Any) -> Any:
    """The mean of two: the teacher, and its own first three layers."""
    return [TEACHER, build_student(load_word_model(TEACHER, dtype=torch.float32), num_layers=3)]


def adapters(folder: Path, student: Any) -> Any:
    """A folder of adapters, which belongs to the model it names."""
    model = get_peft_model(load_word_model(TEACHER, dtype=torch.float32), LoraConfig(r=4, init_lora_weights=False))
    model.save_pretrained(folder / "adapters")
    load_tokenizer(TEACHER).save_pretrained(folder / "adapters")
    return folder / "adapters"


def adapters_off(folder: Path, student: Any) -> Any:
    """The student without its adapters: no second copy of the weights."""
    return AdaptersOffTeacher(student)


def four_bits(folder: Path, student: Any) -> Any:
    """A teacher that takes a quarter of the memory (needs bitsandbytes)."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return LiveTeacher(load_word_model(TEACHER, quantization_config=config, dtype=torch.float32))


KINDS: dict[str, Callable[[Path, Any], Any]] = {
    "live": live,
    "cache": cache,
    "top_k": top_k,
    "several": several,
    "adapters": adapters,
    "adapters_off": adapters_off,
    **({"four_bits": four_bits} if importlib.util.find_spec("bitsandbytes") else {}),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="teachers.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which ones (default: all)")
    parser.add_argument("--steps", type=int, default=60, help="of 16 rows (default: 60)")
    parser.add_argument("--texts", type=int, default=3000, help="to train on (default: 3000)")
    parser.add_argument("--output", type=Path, default=Path("runs/teachers"), help="folder (default: runs/teachers)")
    options = parser.parse_args(argv)
    corpus, tokenizer = docstring_corpus(), load_tokenizer(TEACHER)
    text, held_out = (corpus[split].select_columns(["text"]) for split in ("train", "validation"))
    text, held_out = text.select(range(options.texts)), held_out.select(range(100))
    for split, part in (("train", text), ("held_out", held_out)):
        part.to_json(options.output / f"{split}.jsonl")
    lines = []
    for kind in options.kinds:
        folder = options.output / kind
        student = build_student(load_word_model(TEACHER, dtype=torch.float32), num_layers=2)
        if kind == "adapters_off":
            student = get_peft_model(load_word_model(TEACHER, dtype=torch.float32), LoraConfig(r=4, init_lora_weights=False))
        args = GLMDConfig(
            str(folder / "run"),
            temperature=1.0,
            positions="masked",
            mlm_probability=0.25,
            max_length=128,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = GLMDTrainer(student, KINDS[kind](folder, student), args, text, held_out, processing_class=tokenizer)
        before = trainer.evaluate()
        seconds = trainer.train().metrics["train_runtime"]
        after = trainer.evaluate()
        # At T = 1 the loss is the KL; of the top tokens alone it is what is known of it.
        shown = [f"{metrics['eval_loss']:.3f}" for metrics in (before, after)]
        lines.append([kind, (KINDS[kind].__doc__ or "").strip(), *shown, f"{after['eval_agreement']:.0%}", f"{seconds:.0f}"])
    heads = ["kind", "what it is", "KL before", "KL after", "same top-1 word", "seconds of training"]
    print("\n" + markdown_table(lines, heads, "llrrrr"))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
