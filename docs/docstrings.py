"""What our docstrings mean beside Google's style, told to mkdocstrings.

A section of one line ("Returns: [K] int64") is a paragraph of its own, lines that begin with >>> are Python, and a range ("> 0")
is no quotation.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ONE_LINE = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Source): ", flags=re.MULTILINE)
RANGE = re.compile(r"^(\s+[\w, *]+: )(?=>)", flags=re.MULTILINE)
EXAMPLE = re.compile(r"((?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*)", flags=re.MULTILINE)


class OneLineSections(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object with its docstring."""
        if obj.docstring:
            obj.docstring.value = as_paragraphs(obj.docstring.value)


def as_paragraphs(docstring: str) -> str:
    """The same as Markdown that Google's style leaves alone."""
    docstring = ONE_LINE.sub(r"\n**\1:** ", docstring)
    docstring = RANGE.sub(r"\1\\", docstring)
    return EXAMPLE.sub(lambda found: f"```python\n{found[1].rstrip()}\n```\n", docstring)
