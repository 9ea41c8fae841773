"""Notes which tool read what, and makes the table of docs/interoperability.md of it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interop_helpers
import pytest

from hf_glmd.cards import markdown_table

TABLE = "HF_GLMD_INTEROPERABILITY_TABLE"
_HEAD = """# Interoperability

What `hf-glmd shrink` and `GLMDTrainer` write is read by the tools below, with no code of ours. The table is made by the tests in
`tests/interop`, each time that `make test-interop` runs.

"""


@pytest.fixture
def tool(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`tool(packages, compared)`: what the test proves, for the table; skips it, by name, where a package is missing.

    A test says more about its result by `record_property("result", text)`.
    """

    def note(packages: str, compared: str) -> None:
        names = packages.split()
        versions = {name: _version(name) for name in names}
        record_property("tool", ", ".join(f"{name} {version}".strip() for name, version in versions.items()))
        record_property("compared", compared)
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")

    return note


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.fixture(scope="session")
def masked(tmp_path_factory: Any) -> interop_helpers.Pair:
    return interop_helpers.masked(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="session")
def causal(tmp_path_factory: Any) -> interop_helpers.Pair:
    return interop_helpers.causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: Any) -> interop_helpers.Pair:
    return interop_helpers.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def student(masked: interop_helpers.Pair, tmp_path_factory: Any) -> Path:
    """Distilled from the smaller masked language model."""
    return interop_helpers.distilled(masked, tmp_path_factory.mktemp("student"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            noted = dict(getattr(report, "user_properties", ()))
            if "tool" in noted and (report.when == "call" or outcome != "passed"):
                rows.append((noted["tool"], noted["compared"], _result(outcome, report, noted)))
    if not rows:
        return
    table = markdown_table(sorted(rows), ["read by", "compared", "result"], "lll")
    terminalreporter.section("interoperability")
    terminalreporter.write_line(table)
    if TABLE in os.environ:
        Path(os.environ[TABLE]).write_text(f"{_HEAD}{table}\n", encoding="utf-8")


def _result(outcome: str, report: Any, noted: dict[str, Any]) -> str:
    if outcome == "skipped":
        return f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
    return noted.get("result", "equal") if outcome == "passed" else "**FAILED**"
