"""What a run is said to take, beside what it takes."""

import json
import math

import pytest
import recipe_helpers

from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.forecast import _times, forecast
from hf_glmd.recipe.run import Run
from hf_glmd.reports.records import RunRecord

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


def test_a_run_shows_its_forecast_and_keeps_it_beside_what_it_took(tmp_path, capsys):
    """Said before, beside the progress, at the end, on the page and in metrics.json; and the student is that of a run without."""
    stages = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    path = recipe_helpers.write_inputs(tmp_path, **stages, general={**EPOCHS, "disable_tqdm": False})
    assert main(["distill", "--config", str(path), "--calibrate"]) == 0
    captured = capsys.readouterr()
    record = RunRecord.load(tmp_path / "out" / "metrics.json")
    assert list(record.forecast.parts) == ["vocabulary and student", "general", "scores"]
    assert record.forecast.seconds == pytest.approx(sum(record.forecast.parts.values()))
    assert 100 < record.peak_memory_mib < 50_000 and 100 < record.forecast.peak_memory_mib < 50_000
    assert "| in all" in captured.out and "; the forecast was " in captured.out and "plain text (forecast " in captured.err
    assert "forecast" in (tmp_path / "out" / "report.html").read_text()
    plain = ["--output_dir", str(tmp_path / "plain")]
    assert main(["distill", "--config", str(path), *plain]) == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "plain" / "student" / name).read_bytes() == (tmp_path / "out" / "student" / name).read_bytes()
    assert RunRecord.load(tmp_path / "plain" / "metrics.json").forecast is None


def test_a_run_that_goes_on_keeps_its_first_forecast(tmp_path, capsys):
    stages = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    path = recipe_helpers.write_inputs(tmp_path, **stages)
    assert main(["distill", "--config", str(path), "--calibrate"]) == 0
    told = RunRecord.load(tmp_path / "out" / "metrics.json").forecast
    (tmp_path / "out" / "metrics.json").unlink()  # as if it had been killed while scoring
    (tmp_path / "out" / "SHA256SUMS").unlink()
    assert main(["distill", "--config", str(path)]) == 0
    assert RunRecord.load(tmp_path / "out" / "metrics.json").forecast == told


def test_several_processes_have_no_forecast(tmp_path, capsys, monkeypatch):
    path = recipe_helpers.write_inputs(tmp_path)
    run = Run(load_recipe(path), forecast=forecast)
    monkeypatch.setattr(type(run.inputs.state), "num_processes", 2, raising=False)
    run.inputs.state._shared_state["num_processes"] = 2
    try:
        with pytest.raises(UsageError, match="--calibrate forecasts a run of one process, and this one has 2: leave it out"):
            run.check()
    finally:
        run.inputs.state._shared_state["num_processes"] = 1
