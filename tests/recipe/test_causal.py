"""A recipe whose models predict the next word: the same stages, with the blank at the end of the questions."""

import json

import pytest
import recipe_helpers
import tasks_helpers
import torch
import vocab_helpers
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_glmd.cli import run_recipe_command
from hf_glmd.evaluation.words import compare_word_predictions
from hf_glmd.reports.records import RunRecord
from hf_glmd.teachers.live import LiveTeacher

STAGE = {**recipe_helpers.STAGE, "max_steps": 2}


def tokenizer_of(name):
    """GPT-2's has no padding token, and no other special token than one."""
    if name == "llama":
        return vocab_helpers.generic_tokenizer(model_max_length=40)
    tokenizer = tasks_helpers.byte_level_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "<s>"
    return tokenizer


def write_inputs(folder, name):
    tokenizer = tokenizer_of(name)
    layers = {"n_layer": 4} if name == "gpt2" else {"num_hidden_layers": 4}
    vocab_helpers.tiny_model(name, len(tokenizer), **layers).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return recipe_helpers.write_inputs(
        folder,
        teacher={"model": str(folder / name)},
        vocab={"size": 131 if name == "llama" else 0.9},
        general=STAGE,
        task={
            "name": "verbs",
            "data": str(folder / "corpus.jsonl"),
            "pattern": ["call {mask} . {text}", "{text} call {mask}"],
            "verbalizers": {"yes": "walk", "no": "talk read"},
            "split_verbalizers": "score",
            "max_test": 9,
        },
        **{name: STAGE for name in ("task_teacher", "task_words", "task_answers")},
        evaluation={"rows": 16, "curve_rows": 4, "speed_batch_sizes": [1], "speed_length": 16},
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_whole_chain_with_a_causal_model(tmp_path, capsys, name):
    recipe = write_inputs(tmp_path, name)
    assert run_recipe_command(["--config", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "next-word accuracy" in printed and "AutoModelForCausalLM.from_pretrained" in printed
    record = RunRecord.load(tmp_path / "out/metrics.json")
    assert record.kind == "causal language model" and record.words_final.positions > 20
    assert [stage.steps for stage in record.stages] == [2, 2, 2, 2] and record.task.count == 9
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out/student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/student")
    assert len(tokenizer) == student.config.vocab_size < len(tokenizer_of(name))
    student.generate(**tokenizer("walk", return_tensors="pt", return_token_type_ids=False), max_new_tokens=2, do_sample=False)
    card = (tmp_path / "out/student/README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "A causal language model" in card and "{mask}" not in card
    assert len((tmp_path / "out/predictions/student/verbs_test.jsonl").read_text().splitlines()) == 9


def test_next_words_are_scored_where_they_are_predicted():
    tokenizer, model = tokenizer_of("llama"), tasks_helpers.opinionated("llama", vocab_helpers.V)
    rows = [[5, 9, 17, 33, 64, 101], [7, 8, 9]]
    import datasets

    blocks = datasets.Dataset.from_dict({"input_ids": rows})
    scores = compare_word_predictions(model, LiveTeacher(model), tokenizer, blocks, mlm_probability=1 - 1e-9)
    right = 0
    with torch.no_grad():
        for row in rows:
            guesses = model(input_ids=torch.tensor([row])).logits[0, :-1].argmax(-1)
            right += int((guesses == torch.tensor(row[1:])).sum())
    special = set(tokenizer.all_special_ids)
    assert scores.positions == sum(word not in special for row in rows for word in row[1:]) == 7
    assert scores.accuracy == scores.teacher_accuracy == pytest.approx(right / 7)
    assert scores.kl == pytest.approx(0, abs=1e-6) and scores.agreement == 1
    alone = compare_word_predictions(model, None, tokenizer, blocks, mlm_probability=1 - 1e-9, batch_size=1)
    assert alone.accuracy == pytest.approx(scores.accuracy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general": {**STAGE, "positions": "masked"}}, "general: positions=masked hides words"),
        ({"task_words": {**STAGE, "mask_share": 0.2}}, "task_words: mask_share=0.2 hides words"),
        ({"task": {"pattern": "call {mask} . {text}"}}, "all patterns of task verbs read a column behind the blank"),
        ({"task": {"replaced_copies": 1}}, "replaced_copies of task verbs needs a masked language model"),
        ({"task": {"pattern_number": 0}}, "reads a column behind the blank"),
    ],
)
def test_what_does_not_suit_a_causal_model_is_refused_at_once(tmp_path, capsys, changes, message):
    recipe = write_inputs(tmp_path, "llama")
    data = yaml.safe_load(recipe.read_text())
    for section, values in changes.items():
        data[section] = data[section] | values
    recipe.write_text(json.dumps(data))
    assert run_recipe_command(["--config", str(recipe)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
