"""What the pages say: blocks of code by language, and whether their Python names things that exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import recipe_helpers

ROOT = recipe_helpers.ROOT
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
OTHERS = ("sentence_transformers", "trl", "deepspeed")
"""Packages that pages may import and the tests' installation lacks."""


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def command_lines(page: str, program: str) -> list[list[str]]:
    """The words of each line of a bash block that runs a program; a line that ends in a backslash goes on."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith(f"{program} ")]


def hooks() -> Any:
    """docs/hooks.py, which mkdocs loads by its path."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check_python(code: str) -> None:
    """Compiles; every import exists; calls of what hf_glmd has pass arguments that it takes."""
    tree, known = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.module.split(".")[0] in OTHERS and importlib.util.find_spec(node.module.split(".")[0]) is None:
                continue
            module = importlib.import_module(node.module)
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] not in OTHERS:
                    importlib.import_module(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _called(node.func, known)) is not None:
            _check_keywords(called, node)


def _called(function: ast.expr, known: dict[str, Any]) -> Any:
    """What of hf_glmd is called, directly or as a method of a class: X(...), X.method(...); None: something else."""
    if isinstance(function, ast.Name):
        found = known.get(function.id)
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        owner = known.get(function.value.id)
        found = getattr(owner, function.attr) if inspect.isclass(owner) else None
    else:
        return None
    return found if (getattr(found, "__module__", None) or "").startswith("hf_glmd") else None


def _check_keywords(called: Any, node: ast.Call) -> None:
    from hf_glmd import GLMDConfig

    takes = dict(inspect.signature(called).parameters)
    if getattr(called, "__self__", None) is GLMDConfig:  # what makes one passes its options on
        takes = {name: one for name, one in takes.items() if one.kind is not one.VAR_KEYWORD}
        takes |= inspect.signature(GLMDConfig).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    unknown = [keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg not in takes]
    assert anything or not unknown, f"{called.__name__} takes no {', '.join(unknown)}"


def notebook_cells(path: Path) -> list[dict[str, Any]]:
    import json

    return json.loads(path.read_text(encoding="utf-8"))["cells"]
