"""A process that is asked to end, or killed, at any moment: it ends soon, says how to go on, and the same command does."""

import os
import random
import signal
import subprocess
import sys
import time

import fault_helpers
import psutil
import pytest
import recipe_helpers
from torch.distributed.elastic.multiprocessing.api import SignalException

from hf_glmd.cli import main
from hf_glmd.utils.ending import Stopped

STATUS = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT, signal.SIGKILL: -signal.SIGKILL}
SIGNALS = pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)


def check(recipe, out, number, status):
    if status != 0:  # it came too late
        assert status == STATUS[number], recipe.said[-4000:]
        if number != signal.SIGKILL:
            recipe.check_said("he same command goes on" if "stopped at step" in recipe.said else "To go on: ")
    recipe.check_again(out)


@SIGNALS
def test_a_recipe_to_which_a_signal_is_sent_at_a_file_operation(recipe, number, tmp_path, trials):
    for operation in fault_helpers.chosen(recipe.operations, 15 if fault_helpers.EVERYTHING else 1, everything=False):
        with trials(f"{number.name} at {operation}"):
            out = tmp_path / str(operation) / "out"
            fault = fault_helpers.sent(number)
            status, _ = fault_helpers.operations(recipe.command(out), out.parent, operation, recipe.log, fault)
            check(recipe, out, number, status)


@SIGNALS
def test_a_recipe_to_which_a_signal_is_sent_at_a_moment(recipe, number, tmp_path, trials):
    takes, drawn = recipe.takes_s, random.Random(int(number))
    for turn in range(15 if fault_helpers.EVERYTHING else 1):
        moment = drawn.random() * takes
        with trials(f"{number.name} after {moment:.2f} of {takes:.2f} s"):
            out = tmp_path / str(turn) / "out"

            def send(process, moment=moment):
                time.sleep(moment)
                os.kill(process, number)

            status, _ = fault_helpers.forked(recipe.command(out), recipe.log, meanwhile=send)
            check(recipe, out, number, status)


def distilled(recipe, out, meanwhile=lambda process: None):
    """`hf-glmd distill` on two processes, in a process group of its own. Returns: its status, and what it printed."""
    words = ["--config", str(recipe.recipe), "--accelerate", "multi_cpu", "--processes", "2", "--output_dir", str(out)]
    command = [sys.executable, "-m", "hf_glmd", "distill", *words, "--evaluation.speed_batch_sizes", "[1]"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, cwd=recipe_helpers.ROOT, **streams)
    meanwhile(process)
    try:
        said, _ = process.communicate(timeout=fault_helpers.HANGS_S)
    except subprocess.TimeoutExpired:
        recipe_helpers.kill(process)
        raise
    return process.returncode, said


@pytest.mark.slow
def test_two_processes_to_which_a_signal_is_sent_at_a_moment(recipe, tmp_path, trials):
    if recipe.everything:
        pytest.skip("one stage is enough")
    started = time.monotonic()
    status, said = distilled(recipe, tmp_path / "whole")
    assert status == 0, said[-4000:]
    takes, wanted = time.monotonic() - started, fault_helpers.content(tmp_path / "whole" / "student")["model.safetensors"]
    drawn = random.Random(0)
    # A terminal sends SIGINT to all of them, a cluster SIGTERM to the first one or to any; what kills, kills one or all.
    cases = [(signal.SIGINT, "all"), (signal.SIGTERM, "first"), (signal.SIGTERM, "last"), (signal.SIGKILL, "last")]
    for number, who in [*cases, (signal.SIGKILL, "all")] * (2 if fault_helpers.EVERYTHING else 1):
        moment = (0.15 + 0.8 * drawn.random()) * takes

        def send(process, number=number, who=who, moment=moment):
            time.sleep(moment)
            if who == "all":
                os.killpg(process.pid, number)
            elif who == "first":
                process.send_signal(number)
            else:
                for one in psutil.Process(process.pid).children(recursive=True)[-1:]:
                    one.send_signal(number)

        with trials(f"{number.name} to {who} after {moment:.1f} of {takes:.1f} s"):
            out = tmp_path / str(trials.tried) / "out"
            status, said = distilled(recipe, out, send)
            if status != 0 and (number, who) != (signal.SIGKILL, "all"):
                assert status == (2 if number == signal.SIGKILL else 128 + number), said[-4000:]
                assert "Traceback" not in said, said[-4000:]
                assert "he same command goes on" in said or "To go on: hf-glmd distill" in said, said[-4000:]
            status, said = distilled(recipe, out)
            assert status == 0, said[-4000:]
            assert fault_helpers.content(out / "student")["model.safetensors"] == wanted
            assert not (left := fault_helpers.litter(out.parent)), left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_asked_to_end_says_how_to_go_on(number, recipe, capsys, monkeypatch):
    def launched(arguments):
        raise SignalException("got a signal", signal.Signals(number))

    words = ["distill", "--config", str(recipe.recipe), "--accelerate", "multi_cpu"]
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched)
    monkeypatch.setattr("sys.argv", ["hf-glmd", *words])
    assert main(words) == 128 + number
    assert f"stopped. To go on: hf-glmd distill --config {recipe.recipe} --accelerate multi_cpu" in capsys.readouterr().err


def test_the_one_process_of_a_launcher_does_not_outlive_it(recipe, capsys, monkeypatch):
    started = []

    def launched(arguments):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched)
    assert main(["distill", "--config", str(recipe.recipe), "--accelerate", "multi_cpu", "--processes", "1"]) == 143
    assert not psutil.pid_exists(started[0].pid)
