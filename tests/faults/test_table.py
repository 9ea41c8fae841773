"""The table of `make test-faults` counts each fault, and names those that were not survived."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).parent
TESTS = """
import pytest

def test_of_two(trials):
    for number in range(3):
        with trials(number):
            assert number != 1, "one is bad"

def test_alone():
    pass

@pytest.mark.parametrize("number", [1, 2])
def test_broken(number):
    assert number == 1
"""


def test_failures_do_not_hide_each_other_and_are_named(tmp_path):
    (tmp_path / "faults").mkdir()
    shutil.copy(FAULTS / "conftest.py", tmp_path / "faults")
    (tmp_path / "faults" / "test_x.py").write_text(TESTS)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FAULTS.parent), *sys.path]),
        "HF_GLMD_FAULTS_TABLE": "table.md",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--rootdir", ".", "--import-mode", "importlib", "faults"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in done.stdout
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] == [
        ["x: alone", "1", "1", "-"],
        ["x: broken", "2", "1", "assert 2 == 1"],
        ["x: of two", "3", "2", "1: AssertionError: one is bad"],
        ["all", "6", "4", ""],
    ]
