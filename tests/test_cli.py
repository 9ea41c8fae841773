"""What people type, and what they are told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import vocab_helpers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_glmd.cli import main
from hf_glmd.utils.ending import run_command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with its tokenizer and a corpus beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocab_helpers.tiny_model("bert").save_pretrained(folder / "model")
    vocab_helpers.generic_tokenizer().save_pretrained(folder / "model")
    (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)), encoding="utf-8")
    (folder / "prompts.txt").write_text("marker\n", encoding="utf-8")
    return folder


def shrink(checkpoint: Path, output: Path, *words: str) -> int:
    return main(
        ["shrink", str(checkpoint / "model"), "--corpus", str(checkpoint / "corpus.txt"), "--output", str(output), *words]
    )


def test_a_smaller_checkpoint_is_written_and_shown(checkpoint, tmp_path, capsys):
    assert shrink(checkpoint, tmp_path / "small", "--size", "150", "--keep-texts", str(checkpoint / "prompts.txt")) == 0
    shown = capsys.readouterr().out
    assert "| vocabulary (tokens)" in shown and "150 (71%)" in shown and "texts verified" in shown
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab_map.safetensors", "vocab_report.json"} <= names
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "small")
    assert len(tokenizer) == model.config.vocab_size == 150 and "marker" in tokenizer.get_vocab()
    with torch.no_grad():
        assert model(**tokenizer("walking", return_tensors="pt")).logits.shape[-1] == 150


def test_json_for_machines(checkpoint, tmp_path, capsys):
    assert shrink(checkpoint, tmp_path / "small", "--coverage", "0.9", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["vocabulary"]["coverage"] >= 0.9 and result["verified"]["texts"] == 76  # 4 are held out
    assert result["vocabulary"]["model_after"]["parameters"] < result["vocabulary"]["model_before"]["parameters"]


def test_options_from_a_file_give_way_to_those_typed(checkpoint, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {checkpoint / 'model'}\ncorpus: [{checkpoint / 'corpus.txt'}]\nsize: 0.9\noutput: {tmp_path / 'a'}\n"
    )
    assert main(["shrink", "--config", str(recipe), "--size", "160", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"]["size"] == 160


def test_counts_are_saved_and_used_again(checkpoint, tmp_path, capsys):
    counts = str(tmp_path / "counts.safetensors")
    assert shrink(checkpoint, tmp_path / "a", "--save-counts", counts, "--size", "150", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    words = ["shrink", str(checkpoint / "model"), "--counts", counts, "--output", str(tmp_path / "b"), "--size", "150", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"]["coverage"] == first["vocabulary"]["coverage"]


def test_similar_tokens_stand_for_removed_ones(checkpoint, tmp_path):
    assert shrink(checkpoint, tmp_path / "small", "--size", "100", "--removed", "nearest", "--similarity", "cosine") == 0
    with pytest.raises(Exception, match="MappedTokenizer.from_pretrained"):
        AutoTokenizer.from_pretrained(tmp_path / "small")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "3"], "size=3 is smaller than the"),
        (["--size", "1.5"], "--size 1.5 is neither a share"),
        (["--size", "many"], "size='many' is of type str"),
        (["--size", "0.5", "--min-count", "2"], "contradict each other"),
        (["--keep", "notatoken"], "keep names 'notatoken'"),
        (["--weights", "1", "2"], "--weights has 2 numbers for 1 corpora"),
        (["--removed", "gone"], "removed='gone' is unknown"),
        (["--order", "best"], "order"),
        (["--config", "missing.yaml"], "'missing.yaml' does not exist"),
        (["--keep-texts", "missing.txt"], "missing.txt"),
        (["--corpus", "missing.txt"], "missing.txt"),
        (["--verify-texts", "0"], "--verify-texts 0"),
    ],
)
def test_one_line_and_status_2_for_what_a_user_can_mend(checkpoint, tmp_path, capsys, words, said):
    assert shrink(checkpoint, tmp_path / "small", *words) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("hf-glmd: ") and said in line and "Traceback" not in error
    assert not (tmp_path / "small").exists() and not list(tmp_path.glob(".*"))


def test_what_is_there_already_stays(checkpoint, tmp_path, capsys):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    assert shrink(checkpoint, tmp_path / "small") == 2
    assert "is not empty" in capsys.readouterr().err
    assert shrink(checkpoint, checkpoint / "model") == 2
    assert "is the model itself" in capsys.readouterr().err
    assert main(["shrink", str(tmp_path / "nothing"), "--corpus", "x.txt", "--output", str(tmp_path / "small2")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_help_is_quick_and_names_every_option():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hf_glmd", "shrink", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "--keep-texts" in done.stdout and "--corpus" in done.stdout
    assert "torch" not in {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}, "help needs no torch"


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_a_shell_completes_commands_and_options(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    for words, found in ((["shr"], "shrink"), (["shrink", "--cov"], "--coverage")):
        typed = f"COMP_WORDS=(hf-glmd {' '.join(words)}); COMP_CWORD={len(words)}; _shtab_hf_glmd; echo ${{COMPREPLY[@]}}"
        shown = subprocess.run(["bash", "-c", f"source {tmp_path}/completion.sh; {typed}"], capture_output=True, text=True)
        assert shown.stdout.split() == [found], shown.stderr


def test_a_reader_who_has_read_enough_is_no_error():
    """As `hf-glmd recipes | head -1`: nothing is said, and the status is that of other commands."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "hf_glmd", "recipes"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_whose_peer_has_ended_keeps_its_traceback_to_itself(launched, monkeypatch, capsys):
    """What went wrong stands in the other's lines."""
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "2")

    def cut_off():
        raise RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1. More of it.")

    if launched:
        assert run_command("hf-glmd", cut_off) == 1
        assert "hf-glmd: stopped, for another process has ended" in capsys.readouterr().err
    else:
        with pytest.raises(RuntimeError):
            run_command("hf-glmd", cut_off)
