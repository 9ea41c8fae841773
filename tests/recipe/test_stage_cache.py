"""Recipes whose teachers are run once and then read from disk."""

import json
import time

import pytest
import recipe_helpers

from hf_glmd import TeacherCache
from hf_glmd.cli import run_recipe_command
from hf_glmd.reports.records import RunRecord

QUICK = ["--threads", "1", "--evaluation.speed_batch_sizes", "[1]", "--evaluation.rows", "8"]
ALONE = [f"--{name}=null" for name in ("task", "task_teacher", "task_words", "task_answers")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with caches that are kept, and of its recipe."""
    folder = tmp_path_factory.mktemp("cached")
    recipe = recipe_helpers.write_inputs(folder)
    options = ["--cache.stages", "[general, task_words]", "--cache.folder", str(folder / "caches")]
    assert run_recipe_command(["--config", str(recipe), *options, *QUICK]) == 0
    return folder


def test_two_stages_learn_from_disk(finished):
    general, words = (TeacherCache.load(finished / "caches" / name) for name in ("general", "verbs/task_words"))
    assert general.settings.dtype == "int8" and general.epochs == 1 and general.max_length == 24
    assert general.settings.fingerprint["teacher"] != words.settings.fingerprint["teacher"]  # the second one knows the task
    assert general.settings.fingerprint["data"]["source"] == str(finished / "corpus.jsonl")
    assert general.rows <= 12 * 8 + 8  # what 12 steps of 8 rows read, and the rows of the curve
    stage = RunRecord.load(finished / "out" / "metrics.json").stages[0]
    assert stage.kl[-1] < stage.kl[0]
    assert not list((finished / "out" / "stages").rglob("cache.json"))


def test_another_run_uses_them_and_another_teacher_must_not(finished, capsys):
    files = lambda: {file: file.stat().st_mtime_ns for file in (finished / "caches").rglob("shard-*")}  # noqa: E731
    before = files()
    options = ["--config", str(finished / "recipe.yaml"), "--cache.folder", str(finished / "caches"), *ALONE, *QUICK]
    assert run_recipe_command([*options, "--output_dir", str(finished / "b"), "--general.temperature", "5"]) == 0
    assert files() == before
    assert run_recipe_command([*options, "--output_dir", str(finished / "c"), "--vocab.size", "150"]) == 2
    assert "holds another cache: fingerprint.tokenizer is" in capsys.readouterr().err


@pytest.mark.slow
def test_in_the_output_folder_they_are_removed_when_the_stage_is_done(tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path, cache={"kind": "top_k", "k": 16, "epochs": 3})
    words = ["--config", str(recipe), *ALONE, *QUICK, "--general.temperature", "1", "--general.max_steps", "8"]
    assert run_recipe_command([*words, "--dry-run"]) == 0
    assert "general: topk, in the output folder" in capsys.readouterr().out
    assert run_recipe_command([*words, "--general.per_device_train_batch_size", "64"]) == 0
    assert not list((tmp_path / "out").rglob("cache.json"))
    assert RunRecord.load(tmp_path / "out" / "metrics.json").stages[0].steps == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache.stages", "[task_answers]"], "cache.stages=['task_answers']: the teachers of general and task_words can be"),
        (["--cache.kind", "logits"], "cache.kind='logits' is unknown"),
        (["--cache.epochs", "0"], "cache.epochs=0 caches nothing"),
        (["--cache.dtype", "int4"], "dtype='int4' is unknown for kind='hidden'"),
        (["--general=null", "--cache.kind", "hidden"], "cache.stages names 'general', and there is no such section"),
    ],
)
def test_bad_values_are_named(tmp_path, capsys, options, message):
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(recipe), *options, *QUICK]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_it_caches_and_started_again(tmp_path, processes):
    recipe = recipe_helpers.write_inputs(tmp_path)
    options = ["--cache.folder", str(tmp_path / "caches"), "--general.max_steps", "60"]
    process = recipe_helpers.launch(recipe, *options, processes=processes, wait=False)
    while not (tmp_path / "caches" / "general" / "head.safetensors").exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.005)
    recipe_helpers.kill(process)
    assert not (tmp_path / "out" / "metrics.json").exists()
    done = recipe_helpers.launch(recipe, *options, processes=processes)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["stages"][0]["steps"] == 60
    assert TeacherCache.load(tmp_path / "caches" / "general", verify=True).rows > 60 * 8 / 2
