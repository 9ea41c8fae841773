"""Rows of SuperGLUE's files as flat examples: passages taken apart, pronouns and placeholders found, phrases to choose from."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

PLACEHOLDER = "@placeholder"
_END = string.whitespace + ".!?"


def flat_multirc(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A passage -> each of its answer options, with question and passage."""
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
                "label": answer.get("label"),
            }


def flat_record(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A passage -> each of its queries, with the texts of the passage's entities. The ends of entities are inclusive."""
    passage = row["passage"]
    entities = sorted({passage["text"][span["start"] : span["end"] + 1] for span in passage["entities"]})
    for query in row["qas"]:
        yield {
            "passage": passage["text"],
            "query": query["query"],
            "entities": entities,
            "answers": sorted({answer["text"] for answer in query["answers"]}) if "answers" in query else None,
            "idx": {"passage": row["idx"], "query": query["idx"]},
        }


def flat_wsc(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The two spans as columns of their own."""
    yield {name: value for name, value in row.items() if name != "target"} | dict(row["target"])


def derive_copa(row: Mapping[str, Any]) -> dict[str, str]:
    """Premise and choices as clauses of one sentence, and the word that joins them."""
    return {
        "clause": row["premise"].rstrip(_END),
        "joint": "because" if row["question"] == "cause" else "so",
        "clause1": _inner_clause(row["choice1"]),
        "clause2": _inner_clause(row["choice2"]),
    }


def derive_record(row: Mapping[str, Any]) -> dict[str, str]:
    """The story with its highlights as sentences, and the query on both sides of the placeholder."""
    before, _, after = row["query"].partition(PLACEHOLDER)
    story = re.sub(r"([.!?\"'])?\s*@highlight\s*", lambda found: f"{found[1] or '.'} ", row["passage"])
    return {"story": story, "before": before.rstrip(), "after": after}


def derive_wsc(row: Mapping[str, Any]) -> dict[str, Any]:
    """The text around the pronoun, and what the pronoun might stand for: first the phrase in question, then the others."""
    words = row["text"].split()
    place = _place_of(row["span2_text"], words, row["span2_index"])
    pronoun = words[place]
    opening = pronoun[: len(pronoun) - len(pronoun.lstrip(string.punctuation))]
    closing = pronoun[len(pronoun.rstrip(string.punctuation)) :]
    before, after = [*words[:place], opening], [closing, *words[place + 1 :]]
    named = row["span1_text"].strip()
    others = [phrase for phrase in noun_phrases(row["text"]) if not _overlap(phrase, named)]
    return {
        "before": " ".join(before).rstrip(),
        "after": " ".join(after) if closing else " " + " ".join(words[place + 1 :]),
        "pronoun": row["span2_text"],
        "candidates": [named, *(others or [row["span2_text"]])],
    }


def _inner_clause(sentence: str) -> str:
    """A sentence as it stands inside of another: no full stop, no capital unless its first word has one anywhere."""
    sentence = sentence.strip().rstrip(_END)
    first = sentence.split(" ", 1)[0]
    return sentence if first in ("I", "I'm", "I'd", "I've", "I'll") or first.isupper() else sentence[:1].lower() + sentence[1:]


def _place_of(word: str, words: list[str], place: int) -> int:
    """Where a word stands; a few rows of the data are off by one or two."""
    wanted = word.lower().strip(string.punctuation)
    places = [number for number, other in enumerate(words) if other.lower().strip(string.punctuation) == wanted]
    return min(places, key=lambda number: abs(number - place), default=min(place, len(words) - 1))


def _overlap(one: str, other: str) -> bool:
    """Whether one phrase is part of the other, articles and capitals aside."""
    first, second = (set(text.lower().split()) - {"the", "a", "an"} for text in (one, other))
    return first <= second or second <= first


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
