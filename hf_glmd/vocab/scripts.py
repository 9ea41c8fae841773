"""Which writing systems the tokens of a vocabulary are in, and how much of each is kept."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

OTHER = "no letters"
"""Digits, punctuation, blanks, parts of characters, special tokens."""

# The first word of a character's Unicode name is its script, with these exceptions.
_SPELT = {"CJK": "Han", "IDEOGRAPHIC": "Han", "CANADIAN": "Canadian Aboriginal"}
_NOT_SCRIPTS = ("MODIFIER", "COMBINING")


_LARGE = ("Han", "Hangul", "Yi", "Egyptian", "Cuneiform")
"""Scripts with a character per word or syllable, thousands of them: what was counted says which are in use."""

_IN_USE = 0.01
"""Share of the counted letters from which on a script is one of the text's own, not that of a quoted name."""

_TYPOGRAPHIC = ("P", "Sc", "Sm", "N")
"""Categories of what text in any script is set with: quotes, dashes, currency and mathematical signs, figures."""

_LAST_SIGN = "\u21ff"
"""Other symbols up to here are of text (degree, copyright, trade mark, arrows), later ones are mostly pictures."""


@dataclass
class ScriptShare:
    """What a smaller vocabulary keeps of a script."""

    script: str = field(metadata={"help": "As Unicode names its letters, e.g. Latin; Han for Chinese characters."})
    tokens: int = field(metadata={"help": "Tokens whose first letter is of this script, before."})
    kept: int = field(metadata={"help": "Those of them that were kept."})
    counted: int = field(metadata={"help": "How often these tokens were counted."})
    kept_counted: int = field(metadata={"help": "How often those kept were."})
    tokens_before: int = field(default=0, metadata={"help": "Tokens of this script's words in the ledger's texts, before."})
    tokens_after: int = field(default=0, metadata={"help": "Tokens of the same words after."})


def script_shares(texts: Sequence[str], counts: np.ndarray, kept_ids: np.ndarray) -> list[ScriptShare]:
    """Shares of each script, the one with most tokens first.

    Args:
        texts: [V], what each token stands for, as text.
        counts: int64 [V].
        kept_ids: [K].
    """
    names = np.array([script_of(text) for text in texts])
    kept = np.zeros(len(texts), dtype=bool)
    kept[kept_ids] = True
    shares = []
    for name in np.unique(names):
        here = names == name
        share = ScriptShare(str(name), *(int(n) for n in (here.sum(), (here & kept).sum(), counts[here].sum())), 0)
        share.kept_counted = int(counts[here & kept].sum())
        shares.append(share)
    return sorted(shares, key=lambda share: (-share.tokens, share.script))


def scripts_in_use(texts: Sequence[str], counts: np.ndarray) -> frozenset[str]:
    """Those that at least one in a hundred of the counted letters is of; none of the large ones, such as Han.

    Args:
        texts: [N], what some tokens stand for.
        counts: int64 [N].
    """
    letters: dict[str, int] = {}
    for text, count in zip(texts, counts.tolist(), strict=True):
        for script in filter(None, map(_script_of_char, text)) if count else ():
            letters[script] = letters.get(script, 0) + count
    least = _IN_USE * sum(letters.values())
    return frozenset(name for name, count in letters.items() if count >= least and name not in _LARGE)


def is_written_in(char: str, scripts: frozenset[str]) -> bool:
    """Whether text in these scripts is written with a character: their letters and marks, and what any text is set with."""
    category = unicodedata.category(char)
    if category.startswith(_TYPOGRAPHIC):
        return True
    if category.startswith("L"):
        return _script_of_char(char) in scripts
    if category.startswith("M"):  # accents of all scripts, vowel signs of one
        word = unicodedata.name(char, "").split(" ")[0]
        return word in _NOT_SCRIPTS or word.capitalize() in scripts
    return category.startswith("S") and char <= _LAST_SIGN


def script_of(text: str) -> str:
    """The script of the first letter, e.g. "Latin", "Cyrillic", "Han"; `OTHER` if there is none."""
    return next((script for char in text if (script := _script_of_char(char))), OTHER)


@cache
def _script_of_char(char: str) -> str | None:
    if char.isascii():
        return "Latin" if char.isalpha() else None
    if not unicodedata.category(char).startswith("L"):
        return None
    for plain in unicodedata.normalize("NFKC", char):  # full width, mathematical, ligatures
        word = unicodedata.name(plain, "").split(" ")[0]
        if plain.isalpha() and word and word not in _NOT_SCRIPTS:
            return _SPELT.get(word, word.split("-")[0].capitalize())
    return None
