"""`hf-glmd evaluate`: a checkpoint's scores, beside its teacher's."""

import json

import pytest
import torch
import vocab_helpers

from hf_glmd import VocabShrinker
from hf_glmd.cli import main
from hf_glmd.evaluation.command import EvaluateOptions, evaluate_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher, the same with a smaller vocabulary, text, and a task's official file."""
    folder = tmp_path_factory.mktemp("evaluating")
    teacher, tokenizer = vocab_helpers.tiny_model("bert"), vocab_helpers.generic_tokenizer()
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight.mul_(20.0)  # a random model prefers nothing
    texts = vocab_helpers.texts(60)
    vocab = VocabShrinker(tokenizer).count(texts, progress=False).shrink(size=150)
    for name, model, words in (("teacher", teacher, tokenizer), ("small", vocab.resize(teacher), vocab)):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    (folder / "held_out.txt").write_text("\n".join(texts), encoding="utf-8")
    (folder / "data" / "CB").mkdir(parents=True)
    labels = ["entailment", "contradiction", "neutral", "entailment"]
    rows = [{"premise": text, "hypothesis": texts[0], "label": label} for text, label in zip(texts, labels, strict=False)]
    (folder / "data" / "CB" / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(folder, **more):
    given = {"text": [str(folder / "held_out.txt")], "max_length": 24, "no_speed": True, **more}
    return EvaluateOptions(str(folder / "small"), **given)


def test_a_cut_model_agrees_with_the_whole_one_wherever_both_have_the_words(folder):
    scores = evaluate_checkpoint(options(folder, teacher=str(folder / "teacher")))
    assert scores.words.positions > 50 and scores.kind == "masked"
    assert scores.words.kl == pytest.approx(0, abs=1e-5) and scores.words.agreement == 1
    assert scores.words.accuracy == scores.words.teacher_accuracy
    assert (scores.teacher.vocabulary, scores.model.vocabulary) == (vocab_helpers.V, 150)
    alone = evaluate_checkpoint(options(folder, batch_size=7))
    assert alone.words.accuracy == scores.words.accuracy and alone.words.kl is None and alone.teacher is None


def test_tasks_are_asked_of_both(folder, capsys):
    words = ["--teacher", str(folder / "teacher"), "--tasks", "cb", "--task-data", str(folder / "data"), "--max-length", "40"]
    assert main(["evaluate", str(folder / "small"), *words, "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert task["name"] == "cb" and task["count"] == 4 and 0 <= task["score"] <= 1
    assert task["majority"] == pytest.approx((0.5 + (2 / 3) / 3) / 2)  # accuracy 2 of 4; F1 of one of three answers
    assert task["teacher"] is not None and 0 <= task["agreement"] <= 1


def test_the_table_has_speeds_and_a_column_per_model(folder, capsys):
    words = ["--text", str(folder / "held_out.txt"), "--max-texts", "20", "--max-length", "16"]
    assert main(["evaluate", str(folder / "small"), *words]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s, 32 x 16 tokens" in shown and "masked-word accuracy" in shown and "teacher" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to score"),
        (["--tasks", "cb"], "--tasks and --task-data belong together"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--text", "held_out.txt", "--max-length", "999"], "max_length=999 is more than the"),
        (["--tasks", "cbb", "--task-data", "data"], "Did you mean 'cb'?"),
        (["--tasks", "cb", "--task-data", "data", "--split", "test"], "have the splits ['validation'], not 'test'"),
        (["--text", "held_out.txt", "--batch-size", "0"], "--batch-size 0 is too small"),
        (["--text", "held_out.txt", "--teacher", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, words, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "small", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-glmd: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_teacher_with_other_words_is_refused(folder, tmp_path, capsys):
    vocab_helpers.tiny_model("bert").save_pretrained(tmp_path)
    vocab_helpers.generic_tokenizer(vocab_helpers.BACKENDS["unigram"]()).save_pretrained(tmp_path)
    words = ["--text", str(folder / "held_out.txt"), "--teacher", str(tmp_path)]
    assert main(["evaluate", str(folder / "small"), *words]) == 2
    assert "tokens are others to the teacher" in capsys.readouterr().err


def test_tables_that_are_padded_differently_are_compared_on_the_tokens(folder, tmp_path):
    scores = {}
    for name, size in (("plain", vocab_helpers.V), ("padded", vocab_helpers.V + 5)):
        model = vocab_helpers.tiny_model("bert")
        if size != vocab_helpers.V:
            model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / name)
        vocab_helpers.generic_tokenizer().save_pretrained(tmp_path / name)
        text = [str(folder / "held_out.txt")]
        wanted = EvaluateOptions(str(tmp_path / name), teacher=str(folder / "teacher"), text=text, no_speed=True)
        scores[name] = evaluate_checkpoint(wanted).words
    assert scores["padded"].kl == pytest.approx(scores["plain"].kl, rel=1e-5)
    assert scores["padded"].agreement == scores["plain"].agreement
