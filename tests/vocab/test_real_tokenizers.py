"""Published tokenizers on real text of several languages: nothing is lost, and what stays is split as before."""

from __future__ import annotations

import base64
import gzip
import itertools
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

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_glmd.errors import UsageError
from hf_glmd.shrinker import VocabShrinker

DATA = Path(os.environ.get("HF_GLMD_TEST_DATA", "."))
pytestmark = pytest.mark.skipif(
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


def check(shrinker: VocabShrinker, texts: list[str], **options: Any) -> None:
    """`ShrunkVocab.verify` compares ids, decoded texts and reachability; the size has to be exact, and the tokens closed."""
    vocab = shrinker.shrink(**options)
    result = vocab.verify(texts, progress=False)
    assert result.texts == result.texts_same_decoded == len(texts) and result.unreachable == 0
    assert sorted(vocab.tokenizer.get_vocab().values()) == list(range(vocab.report.size))
    if isinstance(options["size"], int):
        assert vocab.report.size == options["size"]


def smallest_size(shrinker: VocabShrinker, **options: Any) -> int:
    with pytest.raises(UsageError) as error:
        shrinker.shrink(size=1, **options)
    return int(str(error.value).rpartition("Use size=")[2].split()[0])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_is_lost(name):
    """Counted on English and code, read on every language: most lines there lose tokens, and still read the same."""
    shrinker = VocabShrinker(TOKENIZERS[name]())
    shrinker.count(corpora()["English"][:300], progress=False).count(corpora()["Python"][:300], progress=False)
    texts = [line for lines in corpora().values() for line in lines[:60]]
    options = {"alphabet": "all", "order": "leaf"}
    check(shrinker, texts, size=smallest_size(shrinker, **options) + 300, **options)
    check(shrinker, texts, size=0.25, alphabet="all")


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5"])
def test_half_of_the_vocabulary_costs_at_most_one_percent_of_length(name):
    texts = lines_of("en/abc_science.txt.xz")
    shrinker = VocabShrinker(TOKENIZERS[name]()).count(texts, progress=False)
    vocab = shrinker.shrink(size=0.5)
    backend = vocab.tokenizer.backend_tokenizer
    after = sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))
    assert 1.0 <= after / shrinker.counts.sum() <= 1.01


@pytest.mark.slow
@pytest.mark.parametrize("order", ["count", "leaf"])
@pytest.mark.parametrize("name", [*TOKENIZERS, *FURTHER])
def test_nothing_is_lost_in_many_lines(name, order):
    """Each language counted for itself and read, at three sizes; and then read together with what was not counted."""
    tokenizer = (TOKENIZERS | FURTHER)[name]()
    everything = list(itertools.chain.from_iterable(lines[:500] for lines in corpora().values()))
    for language, lines in corpora().items():
        shrinker = VocabShrinker(tokenizer).count(lines[:10_000], progress=False)
        check(shrinker, lines[:2_000], size=0.5, order=order)
        check(shrinker, lines[:2_000], size=smallest_size(shrinker, order=order) + 500, order=order)
        if language == "English":
            check(shrinker, everything, size=0.25, order=order, alphabet="all")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["count", "leaf"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_vocabularies_of_many_sizes_lie_inside_each_other(name, order, tmp_path):
    shrinker = VocabShrinker(TOKENIZERS[name]()).count(corpora()["English"], progress=False)
    shrinker.save_order(tmp_path / "order", order)
    kept: set[int] = set()
    for size in (0.15, 0.3, 0.5, 0.8):
        ids = shrinker.shrink(size=size, order=tmp_path / "order").vocab_map.kept_ids
        assert np.array_equal(ids, shrinker.shrink(size=size, order=order).vocab_map.kept_ids)
        assert kept < set(ids.tolist())
        kept = set(ids.tolist())
