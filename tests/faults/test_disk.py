"""The disk is full, or takes no file of that size, at any moment: one line says so, and the same command then goes on."""

import random
import resource

import fault_helpers
import pytest
import vocab_helpers

from hf_glmd.cli import main

FULL = "Make room on the disk"
SMALLEST = 2**15
"""Bytes that every file may have, for what the command says goes into one."""


def test_a_recipe_on_a_full_disk(recipe, tmp_path, trials):
    """Full from that operation on, and with room again for the second start."""
    for number in recipe.chosen(1, in_the_long_form=40):
        with trials(number):
            out = tmp_path / str(number) / "out"
            status, _ = fault_helpers.operations(recipe.command(out), out.parent, number, recipe.log, fault_helpers.full_disk)
            if status != 0:  # where only freeing was left to do
                assert status == 2, recipe.said[-4000:]
                recipe.check_said(FULL)
            recipe.check_again(out)


def limited(command, log, size):
    """Runs a command of which no file can become larger than `size` bytes: it fails within the file, in native code too."""
    return fault_helpers.forked(command, log, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))


def test_a_recipe_whose_files_cannot_be_written_to_their_ends(recipe, tmp_path, trials):
    largest = max(path.stat().st_size for path in (recipe.folder / "whole").rglob("*.safetensors"))
    drawn = random.Random(0)
    for number in range(30 if fault_helpers.EVERYTHING else 1):
        size = int(SMALLEST * (largest / SMALLEST) ** drawn.random())
        with trials(f"{size} bytes"):
            out = tmp_path / str(number) / "out"
            status, _ = limited(recipe.command(out), recipe.log, size)
            assert status == 2, recipe.said[-4000:]
            recipe.check_said("Then run it again: ")
            recipe.check_again(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    vocab_helpers.tiny_model("bert").save_pretrained(folder / "bert")
    vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder / "bert")
    (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(60)))
    return folder


@pytest.mark.parametrize("name", ["shrink", "cache"])
def test_shrink_and_cache_on_a_full_disk(name, model, tmp_path, trials):
    def command(output):
        corpus = ["--corpus" if name == "shrink" else "--data", str(model / "corpus.txt")]
        sizes = ["--size", "131"] if name == "shrink" else ["--max-length", "16", "--shard-mib", "0.01"]
        return lambda: main([name, str(model / "bert"), *corpus, "--output", str(output), *sizes])

    whole, log = tmp_path / "whole" / "x", tmp_path / "log"
    assert command(tmp_path / "first" / "x")() == 0
    status, count = fault_helpers.operations(command(whole), whole.parent)
    assert status == 0
    names = fault_helpers.content(whole).keys()
    for number in fault_helpers.chosen(count, 2):
        with trials(number):
            out = tmp_path / str(number) / "x"
            status, _ = fault_helpers.operations(command(out), out.parent, number, log, fault_helpers.full_disk)
            said = log.read_text()
            if status != 0:
                assert status == 2 and FULL in said.splitlines()[-1] and "Traceback" not in said, said
                status, _ = fault_helpers.operations(command(out), out.parent)
            assert status == 0
            assert fault_helpers.content(out).keys() == names
            assert fault_helpers.litter(out.parent) == []
