"""Text for Markdown: tables, free text and tokens that show as they are."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str], align: str | None = None) -> str:
    """A Markdown table whose columns are padded, so that the same text is legible in a terminal.

    Args:
        rows: cells, as many per row as `header` has. A `|` in a cell is escaped, a line break becomes a space.
        align: one letter per column, "l" or "r". Unset: all left.
    Raises: ValueError, a row or `align` has another number of columns.
    """
    align = align or "l" * len(header)
    table = [[_cell(cell) for cell in row] for row in [header, *rows]]
    if any(len(row) != len(header) for row in [*table, align]):
        raise ValueError(f"every row needs the {len(header)} columns of the header {list(header)}.")
    widths = [max(3, *(_width(row[column]) for row in table)) for column in range(len(header))]
    rule = ["-" * (width - 1) + ":" if side == "r" else "-" * width for width, side in zip(widths, align, strict=True)]
    lines = [[_padded(*cell) for cell in zip(row, widths, align, strict=True)] for row in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def markdown_text(text: str) -> str:
    """Free text that Markdown shows as it is. Underscores within words stay plain: they are harmless and frequent."""
    return re.sub(r"([\\`*\[<~])|(?<![^\W_])(_)|(_)(?![^\W_])", lambda match: "\\" + match[0], one_line(text))


def code_span(text: str) -> str:
    """A token as Markdown code, whatever backticks, spaces or line breaks it has."""
    text = re.sub(r"[\n\r\t\v\f\x85\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or (text[:1] == text[-1:] == " " and text.strip()) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text).replace("|", "\\|")


def _padded(text: str, width: int, side: str) -> str:
    space = " " * (width - _width(text))
    return space + text if side == "r" else text + space


def _width(text: str) -> int:
    """Columns in a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def percent(share: float | None) -> str:
    """0.974 -> "97.4%". Only 1 is "100%" and only 0 is "0%": what lies close to them gets more digits. Unknown: "-"."""
    if share is None or math.isnan(share):
        return "-"
    if share in (0, 1):
        return f"{share:.0%}"
    for digits in range(1, 6):
        text = f"{share:.{digits}%}"
        if float(text[:-1]) not in (0.0, 100.0):
            break
    return text


def duration(seconds: float) -> str:
    """45 -> "45 s", 754 -> "12.6 min", 9000 -> "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def percent_of(part: float, whole: float) -> str:
    """Whole percents from 10% on."""
    share = part / whole if whole else float("nan")
    text = f"{share:.0%}"
    return text if share >= 0.1 and (text != "100%" or share == 1) else percent(share)


def visible(token: str) -> str:
    """A token with its blanks and control characters made visible."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in token)
    return text if text.strip() else text.replace(" ", "␣")


def bytes_in_words(count: int) -> str:
    return f"{short(count)} bytes" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def short(value: float) -> str:
    """1,500 -> "1,500", 20000 -> "20k", 3000000 -> "3M", 0.25 -> "0.25"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.4g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
