"""What the pages show that stands elsewhere: options, commands, the README's first screen.

`<!-- options: hf_glmd.GLMDConfig -->` becomes a table of its own fields, `<!-- commands -->` what each command's `--help` prints,
and `<!-- README: first screen -->` all of the README before its first section. Links to files outside of docs/ work on GitHub; on
the site their text alone stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
OPTIONS = re.compile(r"<!-- options: ([\w.]+)\.(\w+) -->")
COMMANDS = "<!-- commands -->"
FIRST_SCREEN = "<!-- README: first screen -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once: the pictures of the first screen lie outside of docs/."""
    from mkdocs.structure.files import File

    for path in pictures(first_screen()):
        files.append(File.generated(config, picture(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    markdown = OPTIONS.sub(lambda found: options_table(getattr(importlib.import_module(found[1]), found[2])), markdown)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    if FIRST_SCREEN in markdown:
        screen = LINK.sub(lambda found: _from_docs(*found.groups()), first_screen())
        markdown = markdown.replace(FIRST_SCREEN, screen)
    return LINK.sub(lambda found: _inside(found, page.file.src_uri), markdown)


def options_table(options: type) -> str:
    """The fields of a dataclass that carry a help text of ours."""
    own = options.__dict__.get("__annotations__", {})
    fields = [field for field in dataclasses.fields(options) if field.name in own and field.metadata.get("help")]
    rows = [f"| `{field.name}` | {_default(field)} | {_cell(field.metadata['help'])} |" for field in fields]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def commands() -> str:
    """A heading and the help of each command."""
    names = re.findall(r"^    (\w+)(?: |$)", _help(), flags=re.MULTILINE)
    parts = [f"## hf-glmd {name}\n\n```text\n{_help(name)}\n```\n" for name in names if name.islower()]
    return "\n".join([f"```text\n{_help()}\n```\n", *parts])


def first_screen() -> str:
    """All of the README before its first section."""
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]


def pictures(markdown: str) -> list[str]:
    return [path for kind, _, path in LINK.findall(markdown) if kind == "!"]


def picture(path: str) -> str:
    """Where a picture of the README lies on the site."""
    return f"pictures/{Path(path).name}"


def _from_docs(kind: str, text: str, target: str) -> str:
    """A link of the README, as a page at the top of docs/ writes it."""
    if kind == "!":
        target = picture(target)
    elif "://" not in target and not target.startswith("#"):
        target = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
    return f"{kind}[{text}]({target})"


def _inside(found: re.Match, page: str) -> str:
    """A link, or its text if the file lies outside of docs/."""
    _, text, target = found.groups()
    path = os.path.normpath(os.path.join(os.path.dirname(page), target.partition("#")[0]))
    if "://" in target or not path.startswith(".."):
        return found[0]
    if not (ROOT / "docs" / path).exists():
        log.warning("%s links to '%s', which does not exist.", page, target)
    return text


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`" if not dataclasses.is_dataclass(field.default_factory) else ""
    return "" if field.default in (None, dataclasses.MISSING) else f"`{field.default!r}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;").replace("*", "\\*")


def _help(*words: str) -> str:
    from hf_glmd.cli import main

    out = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "110", "NO_COLOR": "1"}):
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    return out.getvalue().strip()
