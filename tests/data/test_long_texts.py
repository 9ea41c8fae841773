"""Long texts, cut where their tokens stay."""

import numpy as np
import pytest
import vocab_helpers
from tokenizers import Tokenizer, models

from hf_glmd import UsageError, VocabShrinker
from hf_glmd.data import long_texts
from hf_glmd.data.long_texts import TextCutter
from hf_glmd.data.packing import _pack
from hf_glmd.vocab.counting import count_corpus

WORDS = " ".join(vocab_helpers.texts(60))
LONG = {
    "words": WORDS,
    "several spaces": WORDS.replace(" w", "  w"),
    "special tokens": WORDS.replace("talk", "[MASK] <mask> "),
    "lines": WORDS.replace(" t", " \nt").replace(". ", ".\n"),
}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(long_texts, "PORTION_CHARACTERS", 250)
    monkeypatch.setattr(long_texts, "_WINDOW", 40)


def cutter(tokenizer):
    return TextCutter(tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("kind", vocab_helpers.BACKENDS)
def test_the_pieces_have_the_tokens_of_the_text(kind, text, caplog):
    tokenizer = vocab_helpers.BACKENDS[kind]()
    pieces = list(cutter(tokenizer).pieces(LONG[text]))
    assert len(pieces) > 10 and max(map(len, pieces)) <= 100
    ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(LONG[text], add_special_tokens=False).ids and not caplog.text


@pytest.mark.parametrize("text", ["a" * 1000, "a a a a " * 125, "b b b b " * 125])
def test_a_cut_that_may_change_tokens_is_said(text, caplog):
    """A token goes on behind a space within it, and there are no words that would keep it from doing so."""
    tokenizer = Tokenizer(models.BPE({"a": 0, " ": 1, "a ": 2, "a a": 3, "b": 4}, [("a", " "), ("a ", "a")]))
    pieces = list(cutter(tokenizer).pieces(text))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 100
    assert f"text of 1,000 characters is cut in {len(pieces) - 1} places where its tokens may differ" in caplog.text


def test_portions_are_bounded_and_know_their_texts():
    texts = ["walk", WORDS, "", "talk"]
    portions = list(cutter(vocab_helpers.wordpiece_backend()).portions(texts))
    assert max(sum(len(piece) for _, piece in portion) for portion in portions) < 350
    pieces = [piece for portion in portions for piece in portion]
    assert [number for number, _ in pieces] == sorted(number for number, _ in pieces)
    assert [piece for number, piece in pieces if number != 1] == ["walk", "", "talk"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe fallback", "unigram"])
def test_long_texts_are_counted_and_packed_as_short_ones(kind, monkeypatch):
    tokenizer = vocab_helpers.fast_tokenizer(kind)
    texts = ["walk", *LONG.values(), "talk"]
    cut = count_corpus(tokenizer, texts, progress=False), _pack({"text": texts}, tokenizer, 16, "text")["input_ids"]
    monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", 10**6)
    whole = count_corpus(tokenizer, texts, progress=False), _pack({"text": texts}, tokenizer, 16, "text")["input_ids"]
    assert np.array_equal(cut[0].values, whole[0].values) and cut[0].texts == whole[0].texts == 6
    assert cut[0].sample == whole[0].sample
    assert np.array_equal(np.concatenate(cut[1]), np.concatenate(whole[1]))


def test_long_texts_of_a_mapped_tokenizer_keep_both_kinds_of_ids(monkeypatch):
    shrinker = VocabShrinker(vocab_helpers.generic_tokenizer()).count([WORDS], progress=False)
    tokenizer = shrinker.shrink(size=120, removed="unk").tokenizer
    cut = _pack({"text": [WORDS]}, tokenizer, 16, "text")
    monkeypatch.setattr(long_texts, "PIECE_CHARACTERS", 10**6)
    whole = _pack({"text": [WORDS]}, tokenizer, 16, "text")
    for name in ("input_ids", "original_input_ids"):
        assert np.array_equal(np.concatenate(cut[name]), np.concatenate(whole[name]))
    assert not np.array_equal(np.concatenate(cut["input_ids"]), np.concatenate(cut["original_input_ids"]))


def test_a_long_text_that_is_no_unicode_is_named():
    with pytest.raises(UsageError, match="Row 1 is no valid Unicode"):
        count_corpus(vocab_helpers.wordpiece_backend(), ["walk", WORDS + " \ud800 " + WORDS], progress=False)
