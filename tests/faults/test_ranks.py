"""Two processes of which one has other data or packages, is slow, or dies while the vocabulary is cut."""

import os
import signal
import subprocess
import sys
import time

import fault_helpers
import fault_recipes
import psutil
import pytest
import recipe_helpers

pytestmark = pytest.mark.slow

OTHER_PACKAGES = """
import importlib.metadata, os
if os.environ.get("RANK") == "1":
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.0.1" if name == "datasets" else version(name)
"""
OTHER_DATA = """
import os
if os.environ.get("RANK") == "1":
    os.chdir("other")
"""
SLOW = """
import os, random, time
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(random.random() * (os.environ["RANK"] == "1"))
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(code, *options)`: both processes import `code` at their start, as sitecustomize or by name."""
    stage = {**fault_recipes.STAGE, "max_steps": 4, "positions": "masked", "temperature": 2.0}
    parts = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    recipe = recipe_helpers.write_inputs(tmp_path, **parts, general=stage, threads=1)

    def run(code, *options, meanwhile=lambda process: None):
        (tmp_path / "code").mkdir(exist_ok=True)
        for name in ("sitecustomize", "slow_callback"):
            (tmp_path / "code" / f"{name}.py").write_text(code if (name == "slow_callback") == (code is SLOW) else "")
        path = os.pathsep.join([str(tmp_path / "code"), str(recipe_helpers.ROOT), os.environ.get("PYTHONPATH", "")])
        words = ["--config", str(recipe), "--accelerate", "multi_cpu", "--processes", "2", *options]
        command = [sys.executable, "-m", "hf_glmd", "distill", *words, "--evaluation.speed_batch_sizes", "[1]"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **streams)
        meanwhile(process)
        said, _ = process.communicate(timeout=fault_helpers.HANGS_S)
        return process.returncode, said

    return run


def test_other_packages_are_found_at_the_start(launch, tmp_path):
    status, said = launch(OTHER_PACKAGES)
    assert status == 2 and "process 1 has another datasets than process 0: 0.0.1 instead of" in said, said[-3000:]
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_other_data_is_found_at_the_start(launch, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "corpus.jsonl").write_text("".join(corpus.read_text().splitlines(keepends=True)[:800]))
    status, said = launch(OTHER_DATA, "--corpus.name", "corpus.jsonl")
    assert status == 2 and "process 1 has another corpus (train) than process 0: 720 rows" in said, said[-3000:]
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_slow_process_changes_nothing(launch, tmp_path):
    for name, code in (("even", ""), ("slow", SLOW)):
        callbacks = ["--callbacks", "[slow_callback.Slow]"] if code else []
        status, said = launch(code, "--output_dir", str(tmp_path / name), *callbacks)
        assert status == 0, said[-3000:]
    even, slow = (fault_helpers.content(tmp_path / name / "student")["model.safetensors"] for name in ("even", "slow"))
    assert even == slow


def test_a_process_that_dies_while_the_vocabulary_is_cut_is_named(launch, tmp_path):
    def kill(process):
        while not (tmp_path / "out" / "stages" / "student.part").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        psutil.Process(process.pid).children(recursive=True)[-1].send_signal(signal.SIGKILL)

    status, said = launch("", meanwhile=kill)
    assert status == 2 and "was ended by SIGKILL: if nobody did that, there was not enough memory" in said, said[-3000:]
    status, said = launch("")
    assert status == 0, said[-3000:]
    assert not fault_helpers.litter(tmp_path / "out")
