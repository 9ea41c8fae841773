"""Fields of the dataclasses that commands are told by: a help text, which is the documentation, and a default."""

from __future__ import annotations

from dataclasses import field
from typing import Any

TEXT_SOURCES = (
    "files (.txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz, .xz, .bz2 or .zst), folders, patterns such as 'data/*.txt', "
    "what save_to_disk of a data set wrote, data sets on the Hub (name, name:config or name:config:split), or 'docstrings'"
)
"""What every command reads text from."""


def option(text: str, default: Any = None, **more: Any) -> Any:
    """A field with its help text; `more` is other metadata, e.g. a metavar."""
    return field(default=default, metadata={"help": text} | more)


def list_option(text: str, **more: Any) -> Any:
    """A field that holds a list, empty by default."""
    return field(default_factory=list, metadata={"help": text} | more)
