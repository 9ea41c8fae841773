"""A student that starts from a checkpoint of its own instead of the teacher's layers."""

import re

import pytest
import recipe_helpers
import torch
import vocab_helpers

from hf_glmd import VocabMap
from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.run import Run
from hf_glmd.recipe.student import make_first_student
from hf_glmd.reports.records import RunRecord

NO_TASK = dict.fromkeys(("task_teacher", "task_words", "task_answers"))
PLAIN = [f"--{name}=null" for name in ("task", "task_teacher", "task_words", "task_answers")]


def checkpoint(folder, name="bert", **settings):
    """A narrower model with a tokenizer beside it."""
    tokenizer = settings.pop("tokenizer", vocab_helpers.generic_tokenizer(model_max_length=40))
    model = vocab_helpers.tiny_model(name, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def run(recipe, *options: str) -> int:
    return main(["distill", "--config", str(recipe), *PLAIN, *options])


@pytest.mark.parametrize("vocab", [{"size": 131}, {}], ids=["cut", "whole"])
def test_it_starts_from_the_checkpoint(tmp_path, vocab):
    small = checkpoint(tmp_path / "small", num_hidden_layers=1)
    recipe = recipe_helpers.write_inputs(tmp_path, vocab=vocab, student={"model": str(tmp_path / "small")}, task=None, **NO_TASK)
    inputs = Run(load_recipe(recipe)).inputs
    inputs.check_teacher()
    (tmp_path / "student").mkdir()
    make_first_student(tmp_path / "student", inputs)
    start, ids = load_word_model(tmp_path / "student"), torch.tensor([[5, 6, 7]])
    wanted = small(input_ids=ids).logits
    if vocab:
        vocab_map = VocabMap.load(tmp_path / "student")
        kept = torch.tensor(vocab_map.kept_ids)
        wanted = small(input_ids=kept[ids]).logits[..., kept]
    torch.testing.assert_close(start.eval()(input_ids=ids).logits, wanted)
    assert inputs.num_layers == 1 and start.config.vocab_size == (131 if vocab else 211)


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    checkpoint(tmp_path / "small", num_hidden_layers=1)
    changes = {"student": {"model": str(tmp_path / "small")}, "evaluation": {"rows": 4, "speed_batch_sizes": [1]}}
    assert run(recipe_helpers.write_inputs(tmp_path, **changes), "--general.max_steps", "2") == 0
    record = RunRecord.load(tmp_path / "out" / "metrics.json")
    assert (record.teacher.layers, record.student.layers) == (4, 1)


def test_a_plan_names_it(tmp_path, capsys):
    checkpoint(tmp_path / "small", num_hidden_layers=1)
    recipe = recipe_helpers.write_inputs(tmp_path, student={"model": str(tmp_path / "small")})
    assert run(recipe, "--dry-run") == 0
    assert f"1 layers, 131 of 211 tokens, from {tmp_path / 'small'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tokenizer": vocab_helpers.generic_tokenizer(vocab_helpers.wordlevel_backend())},
            "has another tokenizer than the teacher",
        ),
        ({"name": "llama"}, "is loaded by AutoModelForCausalLM, the teacher .* by AutoModelForMaskedLM"),
        (
            {"max_position_embeddings": 20},
            "max_length=24 is more than the 20 tokens the teacher can read together with student.model=",
        ),
        ({"name": "bert-classifier"}, "BertForSequenceClassification, which predicts no words"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, settings, message, capsys):
    checkpoint(tmp_path / "small", **settings)
    recipe = recipe_helpers.write_inputs(tmp_path, student={"model": str(tmp_path / "small")})
    assert run(recipe) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 2}, "student.model='small' is a whole model, and student.num_layers=2 would build one of the teacher"),
        ({"layers": [0, 2], "init": "random"}, r"student.layers=\[0, 2\] and student.init=random"),
        ({"config": {"hidden_size": 16}}, "student.config={'hidden_size': 16}"),
    ],
)
def test_it_goes_together_with_nothing_that_builds_a_student(tmp_path, settings, message):
    recipe = recipe_helpers.write_inputs(tmp_path, student={"model": "small", **settings})
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe)


def test_a_revision_needs_a_model(tmp_path):
    with pytest.raises(UsageError, match="student.revision=main is that of no model"):
        load_recipe(recipe_helpers.write_inputs(tmp_path, student={"revision": "main"}))
