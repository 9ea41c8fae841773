"""A corpus that is streamed: the recipe from start to end, again after a kill, in two processes, and what needs its length."""

import itertools

import datasets
import pytest
import recipe_helpers
import vocab_helpers

from hf_glmd.cli import main
from hf_glmd.data import corpus as corpora
from hf_glmd.data.corpus import stream_corpus
from hf_glmd.errors import UsageError
from hf_glmd.reports.records import RunRecord

STREAMED = {"streaming": True}
TASKLESS = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))


def write_recipe(folder, **changes):
    recipe = recipe_helpers.write_inputs(folder, **TASKLESS, **changes)
    texts = vocab_helpers.texts(2_600)
    (folder / "stream.txt").write_text("\n".join(texts))
    return recipe, texts


def streamed(folder, **changes):
    corpus = {"name": str(folder / "stream.txt"), **STREAMED}
    return write_recipe(folder, corpus=corpus, vocab={"size": 131, "max_texts": 300}, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that was never stopped has measured."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, _ = streamed(folder)
    done = recipe_helpers.launch(recipe)
    assert done.returncode == 0, done.stdout[-3000:]
    return RunRecord.load(folder / "out" / "metrics.json")


def test_each_text_is_held_out_or_trained_on_once(tmp_path):
    _, texts = write_recipe(tmp_path)
    full = [text for text in texts if text]
    found = stream_corpus(str(tmp_path / "stream.txt"), seed=3)
    held_out = 2 * corpora.STREAM_HELD_OUT
    assert found["validation"]["text"][:] == full[:held_out:2] and found["test"]["text"][:] == full[1:held_out:2]
    assert isinstance(found["train"], datasets.IterableDataset)
    read = [row["text"] for row in found["train"]]
    assert read != full[held_out:] and sorted(read) == sorted(full[held_out:])
    again = stream_corpus(str(tmp_path / "stream.txt"), seed=3, max_texts=50)["train"]
    assert sorted(row["text"] for row in again) == sorted(full[held_out : held_out + 50])
    with pytest.raises(UsageError, match="texts, and of a stream 2,000 are held out"):
        stream_corpus(str(tmp_path / "corpus.jsonl"))


def test_nothing_but_what_is_needed_is_read(tmp_path):
    """The stream is longer than the training: its end, a row without text column, is never reached."""
    rows = "".join(f'{{"text": "walk and talk {number}"}}\n' for number in range(2_400)) + '{"other": 1}\n'
    (tmp_path / "rows.jsonl").write_text(rows)
    train = stream_corpus(str(tmp_path / "rows.jsonl"))["train"]
    with pytest.raises(UsageError, match="has no field 'text'"):
        list(train)
    assert len(list(itertools.islice(stream_corpus(str(tmp_path / "rows.jsonl"), max_texts=300)["train"], 300))) == 300


def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path):
    assert whole.corpus.endswith("stream.txt, streamed") and whole.vocab.size == 131
    recipe, _ = streamed(tmp_path)
    recipe_helpers.killed_after_a_checkpoint(recipe)
    done = recipe_helpers.launch(recipe)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "going on from step" in done.stdout or "plain text: done earlier" in done.stdout
    assert RunRecord.load(tmp_path / "out" / "metrics.json").words_final == whole.words_final


def test_two_processes_come_near_one(whole, tmp_path):
    recipe, _ = streamed(tmp_path)
    done = recipe_helpers.launch(recipe, processes=2)
    assert done.returncode == 0, done.stdout[-3000:]
    two = RunRecord.load(tmp_path / "out" / "metrics.json")
    assert two.vocab == whole.vocab and two.words_start.kl == pytest.approx(whole.words_start.kl, rel=1e-5)
    assert two.words_general.kl == pytest.approx(whole.words_general.kl, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--general.max_steps", "-1"], "say how many steps to train, as general.max_steps"),
        (["--vocab.max_texts", "null"], "say how many to count, as vocab.max_texts"),
        (["--cache.stages", "[general]"], "cache.stages has general, whose rows corpus.streaming never holds"),
    ],
)
def test_what_needs_a_length_is_refused_before_any_work(tmp_path, capsys, changes, message):
    recipe, _ = streamed(tmp_path)
    assert main(["distill", "--config", str(recipe), *changes]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_plan_and_forecast_know_streams(tmp_path, capsys):
    recipe, _ = streamed(tmp_path)
    assert main(["distill", "--config", str(recipe), "--dry-run", "--calibrate"]) == 0
    said = capsys.readouterr().out
    assert "train streamed, validation 1,000, test 1,000" in said and "| general" in said
