"""A whole recipe at a tiny budget: teacher, corpus, task and yaml, written into a folder; and the command that runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import vocab_helpers
import yaml

from hf_glmd.training.checkpoints import last_complete_checkpoint

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "glmd.py"
STAGE = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 2, "eval_steps": 4}


def write_inputs(folder: Path, **changes: Any) -> Path:
    """Returns: the recipe's path. `changes` replace its sections."""
    teacher = vocab_helpers.tiny_model("bert", num_hidden_layers=4, hidden_size=32, hidden_dropout_prob=0.0)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if parameter.ndim == 2:  # a random model predicts nearly nothing; this one has opinions
                parameter.mul_(20.0 if "word_embeddings" in name else 15.0)
    teacher.config.attention_probs_dropout_prob = 0.0
    teacher.save_pretrained(folder / "teacher")
    vocab_helpers.generic_tokenizer(model_max_length=40).save_pretrained(folder / "teacher")
    texts = vocab_helpers.texts(900)
    rows = [{"text": text, "label": "yes" if len(text) % 2 else "no"} for text in texts]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "output_dir": str(folder / "out"),
        "max_length": 24,
        "threads": 1,  # so small a model is slower on two, by far where another test runs beside it
        "teacher": {"model": str(folder / "teacher")},
        "corpus": {"name": str(folder / "corpus.jsonl")},
        "vocab": {"size": 131},
        "student": {"num_layers": 2},
        "general": {**STAGE, "max_steps": 12, "positions": "masked", "temperature": 2.0, "save_steps": 3},
        "task": {
            "name": "verbs",
            "data": str(folder / "corpus.jsonl"),
            "pattern": "call {mask} . {text}",
            "verbalizers": {"yes": "walk", "no": "talk"},
        },
        "task_teacher": {**STAGE, "max_steps": 4},
        "task_words": {**STAGE, "max_steps": 4},
        "task_answers": {**STAGE, "max_steps": 4},
        "evaluation": {"rows": 64, "curve_rows": 8, "speed_batch_sizes": [1, 2], "speed_length": 16},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def launch(recipe: Path, *options: str, processes: int = 1, wait: bool = True) -> Any:
    """`accelerate launch recipes/glmd.py --config RECIPE`, in a process group of its own.

    Returns: the finished process with its output, or the running one.
    """
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes == 1:
        accelerate += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    else:
        accelerate += ["--config_file", str(ROOT / "recipes" / "accelerate" / "multi_cpu.yaml")]
        accelerate += ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [*accelerate, str(SCRIPT), "--config", str(recipe), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, cwd=ROOT, **streams)
    if not wait:
        return process
    try:
        output, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def killed_after_a_checkpoint(recipe: Path) -> None:
    """Runs a recipe, and kills it as soon as its general stage has written a checkpoint."""
    process = launch(recipe, wait=False)
    checkpoints = recipe.parent / "out" / "stages" / "general" / "checkpoints"
    deadline = time.monotonic() + 300
    while last_complete_checkpoint(checkpoints) is None:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and all it started: nothing gets to tidy up."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
