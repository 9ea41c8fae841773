"""The recipe for sentence encoders, as it is run, on a tiny one with modules of sentence-transformers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import vocab_helpers
from transformers import AutoModel

from hf_glmd.models.sentence_modules import Pooled, write_modules

RECIPE = Path(__file__).parents[2] / "recipes" / "distil_encoder.py"


@pytest.mark.parametrize("pooled", [Pooled("cls", normalized=True), Pooled("mean")])
def test_a_smaller_encoder_comes_nearer_and_keeps_its_modules(tmp_path, pooled):
    model = vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL | {"initializer_range": 0.5}, vocab_helpers.V)
    model.save_pretrained(tmp_path / "encoder")
    vocab_helpers.generic_tokenizer(model_max_length=40).save_pretrained(tmp_path / "encoder")
    write_modules(tmp_path / "encoder", model.config.hidden_size, pooled)
    texts = [text for text in vocab_helpers.texts(300) if text]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    pairs = "\n".join(f"{number % 2}\t{a}\t{b}" for number, (a, b) in enumerate(zip(texts[:40], texts[40:80], strict=True)))
    (tmp_path / "pairs.tsv").write_text(f"Quality\t#1 String\t#2 String\n{pairs}\n")
    words = [tmp_path / "encoder", "--corpus", tmp_path / "texts.txt", "--layers", "2", "--size", "0.7", "--steps", "150"]
    words += ["--batch-size", "8", "--learning-rate", "3e-3", "--max-length", "24", "--pairs", tmp_path / "pairs.tsv"]
    rival = importlib.util.find_spec("sentence_transformers") is not None
    words += ["--rival"] if rival else []
    done = subprocess.run(
        [sys.executable, RECIPE, *map(str, words), "--output", tmp_path / "out"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores) == ["teacher", "before training", *(["sentence-transformers"] if rival else []), "hf_glmd"]
    assert scores["hf_glmd"]["cosine"] > scores["before training"]["cosine"]
    for name, row in scores.items():
        assert -1 <= row["Spearman, 40 pairs"] <= 1 and 0 <= row["recall@1, 20 true pairs"] <= 1, name
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())[
        f"pooling_mode_{pooled.pooling}_tokens" if pooled.pooling == "mean" else "pooling_mode_cls_token"
    ]
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2
    assert "| hf_glmd" in done.stdout and "held-out texts" in done.stdout
