"""A recipe's values, as the file and the command line give them. Bad ones: see test_pipeline.py."""

import pytest
import recipe_helpers
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_glmd import UsageError
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.reading import parse_overrides
from hf_glmd.training.config import PRESETS

QUICKSTART = recipe_helpers.ROOT / "recipes" / "quickstart.yaml"


def test_the_command_line_comes_after_the_file():
    assert load_recipe(QUICKSTART).vocab.size == 0.5
    for options in (["--vocab.size", "0.25"], ["--vocab.size=0.25"]):
        assert load_recipe(QUICKSTART, options).vocab.size == 0.25


@pytest.mark.parametrize(("text", "value"), [("0.25", 0.25), ("3000", 3000), ("3000.0", 3000), ("1e3", 1000), ("1", 1.0)])
def test_a_size_is_a_share_or_a_number_of_tokens(text, value):
    size = load_recipe(QUICKSTART, ["--vocab.size", text]).vocab.size
    assert size == value and isinstance(size, int) == (value > 1)


def test_a_rate_as_everybody_writes_it():
    assert load_recipe(QUICKSTART, ["--general.learning_rate", "1e-3"]).general["learning_rate"] == 0.001


def test_a_stage_can_be_left_out_and_put_in():
    assert load_recipe(QUICKSTART, ["--general", "null"]).general is None
    assert load_recipe(QUICKSTART, ["--general", "null", "--general.max_steps", "5"]).general == {"max_steps": 5}


def test_a_preset_is_written_out_and_others_win_over_it():
    words = ["--general", "null", "--general.preset", "masked", "--general.learning_rate", "7e-4", "--general.max_steps", "9"]
    recipe = load_recipe(QUICKSTART, words)
    assert recipe.general == PRESETS["masked"] | {"learning_rate": 7e-4, "max_steps": 9}
    with pytest.raises(UsageError, match="preset='maskd' is unknown, use paper, short, masked"):
        load_recipe(QUICKSTART, ["--general.preset", "maskd"])
    with pytest.raises(UsageError, match="task_answers.preset has no meaning there"):
        load_recipe(QUICKSTART, ["--task_answers.preset", "short"])


def test_lists_and_words():
    recipe = load_recipe(
        QUICKSTART, ["--vocab.keep", "[alpha, beta]", "--student.layers=[0, 3]", "--task.verbalizers.numpy", "array"]
    )
    assert recipe.vocab.keep == ["alpha", "beta"] and recipe.student.layers == [0, 3]
    assert recipe.task.verbalizers["numpy"] == "array" and recipe.task.verbalizers["torch"] == "torch"


def test_true_and_false_are_answers_too(tmp_path):
    """BoolQ's answers, which YAML reads as booleans."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "output_dir: x\nteacher: {model: m}\ntask: {name: t, pattern: '{mask} {text}', verbalizers: {true: 'yes', false: 'no'}}\n"
    )
    assert load_recipe(path).task.verbalizers == {"true": "yes", "false": "no"}


@given(st.lists(st.tuples(st.sampled_from(["vocab.size", "seed"]), st.integers(-5, 5)), max_size=4), st.booleans())
def test_overrides_come_in_both_spellings(pairs, equals):
    words = [word for key, value in pairs for word in ([f"--{key}={value}"] if equals else [f"--{key}", str(value)])]
    if equals or all(value >= 0 for _, value in pairs):
        assert parse_overrides(words) == pairs


def write_tasks(path, tasks, **sections):
    shared = {"output_dir": "x", "teacher": {"model": "m"}, "task": {"max_length": 64}, "task_words": {}}
    path.write_text(yaml.safe_dump({**shared, **sections, "tasks": tasks}))
    return path


def test_a_list_of_tasks_shares_a_section(tmp_path):
    recipe = load_recipe(
        write_tasks(tmp_path / "r.yaml", ["cb", {"name": "rte", "max_length": 32, "words": {"learning_rate": "1e-3"}}])
    )
    cb, rte = recipe.task_sections
    assert (cb.name, cb.max_length, cb.words) == ("cb", 64, {})
    assert (rte.name, rte.max_length, rte.stage("task_words")) == ("rte", 32, {"learning_rate": 0.001})
    assert rte.pattern is None and rte.pattern_number == "first"


def test_tasks_of_the_command_line_replace_the_list(tmp_path):
    recipe = load_recipe(write_tasks(tmp_path / "r.yaml", ["cb"]), ["--tasks", "[rte, wic]", "--task.max_length", "48"])
    assert [(section.name, section.max_length) for section in recipe.task_sections] == [("rte", 48), ("wic", 48)]


def test_a_task_needs_a_name_and_its_stages(tmp_path):
    with pytest.raises(UsageError, match="task.name is missing"):
        load_recipe(write_tasks(tmp_path / "r.yaml", None))
    with pytest.raises(
        UsageError, match=r"tasks\[0\].answers says what differs from a section 'task_answers', and there is none"
    ):
        load_recipe(write_tasks(tmp_path / "r.yaml", [{"name": "cb", "answers": {"max_steps": 3}}]))


def test_several_patterns_and_candidates(tmp_path):
    section = {
        "name": "own",
        "pattern": ["{text} {mask}", "{mask}: {text}"],
        "candidates": ["one", "two"],
        "pattern_number": None,
    }
    (found,) = load_recipe(write_tasks(tmp_path / "r.yaml", [section])).task_sections
    assert found.pattern == section["pattern"] and found.candidates == ["one", "two"] and found.pattern_number is None


def test_a_section_cannot_hang_on_a_value():
    with pytest.raises(UsageError, match="'output_dir' is a value, not a section"):
        load_recipe(QUICKSTART, ["--output_dir.name", "x"])
