"""Very long texts, cut where their tokens do not change, so that tokenizing them takes bounded memory."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

PIECE_CHARACTERS = 2**20
"""Longer texts are cut: a tokenizer takes some 130 bytes for each character of what it is given at once."""

PORTION_CHARACTERS = 2**21
"""Texts are handed to a tokenizer in portions that are closed at this many characters."""

_WINDOW = 500
_TRIES = 200


class TextCutter:
    """Cuts long texts into pieces whose tokens, one piece after the other, are those of the whole text.

    A cut lies at a single space or newline. It is taken where the tokenizer gives the text around it, `_WINDOW` characters on
    either side, the same tokens in one piece and in two, and where nothing can reach across: the space begins another word, which
    is split without regard to the one before, or no token of the vocabulary goes on behind a space within it. Where there is no
    such place the text is cut all the same, and that is said.

    Args:
        tokenizer: whose tokens they are.
        encode: a text as this tokenizer reads it, without special tokens around it, truncation or padding.
    """

    def __init__(self, tokenizer: Tokenizer, encode: Callable[[str], Encoding]) -> None:
        self.tokenizer, self.encode = tokenizer, encode

    def portions(self, texts: Iterable[str], first: int = 0) -> Iterator[list[tuple[int, str]]]:
        """The pieces of some texts, each with the number of its text (from `first` on), as many at once as a tokenizer gets."""
        portion: list[tuple[int, str]] = []
        characters = 0
        for number, text in enumerate(texts, start=first):
            for piece in (text,) if len(text) <= PIECE_CHARACTERS else self.pieces(text):
                portion.append((number, piece))
                characters += len(piece)
                if characters >= PORTION_CHARACTERS:
                    yield portion
                    portion, characters = [], 0
        if portion:
            yield portion

    def pieces(self, text: str) -> Iterator[str]:
        """The text in pieces of at most `PIECE_CHARACTERS`."""
        start, unsure = 0, 0
        while len(text) - start > PIECE_CHARACTERS:
            end, following, sure = self._cut(text, start, start + PIECE_CHARACTERS)
            yield text[start:end]
            start, unsure = following, unsure + (not sure)
        yield text[start:]
        if unsure:
            logger.warning(
                "A text of %s characters is cut in %d places where its tokens may differ: there is no space that is sure to "
                "separate two tokens.",
                f"{len(text):,}",
                unsure,
            )

    def _cut(self, text: str, start: int, end: int) -> tuple[int, int, bool]:
        """Where a piece ends, where the next one begins, and whether the tokens are sure to stay."""
        spaces = re.finditer(r"\S\s(?=\S)", text[end - 1 : start : -1])
        places = [end - 2 - match.start() for match in itertools.islice(spaces, _TRIES)]
        for place in places:
            before, after = text[max(start, place - _WINDOW) : place], text[place : place + _WINDOW]
            try:
                whole, left = self.encode(before + after), self.encode(before)
                for skipped in (0, 1):
                    if whole.ids == left.ids + self.encode(after[skipped:]).ids and self._separates(whole, len(before), after):
                        return place, place + skipped, True
            except TypeError:  # no valid Unicode, which is said of the whole text
                return len(text), len(text), True
        return (places[0], places[0], False) if places else (end, end, False)

    def _separates(self, encoded: Encoding, place: int, after: str) -> bool:
        words = encoded.char_to_word(place - 1), encoded.char_to_word(place + 1)
        return (None not in words and words[0] != words[1]) or (after[0] == " " and not self._words_are_joined)

    @cached_property
    def _words_are_joined(self) -> bool:
        """Whether a token holds a space behind something else."""
        return any(re.search("[^\u2581\u0120 ][\u2581\u0120 ]", token) for token in self.tokenizer.get_vocab())
