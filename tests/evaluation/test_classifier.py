"""A student that answers: what it says is what scoring says, from a folder alone, and what cannot be asked is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import vocab_helpers
from tasks_helpers import CPU, TOKENIZER, byte_level_tokenizer, logits_at, opinionated, write_lines

from hf_glmd import ClozeClassifier, ClozeTask, UsageError
from hf_glmd.cli import main
from hf_glmd.tasks.catalogue import TASKS, task_by_name
from hf_glmd.tasks.scoring import choose_answers, encode_reworded
from hf_glmd.tasks.task_file import TASK_FILE, SavedTask

TEXTS = vocab_helpers.texts(23)
TASK = ClozeTask("verbs", "{text} {mask} .", {"yes": "walk", "no": "turn"})
PAIR = ClozeTask("pairs", "{first} {mask} . {second}", {"yes": "walk", "no": "talk"})


@pytest.fixture(scope="module")
def model():
    """Its answer depends on the text: of the 23, three times yes."""
    model = vocab_helpers.tiny_model("bert", len(TOKENIZER))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(15.0)
    return model.eval()


@pytest.fixture
def classifier(model):
    return ClozeClassifier(model, TOKENIZER, TASK, max_length=24)


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_answers_are_those_of_scoring(classifier, model):
    data = datasets.Dataset.from_dict({"text": TEXTS})
    parts = encode_reworded(TASK, data, TOKENIZER, 24, [0], labelled=False, causal=False)
    chosen = choose_answers(logits_at(model), parts, TOKENIZER, CPU, "")
    assert classifier.predict(TEXTS) == [["yes", "no"][number] for number in chosen]
    assert len(set(classifier.predict(TEXTS))) == 2  # else this test could not fail
    shares = classifier.predict_proba(TEXTS)
    assert shares.shape == (23, 2) and np.allclose(shares.sum(-1), 1) and (shares.argmax(-1) == chosen).all()


def test_examples_of_every_form_are_one_thing(classifier):
    answers = classifier.predict(TEXTS)
    assert classifier.predict([{"text": text, "more": 1} for text in TEXTS]) == answers
    assert classifier.predict(datasets.Dataset.from_dict({"text": TEXTS})) == answers
    assert classifier.predict(TEXTS[0]) == classifier.predict({"text": TEXTS[0]}) == answers[:1]
    assert classifier.predict(TEXTS, batch_size=3) == answers
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 2)


def test_several_patterns_of_a_causal_model_are_averaged():
    tokenizer = byte_level_tokenizer()
    model = opinionated("gpt2", len(tokenizer))
    task = ClozeTask(
        "verbs", ["{text} Answer:{mask}", "{text} Question:{mask}"], {"1": "yes", "0": "no"}, split_verbalizers="score"
    )
    both, first, second = (ClozeClassifier(model, tokenizer, task, numbers, 40) for numbers in ([0, 1], [0], [1]))
    mean = (first.predict_proba(TEXTS) + second.predict_proba(TEXTS)) / 2
    assert np.allclose(both.predict_proba(TEXTS), mean, rtol=0, atol=1e-9)
    assert not np.allclose(first.predict_proba(TEXTS), second.predict_proba(TEXTS), rtol=0, atol=1e-5)


def test_candidates_that_rows_bring_along_are_answers(model):
    task = ClozeTask("choice", "{text} {mask} .", candidates="options", label_column="right", split_verbalizers="score")
    rows = [{"text": TEXTS[0], "options": ["walk", "talk", "jump"]}, {"text": TEXTS[1], "options": ["look", "call"]}]
    classifier = ClozeClassifier(model, TOKENIZER, task, max_length=40)
    assert [answer in row["options"] for answer, row in zip(classifier.predict(rows), rows, strict=True)] == [True, True]
    shares = classifier.predict_proba(rows)
    assert np.allclose(shares.sum(-1), 1) and shares[1, 2] == 0


def test_a_folder_is_all_that_another_process_needs(folder, classifier):
    code = "import sys; from hf_glmd import ClozeClassifier as C; print(*C.from_pretrained(sys.argv[1]).predict(sys.argv[2:]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder), *TEXTS], capture_output=True, text=True)
    assert done.stdout.split() == classifier.predict(TEXTS), done.stderr


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_of_the_catalogue_comes_back_whole(tmp_path, name):
    task = task_by_name(name)
    SavedTask(task, [0], 77).save(tmp_path)
    again = SavedTask.load(tmp_path)
    assert (again.patterns, again.max_length) == ([0], 77)
    for part in (
        "name",
        "columns",
        "answers",
        "verbalizers",
        "metric",
        "derive",
        "official",
        "label_column",
        "too_long",
        "source",
    ):
        assert getattr(again.task, part) == getattr(task, part), part
    assert [pattern.text for pattern in again.task.patterns] == [pattern.text for pattern in task.patterns]


@pytest.mark.parametrize(
    ("task", "examples", "message"),
    [
        (TASK, [3], r"example 0 is int: give a text, or a row with the columns \['text'\]"),
        (TASK, [{"texts": "a"}], r"reads the columns \['text'\], the data have \['texts'\]"),
        (TASK, ["walk", {"txt": "a"}], "example 1 of task verbs has nothing in column 'text'"),
        (PAIR, ["walk"], r"task pairs reads the columns \['first', 'second'\]: give rows with them"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, task, examples, message):
    with pytest.raises(UsageError, match=message):
        ClozeClassifier(model, TOKENIZER, task).predict(examples)


def test_what_is_no_student_of_a_task_is_refused(folder, model, tmp_path):
    with pytest.raises(UsageError, match="max_length=9999 is more than"):
        ClozeClassifier(model, TOKENIZER, TASK, max_length=9999)
    with pytest.raises(UsageError, match="is a function of yours: name one of"):
        SavedTask(TASK.changed(metric=lambda a, b: 1.0), [0], 24).save(tmp_path)
    saved = json.loads((folder / TASK_FILE).read_text())
    for damaged in ({**saved, "task": {}}, {**saved, "patterns": None}, []):
        (folder / TASK_FILE).write_text(json.dumps(damaged))
        with pytest.raises(UsageError, match="is no task that this package wrote"):
            ClozeClassifier.from_pretrained(folder)
    (folder / TASK_FILE).write_text(json.dumps({**saved, "patterns": [4]}))
    with pytest.raises(UsageError, match="has no pattern 4"):
        ClozeClassifier.from_pretrained(folder)
    (folder / TASK_FILE).unlink()
    with pytest.raises(UsageError, match=f"holds no {TASK_FILE}, so it was trained on no task"):
        ClozeClassifier.from_pretrained(folder)


def test_texts_on_the_command_line(folder, classifier, capsys):
    assert main(["predict", str(folder), "--text", *TEXTS[:3]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == classifier.predict(TEXTS[:3])
    assert main(["predict", str(folder), "--json", "--text", *TEXTS[:3]]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == classifier.predict(TEXTS[:3])


def test_a_table_is_answered_scored_and_written(folder, classifier, tmp_path, capsys):
    answers = classifier.predict(TEXTS)
    labels = [*answers[:20], *({"yes": "no", "no": "yes"}[answer] for answer in answers[20:])]
    rows = [{"text": text, "label": label, "who": "me"} for text, label in zip(TEXTS, labels, strict=True)]
    table, output = write_lines(tmp_path / "table.jsonl", rows), tmp_path / "answers.jsonl"
    assert main(["predict", str(folder), "--data", str(table), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"The first 20 of 23; all are in {output}" in shown and "accuracy: 87.0% (n=23)" in shown
    assert "Columns that the task does not read: who." in shown
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["label"] for row in written] == answers and [row["idx"] for row in written] == list(range(23))
    assert np.allclose([row["probability"] for row in written], classifier.predict_proba(TEXTS).max(-1))
    assert main(["predict", str(folder), "--data", str(table), "--output", str(output)]) == 2
    assert "exists: name another file, or add --overwrite" in capsys.readouterr().err
    assert main(["predict", str(folder), "--data", str(table), "--output", str(output), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("label", "reason"), [("perhaps", "have the answers ['perhaps']"), (None, "1 of 4 examples of task verbs have no label")]
)
def test_labels_that_cannot_be_scored_cost_no_answers(folder, classifier, tmp_path, capsys, label, reason):
    rows = [{"text": text, "label": "yes"} for text in TEXTS[:3]] + [{"text": TEXTS[3], "label": label}]
    output = tmp_path / "answers.jsonl"
    assert main(["predict", str(folder), "--data", str(write_lines(tmp_path / "t.jsonl", rows)), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "Not scored: " in shown and reason in shown and "accuracy" not in shown
    assert [json.loads(line)["label"] for line in output.read_text().splitlines()] == classifier.predict(TEXTS[:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --text or --data"),
        (["--text", "a", "--data", "b"], "give either --text or --data"),
        (["--text", "a", "--split", "test"], "--split belongs to --data"),
        (["--text", "a", "--batch-size", "0"], "--batch-size 0 is too small"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_options_that_make_no_sense_are_one_line(folder, capsys, options, message):
    assert main(["predict", str(folder), *options]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_split_is_chosen(folder, tmp_path, capsys):
    for name in ("train", "validation"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", [{"text": TEXTS[0]}])
    assert main(["predict", str(folder), "--data", str(tmp_path / "data")]) == 2
    assert "none of them called test. Choose one with --split" in capsys.readouterr().err
    assert main(["predict", str(folder), "--data", str(tmp_path / "data"), "--split", "train"]) == 0
