"""The output folder of a run: whose it is, and which of its steps are done.

OUTPUT_DIR/
    run.json        the recipe as it was understood
    stages/         one folder per step, with its model and, once it is finished, done.json; of a list of tasks in TASK/
    student/        the result: weights, config, tokenizer, vocab_map.safetensors, README.md, plots/
    students/       of a list of tasks, in TASK/: the student of each, as student/, which then has read plain text only
    predictions/    the answers of both models, as the tasks' benchmarks want them; of a list in TASK/
    metrics.json    a `RunRecord`: everything that was measured
    plots/
    logs/           what trackers write into files (report_to: tensorboard), a folder per stage
    report.html     all of it on one page
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_glmd.errors import UsageError
from hf_glmd.hub.options import PushOptions
from hf_glmd.recipe.config import Recipe
from hf_glmd.utils.files import SUMS, check_sums, locked, read_json, remove, remove_partial, write_json, write_sums

OWNED = (
    "metrics.json",
    "report.html",
    "student.part",
    "student",
    "students",
    "predictions",
    "plots",
    "stages",
    "logs",
    SUMS,
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
        logs: the folder of what trackers write.
    """

    def __init__(self, recipe: Recipe, state: PartialState) -> None:
        self.recipe, self.state = recipe, state
        self.path = Path(recipe.output_dir)
        self.stages = self.path / "stages"
        self.logs = self.path / "logs"

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
            if self.state.is_main_process and self.path.is_dir():
                remove_partial(self.path)
            self._refuse_foreign(file)
            if overwrite and self.state.is_main_process:
                for name in OWNED:
                    remove(self.path / name)
            if file.exists():
                difference = _first_difference(self._recipe_there(file), ours)
                if difference and begun:
                    check_sums(self.path)  # a damaged run.json is not that of another run
                    raise UsageError(
                        f"'{self.path}' holds a different run: {difference}. "
                        "Give another --output_dir, or --overwrite to remove that run and start anew."
                    )
                if begun:
                    self.say(f"Going on with the run in {self.path}")
                elif self.state.is_main_process:  # an earlier try that came to nothing, mended meanwhile
                    write_json(file, ours)
            elif self.state.is_main_process:
                write_json(file, ours)
        self.state.wait_for_everyone()

    def _refuse_foreign(self, file: Path) -> None:
        """Raises: UsageError, the folder is somebody else's, which --overwrite must not touch either."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--output_dir '{self.path}' is a file: name a folder.")
        if file.exists():
            self._recipe_there(file)
        elif self.path.exists() and any(self.path.iterdir()):
            raise UsageError(f"'{self.path}' is not empty and holds no run of ours. Give another --output_dir.")

    def _recipe_there(self, file: Path) -> dict[str, Any]:
        remedy = f"If '{self.path}' holds a run of yours, remove it by hand; else give another --output_dir."
        found = read_json(file, remedy)
        if not isinstance(found, dict) or not {"teacher", "corpus", "evaluation"} <= set(found):
            raise UsageError(f"'{file}' is no recipe that this package wrote. {remedy}")
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other run may write here meanwhile. Raises: UsageError, one does; in all processes."""
        with ExitStack() as stack:
            refusal: list[str | None] = [None]
            if self.state.is_main_process:
                try:
                    stack.enter_context(locked(self.path))
                except UsageError as error:
                    refusal = [str(error)]
            broadcast_object_list(refusal)
            if refusal[0] is not None:
                raise UsageError(refusal[0])
            yield

    def step(self, name: str, title: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Work that is done once: its folder appears whole, with done.json, or not at all. All processes work, one writes."""
        folder, unfinished = self.stages / name, self.stages / f"{name}.part"
        if self.is_done(folder):
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
                write_sums(unfinished)
                os.replace(unfinished, folder)
        self.state.wait_for_everyone()
        return self.facts(folder)

    def is_done(self, folder: Path) -> bool:
        """Whether a step was finished. Raises: UsageError, what it left is not there any more, or damaged."""
        if not (folder / "done.json").exists():
            return False
        try:
            check_sums(folder)
        except UsageError as error:
            raise UsageError(f"{error} To do this step again, delete '{folder}' and what was made from it.") from error
        return True

    def facts(self, folder: Path) -> Any:
        """What a finished step says of itself."""
        return read_json(folder / "done.json", f"Delete '{folder}', and run the same command again: it does this step once more.")

    def say(self, text: str) -> None:
        if self.state.is_main_process:
            print(text, flush=True)  # noqa: T201 - what the user sees


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its folder, its threads, where it is pushed and what it may publish: what makes two runs one."""
    data = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del data["evaluation"]["accept_worse"]
    return {key: value for key, value in data.items() if key not in ("output_dir", "threads", "hub")}


def _first_difference(there: Any, here: Any, path: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            difference = _first_difference(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
            if difference:
                return difference
        return None
    return None if there == here else f"{path} is {there!r} there and {here!r} here"
