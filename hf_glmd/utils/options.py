"""Fields of the dataclasses that commands are told by: a help text, which is the documentation, and a default."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(text: str, default: Any = None, **more: Any) -> Any:
    """A field with its help text; `more` is other metadata, e.g. a metavar."""
    return field(default=default, metadata={"help": text} | more)


def list_option(text: str, **more: Any) -> Any:
    """A field that holds a list, empty by default."""
    return field(default_factory=list, metadata={"help": text} | more)
