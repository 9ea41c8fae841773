"""The tokenizer of transformers.js on our tokenizer.json, for each type of tokenizer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import vocab_helpers
from interop_helpers import TRANSFORMERS_JS
from published_tokenizers import TOKENIZERS, corpora, needs_data
from transformers import AutoTokenizer

from hf_glmd import VocabShrinker

pytestmark = pytest.mark.interop
LINES = 100
UNREADABLE = {"hand-made bpe prefix": "transformers.js ignores `continuing_subword_prefix` of BPE"}

ENCODE = """
import fs from "node:fs";
const [, , transformers, parent, texts] = process.argv;
const { AutoTokenizer, env } = await import(transformers);
env.allowRemoteModels = false;
env.localModelPath = parent;
const lines = JSON.parse(fs.readFileSync(texts));
const found = {};
for (const name of ["original", "small"]) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  found[name] = lines.map((line) => tokenizer.encode(line));
}
console.log(JSON.stringify(found));
"""


@pytest.fixture
def compare(tool, record_property, tmp_path):
    """`compare(kind, tokenizer, counted, lines)`: both give the same ids, with the original's file and with the smaller one."""

    def run(kind: str, tokenizer: Any, counted: list[str], lines: list[str], **options: Any) -> None:
        tool("transformers.js", f"tokenizer.json of a shrunk {kind} tokenizer with `tokenizers`: ids of {len(lines)} lines")
        vocab = VocabShrinker(tokenizer).count(counted, progress=False).shrink(**options)
        tokenizer.save_pretrained(tmp_path / "original")
        vocab.save_pretrained(tmp_path / "small")
        found = encode(tmp_path, lines)
        otherwise = {name: differing(AutoTokenizer.from_pretrained(tmp_path / name), found[name], lines) for name in found}
        if kind in UNREADABLE:
            record_property("result", f"not read, and the original's neither: {UNREADABLE[kind]}")
            assert len(otherwise["original"]) > len(lines) / 2
        else:
            assert otherwise == {"original": [], "small": []}

    return run


def encode(folder: Path, lines: list[str]) -> dict[str, list[list[int]]]:
    """What transformers.js makes of each line, with the tokenizers in original/ and small/."""
    (folder / "lines.json").write_text(json.dumps(lines))
    (folder / "encode.mjs").write_text(ENCODE)
    main = TRANSFORMERS_JS / json.loads((TRANSFORMERS_JS / "package.json").read_text())["exports"]["node"]["import"]["default"]
    command = ["node", folder / "encode.mjs", main.as_uri(), folder, folder / "lines.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def differing(tokenizer: Any, found: list[list[int]], lines: list[str]) -> list[str]:
    return [line for ids, line in zip(found, lines, strict=True) if tokenizer.encode(line) != ids]


@pytest.mark.parametrize("kind", vocab_helpers.BACKENDS)
def test_hand_made_tokenizers(kind, compare):
    lines = vocab_helpers.texts(60)
    compare(f"hand-made {kind}", vocab_helpers.fast_tokenizer(kind), lines[:40], lines, size=0.9)


@needs_data
@pytest.mark.parametrize("name", TOKENIZERS)
def test_published_tokenizers(name, compare):
    """A quarter of the vocabulary for English and code, read on every language: most lines lose tokens."""
    texts = corpora()
    lines = [line for language in texts.values() for line in language[:LINES]]
    counted = texts["English"][:300] + texts["Python"][:300]
    compare(name, TOKENIZERS[name](), counted, lines, size=0.25, alphabet="all")
