"""What a run is said to take, beside what it takes."""

import json
import math

import pytest
import recipe_helpers

from hf_glmd.cli import main
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.forecast import _times, forecast

EPOCHS = {**recipe_helpers.STAGE, "num_train_epochs": 2, "eval_steps": 0.5}


@pytest.mark.parametrize(
    ("strategy", "every", "steps", "epochs", "wanted"),
    [("no", 5, 20, 1, 0), ("epoch", 5, 20, 2.5, 3), ("steps", 5, 20, 1, 4), ("steps", 0.1, 20, 1, 10), ("steps", 0.3, 10, 1, 3)],
)
def test_how_often_something_is_done(strategy, every, steps, epochs, wanted):
    assert _times(strategy, every, steps, epochs) == wanted


def test_steps_and_tokens_are_those_of_the_run(tmp_path, capsys):
    stages = {"general": {**EPOCHS, "positions": "masked", "temperature": 2.0}, "task_words": {**EPOCHS, "max_steps": 5}}
    path = recipe_helpers.write_inputs(tmp_path, **stages, task_teacher=EPOCHS, task_answers=None)
    found = forecast(load_recipe(path))
    assert not (tmp_path / "out").exists()
    assert main(["distill", "--config", str(path)]) == 0
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    told = {part.name: part for part in found.parts}
    for stage in record["stages"]:
        part = told[stage["name"]]
        assert part.steps == stage["steps"], stage["name"]
        assert part.tokens == pytest.approx(stage["tokens"], rel=0.15), stage["name"]
        assert math.isfinite(part.seconds) and part.seconds >= part.steps * part.step_seconds > 0
    assert list(told) == ["vocabulary and student", "general", "task_teacher", "task_words", "scores"]
    weights = sum(file.stat().st_size for file in (tmp_path / "out" / "stages").rglob("*.safetensors")) / 2**20
    assert found.disk_mib > weights and 100 < found.peak_memory_mib < 50_000


def test_the_command_prints_it_and_writes_nothing(tmp_path, capsys):
    stages = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    path = recipe_helpers.write_inputs(tmp_path, **stages)
    assert main(["distill", "--config", str(path), "--dry-run", "--calibrate"]) == 0
    said = capsys.readouterr().out
    assert "| general" in said and "| in all" in said and "On disk:" in said and not (tmp_path / "out").exists()
    assert main(["distill", "--config", str(path), "--calibrate"]) == 2
    assert "add --dry-run" in capsys.readouterr().err
