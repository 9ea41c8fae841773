"""Texts that are set aside: not counted or trained on, so that what was chosen can be measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hf_glmd.errors import UsageError

EVERY = 20
"""One of so many texts is held out."""

HELD_OUT_TEXTS, HELD_OUT_CHARACTERS, TEXT_CHARACTERS = 2_000, 250_000, 4_096
"""At most so many are held out, until they have so many characters; of a longer text its beginning is measured."""


class HeldOutSplit:
    """A stream of texts without every twentieth, which are kept in `held_out`. The same texts in every run.

    Args:
        first: which of each twenty, from 1. The last keeps fewer than twenty texts whole.

    >>> split = HeldOutSplit(["a", "b", "c"])
    >>> list(split), split.held_out
    (['a', 'c'], ['b'])
    """

    def __init__(self, texts: Iterable[str], first: int = 2) -> None:
        self._texts, self._first = texts, first
        self.held_out: list[str] = []

    def __iter__(self) -> Iterator[str]:
        number = characters = 0
        for text in self._texts:
            is_open = len(self.held_out) < HELD_OUT_TEXTS and characters < HELD_OUT_CHARACTERS
            number += bool(text)
            if text and is_open and number % EVERY == self._first % EVERY:
                self.held_out.append(text[:TEXT_CHARACTERS])
                characters += len(self.held_out[-1])
            else:
                yield text


def first_texts(texts: Iterable[str], what: str) -> list[str]:
    """Texts that somebody held out himself, within the same bounds. Raises: UsageError, there is none."""
    found: list[str] = []
    characters = 0
    for text in texts:
        if text:
            found.append(text[:TEXT_CHARACTERS])
            characters += len(found[-1])
        if len(found) >= HELD_OUT_TEXTS or characters >= HELD_OUT_CHARACTERS:
            break
    if not found:
        raise UsageError(f"{what} holds no text: give a file with texts that are not counted.")
    return found
