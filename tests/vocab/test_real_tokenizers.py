"""Published tokenizers on real text of several languages: nothing is lost, and what stays is split as before."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from published_tokenizers import FURTHER, TOKENIZERS, corpora, lines_of, needs_data

from hf_glmd.errors import UsageError
from hf_glmd.shrinking.shrinker import VocabShrinker

pytestmark = needs_data


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


TYPOGRAPHY = "\u201cIt\u2019s\u201d \u2013 he said \u2014 \u20ac5, \u00a33, \u00bd caf\u00e9 na\u00efve \u2026"


@pytest.mark.parametrize("name", ["BERT", "T5"])
def test_quotes_dashes_and_signs_stay_though_they_were_never_counted(name):
    tokenizer = TOKENIZERS[name]()
    ascii_only = ["".join(filter(str.isascii, text)) for text in lines_of("en/abc_science.txt.xz")]
    shrinker = VocabShrinker(tokenizer).count(ascii_only, progress=False)

    def unknown(one: Any) -> int:
        return one.encode(TYPOGRAPHY, add_special_tokens=False).count(one.unk_token_id)

    least = 10**9  # nothing stays for its count
    kept, seen = (shrinker.shrink(min_count=least, alphabet=alphabet).tokenizer for alphabet in (None, "seen"))
    assert unknown(kept) == unknown(tokenizer) < unknown(seen)


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
