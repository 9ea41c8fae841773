"""A pattern: text with one blank and the columns it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MASK_FIELD = "mask"
_FIELD = re.compile(r"\{([^{}\n]+)\}")

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Pattern:
    """Text such as "{premise} So {hypothesis}? {mask}.", taken apart.

    Attributes:
        text: with one `{mask}`; every other name in braces is a column.
    """

    text: str

    @property
    def pieces(self) -> list[str]:
        """Literal, field, literal, field, ..., literal."""
        return _FIELD.split(self.text)

    @property
    def blanks(self) -> int:
        return self.pieces[1::2].count(MASK_FIELD)

    @property
    def columns(self) -> list[str]:
        """Each column it reads, once."""
        return list(dict.fromkeys(name for name in self.pieces[1::2] if name != MASK_FIELD))

    @property
    def literals(self) -> list[str]:
        """Its own text, apart from white space."""
        return [piece for piece in self.pieces[::2] if piece.strip()]

    @property
    def left(self) -> list[str]:
        """The pieces before the blank, beginning and ending with a literal."""
        return self.pieces[: self._blank]

    @property
    def right(self) -> list[str]:
        """The pieces after the blank, beginning and ending with a literal."""
        return self.pieces[self._blank + 1 :]

    @property
    def blank_last(self) -> bool:
        """Whether no column stands behind the blank, so that a causal model, too, reads all of them before it answers."""
        return len(self.right) == 1

    @property
    def spacings(self) -> list[bool]:
        """Whether a space may stand before the blank: both, where a column does."""
        if self.left[-1]:
            return [self.left[-1].endswith(" ")]
        return [False, True] if len(self.left) > 1 else [False]

    @property
    def _blank(self) -> int:
        return 2 * self.pieces[1::2].index(MASK_FIELD) + 1


def written(pieces: Sequence[str], values: Mapping[str, str]) -> tuple[str, Spans]:
    """Pieces with the columns filled in.

    Returns: the text, and where in it the text of each field stands.
    """
    text, spans = pieces[0], []
    for name, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        spans.append((len(text), len(text) + len(values[name])))
        text += values[name] + literal
    return text, spans
