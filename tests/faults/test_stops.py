"""Stopped before any file operation and started again, a command ends as if nothing had happened, and leaves nothing behind."""

import fault_helpers
import pytest
import vocab_helpers

from hf_glmd.cli import main


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


def test_shrink_stopped_before_each_file_operation(inputs, tmp_path, trials):
    whole = tmp_path / "whole" / "small"
    status, count = fault_helpers.operations(shrink(inputs, whole), whole.parent)
    assert status == 0 and count > 10
    wanted = fault_helpers.content(whole)
    for number in fault_helpers.chosen(count, 2):
        with trials(number):
            output = tmp_path / str(number) / "small"
            status, _ = fault_helpers.operations(shrink(inputs, output), output.parent, stop_at=number)
            assert status == fault_helpers.STOPPED
            if output.exists():  # whole, the page included
                assert set(fault_helpers.content(output)) == set(wanted)
                continue
            assert fault_helpers.operations(shrink(inputs, output), output.parent)[0] == 0
            assert without_page(fault_helpers.content(output)) == without_page(wanted)
            assert fault_helpers.litter(output.parent) == []


def test_shrink_overwrite_stopped_leaves_the_old_model_or_the_new_one(inputs, tmp_path, trials):
    old, new = tmp_path / "old" / "small", tmp_path / "new" / "small"
    for path, model, size in ((old, "a", "131"), (new, "b", "127")):
        assert fault_helpers.operations(shrink(inputs, path, model, size), path.parent)[0] == 0
    before, after = (without_page(fault_helpers.content(path)) for path in (old, new))
    again = tmp_path / "again" / "small"
    assert fault_helpers.operations(shrink(inputs, again), again.parent)[0] == 0
    overwrite = ("b", "127", "--overwrite")
    _, count = fault_helpers.operations(shrink(inputs, again, *overwrite), again.parent)
    missing = 0
    for number in fault_helpers.chosen(count, 2):
        with trials(number):
            output = tmp_path / str(number) / "small"
            assert fault_helpers.operations(shrink(inputs, output), output.parent)[0] == 0
            status, _ = fault_helpers.operations(shrink(inputs, output, *overwrite), output.parent, stop_at=number)
            assert status == fault_helpers.STOPPED
            missing += not output.exists()
            assert not output.exists() or without_page(fault_helpers.content(output)) in (before, after)
            status, _ = fault_helpers.operations(shrink(inputs, output, *overwrite), output.parent)
            assert status == 0 and without_page(fault_helpers.content(output)) == after
            assert fault_helpers.litter(output.parent) == []
    assert missing <= 1  # between two renames, of which the next start puts the first one back


def test_cache_stopped_before_each_file_operation(inputs, tmp_path, trials):
    whole = tmp_path / "whole" / "cache"
    status, count = fault_helpers.operations(cache(inputs, whole), whole.parent)
    assert status == 0 and count > 10
    wanted = fault_helpers.content(whole)
    for number in fault_helpers.chosen(count, 2):
        with trials(number):
            output = tmp_path / str(number) / "cache"
            status, _ = fault_helpers.operations(cache(inputs, output), output.parent, stop_at=number)
            assert status == fault_helpers.STOPPED
            assert fault_helpers.operations(cache(inputs, output), output.parent)[0] == 0
            assert fault_helpers.content(output) == wanted
            assert fault_helpers.litter(output.parent) == []


def test_a_recipe_stopped_before_each_file_operation(recipe, tmp_path, trials):
    """Weights, figures and curves are those of a run that was never stopped, and nothing unfinished lies about."""
    assert recipe.operations > 100
    for number in recipe.chosen(1, in_the_long_form=80):
        with trials(number):
            out = tmp_path / str(number) / "out"
            assert fault_helpers.operations(recipe.command(out), out.parent, number)[0] == fault_helpers.STOPPED
            recipe.check_again(out)
