"""Stopped before any file operation and started again, a command ends as if nothing had happened, and leaves nothing behind."""

import json
import os

import fault_helpers
import pytest
import recipe_helpers
import vocab_helpers

from hf_glmd.cli import main, run_recipe_command
from hf_glmd.reports.records import RunRecord

EVERYTHING = os.environ.get("HF_GLMD_FAULTS") == "all"
TIMES = ("seconds", "tokens_per_second", "hardware", "command", "seconds_total")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for name, layers in (("a", 1), ("b", 2)):
        vocab_helpers.tiny_model("bert", num_hidden_layers=layers).save_pretrained(folder / name)
        vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder / name)
    (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(60)))
    assert shrink(folder, folder / "first")() == 0  # what it imports need not be imported by each fork
    assert cache(folder, folder / "second")() == 0
    return folder


def shrink(inputs, output, model="a", size="131", *words):
    corpus = str(inputs / "corpus.txt")
    command = ["shrink", str(inputs / model), "--corpus", corpus, "--output", str(output), "--size", size, *words]
    return lambda: main(command)


def cache(inputs, output):
    corpus = str(inputs / "corpus.txt")
    words = ["cache", str(inputs / "a"), "--data", corpus, "--output", str(output), "--max-length", "16"]
    return lambda: main([*words, "--shard-mib", "0.01"])


def without_page(found):
    """The page and the card name the time and the command."""
    return {name: value for name, value in found.items() if name not in ("report.html", "README.md")}


def test_shrink(inputs, tmp_path):
    whole = tmp_path / "whole" / "small"
    status, count = fault_helpers.operations(shrink(inputs, whole), whole.parent)
    assert status == 0 and count > 10
    wanted = fault_helpers.content(whole)
    for number in fault_helpers.chosen(count, 2, EVERYTHING):
        output = tmp_path / str(number) / "small"
        status, _ = fault_helpers.operations(shrink(inputs, output), output.parent, stop_at=number)
        assert status == fault_helpers.STOPPED, number
        if output.exists():  # whole, the page included
            assert set(fault_helpers.content(output)) == set(wanted), number
            continue
        status, _ = fault_helpers.operations(shrink(inputs, output), output.parent)
        assert status == 0, number
        assert without_page(fault_helpers.content(output)) == without_page(wanted), number
        assert fault_helpers.litter(output.parent) == [], number


def test_shrink_overwrite_leaves_the_old_model_or_the_new_one(inputs, tmp_path):
    old, new = tmp_path / "old" / "small", tmp_path / "new" / "small"
    for path, model, size in ((old, "a", "131"), (new, "b", "127")):
        assert fault_helpers.operations(shrink(inputs, path, model, size), path.parent)[0] == 0
    before, after = (without_page(fault_helpers.content(path)) for path in (old, new))
    again = tmp_path / "again" / "small"
    assert fault_helpers.operations(shrink(inputs, again), again.parent)[0] == 0
    overwrite = ("b", "127", "--overwrite")
    _, count = fault_helpers.operations(shrink(inputs, again, *overwrite), again.parent)
    missing = 0
    for number in fault_helpers.chosen(count, 2, EVERYTHING):
        output = tmp_path / str(number) / "small"
        assert fault_helpers.operations(shrink(inputs, output), output.parent)[0] == 0
        status, _ = fault_helpers.operations(shrink(inputs, output, *overwrite), output.parent, stop_at=number)
        assert status == fault_helpers.STOPPED, number
        missing += not output.exists()
        assert not output.exists() or without_page(fault_helpers.content(output)) in (before, after), number
        status, _ = fault_helpers.operations(shrink(inputs, output, *overwrite), output.parent)
        assert status == 0 and without_page(fault_helpers.content(output)) == after, number
        assert fault_helpers.litter(output.parent) == [], number
    assert missing <= 1  # between two renames, of which the next start puts the first one back


def test_cache(inputs, tmp_path):
    whole = tmp_path / "whole" / "cache"
    status, count = fault_helpers.operations(cache(inputs, whole), whole.parent)
    assert status == 0 and count > 10
    wanted = fault_helpers.content(whole)
    for number in fault_helpers.chosen(count, 2, EVERYTHING):
        output = tmp_path / str(number) / "cache"
        assert fault_helpers.operations(cache(inputs, output), output.parent, stop_at=number)[0] == fault_helpers.STOPPED
        assert fault_helpers.operations(cache(inputs, output), output.parent)[0] == 0, number
        assert fault_helpers.content(output) == wanted, number
        assert fault_helpers.litter(output.parent) == [], number


def test_recipe(tmp_path):
    """Weights, figures and curves are those of a run that was never stopped, and nothing unfinished lies about."""
    stage = {**recipe_helpers.STAGE, "lr_scheduler_type": "constant", "logging_steps": 3, "save_steps": 2, "eval_steps": 2}
    changes = {
        "general": {**stage, "max_steps": 5, "positions": "masked", "temperature": 2.0},
        "task": None,
        "task_teacher": None,
    }
    changes |= {"task_words": None, "task_answers": None, "threads": 1}

    def run(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        recipe = recipe_helpers.write_inputs(folder, **changes)
        return lambda: run_recipe_command(["--config", str(recipe)])

    status, count = fault_helpers.operations(run("whole"), tmp_path / "whole" / "out", log=tmp_path / "log")
    assert status == 0 and count > 30, (tmp_path / "log").read_text()
    wanted, weights = figures(tmp_path / "whole"), fault_helpers.content(tmp_path / "whole" / "out" / "student")
    names = {*fault_helpers.content(tmp_path / "whole" / "out")}
    for number in fault_helpers.chosen(count, 1, EVERYTHING):
        command, out = run(str(number)), tmp_path / str(number) / "out"
        assert fault_helpers.operations(command, out, stop_at=number)[0] == fault_helpers.STOPPED, number
        status, _ = fault_helpers.operations(command, out, log=tmp_path / "log")
        assert status == 0, (number, (tmp_path / "log").read_text())
        assert figures(tmp_path / str(number)) == wanted, number
        student = fault_helpers.content(out / "student")
        assert student["model.safetensors"] == weights["model.safetensors"], number
        assert {*fault_helpers.content(out)} == names, number
        assert fault_helpers.litter(out.parent) == [], number


def figures(folder):
    """All of a record but times."""
    record = json.loads((folder / "out" / "metrics.json").read_text())
    assert RunRecord.load(folder / "out" / "metrics.json")

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key not in TIMES and "speed" not in key}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return json.loads(json.dumps(timeless(record)).replace(str(folder), "FOLDER"))
