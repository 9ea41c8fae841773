"""docs/api.md is what the docstrings say."""

import os
import subprocess
import sys

import pytest
import recipe_helpers

import hf_glmd


def test_the_page_is_up_to_date():
    pytest.importorskip("griffe2md")
    page = recipe_helpers.ROOT / "docs" / "api.md"
    done = subprocess.run(
        [sys.executable, str(recipe_helpers.ROOT / "docs" / "make_api.py"), "--check"],
        env={**os.environ, "PYTHONPATH": str(recipe_helpers.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in set(hf_glmd.__all__) - {"__version__"}:
        assert f"### `{name}`" in page.read_text(encoding="utf-8"), name
