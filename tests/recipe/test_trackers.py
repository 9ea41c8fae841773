"""What trackers and callbacks of the user's get to see of a recipe, and what stays of it."""

import json
import sys

import pytest
import recipe_helpers

from hf_glmd.cli import main

ONLY_GENERAL = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))

CALLBACK = """
import json, os, pathlib
from transformers import TrainerCallback

class Tells(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        with open(pathlib.Path(__file__).parent / "told.jsonl", "a") as file:
            file.write(json.dumps({"run": args.run_name, "step": state.global_step, **logs}) + chr(10))

class NoCallback:
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_code"
    sys.modules.pop("users_code", None)


def test_logs_of_trackers_survive_and_callbacks_are_called(tmp_path, module):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = {**recipe_helpers.STAGE, "max_steps": 4, "report_to": "tensorboard"}
    recipe = recipe_helpers.write_inputs(tmp_path, **ONLY_GENERAL, general=stage, callbacks=[f"{module}.Tells"])
    assert main(["distill", "--config", str(recipe)]) == 0
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert {row["run"] for row in told} == {"out/general"} and {2, 4} <= {row["step"] for row in told if "loss" in row}

    logs = tmp_path / "out" / "logs" / "general"
    events = EventAccumulator(str(logs))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [2, 4] and "eval/kl" in events.Tags()["scalars"]
    assert not (tmp_path / "out" / "stages" / "general" / "checkpoints").exists()

    # A finished folder is still whole, and --overwrite takes the logs along.
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["distill", "--config", str(recipe), "--overwrite", "--general.report_to", "none"]) == 0
    assert not logs.exists()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("users_code.Missing", "callbacks names 'users_code.Missing', which cannot be imported"),
        ("no_such_module.Thing", "No module named 'no_such_module'"),
        ("Thing", "Use package.module.Class"),
        ("users_code.NoCallback", "is no class derived from transformers.TrainerCallback"),
    ],
)
def test_a_callback_that_is_none_is_found_before_any_work(tmp_path, module, capsys, path, complaint):
    recipe = recipe_helpers.write_inputs(tmp_path, **ONLY_GENERAL, callbacks=[path])
    assert main(["distill", "--config", str(recipe)]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "out" / "stages" / "general").exists()
