"""The recipes that come along are found by name from any folder, and so is what they read."""

from pathlib import Path

import pytest
import recipe_helpers
import yaml

from hf_glmd.cli import main
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.examples import recipe_names

RECIPES = recipe_helpers.ROOT / "recipes"


@pytest.mark.parametrize("name", ["quickstart", "recipes/quickstart.yaml"])
def test_a_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).teacher.model == str(RECIPES / "quickstart_teacher")
    task = load_recipe("own_task", ["--vocab.size", "0.25"])
    assert task.task.data == str(RECIPES / "tickets") and task.vocab.size == 0.25
    assert load_recipe("own_task").output_dir == "runs/own_task"  # here, wherever that is
    told = load_recipe("own_task", ["--output_dir", "recipes/tickets", "--corpus.name", "recipes/tickets/train.csv"])
    assert told.output_dir == "recipes/tickets" and told.corpus.name == str(RECIPES / "tickets" / "train.csv")


def test_what_is_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "quickstart_teacher").mkdir(parents=True)
    (tmp_path / "quickstart").write_text(
        "output_dir: mine\nteacher: {model: recipes/quickstart_teacher}\ncorpus: {name: docstrings}\n"
    )
    own = load_recipe("quickstart")
    assert (own.output_dir, own.teacher.model) == ("mine", "recipes/quickstart_teacher")


def test_a_name_that_is_nearly_one_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "--config", "quikstart"]) == 2
    assert "recipe file 'quikstart' does not exist. Did you mean 'quickstart'?" in capsys.readouterr().err


def test_they_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(f" --config {name} " in shown for name in recipe_names())
    assert "hf-glmd distill --config own_task " in shown and "hf-glmd shrink --config shrink/mt5-small-german " in shown
    assert main(["recipes", "--copy", "own_task"]) == 0
    assert Path("own_task.yaml").read_bytes() == (RECIPES / "own_task.yaml").read_bytes()
    assert load_recipe("own_task.yaml").task.data == str(RECIPES / "tickets")
    assert main(["recipes", "--copy", "own_task"]) == 2 and "'own_task.yaml' is here already" in capsys.readouterr().err
    assert main(["recipes", "--copy", "own_tusk"]) == 2 and "Did you mean 'own_task'?" in capsys.readouterr().err


def test_every_path_in_them_comes_along():
    for file in recipe_names().values():
        for value in _texts(yaml.safe_load(file.read_text())):
            assert not value.startswith("recipes/") or (recipe_helpers.ROOT / value).exists(), (file, value)


def _texts(data):
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [text for part in data for text in _texts(part)]
    return [data] if isinstance(data, str) else []
