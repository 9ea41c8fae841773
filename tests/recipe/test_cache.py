"""`hf-glmd cache`: what people type, what they are told, and that a trainer finds what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import training_helpers as helpers
import vocab_helpers

from hf_glmd import GLMDTrainer, TeacherCache, UsageError, VocabShrinker
from hf_glmd.cli import main
from hf_glmd.models.student import build_student


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A teacher with its tokenizer, text, and a cache of both."""
    folder = tmp_path_factory.mktemp("given")
    helpers.teacher().save_pretrained(folder / "teacher")
    helpers.TOKENIZER.save_pretrained(folder / "teacher")
    texts = vocab_helpers.texts(90)
    (folder / "texts").mkdir()
    (folder / "texts" / "train.txt").write_text("\n".join(texts[:70]), encoding="utf-8")
    (folder / "texts" / "validation.txt").write_text("\n".join(texts[70:]), encoding="utf-8")
    assert cache(folder, folder / "cache", "--epochs", "2") == 0
    return folder


def cache(given: Path, output: Path, *words: str, model: str = "teacher", data: str = "texts") -> int:
    settings = ["--output", str(output), "--max-length", "16", "--dtype", "fp32"]
    return main(["cache", str(given / model), "--data", str(given / data), *settings, *words])


def texts(given: Path, split: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": (given / "texts" / f"{split}.txt").read_text(encoding="utf-8").split("\n")})


def trainer(given: Path, folder: Path, teacher: Path | None, **settings):
    # At one temperature the masked tokens of both are the same ones: the cache's epochs.
    parts = {"train_dataset": texts(given, "train"), "eval_dataset": texts(given, "validation"), **settings}
    return helpers.trainer(folder, **({"teacher": str(teacher)} if teacher else {}), **parts)


def test_a_trainer_takes_the_folder_for_its_teacher(given, tmp_path):
    found = trainer(given, tmp_path, given / "cache", num_train_epochs=3, max_steps=-1)
    assert isinstance(found.teacher, TeacherCache) and found.teacher.epochs == 2
    live = trainer(given, tmp_path, None, max_length=16)
    for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_cross_entropy"):
        assert found.evaluate()[name] == pytest.approx(live.evaluate()[name], rel=1e-4)
    seen, collate = [], found.data_collator
    found.data_collator = lambda rows: seen.append(collate.epoch) or collate(rows)
    found.train()
    assert sorted(set(seen)) == [0, 1] and seen[0] == seen[-1] == 0  # epochs 0, 1 and 0 again
    assert found.state.epoch == 3


def test_visible_tokens_are_cached_as_they_are_learnt(given, tmp_path):
    options = ["--positions", "masked", "--mlm-probability", "0.4", "--mask-replace-prob", "0.5"]
    assert cache(given, tmp_path / "cache", *options) == 0
    settings = {"positions": "masked", "mlm_probability": 0.4, "mask_replace_prob": 0.5, "max_length": 16}
    found, live = (trainer(given, tmp_path, teacher, **settings) for teacher in (tmp_path / "cache", None))
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], rel=1e-4)
    with pytest.raises(UsageError, match="mask_replace_prob is 0.5 there"):
        trainer(given, tmp_path, tmp_path / "cache", **{**settings, "mask_replace_prob": 1.0})


def test_the_former_name_of_an_option_is_taken(given, tmp_path, capsys):
    assert cache(given, tmp_path / "old", "--positions", "masked", "--mask-share", "0.3") == 0
    trainer(given, tmp_path, tmp_path / "old", positions="masked", mlm_probability=0.3, max_length=16)
    assert cache(given, tmp_path / "both", "--mask-share", "0.3", "--mlm-probability", "0.2") == 2
    assert "is the former name of --mlm-probability 0.2: give one" in capsys.readouterr().err


def test_it_is_shown(given, tmp_path, capsys):
    assert cache(given, tmp_path / "cache") == 0
    shown = capsys.readouterr().out
    assert "hidden, fp32" in shown and "bytes per token" in shown and f'teacher="{tmp_path / "cache"}"' in shown
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("shard-*")}
    assert cache(given, tmp_path / "cache", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == TeacherCache.load(tmp_path / "cache").rows > 40
    assert result["fingerprint"]["data"]["max_length"] == 16 and result["bytes_per_token"] > 4 * 24
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("shard-*")}  # nothing was run again


