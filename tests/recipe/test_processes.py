"""Several processes of one run: that they are about the same is found before any work."""

import json

import pytest
import recipe_helpers
import torch

from hf_glmd.errors import UsageError
from hf_glmd.recipe import processes
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.run import Run


def facts(folder, **options):
    run = Run(load_recipe(recipe_helpers.write_inputs(folder), [f"--{name}={value}" for name, value in options.items()]))
    return processes.facts_of(run.inputs)


def test_equal_files_are_equal_wherever_they_lie(tmp_path):
    one, other = (tmp_path / name for name in "ab")
    for folder in (one, other):
        folder.mkdir()
    found = facts(one), facts(other)
    del found[0]["the recipe"], found[1]["the recipe"]  # which names the folders
    processes.refuse_differences(found)


@pytest.mark.parametrize("changed", ["a row", "a row less", "the teacher's weights", "its tokenizer"])
def test_a_process_with_other_files_is_named(tmp_path, changed, monkeypatch):
    before = facts(tmp_path)
    corpus, teacher = tmp_path / "corpus.jsonl", tmp_path / "teacher"
    monkeypatch.setattr(recipe_helpers, "write_inputs", lambda folder: folder / "recipe.yaml")
    if changed == "a row":
        corpus.write_text(corpus.read_text().replace('"yes"', '"no"', 1))
    elif changed == "a row less":
        corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[1:]))
    elif changed == "its tokenizer":
        content = json.loads((teacher / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["walk"], vocabulary["talk"] = vocabulary["talk"], vocabulary["walk"]
        (teacher / "tokenizer.json").write_text(json.dumps(content))
    else:
        (teacher / "more.safetensors").write_bytes(b"more")
    with pytest.raises(UsageError, match="process 1 has another .* than process 0: .* All machines need the same packages"):
        processes.refuse_differences([before, facts(tmp_path)])


def test_a_process_with_other_packages_is_named(tmp_path):
    one = facts(tmp_path)
    with pytest.raises(UsageError, match="process 2 has another tokenizers than process 0: 0.0.1 instead of"):
        processes.refuse_differences([one, one, one | {"tokenizers": "0.0.1"}])


def test_a_process_waits_for_slow_ones_longer_than_pytorch_does(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("hf_glmd.recipe.run.PartialState", lambda **options: asked.update(options) or State())
    Run(load_recipe(recipe_helpers.write_inputs(tmp_path), ["--threads=1"]))
    assert asked["timeout"] == processes.LONGEST_WAIT and processes.LONGEST_WAIT.total_seconds() > 3600


class State:
    """Of one process on the CPU."""

    device = torch.device("cpu")
    num_processes = 1
    is_main_process = True
