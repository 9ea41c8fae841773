"""Notes which tool read what, and makes the table of docs/interoperability.md of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interop_helpers
import pytest

from hf_glmd.utils.text import markdown_table

TABLE = "HF_GLMD_INTEROPERABILITY_TABLE"
_HEAD = """# Interoperability

What `hf-glmd shrink` and `GLMDTrainer` write is read by the tools below, with no code of ours, whenever removed words are respelt
(`removed="resegment"`, the default). The tests in `tests/interop` make the table when `make test-interop` runs. The models are
tiny and random; published tokenizers are found by the environment variable `HF_GLMD_TEST_DATA`.

"""
_FOOT = """
## What goes along

`hf-glmd shrink` also copies what lies beside the weights and holds nothing of the vocabulary: the modules of a repository of
sentence-transformers (the tokens of its prompts stay), `preprocessor_config.json` and its kin, and the terms of the licence.
`generation_config.json` and chat templates are written anew, with the new ids. Left behind are weights in other formats, such as
`onnx/`, which have the old vocabulary; the model card is a new one. Modules with an entry per token, such as
`WordWeights`, are refused before anything is counted.

## llama.cpp

`convert_hf_to_gguf.py` finds the pre-tokenizer of a byte-level BPE by a hash of the ids of one text. With other ids the hash is
another: the script ends with "BPE pre-tokenizer was not recognized" and prints it. Tell it, in its `get_vocab_base_pre`:

```python
if chkhsh == "the hash that it printed":
    res = "gpt-2"  # what the function returns for the original model
```

Models with byte fallback (Llama 2, Mistral) are converted without that, from `tokenizer.json`. The scores that `tokenizer.model`
held are lost then, as for any model without that file, and llama.cpp may split some words otherwise than `transformers` does.
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
    if package == "transformers.js":
        file = interop_helpers.TRANSFORMERS_JS / "package.json"
        return json.loads(file.read_text())["version"] if file.is_file() and shutil.which("node") else None
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
        Path(os.environ[TABLE]).write_text(f"{_HEAD}{table}\n{_FOOT}", encoding="utf-8")


def _result(outcome: str, report: Any, noted: dict[str, Any]) -> str:
    if outcome == "skipped":
        return f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
    return noted.get("result", "equal") if outcome == "passed" else "**FAILED**"
