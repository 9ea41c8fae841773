"""Phrases of an English text that a pronoun might stand for, found without a parser.

Made for WSC, where the phrase in question has to be likelier than the other ones. A phrase too many hardly matters: the model
finds it unlikely.
"""

from __future__ import annotations

import re

DETERMINERS = frozenset("the a an this these those my your his her its our their some any each every no another".split())
"""A phrase goes on from here to the next function word or punctuation mark."""

FUNCTION_WORDS = frozenset(
    """
    about above across after again against ago all almost along already also although always am among and are around as at
    away back be because become been before behind being below beside between beyond both but by came can cannot come could
    did do does done down during either else enough even eventually ever few finally first for fortunately from gave get
    give go goes gone got had has have he hence here hers herself him himself how however i if in inside instead into is it
    itself just kept knew know last left less like luckily made make many may me meanwhile might mine more most much must
    near nearly neither never next nor not now of off often on once one only or other others ought ours out outside over own
    past perhaps put quite rather really s said same saw say says see seem seemed seems shall she should since so somehow
    soon still such suddenly t take than that their theirs them themselves then there they though thought through throughout
    till to today together told tomorrow too took toward towards tried under until up upon us used very want wanted was we
    well went were what when where whether which while who whom whose why will with within without would yes yesterday yet
    you yours
    """.split()
)
"""They end a phrase and are no name at the beginning of a sentence."""

_TOKEN = re.compile(r"(?:Mrs?|Ms|Dr|St)\.|[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
_LONGEST = 4


def noun_phrases(text: str) -> list[str]:
    """Names ("Mr. Moncrieff") and what follows a determiner ("the city councilmen"), each once, in order."""
    tokens = _TOKEN.findall(text)
    found: dict[str, str] = {}
    place = 0
    while place < len(tokens):
        phrase = _name(tokens[place:]) or _determined(tokens[place:])
        if phrase:
            found.setdefault(" ".join(phrase).lower(), " ".join(phrase))
        place += max(1, len(phrase))
    return list(found.values())


def _name(tokens: list[str]) -> list[str]:
    """Capitalised words from here on, if they are a name."""
    if tokens[0].lower() in DETERMINERS | FUNCTION_WORDS:
        return []
    length = 0
    while length < min(len(tokens), _LONGEST) and tokens[length][0].isupper():
        length += 1
    return tokens[:length]


def _determined(tokens: list[str]) -> list[str]:
    """A determiner and the words it belongs to, without the verb where its ending tells."""
    if tokens[0].lower() not in DETERMINERS:
        return []
    length = 1
    while length < min(len(tokens), _LONGEST) and tokens[length][0].isalnum() and not _ends_phrase(tokens[length], length):
        length += 1
    return tokens[:length] if length > 1 else []


def _ends_phrase(word: str, place: int) -> bool:
    return word.lower() in DETERMINERS | FUNCTION_WORDS or (place > 1 and word.endswith(("ed", "ing")))
