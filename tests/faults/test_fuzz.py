"""Strings that nobody would write: a cut tokenizer reads each as the original does wherever it promises that, and never fails."""

import itertools
import json
import random
from pathlib import Path

import fault_helpers
import pytest
import vocab_helpers
from published_tokenizers import TOKENIZERS, corpora, needs_data

from hf_glmd import VocabShrinker
from hf_glmd.errors import UsageError
from hf_glmd.vocab.counting import backend_of

FOUND = json.loads((Path(__file__).parent / "found_texts.json").read_text(encoding="utf-8"))
"""Texts that were once read wrongly, or nearly; they are tried first."""

STRINGS = 100_000 if fault_helpers.EVERYTHING else 4_500
"""Over all published tokenizers."""

RANGES = [(0x00, 0x20), (0x20, 0x7F), (0x80, 0x250), (0x250, 0x600), (0x600, 0x900), (0x900, 0x1200), (0x1E00, 0x2100)]
RANGES += [(0x2100, 0x2E00), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0xF900, 0x10000)]
RANGES += [(0x10000, 0x11000), (0x1D400, 0x1D800), (0x1F300, 0x1FB00), (0xE0000, 0xE0080), (0x10FF00, 0x110000)]
JOINING = "\u200d\u200c\ufe0f\u0301\u0308\u0345\u20e3\u00ad\u2060\ufeff\u202e\u0130\u1e9e\ufb01\u2028\x85\xa0\u3000\x00\r\n\t"


def fuzzed(number: int, lines: list[str], tokens: list[str]) -> str:
    """One text: any characters, an ordinary line that is damaged, tokens joined at random, or one piece very often."""
    drawn = random.Random(number)

    def character() -> str:
        start, end = drawn.choice(RANGES)
        return chr(drawn.randrange(start, end))

    kind = drawn.randrange(5)
    if kind == 0:
        return "".join(drawn.choice([character, lambda: drawn.choice(JOINING)])() for _ in range(drawn.randrange(40)))
    if kind == 1:
        text = list(drawn.choice(lines)[:200])
        for _ in range(drawn.randrange(1, 6)):
            at = drawn.randrange(len(text) + 1)
            text[at : at + drawn.randrange(3)] = drawn.choice([character(), drawn.choice(JOINING), drawn.choice(tokens), ""])
        return "".join(text)
    if kind == 2:
        return drawn.choice(["", " ", "  ", "\n"]).join(drawn.choice(tokens) for _ in range(drawn.randrange(12)))
    if kind == 3:
        return drawn.choice([character(), drawn.choice(tokens), drawn.choice(JOINING), " "]) * drawn.randrange(300)
    base = drawn.choice(lines)[:100]
    return drawn.choice([base.upper(), base.title(), base[::-1], base.replace(" ", ""), base.encode().decode("latin-1")])


def check(trials, original, vocab, texts, lossless):
    """Kept text has the same tokens; all text, if nothing is lost, reads as before; the public functions agree."""
    large, small, kept = backend_of(original), backend_of(vocab.tokenizer), 0
    for chunk in (texts[at : at + 1000] for at in range(0, len(texts), 1000)):
        old, new = ([row.ids for row in one.encode_batch(chunk, add_special_tokens=False)] for one in (large, small))
        before, after = (one.decode_batch(ids, skip_special_tokens=False) for one, ids in ((large, old), (small, new)))
        for text, old_ids, new_ids, old_text, new_text in zip(chunk, old, new, before, after, strict=True):
            with trials(repr(text)):
                if vocab.vocab_map.keeps(old_ids).all():
                    kept += bool(old_ids)
                    assert vocab.vocab_map.to_small(old_ids) == new_ids, "kept tokens, other ids"
                    assert old_text == new_text
                if lossless and large.decoder is not None:
                    assert old_text == new_text, f"reads {new_text!r}, before {old_text!r}"
        assert vocab.tokenizer(chunk[0], add_special_tokens=False)["input_ids"] == new[0]
        assert isinstance(vocab.tokenizer.decode(new[0]), str)
    assert kept >= len(texts) / 100, kept


def smallest(shrinker, **options):
    with pytest.raises(UsageError) as error:
        shrinker.shrink(size=1, **options)
    return shrinker.shrink(size=int(str(error.value).rpartition("Use size=")[2].split()[0]) + 300, **options)


@needs_data
@pytest.mark.parametrize(
    "name", [name if name in ("BERT", "T5") else pytest.param(name, marks=pytest.mark.slow) for name in TOKENIZERS]
)
def test_strings_are_read_as_by_the_published_tokenizer(name, trials):
    tokenizer = TOKENIZERS[name]()
    lines = list(itertools.chain.from_iterable(part[:400] for part in corpora().values()))
    shrinker = VocabShrinker(tokenizer).count(corpora()["English"][:300], progress=False)
    tokens = random.Random(0).sample(sorted(tokenizer.get_vocab()), 2000) + tokenizer.all_special_tokens
    wanted = -(-STRINGS // len(TOKENIZERS))
    seed = 10**7 * [*TOKENIZERS].index(name)
    texts = FOUND + [fuzzed(seed + number, lines, tokens) for number in range(wanted - len(FOUND))]
    half = len(texts) // 2
    check(trials, tokenizer, smallest(shrinker, alphabet="all"), texts[:half] + FOUND, lossless=True)
    check(trials, tokenizer, shrinker.shrink(size=0.25), texts[half:], lossless=False)


@pytest.mark.parametrize("kind", vocab_helpers.BACKENDS)
def test_strings_are_read_as_by_a_tiny_tokenizer(kind, trials):
    tokenizer = vocab_helpers.fast_tokenizer(kind)
    shrinker = VocabShrinker(tokenizer).count(vocab_helpers.texts(30), progress=False)
    lines, tokens = vocab_helpers.texts(60), sorted(tokenizer.get_vocab())
    texts = FOUND + [fuzzed(number, lines, tokens) for number in range(5000 if fault_helpers.EVERYTHING else 400)]
    check(trials, tokenizer, shrinker.shrink(size=0.8, alphabet="all"), texts, lossless=True)
