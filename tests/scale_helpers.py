"""Runs that have to end alike however many processes take part: what each is, and a script that does some of them.

accelerate launch --config_file recipes/accelerate/zero3.yaml tests/scale_helpers.py FOLDER CASE...
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import training_helpers as helpers
import vocab_helpers
from accelerate import PartialState
from accelerate.utils import DistributedType

from hf_glmd import ClozeTask

STEPS = 20
ROWS = 24
"""8 windows of 3 rows for each of 2 processes; windows of 10 end unevenly."""

SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": STEPS}
"""Weights are compared after SGD: Adam divides by the size of a gradient, and makes a step of the rounding of one that is 0."""

CASES: dict[str, dict[str, Any]] = {
    # Clipped at every step. In some windows not a word is hidden, in others one process has none.
    "masked": {"positions": "masked", "temperature": 2.0, "max_grad_norm": 0.5, "mask_share": 0.05},
    "cut vocabulary": {"vocab_map": "yes", "max_grad_norm": 0.0},
    "accumulated": {"batch": 2, "gradient_accumulation_steps": 5},  # windows of 10, 10 and 4 rows
    "dense": {"fused_loss": False, "max_steps": 3},
    "untied": {"kind": "bert-untied", "max_steps": 3},
    "causal": {"kind": "llama", "batch": 2, "gradient_accumulation_steps": 3},
    "causal, tied": {"kind": "qwen2-tied"},
    "softcap": {"kind": "gemma2", "temperature": 2.0, "max_steps": 3},
    "several teachers": {"teachers": 2, "max_steps": 3},
    # 10 questions, 4 at a time: the last 2 go to one of two processes, and the other one's are repetitions.
    "answers": {"objective": "soft_label", "batch": 4, "max_steps": 6},
    # With an optimizer that has something to remember.
    "resumed": {
        "vocab_map": "yes",
        "save_strategy": "steps",
        "save_steps": 10,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    },
}


TASK = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk", "no": "talk", "maybe": "jump"})


def settings(case: str, processes: int) -> dict[str, Any]:
    """What `helpers.trainer` takes. The rows of a step are those of one process: each of several reads its part of them."""
    given = {"batch": 6, "max_grad_norm": 1.0, **SGD, **CASES[case]}
    kind, batch, teachers = given.pop("kind", None), given.pop("batch"), given.pop("teachers", 1)
    if kind is None:
        models = {"model": helpers.student(), "teacher": helpers.teacher()}
    else:
        models = {"model": vocab_helpers.tiny_model(kind, **_without_dropout(kind)), "teacher": _opinionated(kind)}
    if teachers > 1:
        models["teacher"] = [models["teacher"], helpers.teacher().half().float()]
    rows, held_out = helpers.rows(ROWS), helpers.rows(11)
    if given.get("objective") == "soft_label":
        texts = datasets.Dataset.from_dict({"text": vocab_helpers.texts(10)})
        rows = held_out = TASK.encode(texts, helpers.TOKENIZER, 20, labelled=False)
    if given.pop("vocab_map", None):
        models |= {"model": helpers.student(vocab_size=97), "vocab_map": vocab_helpers.tiny_map()}
        rows, held_out = (
            datasets.Dataset.from_dict({"input_ids": [[token % 97 for token in row] for row in part["input_ids"]]})
            for part in (rows, held_out)
        )
    batches = {"per_device_train_batch_size": batch // processes, "per_device_eval_batch_size": 4 // processes}
    return {**models, "train_dataset": rows, "eval_dataset": held_out, **batches, **given}


def _without_dropout(kind: str) -> dict[str, Any]:
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind.startswith("bert") else {}


def _opinionated(kind: str) -> torch.nn.Module:
    model = vocab_helpers.tiny_model(kind, intermediate_size=40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def run(case: str, folder: Path, processes: int = 1, resume: str | None = None, **more: Any) -> dict[str, Any]:
    """What a case comes to: scores before and after, logs, and the weights as they were saved."""
    given = settings(case, processes)
    trainer = helpers.trainer(folder, **given, **more)
    start = [parameter.detach().clone() for parameter in given["model"].parameters()]
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=resume)
    after = trainer.evaluate()
    trainer.save_model(str(folder / "saved"))
    trainer.accelerator.wait_for_everyone()
    return {
        "before": before,
        "after": after,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "start": torch.cat([value.flatten() for value in start]),
        "sharded": _held(trainer.teacher),
    }


def _held(teacher: Any) -> float:
    """The share of a teacher's weights that this process holds while it does not run."""
    held = whole = 0
    for model in teacher.models:
        for parameter in model.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            held += local.numel()
            whole += getattr(parameter, "ds_numel", parameter.numel())
    return held / whole


def main(folder: str, *cases: str) -> None:
    for number, case in enumerate(cases):
        place = Path(folder) / str(number)
        result = run(case, place, processes=2, use_cpu=False, ddp_backend="gloo")
        if case == "resumed":  # from its middle on, once more
            shutil.rmtree(place / "saved", ignore_errors=True)
            checkpoint = str(place / "checkpoint-10")
            result = run(case, place, processes=2, resume=checkpoint, use_cpu=False, ddp_backend="gloo")
        if PartialState().is_main_process:
            torch.save(result, place / "result.pt")


if __name__ == "__main__":
    if sys.argv[1] == "--gpus-are-cpus":  # accelerate shards over GPUs only; PyTorch can over CPUs, too
        PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
        sys.argv.pop(1)
    main(*sys.argv[1:])
