"""Damaged files are found before they are read, published or gone on with; folders of others are spared; one writes at a time."""

import errno
import json
import os
import shutil

import fault_helpers
import numpy as np
import pytest
import recipe_helpers
import torch
import training_helpers
import vocab_helpers

from hf_glmd import TeacherCache, VocabMap, VocabShrinker
from hf_glmd.cli import main, run_recipe_command
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_word_model
from hf_glmd.shrinking import command
from hf_glmd.utils.files import SUMS, check_sums, locked, read_json, replaced, write_sums, written_whole
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

TIMES = 40 if fault_helpers.EVERYTHING else 2
UNCHECKED = ("README.md", "report.html")
"""Their owner may edit the one, and make the other anew."""


def recipe(folder, **changes):
    stage = {**recipe_helpers.STAGE, "max_steps": 4, "positions": "masked", "temperature": 2.0}
    parts = {"general": stage, "threads": 1} | dict.fromkeys(("task", "task_teacher", "task_words", "task_answers")) | changes
    return ["--config", str(recipe_helpers.write_inputs(folder, **parts))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert run_recipe_command(recipe(folder)) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of one's own, and the command that made it."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out", ["--config", str(finished / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrunk")
    vocab_helpers.tiny_model("bert").save_pretrained(folder / "bert")
    vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder / "bert")
    (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(60)))
    corpus = str(folder / "corpus.txt")
    assert main(["shrink", str(folder / "bert"), "--corpus", corpus, "--output", str(folder / "small"), "--size", "131"]) == 0
    return folder / "small"


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_flip_in_any_file_of_a_shrunk_model_is_found_before_it_is_used(shrunk, capsys, trials):
    for name in fault_helpers.content(shrunk):
        if name in UNCHECKED:
            continue
        for place in fault_helpers.flips(shrunk / name, TIMES, seed=1):
            with trials(f"{name} at {place}"):
                assert main(["push", str(shrunk), "someone/small", "--dry-run"]) == 2
                assert (SUMS if name == SUMS else name) in last_line(capsys) or name == SUMS
                with pytest.raises(UsageError):
                    load_word_model(shrunk)
                if name != SUMS and not name.endswith(".safetensors"):
                    with pytest.raises(UsageError):
                        load_tokenizer(shrunk)
                assert main(["report", str(shrunk)]) == 2
    assert trials.tried >= 5 * TIMES
    capsys.readouterr()
    assert main(["push", str(shrunk), "someone/small", "--dry-run"]) == 0


