"""Fields of the dataclasses that commands are told by: a help text, which is the documentation, and a default."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
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


def add_fields(parser: argparse.ArgumentParser, section: type, positional: Sequence[str] = ()) -> None:
    """One option per field of a dataclass, with the field's help. An option that is not given leaves no trace."""
    hints = typing.get_type_hints(section)
    for part in dataclasses.fields(section):
        kinds = [kind for kind in _kinds(hints[part.name]) if kind is not type(None)]
        options: dict[str, Any] = {"help": part.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if kinds[0] is bool:
            options["action"] = "store_true"
        elif typing.get_origin(kinds[0]) is list:
            options |= {"nargs": "+", "metavar": part.metadata.get("metavar", part.name.upper())}
        else:
            options["metavar"] = part.metadata.get("metavar", part.name.upper())
        if part.name in positional:
            parser.add_argument(part.name, nargs="?", **options)
        else:
            parser.add_argument(f"--{part.name.replace('_', '-')}", **options)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)


def given_options(arguments: argparse.Namespace, section: type) -> dict[str, Any]:
    """Name of a field -> what was typed for it, of those that were."""
    return {part.name: getattr(arguments, part.name) for part in dataclasses.fields(section) if hasattr(arguments, part.name)}


def cache_kind(kind: str) -> str:
    """The kind of a teacher cache as its files name it: "top_k" and "top-k" are "topk"; anything else as it is."""
    return {"top_k": "topk", "top-k": "topk"}.get(kind, kind)