def test_a_smaller_vocabulary_and_the_likeliest_tokens(given, tmp_path):
    vocab = VocabShrinker(helpers.TOKENIZER).count(vocab_helpers.texts(60)).shrink(size=150)
    vocab.save_pretrained(tmp_path / "small")
    student = build_student(helpers.teacher(), num_layers=1, vocab=vocab)
    for kind, more in (("hidden", []), ("top_k", ["--k", "8"])):
        words = ["--tokenizer", str(tmp_path / "small"), "--kind", kind, *more]
        assert cache(given, tmp_path / kind, *words) == 0
        parts = {"model": student, "processing_class": vocab.tokenizer, "vocab_map": vocab.vocab_map}
        settings = {"args": helpers.arguments(tmp_path, temperature=1.0)}
        data = {"train_dataset": texts(given, "train"), "eval_dataset": texts(given, "validation")}
        found = GLMDTrainer(teacher=tmp_path / kind, **parts, **settings, **data)
        assert found.teacher.size == 150 and found.evaluate()["eval_loss"] > 0


def test_other_rows_words_or_models_are_refused_before_training(given, tmp_path):
    other = datasets.Dataset.from_dict({"text": vocab_helpers.texts(40, seed=7)})
    with pytest.raises(
        UsageError, match=r"rows of train_dataset .* not in the cache .* made from source \[.*texts'\], max_length 16"
    ):
        trainer(given, tmp_path, given / "cache", train_dataset=other)
    with pytest.raises(UsageError, match=r"\d+ of \d+ rows of eval_dataset"):
        trainer(given, tmp_path, given / "cache", eval_dataset=other)
    with pytest.raises(UsageError, match="something else: data.mask_share is 0.15 there and 0.3 here"):
        trainer(given, tmp_path, given / "cache", mask_share=0.3)
    with pytest.raises(UsageError, match="data.positions is 'all' there and 'masked' here"):
        trainer(given, tmp_path, given / "cache", positions="masked")
    with pytest.raises(UsageError, match="data.seed is 42 there and 1 here"):
        trainer(given, tmp_path, given / "cache", seed=1)
    other_tokenizer = vocab_helpers.generic_tokenizer(vocab_helpers.wordpiece_backend("bert"))
    with pytest.raises(UsageError, match="the cache .* was made from something else: tokenizer is"):
        trainer(given, tmp_path, given / "cache", processing_class=other_tokenizer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "logits"], "--kind 'logits' is unknown: use 'hidden' or 'top_k'"),
        (["--kind", "top_k", "--dtype", "int8"], "dtype='int8' is unknown for kind='topk'"),
        (["--k", "5"], "k=5 and temperature=None belong to kind='topk'"),
        (["--epochs", "0", "--batch-size", "0"], "--epochs 0 is too small: use 1 or more; --batch-size 0 is too small"),
        (["--positions", "some"], "positions='some' is unknown"),
        (["--max-length", "4000"], "max_length=4000 is more than the"),
        (
            ["--column", "body", "--data", "{given}/rows.jsonl"],
            "the dataset has no column 'body' and no 'input_ids', it has ['text']",
        ),
        (["--data", "/missing/texts.txt"], "corpus '/missing/texts.txt' cannot be loaded"),
        (["--tokenizer", "/missing/folder"], "No tokenizer can be loaded from '/missing/folder'"),
        (["--model-dtype", "fp8"], "--model-dtype 'fp8' is unknown"),
        (["--revision", "x", "--output", ""], "--output is missing"),
    ],
)
def test_one_line_and_status_2_for_what_a_user_can_mend(given, tmp_path, capsys, words, said):
    (given / "rows.jsonl").write_text('{"text": "walk"}\n')
    assert cache(given, tmp_path / "cache", *(word.replace("{given}", str(given)) for word in words)) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("hf-glmd: ") and said in line and "Traceback" not in error
    assert not (tmp_path / "cache").exists()


def test_another_cache_stays(given, capsys):
    before = {file: file.stat().st_mtime_ns for file in (given / "cache").iterdir()}
    assert cache(given, given / "cache", "--epochs", "3") == 2
    assert "holds another cache: fingerprint.data.epochs is 2 there and 3 here" in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in (given / "cache").iterdir()}


def test_rows_of_token_ids_and_named_splits(given, tmp_path, capsys):
    rows = datasets.DatasetDict({"train": helpers.rows(9), "test": helpers.rows(7)})
    rows.save_to_disk(tmp_path / "rows")
    words = ["cache", str(given / "teacher"), "--output", str(tmp_path / "cache"), "--json", "--data"]
    assert main([*words, f"{tmp_path / 'rows'}::test", "--max-rows", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5
    assert main([*words, f"{tmp_path / 'rows'}::other"]) == 2
    assert "has the splits ['train', 'test'], not 'other'" in capsys.readouterr().err


def test_help_is_quick_and_names_every_option():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hf_glmd", "cache", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "--kind" in done.stdout and "--mask-share" in done.stdout
    assert "torch" not in {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}, "help needs no torch"