def test_a_flip_in_any_file_of_a_finished_run_is_found_by_the_same_command(run, capsys, trials):
    out, command = run
    names = [
        name for name in fault_helpers.content(out) if not name.startswith("stages/") and name.split("/")[-1] not in UNCHECKED
    ]
    assert {"metrics.json", "run.json", "student/model.safetensors", "student/vocab_map.safetensors"} <= {*names}
    for name in names:
        for place in fault_helpers.flips(out / name, TIMES // 2, seed=2):
            with trials(f"{name} at {place}"):
                assert run_recipe_command(command) == 2
                said = last_line(capsys)
                assert name in said or name.endswith(SUMS), said
    assert run_recipe_command(command) == 0


def test_what_a_finished_run_promises_and_lacks_is_written_again(run, capsys):
    out, command = run
    metrics = json.loads((out / "metrics.json").read_text())
    (out / "report.html").unlink()
    assert run_recipe_command(command) == 0 and (out / "report.html").exists()
    shutil.rmtree(out / "student")
    assert run_recipe_command(command) == 0
    check_sums(out / "student")
    again = json.loads((out / "metrics.json").read_text())
    assert again["words_final"] == metrics["words_final"] and "done earlier" in capsys.readouterr().out


def test_a_damaged_stage_is_named_with_what_to_delete(run, capsys):
    out, command = run
    (out / SUMS).unlink()
    for _ in fault_helpers.flips(out / "stages" / "general" / "model.safetensors", 1, seed=3):
        assert run_recipe_command(command) == 2
    assert f"To do this step again, delete '{out / 'stages' / 'general'}'" in last_line(capsys)


@pytest.mark.parametrize("there", ["files", "run.json of others", "damaged run.json"])
def test_overwrite_spares_folders_of_others(tmp_path, capsys, there):
    command, out = recipe(tmp_path), tmp_path / "out"
    for name in ("plots/mine.png", "student/thesis.txt", "metrics.json", "report.html"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    if there != "files":
        (out / "run.json").write_text('{"project": "another"}' if there == "run.json of others" else "{")
    before = fault_helpers.content(out)
    assert run_recipe_command([*command, "--overwrite"]) == 2
    assert str(out) in last_line(capsys) and fault_helpers.content(out) == before


def test_shrinking_spares_them_too(shrunk, tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("mine")
    corpus = str(shrunk.parent / "corpus.txt")
    words = ["shrink", str(shrunk.parent / "bert"), "--corpus", corpus, "--output", str(tmp_path), "--overwrite"]
    assert main(words) == 2 and "is no model that hf-glmd shrink wrote" in last_line(capsys)
    assert (tmp_path / "vocab.txt").read_text() == "mine"


def test_one_run_at_a_time(run, capsys):
    out, command = run
    with locked(out):
        assert run_recipe_command(command) == 2
        assert f"another process is writing to '{out}': wait for it" in last_line(capsys)
    assert run_recipe_command(command) == 0


def test_a_flip_in_counts_and_maps_alone_is_found(tmp_path, trials):
    shrinker = VocabShrinker(vocab_helpers.generic_tokenizer()).count(vocab_helpers.texts(60), progress=False)
    shrinker.save_counts(tmp_path / "counts.safetensors")
    vocab_map = shrinker.shrink(size=131).vocab_map
    vocab_map.save(tmp_path / "map.safetensors")
    for file, load in (
        (tmp_path / "counts.safetensors", lambda path: VocabShrinker.load_counts(path, vocab_helpers.generic_tokenizer())),
        (tmp_path / "map.safetensors", VocabMap.load),
    ):
        for place in fault_helpers.flips(file, 15 * TIMES, seed=4):
            with trials(f"{file.name} at {place}"), pytest.raises(UsageError):
                load(file)
        load(file)


def test_a_flip_in_any_file_of_a_cache_is_found(shrunk, tmp_path, trials):
    words = ["cache", str(shrunk.parent / "bert"), "--data", str(shrunk.parent / "corpus.txt"), "--output", str(tmp_path / "c")]
    assert main([*words, "--max-length", "16"]) == 0
    for name in fault_helpers.content(tmp_path / "c"):
        for place in fault_helpers.flips(tmp_path / "c" / name, 3 * TIMES, seed=5):
            with trials(f"{name} at {place}"), pytest.raises(UsageError):
                TeacherCache.load(tmp_path / "c")
    TeacherCache.load(tmp_path / "c")


def test_a_trainer_resumed_from_its_last_step_takes_no_other(tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "lr_scheduler_type": "constant"}
    whole = training_helpers.trainer(tmp_path, **options)
    whole.train()
    again = training_helpers.trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())


def test_a_damaged_checkpoint_is_named(tmp_path):
    options = {"max_steps": 2, "save_steps": 2, "save_strategy": "steps"}
    training_helpers.trainer(tmp_path, **options).train()
    checkpoint_folder = tmp_path / "checkpoint-2"
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        for _ in fault_helpers.flips(checkpoint_folder / name, 1, seed=6):
            with pytest.raises(UsageError, match=f"{name}' is damaged"):
                training_helpers.trainer(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint_folder))


def test_checkpoints_rotate_by_their_steps_whatever_the_clock_says(tmp_path):
    trainer = training_helpers.trainer(tmp_path, max_steps=3, save_steps=1, save_strategy="steps", save_total_limit=1)
    (tmp_path / "checkpoint-0").mkdir()
    os.utime(tmp_path / "checkpoint-0", (4e9, 4e9))
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped. To go on: hf-glmd shrink"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/disk/file"),
            2,
            "'/disk/file' cannot be written or read: No space left",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/disk"), 2, "Name another folder."),
        (shutil.Error([("a", "/disk/b", "[Errno 28] No space left on device: '/disk/b'")]), 2, "'/disk/b' cannot be written"),
        (MemoryError(), 2, "there is not enough memory."),
    ],
)
def test_what_no_program_can_prevent_is_one_line(shrunk, tmp_path, capsys, monkeypatch, error, status, message):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(command, "_counted", fails)
    words = [
        "shrink",
        str(shrunk.parent / "bert"),
        "--corpus",
        str(shrunk.parent / "corpus.txt"),
        "--output",
        str(tmp_path / "x"),
    ]
    monkeypatch.setattr("sys.argv", ["hf-glmd", *words])
    assert main(words) == status
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("again") <= 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_checkpoint_that_a_full_disk_does_not_take_is_one_line(shrunk, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_counted", lambda *_: torch.save({"a": torch.ones(99_999)}, "/dev/full"))
    corpus = str(shrunk.parent / "corpus.txt")
    words = ["shrink", str(shrunk.parent / "bert"), "--corpus", corpus, "--output", str(tmp_path / "x")]
    assert main(words) == 2
    assert "the disk is full, or takes no more. Make room on it. Then run it again: hf-glmd" in last_line(capsys)


def test_a_bug_keeps_its_traceback(shrunk, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_counted", lambda *_: 1 / 0)
    words = [
        "shrink",
        str(shrunk.parent / "bert"),
        "--corpus",
        str(shrunk.parent / "corpus.txt"),
        "--output",
        str(tmp_path / "x"),
    ]
    with pytest.raises(ZeroDivisionError):
        main(words)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), replaced(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(UsageError, match=f"'{tmp_path / 'x' / 'b'}' cannot be written: .*A part of its path is a file"):
        (tmp_path / "x").write_text("")
        with replaced(tmp_path / "x" / "b") as unfinished:
            unfinished.write_text("never")
    with pytest.raises(UsageError, match="cannot be read .* Make it anew."):
        read_json(tmp_path / "none.json", "Make it anew.")


def test_a_list_of_sums_is_what_sha256sum_reads(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("content")
    (tmp_path / "README.md").write_text("mine")
    write_sums(tmp_path)
    assert (tmp_path / SUMS).read_text() == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73  sub/file\n"
    (tmp_path / "README.md").write_text("edited")
    check_sums(tmp_path)
    (tmp_path / "sub" / "file").unlink()
    with pytest.raises(UsageError, match="sub/file' is missing, though it was written"):
        check_sums(tmp_path)


def test_what_a_dead_process_left_beside_a_folder_goes_and_what_it_took_away_comes_back(tmp_path):
    import socket

    name = f".x.{socket.gethostname()}.{2**22 + 1}"  # above the largest number of a process
    (tmp_path / name / "old").mkdir(parents=True)
    (tmp_path / name / "old" / "kept").write_text("kept")
    with written_whole(tmp_path / "x") as folder:
        (folder / "new").write_text("new")
    assert fault_helpers.content(tmp_path).keys() == {"x/kept", "x/new", f"x/{SUMS}"}
