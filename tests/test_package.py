"""The package itself: its public names, and that importing it costs nothing."""

import subprocess
import sys

import pytest

import hf_glmd
from hf_glmd.errors import nearest


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
