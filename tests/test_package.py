"""The package itself: its public names, and that importing it costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_glmd
from hf_glmd.cli import main
from hf_glmd.errors import nearest
from hf_glmd.recipe.examples import recipe_names


@pytest.mark.parametrize("name", hf_glmd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(hf_glmd, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_glmd.nothing  # noqa: B018


def test_importing_it_loads_no_library():
    code = "import sys, hf_glmd; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_nearest_name_is_found():
    assert nearest("siez", ["size", "keep"]) == "Did you mean 'size'?"
    assert (
        nearest("learning_rate", ["general.learning_rate", "general.lr_scheduler_type"])
        == "Did you mean 'general.learning_rate'?"
    )
    assert nearest("zzz", ["size", "keep"]) == "Known: keep, size."


def test_an_installed_package_has_every_file_that_is_read():
    """Templates of cards and pages, and what the recipes name: a checkout would not miss them."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    root = Path(hf_glmd.__file__).parents[1]
    told = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {file for pattern in told["package-data"]["hf_glmd"] for file in (root / "hf_glmd").glob(pattern)}
    beside = {file for file in (root / "hf_glmd").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert beside - packaged == {file for file in beside if file.suffix == ".py"}
    shared = {file for patterns in told["data-files"].values() for pattern in patterns for file in root.glob(pattern)}
    needed = [
        *recipe_names().values(),
        *(root / "recipes/accelerate").iterdir(),
        *(root / "recipes/quickstart_teacher").iterdir(),
    ]
    assert set(needed) | set((root / "recipes/tickets").iterdir()) <= shared
    for folder, patterns in told["data-files"].items():
        assert {file.parent.relative_to(root).as_posix() for pattern in patterns for file in root.glob(pattern)} == {
            folder.removeprefix("share/hf_glmd/")
        }


def test_a_bug_report_tells_versions_and_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    for library in ("hf_glmd", "torch", "transformers", "accelerate", "datasets", "bf16 in hardware"):
        assert f"| {library} " in shown
    assert "hf_secret" not in shown and "set, not shown" in shown and "| HF_HUB_OFFLINE" in shown
