"""`hf-glmd distill` on several processes."""

import os
import subprocess
import sys

import pytest
import recipe_helpers

from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.recipe.launch import accelerate_config


def test_a_mistake_that_the_processes_find_is_one_line_and_status_2(tmp_path):
    recipe = recipe_helpers.write_inputs(tmp_path)
    words = ["--config", str(recipe), "--accelerate", "multi_cpu", "--processes", "2", "--task.verbalizers.yes", "zebra"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_glmd", "distill", *words],
        cwd=recipe_helpers.ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hf-glmd:")]
    assert "verbalizer 'zebra' of answer 'yes' in task verbs is not a single token" in line
    assert "Traceback" not in done.stderr


def test_what_one_process_can_find_is_found_before_any_is_started(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_glmd.recipe.launch.launch", lambda *_: pytest.fail("launched"))
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert main(["distill", "--config", str(recipe), "--accelerate", "multi_cpu", "--vocab.sise", "0.5"]) == 2
    assert "Did you mean 'vocab.size'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerate", "multi_cpus"], "Did you mean 'multi_cpu'?"),
        (["--processes", "2"], "--processes 2 needs --accelerate"),
        (["--config", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message, tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path)
    capsys.readouterr()
    assert main(["distill", "--config", str(recipe), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_configuration_is_a_name_or_a_file(tmp_path):
    assert accelerate_config("multi_cpu").name == "multi_cpu.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 1\n")
    assert accelerate_config(str(own)) == own
    with pytest.raises(UsageError, match="neither a file nor"):
        accelerate_config(str(tmp_path / "missing.yaml"))


def test_its_help_lists_what_a_recipe_can_say(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--help"])
    assert stop.value.code == 0 and "--vocab.size" in capsys.readouterr().out


def test_other_commands_do_not_take_unknown_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["shrink", "model", "--vocab.size", "0.5"])
    assert stop.value.code == 2 and "unrecognized arguments: --vocab.size 0.5" in capsys.readouterr().err
