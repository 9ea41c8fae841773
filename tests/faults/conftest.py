"""Counts what each test of this folder tries, and prints one table of all of them when HF_GLMD_FAULTS is set."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fault_recipes
import pytest

from hf_glmd.utils.text import markdown_table

TABLE = "HF_GLMD_FAULTS_TABLE"
"""Variable that names a file: the table is written into it, too."""

SHOWN = 3
"""Failures that the table names, of each test."""


class Trials:
    """The faults that one test tries. One that is not survived does not hide those after it; at the end the test fails.

    `with trials(what):` around each of them.
    """

    def __init__(self) -> None:
        self.tried = 0
        self.failed: list[str] = []

    @contextmanager
    def __call__(self, what: object) -> Iterator[None]:
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failed.append(f"{what}: {type(error).__name__}: {error}")


@pytest.fixture
def trials() -> Trials:
    return Trials()


@pytest.fixture(scope="session", params=["one stage", pytest.param("all stages", marks=pytest.mark.slow)])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fault_recipes.FaultyRecipe]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault_recipes.without_speed(monkeypatch)
        yield fault_recipes.FaultyRecipe(tmp_path_factory.mktemp("recipe"), everything=request.param == "all stages")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Hands the figures over with the test's report, as which they also reach the first process of pytest-xdist."""
    trials = getattr(item, "funcargs", {}).get("trials")
    try:
        yield
    finally:
        if trials is not None:
            item.user_properties.append(("trials", [trials.tried, len(trials.failed), [_short(text) for text in trials.failed]]))
    if trials is not None and trials.failed:
        pytest.fail(f"{len(trials.failed)} of {trials.tried} failed:\n" + "\n".join(trials.failed), pytrace=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not {TABLE, "HF_GLMD_FAULTS"} & set(os.environ):
        return
    figures: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    causes: dict[str, list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "faults/" in getattr(report, "nodeid", "").split("::")[0]:
                _add(outcome, report, figures[_name(report.nodeid)], causes[_name(report.nodeid)])
    if not figures:
        return
    rows = [(name, *figures[name], "; ".join(causes[name][:SHOWN]) or "-") for name in sorted(figures)]
    rows.append(("all", *(sum(pair[column] for pair in figures.values()) for column in (0, 1)), ""))
    table = markdown_table([tuple(map(str, row)) for row in rows], ["test", "tried", "survived", "what failed"], "lrrl")
    terminalreporter.section("faults")
    terminalreporter.write_line(table)
    if TABLE in os.environ:
        Path(os.environ[TABLE]).write_text(f"{table}\n", encoding="utf-8")


def _add(outcome: str, report: Any, figures: list[int], causes: list[str]) -> None:
    """One report's figures. A test that counts nothing is one trial; one that broke off has failed once more than it says."""
    tried, failed, texts = dict(report.user_properties).get("trials", [1, 0, []])
    if outcome == "skipped":
        causes.append(f"not run: {report.longrepr[2].removeprefix('Skipped: ')}")
        return
    if outcome != "passed" and not failed:
        tried, failed, texts = max(tried, 1), 1, [_short(_cause(report.longrepr))]
    figures[0] += tried
    figures[1] += tried - failed
    causes += texts


def _cause(found: Any) -> str:
    crash = getattr(found, "reprcrash", None)
    return crash.message if crash else str(found).strip().splitlines()[-1]


def _name(nodeid: str) -> str:
    """`stops: a recipe stopped ...` of tests/faults/test_stops.py::test_a_recipe_stopped_...[x]."""
    file, _, test = nodeid.partition("::")
    return f"{Path(file).stem.removeprefix('test_')}: {test.split('[')[0].removeprefix('test_').replace('_', ' ')}"


def _short(text: str) -> str:
    text = next(iter(text.strip().splitlines()), "").strip()
    return text if len(text) <= 120 else f"{text[:119]}…"
