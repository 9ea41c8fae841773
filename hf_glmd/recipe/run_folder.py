"""The output folder of a run: whose it is, and which of its steps are done.

OUTPUT_DIR/
    run.json        the recipe as it was understood
    stages/         one folder per step, with its model and, once it is finished, done.json; of a list of tasks in TASK/
    student/        the result: weights, config, tokenizer, vocab_map.safetensors, README.md, plots/
    students/       of a list of tasks, in TASK/: the student of each, as student/, which then has read plain text only
    predictions/    the answers of both models, as the tasks' benchmarks want them; of a list in TASK/
    metrics.json    a `RunRecord`: everything that was measured
    plots/
    report.html     all of it on one page
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_glmd.errors import UsageError
from hf_glmd.hub.options import PushOptions
from hf_glmd.recipe.config import Recipe
from hf_glmd.utils.files import write_json

OWNED = (
    "metrics.json",
    "report.html",
    "student.part",
    "student",
    "students",
    "predictions",
    "plots",
    "stages",
    "run.json.part",
    "run.json",
)
"""What a run writes into its output folder, and all that --overwrite removes: run.json last, for it says whose the rest is."""


class RunFolder:
    """Where a run writes, and what it has finished there.

    Args:
        recipe: names the folder, and is what the folder must have been made by.
        state: of the processes, of which the first one writes.

    Attributes:
        path: the folder.
        stages: the folder of its steps.
    """

    def __init__(self, recipe: Recipe, state: PartialState) -> None:
        self.recipe, self.state = recipe, state
        self.path = Path(recipe.output_dir)
        self.stages = self.path / "stages"

    @property
    def push_options(self) -> PushOptions | None:
        """How the result is pushed; None: not at all."""
        hub = self.recipe.hub
        return None if hub is None else PushOptions(folder=str(self.path / "student"), **dataclasses.asdict(hub))

    def claim(self, overwrite: bool) -> None:
        """Makes the folder this run's. Raises: UsageError, it holds a different run or something else."""
        file = self.path / "run.json"
        ours = _comparable(self.recipe)
        signs = (
            self.path.glob("metrics.json"),
            self.stages.glob("**/done.json"),
            self.stages.glob("**/checkpoints/checkpoint-*"),
        )
        begun = any(any(paths) for paths in signs)
        self.state.wait_for_everyone()
        with self.state.main_process_first():
            if overwrite and self.state.is_main_process:
                for name in OWNED:
                    remove(self.path / name)
            if file.exists():
                difference = _first_difference(json.loads(file.read_text(encoding="utf-8")), ours)
                if difference and begun:
                    raise UsageError(
                        f"'{self.path}' holds a different run: {difference}. "
                        "Give another --output_dir, or --overwrite to remove that run and start anew."
                    )
                if begun:
                    self.say(f"Going on with the run in {self.path}")
                elif self.state.is_main_process:  # an earlier try that came to nothing, mended meanwhile
                    write_json(file, ours)
            elif self.path.exists() and any(path.name != "run.json.part" for path in self.path.iterdir()):
                raise UsageError(f"'{self.path}' is not empty and holds no run of ours. Give another --output_dir.")
            elif self.state.is_main_process:
                write_json(file, ours)
        self.state.wait_for_everyone()

    def step(self, name: str, title: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Work that is done once: its folder appears whole, with done.json, or not at all. All processes work, one writes."""
        folder, unfinished = self.stages / name, self.stages / f"{name}.part"
        if (folder / "done.json").exists():
            self.say(f"{title}: done earlier")
        else:
            self.say(title)
            if self.state.is_main_process:
                remove(unfinished)
                unfinished.mkdir(parents=True)
            try:
                facts = work(unfinished)
            except BaseException:
                remove(unfinished)
                raise
            if self.state.is_main_process:
                write_json(unfinished / "done.json", facts)
                os.replace(unfinished, folder)
        self.state.wait_for_everyone()
        return json.loads((folder / "done.json").read_text(encoding="utf-8"))

    def say(self, text: str) -> None:
        if self.state.is_main_process:
            print(text, flush=True)  # noqa: T201 - what the user sees


def last_complete_checkpoint(folder: Path, remove_others: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end.

    The Trainer writes trainer_state.json last: a checkpoint without it is one that the process was killed in.

    Args:
        remove_others: delete the unfinished ones.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append(path)
        except (OSError, ValueError):
            if remove_others:
                remove(path)
    return max(complete, key=lambda path: int(path.name.split("-")[-1]), default=None)


def remove(path: Path) -> None:
    """A file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its folder, its threads and where it is pushed: what two runs must have in common to be one."""
    data = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {key: value for key, value in data.items() if key not in ("output_dir", "threads", "hub")}


def _first_difference(there: Any, here: Any, path: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            difference = _first_difference(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
            if difference:
                return difference
        return None
    return None if there == here else f"{path} is {there!r} there and {here!r} here"
