"""A recipe that takes seconds, what comes out of it if nothing happens to it, and whether that came out of another run."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_helpers
import pytest
import recipe_helpers

from hf_glmd.cli import run_recipe_command
from hf_glmd.evaluation import words
from hf_glmd.reports.records import RunRecord

TIMES = ("seconds", "tokens_per_second", "hardware", "command", "seconds_total", "peak_memory_mib")
STAGE = {**recipe_helpers.STAGE, "lr_scheduler_type": "constant", "logging_steps": 3, "save_steps": 2, "eval_steps": 2}
"""A learning rate that does not fall: with one that does, a step too many would change nothing."""

TASK_STAGES = ("task_teacher", "task_words", "task_answers")


class FaultyRecipe:
    """A recipe, and its result from a run to which nothing happened.

    Args:
        folder: for the inputs and the runs.
        everything: all stages, the first one from a cache; else only the first one.

    Attributes:
        operations: how often the run to which nothing happened changed a file.
        takes_s: about how long a run takes.
    """

    def __init__(self, folder: Path, everything: bool) -> None:
        self.folder, self.everything = folder, everything
        changes: dict[str, Any] = dict.fromkeys(TASK_STAGES, {**STAGE, "max_steps": 3} if everything else None)
        changes |= {} if everything else {"task": None}
        changes |= {"cache": {"stages": ["general"]}} if everything else {}
        changes["general"] = {**STAGE, "max_steps": 5, "positions": "masked", "temperature": 2.0}
        self.recipe = recipe_helpers.write_inputs(folder, **changes, threads=1)
        assert run_recipe_command(["--config", str(self.recipe)]) == 0  # what it imports need not be imported by each fork
        whole = folder / "whole" / "out"
        started = time.monotonic()
        status, self.operations = fault_helpers.operations(self.command(whole), whole.parent, log=self.log)
        assert status == 0, self.said
        self.takes_s = time.monotonic() - started
        self.figures, self.files = figures(whole), fault_helpers.content(whole)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def said(self) -> str:
        """What the last command printed, as it is seen: a bar shows its last state."""
        return "\n".join(line.rpartition("\r")[2] for line in self.log.read_text(errors="replace").splitlines())

    def chosen(self, wanted: int, in_the_long_form: int) -> list[int]:
        """Numbers of operations: in the long form all of a recipe of one stage, and `in_the_long_form` of one of all stages."""
        if self.everything:
            wanted = in_the_long_form
        everything = fault_helpers.EVERYTHING and not self.everything
        return fault_helpers.chosen(self.operations, wanted, everything)

    def command(self, out: Path) -> Callable[[], int]:
        return lambda: run_recipe_command(["--config", str(self.recipe), "--output_dir", str(out)])

    def check_said(self, text: str) -> None:
        """The last command ended with a line of ours that says this, and without a traceback."""
        line = self.said.strip().splitlines()[-1]
        assert line.startswith(("glmd.py: ", "Stage", "The teacher")) and text in line, self.said[-2000:]
        assert "Traceback" not in self.said, self.said[-4000:]

    def check_again(self, out: Path) -> None:
        """The same command once more ends with weights, figures, curves and files of the run to which nothing happened."""
        status, _ = fault_helpers.operations(self.command(out), out.parent, log=self.log)
        assert status == 0, self.said[-2000:]
        assert not (other := list(differences(figures(out), self.figures))), other[:5]
        found = fault_helpers.content(out)
        assert found.keys() == self.files.keys(), set(found) ^ set(self.files)
        weights = [name for name in found if name.endswith("model.safetensors")]  # a map's metadata come in any order
        assert not (other := [name for name in weights if found[name] != self.files[name]]), other
        assert not (left := fault_helpers.litter(out.parent)), left
        shutil.rmtree(out.parent)


def figures(out: Path) -> Any:
    """All of a record but times."""
    record = json.loads((out / "metrics.json").read_text())
    assert RunRecord.load(out / "metrics.json")

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key not in TIMES and "speed" not in key}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return json.loads(re.sub(re.escape(str(out)) + r"\b", "OUT", json.dumps(timeless(record))))


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}")
    elif found != wanted:
        yield f"{path} is {found} instead of {wanted}"


def without_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured once, not for two seconds: most of the time that so small a run takes."""
    monkeypatch.setattr(words, "SPEED_SECONDS", 1e-9)
