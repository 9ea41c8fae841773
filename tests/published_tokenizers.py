"""Published tokenizers and text of several languages, from the folder that HF_GLMD_TEST_DATA names."""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import os
import random
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

DATA = Path(os.environ.get("HF_GLMD_TEST_DATA", "."))
needs_data = pytest.mark.skipif(
    "HF_GLMD_TEST_DATA" not in os.environ, reason="HF_GLMD_TEST_DATA is not set: a folder with tokenizers/ and corpora/"
)
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def unpacked(file: Path) -> bytes:
    content = file.read_bytes()
    return {".xz": lzma.decompress, ".gz": gzip.decompress}.get(file.suffix, bytes)(content)


def published(name: str, without: tuple[str, ...] = (), **config: Any) -> Any:
    """The tokenizer of a folder of the data, as AutoTokenizer loads it; `config` replaces its tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (DATA / "tokenizers" / name).iterdir():
            target = Path(folder) / file.name.removesuffix(".xz")
            if target.name not in without:
                target.write_bytes(unpacked(file))
        if config:
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return AutoTokenizer.from_pretrained(folder)


def llama_3(vocabulary: dict[str, int], merges: list[tuple[str, str]], ignore_merges: bool) -> Any:
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    words = pre_tokenizers.Split(Regex(LLAMA_3_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    begin = ("<|begin_of_text|>", len(vocabulary))
    tokenizer.add_special_tokens([begin[0], "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(40))])
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(f"{begin[0]} $A", None, [begin])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin[0], eos_token="<|end_of_text|>")


def llama_3_2() -> Any:
    folder = DATA / "tokenizers" / "llama3.2"
    lines = unpacked(folder / "vocab.bpe.xz").decode().split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    return llama_3(json.loads(unpacked(folder / "encoder.json.xz")), merges, ignore_merges=True)


def from_ranks(file: str, ignore_merges: bool) -> Any:
    """A tokenizer of tiktoken ranks, with each way to split a token as a merge, as transformers converts them."""
    lines = unpacked(DATA / "tokenizers" / file).decode().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    own = [byte for byte in range(256) if 33 <= byte < 127 or 161 <= byte and byte != 173]  # the others follow 255
    character = dict(zip([*own, *sorted(set(range(256)) - set(own))], map(chr, [*own, *range(256, 512)]), strict=False))
    names = {token: "".join(character[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        splits = [(token[:at], token[at:]) for at in range(1, len(token)) if {token[:at], token[at:]} <= ranks.keys()]
        merges += [(rank, ranks[left], ranks[right], names[left], names[right]) for left, right in splits]
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    return llama_3(vocabulary, [(left, right) for *_, left, right in sorted(merges)], ignore_merges)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "ModernBERT": lambda: published("ModernBERT-base"),
    "BERT": lambda: published("bert-base-uncased"),
    "mBERT": lambda: published("bert-base-multilingual-cased"),
    "CLIP": lambda: published("clip"),
    "GPT-2": lambda: published("gpt2"),
    "RoBERTa": lambda: published("roberta-base", tokenizer_class="RobertaTokenizer"),
    "T5": lambda: published("t5-small"),
    "Llama 2": lambda: published("llama2"),
    "Llama 3.2": llama_3_2,
}
FURTHER: dict[str, Callable[[], Any]] = {
    "BERT, generic class": lambda: published("bert-base-uncased", tokenizer_class="PreTrainedTokenizerFast"),
    "BERT, vocab.txt": lambda: published("bert-base-uncased", without=("tokenizer.json",)),
    "mBERT, own class": lambda: published("bert-base-multilingual-cased", tokenizer_class="BertTokenizer", do_lower_case=False),
    "CLIP, generic class": lambda: published("clip", tokenizer_class="PreTrainedTokenizerFast"),
    "GPT-2, generic class": lambda: published("gpt2", tokenizer_class="PreTrainedTokenizerFast"),
    "GPT-2, vocab.json": lambda: published("gpt2", without=("tokenizer.json",)),
    "RoBERTa, no class": lambda: published("roberta-base"),
    "RoBERTa, vocab.json": lambda: published("roberta-base", without=("tokenizer.json",), tokenizer_class="RobertaTokenizer"),
    "T5, generic class": lambda: published("t5-small", tokenizer_class="PreTrainedTokenizerFast"),
    "Llama 2, generic class": lambda: published("llama2", tokenizer_class="PreTrainedTokenizerFast"),
    "Llama 3, ranks": lambda: from_ranks("llama3/tokenizer.model.xz", ignore_merges=True),
    "GPT-4, ranks": lambda: from_ranks("cl100k_base/cl100k_base.tiktoken.xz", ignore_merges=False),
}


def lines_of(file: str) -> list[str]:
    return [line for line in unpacked(DATA / "corpora" / file).decode("utf-8").split("\n") if line.strip()]


@cache
def corpora() -> dict[str, list[str]]:
    """Lines by language, in a fixed random order."""
    sources = Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
    found = {
        "English": lines_of("en/abc_science.txt.xz"),
        "German": lines_of("de/eltec_deu.txt.xz"),
        "Chinese": [json.loads(line)["sentence"] for line in lines_of("zh/tnews_unlabeled.jsonl.xz")],
        "20 languages": [
            line.split("\t")[0]
            for file in sorted((DATA / "corpora" / "tatoeba").iterdir())
            for line in lines_of(f"tatoeba/{file.name}")
        ],
        "Python": [line for file in sorted(sources) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()],
    }
    for lines in found.values():
        random.Random(0).shuffle(lines)
    return found
