"""SuperGLUE's nested rows -> flat ones, and the columns that its patterns read beside the official ones."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from hf_glmd.tasks.noun_phrases import noun_phrases

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
