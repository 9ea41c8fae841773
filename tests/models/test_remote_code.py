"""Checkpoints whose architecture is code in their own repository: it runs if it is asked for by name, and only then."""

import json
import sys
from pathlib import Path

import pytest
import vocab_helpers
from transformers import AutoModelForMaskedLM

from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_checkpoint, load_config, load_word_model
from hf_glmd.utils.remote_code import trust_remote_code, trusting_remote_code

CONFIGURATION = """
from pathlib import Path
from transformers import BertConfig

Path({marker!r}).write_text("ran")

class OwnConfig(BertConfig):
    model_type = "own_bert"
"""
MODELING = """
from transformers import BertForMaskedLM
from .configuration_own import OwnConfig

class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig
"""
OWN_CODE = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM"}


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A BertForMaskedLM under a name that transformers does not know, with its code; what runs leaves a file."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # of an earlier test, from a folder of its own
    folder = tmp_path / "own"
    vocab_helpers.tiny_class("BertForMaskedLM", vocab_helpers._SMALL, vocab_helpers.V).save_pretrained(folder)
    vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_bert", "architectures": ["OwnForMaskedLM"], "auto_map": OWN_CODE}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(tmp_path / "marker")))
    (folder / "modeling_own.py").write_text(MODELING)
    (tmp_path / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)))
    return folder


def commands(source: Path) -> dict[str, list[str]]:
    folder = source.parent
    corpus = str(folder / "corpus.txt")
    return {
        "shrink": ["shrink", str(source), "--corpus", corpus, "--output", str(folder / "small"), "--size", "131"],
        "evaluate": ["evaluate", str(source), "--text", corpus, "--max-length", "16", "--no-speed"],
        "cache": ["cache", str(source), "--data", corpus, "--output", str(folder / "cache"), "--max-length", "16"],
        "distill": ["distill", "--config", str(recipe(source)), "--dry-run"],
    }


def recipe(source: Path) -> Path:
    path = source.parent / "recipe.yaml"
    corpus = source.parent / "corpus.txt"
    lines = [
        f"output_dir: {source.parent / 'run'}",
        f"teacher: {{model: {source}}}",
        f"corpus: {{name: {corpus}}}",
        "general: {max_steps: 1}",
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("command", ["shrink", "evaluate", "cache", "distill"])
def test_code_of_a_repository_runs_only_if_it_is_asked_for(source, capsys, monkeypatch, command):
    words = commands(source)[command]
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    wanted = (
        "needs code that lies in its repository. Read that code; if you trust it, add --trust-remote-code (in a recipe: teacher."
    )
    assert str(source) in said and wanted in said
    assert not (source.parent / "marker").exists()
    asked = "--teacher.trust_remote_code=true" if command == "distill" else "--trust-remote-code"
    assert main([*words, asked]) == 0, capsys.readouterr().err
    assert (source.parent / "marker").exists()
    assert not trust_remote_code()  # it held while the command ran


def test_a_cut_model_with_code_of_its_own_loads_with_transformers_alone(source, capsys):
    assert main([*commands(source)["shrink"], "--trust-remote-code"]) == 0
    small = source.parent / "small"
    model = AutoModelForMaskedLM.from_pretrained(small, trust_remote_code=True)
    assert type(model).__name__ == "OwnForMaskedLM" and model.config.vocab_size == 131
    assert "Carried along: configuration_own.py, modeling_own.py." in capsys.readouterr().out


def test_a_class_is_that_of_the_repository_where_its_code_is_trusted(source):
    for load in (load_config, load_checkpoint, load_word_model):
        with pytest.raises(UsageError, match="in Python: load the model yourself with trust_remote_code=True"):
            load(source)
    with trusting_remote_code(True):
        assert type(load_checkpoint(source)).__name__ == type(load_word_model(source)).__name__ == "OwnForMaskedLM"


def test_code_beside_a_known_architecture_is_not_run(tmp_path, source):
    """Transformers has BERT: what auto_map names beside it is of no use, and stays untouched."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    assert type(load_word_model(source)).__name__ == "BertForMaskedLM"
    assert not (tmp_path / "marker").exists()
