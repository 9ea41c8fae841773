"""Writes docs/api.md from the docstrings: `make docs`.

python docs/make_api.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import sys
from pathlib import Path

from griffe import GriffeLoader, ModulesCollection, Parser
from griffe2md import render_object_docs
from griffe2md._internal.config import default_config

import hf_glmd
from hf_glmd.cli import main as run_command

PAGE = Path(__file__).parent / "api.md"

CHAPTERS = {
    "Vocabulary": ["VocabShrinker", "ShrunkVocab", "VocabMap", "MappedTokenizer", "temporarily_shrunk"],
    "Loss": ["word_prediction_loss", "soft_label_loss"],
    "Training": ["GLMDConfig", "GLMDTrainer", "build_student", "WordPredictionCollator"],
    "Teachers": ["LiveTeacher", "AdaptersOffTeacher", "TeacherEnsemble", "TeacherCache"],
    "Tasks and corpora": ["ClozeTask", "ClozeClassifier", "docstring_corpus"],
    "Errors": ["UsageError"],
}
"""Every public name, in the order in which people meet them."""

_STYLE = {
    **default_config,
    "heading_level": 3,
    "line_length": 120,
    "members_order": "source",
    "show_signature_annotations": True,
    "summary": False,
    "show_if_no_docstring": False,
    "filters": ["!^_"],
}


def api_page() -> str:
    """The whole page, as Markdown."""
    named = {name for names in CHAPTERS.values() for name in names}
    missing = set(hf_glmd.__all__) - {"__version__"} - named
    if missing:
        raise SystemExit(f"docs/make_api.py: {', '.join(sorted(missing))} belong to no chapter.")
    parts = ["# API", "", "Made from the docstrings by `make docs`. Shapes are in brackets; `V` tokens before, `K` after.", ""]
    for chapter, names in CHAPTERS.items():
        parts.append(f"## {chapter}\n")
        parts += [_object(name) for name in names]
    parts.append("## Command line\n")
    parts += [f"```text\n{_help(*words)}\n```\n" for words in [(), *((command,) for command in _commands())]]
    return "\n".join(parts)


def _object(name: str) -> str:
    path = f"{hf_glmd._HOMES[name]}.{name}"
    text = render_object_docs(_sources()[path], _STYLE)
    text = re.sub(r"<code>(.*?)</code>", _plain_type, text)
    text = re.sub(r"\[(\*\*\w+\*\*)\]\(#[^)]*\)", r"\1", text)
    text = re.sub(r'<a id="[^"]*"></a>\n*', "", text)
    text = re.sub(rf"`{re.escape(hf_glmd._HOMES[name])}\.", "`", text)
    text = re.sub(r"((?:^>>> .*\n)+)", r"```python\n\1```\n", text, flags=re.MULTILINE)
    # Sections of one line ("Returns: [K] int64") are paragraphs of their own.
    text = re.sub(r"^(Returns|Raises|Source|Attributes|Yields): ", r"\n**\1:** ", text, flags=re.MULTILINE)
    options = getattr(hf_glmd, name)
    if dataclasses.is_dataclass(options):
        text += _fields(options)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def _sources() -> ModulesCollection:
    loader = GriffeLoader(search_paths=[Path(hf_glmd.__file__).parents[1]], docstring_parser=Parser("google"))
    loader.load("hf_glmd")
    return loader.modules_collection


def _plain_type(found: re.Match) -> str:
    return "`" + re.sub(r"\[([^\[\]]*)\]\(#[^)]*\)", r"\1", found[1]) + "`"


def _fields(options: type) -> str:
    """A table of the fields that carry a help text of ours."""
    own = options.__dict__.get("__annotations__", {})
    ours = [field for field in dataclasses.fields(options) if field.name in own and field.metadata.get("help")]
    if not ours:
        return ""
    rows = [f"| `{f.name}` | {_default(f)} | {f.metadata['help']} |" for f in ours]
    return "\n".join(["\n| option | default | |", "|---|---|---|", *rows]) + "\n"


def _default(field: dataclasses.Field) -> str:
    return "" if field.default in (None, dataclasses.MISSING) else f"`{field.default!r}`"


def _commands() -> list[str]:
    return re.findall(r"^    (\w+) ", _help(), flags=re.MULTILINE)


def _help(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_command([*words, "--help"])
    return out.getvalue().strip()


if __name__ == "__main__":
    logging.getLogger("griffe").setLevel(logging.ERROR)  # one line for two parameters of a kind is our style
    os.environ["COLUMNS"] = "120"
    text = api_page()
    if "--check" in sys.argv:
        raise SystemExit(None if PAGE.read_text(encoding="utf-8") == text else "docs/api.md is out of date: run `make docs`.")
    PAGE.write_text(text, encoding="utf-8")
