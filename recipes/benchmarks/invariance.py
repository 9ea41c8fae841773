"""Does a trainer's result depend on how the batch is cut? GLMDTrainer beside trl's GKDTrainer and modelopt's KDTrainer.

    python recipes/benchmarks/invariance.py
    python recipes/benchmarks/invariance.py --trainers hf_glmd --cuts 12x1x1 1x12x1 3x2x2

All distil the same small Llama from the same teacher with the forward KL at temperature 1, in fp32 on CPUs, with SGD, without
dropout or clipping, on rows of different lengths that do not fill the last window of an epoch. A cut is MICRO-BATCH x
ACCUMULATION x PROCESSES; all see the same rows in each step. The first cut is what the others of a trainer are compared with.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from common import aligned, append_results
from datasets import Dataset
from tokenizers import Tokenizer, models
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

CONFIGS = Path(__file__).parents[1] / "accelerate"
CUTS = ("12x1x1", "3x4x1", "1x12x1", "6x1x2", "1x6x2", "6x1x2:zero3", "1x6x2:zero3")
TARGET = 1e-5
V = 509
ROWS = 66
"""5 windows of 12 rows, and one of 6."""


@dataclass(order=True, frozen=True)
class Cut:
    batch: int
    accumulation: int
    processes: int
    zero3: bool

    @classmethod
    def of(cls, text: str) -> Cut:
        sizes, _, strategy = text.partition(":")
        batch, accumulation, processes = map(int, sizes.split("x"))
        if min(batch, accumulation, processes) < 1 or strategy not in ("", "zero3"):
            raise ValueError(text)
        return cls(batch, accumulation, processes, strategy == "zero3")

    @property
    def how(self) -> str:
        """What it is started with."""
        return "ZeRO-3" if self.zero3 else "DDP" if self.processes > 1 else "-"


@dataclass
class Row:
    trainer: str
    cut: Cut
    loss: float | None = None
    gradient_norm: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    weight_error: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        errors = (self.loss_error, self.gradient_error, self.weight_error)
        return None if None in errors else max(errors) <= TARGET


# What is trained


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(2, V)}
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **words}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def llama(layers: int, width: int, scale: float) -> LlamaForCausalLM:
    set_seed(layers)
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=64, tie_word_embeddings=True, **sizes, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # a random model predicts nearly nothing; this one has opinions
    return model


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 33, (ROWS,), generator=generator).tolist()
    return Dataset.from_dict({"input_ids": [torch.randint(2, V, (n,), generator=generator).tolist() for n in lengths]})


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What trl and modelopt read: labels are the words themselves, but for the padding."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    labels = pad(ids, batch_first=True, padding_value=-100)
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": mask, "labels": labels}


def ours(student: Any, teacher: Any, settings: dict[str, Any]) -> Any:
    from hf_glmd import GLMDConfig, GLMDTrainer

    args = GLMDConfig(**settings, temperature=1.0)
    return GLMDTrainer(student, teacher, args, train_dataset=rows(), processing_class=tokenizer())


def trl(student: Any, teacher: Any, settings: dict[str, Any]) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(**settings, lmbda=0.0, beta=0.0, disable_dropout=True, gradient_checkpointing=False, bf16=False)
    data = {"data_collator": padded, "train_dataset": rows(), "processing_class": tokenizer()}
    return GKDTrainer(student, teacher, args, **data)


def modelopt(student: Any, teacher: Any, settings: dict[str, Any]) -> Any:
    from modelopt.torch.distill.plugins.huggingface import KDTrainer
    from transformers import TrainingArguments

    data = {"data_collator": padded, "train_dataset": rows(), "processing_class": tokenizer()}
    return KDTrainer(student, TrainingArguments(**settings), distill_args={"teacher_model": teacher}, **data)


TRAINERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "hf_glmd": ("hf_glmd", ours),
    "trl GKDTrainer": ("trl", trl),
    "modelopt KDTrainer": ("nvidia-modelopt", modelopt),
}


# In the processes that train


def train(name: str, cut: Cut, steps: int, folder: Path) -> None:
    """Writes losses, gradient norms and weights of a run to `folder`."""
    settings = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": cut.batch,
        "gradient_accumulation_steps": cut.accumulation,
        "max_steps": steps,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,  # nothing is clipped, but the norm is logged
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **({"ddp_backend": "gloo"} if cut.zero3 else {"use_cpu": True}),
    }
    trainer = TRAINERS[name][1](llama(2, 32, 1.0), llama(3, 48, 2.0), settings)
    trainer.train()
    if cut.zero3:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes have to ask
    else:
        state = trainer.model.state_dict()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {"loss": [entry["loss"] for entry in logs], "gradient_norm": [entry["grad_norm"] for entry in logs]}
        weights = torch.cat([state[key].double().flatten() for key in sorted(state)])
        torch.save({**result, "weights": weights}, folder / "result.pt")


# In the process that compares


def measured(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.trainers:
        package = TRAINERS[name][0]
        rows_of_trainer = [Row(name, cut) for cut in options.cuts]
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            for row in rows_of_trainer:
                row.note = f"{package} is not installed"
            yield from rows_of_trainer
            continue
        found: dict[Cut, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            # Starting processes takes longer than training: those of one kind do all of their cuts.
            for _, group in groupby(sorted(options.cuts, key=_kind), _kind):
                cuts = list(group)
                why = _run_all(name, cuts, options.steps, Path(folder))
                for cut in cuts:
                    file = Path(folder) / _number(options.cuts, cut) / "result.pt"
                    found[cut] = torch.load(file) if file.exists() else why
        for row in rows_of_trainer:
            compare(row, found[row.cut], found[options.cuts[0]])
            row.note = "; ".join(filter(None, (version, row.note)))
        yield from rows_of_trainer


def compare(row: Row, result: Any, first: Any) -> None:
    if isinstance(result, str):
        row.note = result
        return
    row.loss, row.gradient_norm = result["loss"][0], result["gradient_norm"][0]
    if isinstance(first, str):
        row.note = f"nothing to compare with: {first}"
        return
    row.loss_error, row.gradient_error = (
        max(abs(one / other - 1) for one, other in zip(result[what], first[what], strict=True))
        for what in ("loss", "gradient_norm")
    )
    row.weight_error = float((result["weights"] - first["weights"]).norm() / first["weights"].norm())


def _kind(cut: Cut) -> tuple[int, bool]:
    return cut.processes, cut.zero3


def _number(cuts: list[Cut], cut: Cut) -> str:
    return f"{cut.batch}x{cut.accumulation}x{cut.processes}{cut.zero3:d}"


def _run_all(name: str, cuts: list[Cut], steps: int, folder: Path) -> str:
    """Trains in processes of their own. Returns: why some of the results are missing, if they are."""
    cut = cuts[0]
    if cut.zero3 and (find_spec("deepspeed") is None or shutil.which("g++") is None):
        return "needs deepspeed and a C++ compiler"
    command = [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if cut.processes > 1:
        config = CONFIGS / ("zero3.yaml" if cut.zero3 else "multi_cpu.yaml")
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
        command += ["--num_processes", str(cut.processes)]
    if cut.zero3:
        environment["DS_ACCELERATOR"] = "cpu"
    wanted = [[*dataclasses.astuple(cut), str(folder / _number(cuts, cut))] for cut in cuts]
    child = ["--child", json.dumps({"trainer": name, "steps": steps, "cuts": wanted})]
    done = subprocess.run([*command, __file__, *child], env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    errors = [line.strip() for line in done.stderr.splitlines() if "Error" in line and "ChildFailedError" not in line]
    return errors[-1] if errors else f"status {done.returncode}"


def table_of(rows: list[Row]) -> str:
    heads = ["trainer", "micro-batch", "accumulation", "processes", "", "loss", "gradient norm"]
    lines = [[*heads, "loss differs", "norms differ", "weights differ", f"<= {TARGET:g}", "note"]]
    for row in rows:
        cut = row.cut
        values = ["-" if value is None else f"{value:.6f}" for value in (row.loss, row.gradient_norm)]
        errors = ["-" if error is None else f"{error:.1e}" for error in (row.loss_error, row.gradient_error, row.weight_error)]
        met = {True: "yes", False: "NO", None: "-"}[row.met]
        cells = [row.trainer, str(cut.batch), str(cut.accumulation), str(cut.processes), cut.how]
        lines.append([*cells, *values, *errors, met, row.note[:80]])
    return aligned(lines)


def add_results(path: Path, rows: list[Row], steps: int) -> None:
    figures = []
    for row in rows:
        cut = row.cut
        how = f"{cut.batch} x {cut.accumulation} x {cut.processes} {cut.how}, {steps} steps; "
        differ = "" if row.weight_error is None else f"weights differ by {row.weight_error:.1e}; "
        line = {"part": "invariance", "method": row.trainer, "device": "cpu", "dtype": "float32", "V": V, "H_s": 32, "H_t": 48}
        figures.append({**line, "loss_err": row.loss_error, "grad_err": row.gradient_error, "note": how + differ + row.note})
    append_results(path, {"steps": steps, "rows": [dataclasses.asdict(row) | {"met": row.met} for row in rows]}, figures)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="default all")
    parser.add_argument("--cuts", nargs="+", type=Cut.of, default=[Cut.of(cut) for cut in CUTS], help=f"default {' '.join(CUTS)}")
    parser.add_argument("--steps", type=int, default=20, help="default 20")
    parser.add_argument("--output", type=Path, default=Path("results/invariance.json"), help="default results/invariance.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.child:
        for *cut, folder in options.child["cuts"]:
            Path(folder).mkdir(parents=True, exist_ok=True)
            train(options.child["trainer"], Cut(*cut), options.child["steps"], Path(folder))
        return 0
    if len({cut.batch * cut.accumulation * cut.processes for cut in options.cuts}) > 1:
        parser.error("all cuts need the same number of rows in a step: micro-batch x accumulation x processes")
    total = len(options.trainers) * len(options.cuts)
    found = list(tqdm(measured(options), desc="Training", total=total, disable=None))
    print(table_of(found))
    add_results(options.output, found, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
