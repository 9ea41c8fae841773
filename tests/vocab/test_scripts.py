"""Writing systems of tokens."""

import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from hf_glmd.vocab.scripts import OTHER, ScriptShare, is_written_in, script_of, script_shares, scripts_in_use


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("##ing", "Latin"),
        (" été", "Latin"),
        ("ß", "Latin"),
        ("ﬁ", "Latin"),
        ("Ｗ", "Latin"),
        ("ª", "Latin"),
        ("Привет", "Cyrillic"),
        ("語", "Han"),
        ("々", "Han"),
        ("カ", "Katakana"),
        ("ｶ", "Katakana"),
        ("한", "Hangul"),
        ("ا", "Arabic"),
        ("ﷺ", "Arabic"),
        ("ह", "Devanagari"),
        ("12, Ж", "Cyrillic"),
        ("12 .", OTHER),
        ("�", OTHER),
        ("", OTHER),
        ("👍", OTHER),
    ],
)
def test_the_first_letter_decides(text, script):
    assert script_of(text) == script


def test_shares_add_up_to_the_vocabulary():
    texts = ["a", "b", "c", "я", "ю", "1", ""]
    shares = script_shares(texts, np.array([50, 3, 0, 7, 1, 11, 0]), np.array([0, 1, 5]))
    assert shares == [
        ScriptShare("Latin", tokens=3, kept=2, counted=53, kept_counted=53),
        ScriptShare("Cyrillic", tokens=2, kept=0, counted=8, kept_counted=0),
        ScriptShare(OTHER, tokens=2, kept=1, counted=11, kept_counted=11),
    ]


@pytest.mark.skipif("HF_GLMD_TEST_DATA" not in os.environ, reason="HF_GLMD_TEST_DATA names no folder of real tokenizers")
def test_scripts_of_a_multilingual_vocabulary():
    file = Path(os.environ["HF_GLMD_TEST_DATA"]) / "tokenizers" / "bert-base-multilingual-cased" / "tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(file.read_bytes()).decode("utf-8"))
    size = tokenizer.get_vocab_size()
    texts = tokenizer.decode_batch([[row] for row in range(size)])
    shares = {share.script: share.tokens for share in script_shares(texts, np.ones(size, dtype=np.int64), np.arange(size))}
    assert sum(shares.values()) == size and len(shares) < 60, "no word of a character's name is taken for a script"
    # Against Unicode's own table, where a token's letters are all of one script.
    table = pytest.importorskip("fontTools.unicodedata")
    names = {"Latn": "Latin", "Cyrl": "Cyrillic", "Hani": "Han", "Arab": "Arabic", "Hang": "Hangul", "Deva": "Devanagari"}
    for text in texts:
        codes = {table.script(char) for char in text if char.isalpha()}
        if len(codes) == 1 and (code := codes.pop()) in names:
            assert script_of(text) == names[code], text
    assert all(shares[name] > 100 for name in names.values())


def test_scripts_in_use_are_those_of_a_hundredth_of_the_letters():
    texts, counts = ["the", "\u03c9", "\u0434\u0430", "\u4e2d", "42", "x"], np.array([100, 2, 10, 500, 50, 0])
    assert scripts_in_use(texts, counts) == {"Latin", "Cyrillic"}  # Han is in use, but has thousands of characters
    assert scripts_in_use(["\u03c9"], np.array([0])) == frozenset()


@pytest.mark.parametrize(
    ("character", "wanted"),
    [
        *[(character, True) for character in "a\u00e9\u201c\u2019\u2014\u20ac\u00bd\u2026\u00b0\u00d7\u3002\u0301"],
        *[(character, False) for character in "\u03c9\u4e2d\u0928\u093f\U0001f600\u2665"],
    ],
)
def test_text_in_a_script_is_written_with_its_letters_and_with_signs_of_all(character, wanted):
    assert is_written_in(character, frozenset({"Latin"})) is wanted


def test_vowel_signs_go_with_their_script():
    assert is_written_in("\u093f", frozenset({"Devanagari"}))
