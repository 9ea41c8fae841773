"""What the pages of the reference show that no docstring holds: help texts of options, and of commands.

`<!-- options: hf_glmd.GLMDConfig -->` becomes a table of its own fields, `<!-- commands -->` what each command's `--help` prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
from typing import Any

OPTIONS = re.compile(r"<!-- options: ([\w.]+)\.(\w+) -->")
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **page: Any) -> str:
    """Called by mkdocs for every page."""
    markdown = OPTIONS.sub(lambda found: options_table(getattr(importlib.import_module(found[1]), found[2])), markdown)
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def options_table(options: type) -> str:
    """The fields of a dataclass that carry a help text of ours."""
    own = options.__dict__.get("__annotations__", {})
    fields = [field for field in dataclasses.fields(options) if field.name in own and field.metadata.get("help")]
    rows = [f"| `{field.name}` | {_default(field)} | {_cell(field.metadata['help'])} |" for field in fields]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def commands() -> str:
    """A heading and the help of each command."""
    names = re.findall(r"^    (\w+) ", _help(), flags=re.MULTILINE)
    parts = [f"## hf-glmd {name}\n\n```text\n{_help(name)}\n```\n" for name in names]
    return "\n".join([f"```text\n{_help()}\n```\n", *parts])


def _default(field: dataclasses.Field) -> str:
    return "" if field.default in (None, dataclasses.MISSING) else f"`{field.default!r}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _help(*words: str) -> str:
    from hf_glmd.cli import main

    os.environ["COLUMNS"] = "110"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue().strip()
