"""`hf-glmd rebuild`: from base and map the same files come again."""

import shutil

import numpy as np
import pytest
import torch
import vocab_helpers as helpers
from safetensors.numpy import save_file

from hf_glmd import VocabMap
from hf_glmd.cli import main
from hf_glmd.utils.files import sha256

KINDS = [
    ("wordpiece", "bert"),
    ("bpe bytes", "llama"),
    ("unigram", "t5"),
    ("bpe fallback", "gemma2"),
    ("wordpiece", "bert-untied"),
]


def checkpoint(folder, kind="wordpiece", name="bert", seed=0):
    tokenizer = helpers.fast_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    model = helpers.tiny_model(name, len(tokenizer))
    if seed:
        torch.nn.init.normal_(model.get_input_embeddings().weight.data)
    model.save_pretrained(folder)
    return folder


def cut(base, output, *words):
    corpus = output.parent / f"{output.name}.txt"
    corpus.write_text("\n".join(helpers.texts(200, 3)))
    assert main(["shrink", str(base), "--corpus", str(corpus), "--output", str(output), *words]) == 0
    return output


def same(first, second, name):
    return sha256(first / name) == sha256(second / name)


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("words", [["--coverage", "0.98"], ["--coverage", "0.9", "--multiple-of", "8"]])
def test_a_cut_model_comes_again_bit_for_bit(kind, name, words, tmp_path, capsys):
    base = checkpoint(tmp_path / "base", kind, name)
    small = cut(base, tmp_path / "small", *words)
    assert main(["rebuild", str(base), str(small / "vocab_map.safetensors"), "--output", str(tmp_path / "again")]) == 0
    again = tmp_path / "again"
    names = {path.name for path in again.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json", "vocab_map.safetensors", "tokenizer_config.json"} <= names
    for file in ("model.safetensors", "tokenizer.json", "config.json", "vocab_map.safetensors", "tokenizer_config.json"):
        assert same(small, again, file), file


@pytest.mark.parametrize("removed", ["nearest", "unk"])
def test_a_mapped_vocabulary_comes_again(removed, tmp_path):
    base = checkpoint(tmp_path / "base")
    small = cut(base, tmp_path / "small", "--removed", removed)
    assert main(["rebuild", str(base), str(small), "--output", str(tmp_path / "again")]) == 0
    for file in ("model.safetensors", "vocab_map.safetensors"):
        assert same(small, tmp_path / "again", file)


def test_a_map_of_another_base_is_refused_and_both_are_named(tmp_path, capsys):
    small = cut(checkpoint(tmp_path / "base"), tmp_path / "small")
    others = {
        "weights": checkpoint(tmp_path / "weights", seed=1),
        "size": checkpoint(tmp_path / "size", "bpe bytes", "llama"),
    }
    tokens = checkpoint(tmp_path / "tokens")
    text = (tokens / "tokenizer.json").read_text()
    (tokens / "tokenizer.json").write_text(text.replace("walking", "wblking"))
    for name, other in (others | {"tokens": tokens}).items():
        capsys.readouterr()
        assert main(["rebuild", str(other), str(small), "--output", str(tmp_path / "again")]) == 2
        error = capsys.readouterr().err
        assert "of 'base'" in error and f"{name}'" in error and len(error.splitlines()) == 1
        assert not (tmp_path / "again").exists()


def test_another_revision_of_the_base_is_refused_and_both_are_named(tmp_path, monkeypatch, capsys):
    base = checkpoint(tmp_path / "base")
    small = cut(base, tmp_path / "small")
    origin = VocabMap.load(small).origin
    assert origin.base == "base" and origin.revision == "" and set(origin.files) == {"model.safetensors", "tokenizer.json"}
    monkeypatch.setattr("hf_glmd.shrinking.rebuilding._commit", lambda model: "b" * 40)
    vocab_map = VocabMap.load(small)
    vocab_map.origin = type(origin)(str(base), "a" * 40, origin.tokenizer_sha256, origin.files, origin.versions)
    vocab_map.save(tmp_path / "map")
    capsys.readouterr()
    assert main(["rebuild", str(base), str(tmp_path / "map"), "--output", str(tmp_path / "again")]) == 2
    error = capsys.readouterr().err
    assert "a" * 40 in error and "b" * 40 in error


def test_a_map_without_an_origin_is_rebuilt_and_says_that_nothing_was_compared(tmp_path, capsys, caplog):
    base = checkpoint(tmp_path / "base")
    small = cut(base, tmp_path / "small")
    kept = VocabMap.load(small).kept_ids
    old = {"format": "hf_glmd.vocab_map", "version": "1", "removed": "resegment", "original_size": str(helpers.V)}
    save_file({"kept_ids": kept}, tmp_path / "old.safetensors", metadata=old)
    capsys.readouterr()
    assert main(["rebuild", str(base), str(tmp_path / "old.safetensors"), "--output", str(tmp_path / "again")]) == 0
    assert "Nothing was compared" in capsys.readouterr().out and same(small, tmp_path / "again", "model.safetensors")
    assert "old.safetensors' is of version 1, which has no checksum" in caplog.text


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_map_of_262_144_tokens_takes_40_kb_at_most(share, tmp_path):
    rows = 262_144
    kept = np.sort(np.random.default_rng(0).permutation(rows)[: int(rows * share)])
    file = VocabMap(kept, rows).save(tmp_path)
    assert file.stat().st_size <= 40_000
    assert VocabMap.load(tmp_path) == VocabMap(kept, rows)


def test_a_folder_that_holds_something_else_stays(tmp_path, capsys):
    base = checkpoint(tmp_path / "base")
    small = cut(base, tmp_path / "small")
    assert main(["rebuild", str(base), str(small), "--output", str(base), "--overwrite"]) == 2
    assert main(["rebuild", str(base), str(small)]) == 2
    assert "output missing" in capsys.readouterr().err
    shutil.rmtree(small)
    assert main(["rebuild", str(base), str(small), "--output", str(tmp_path / "again")]) == 2
