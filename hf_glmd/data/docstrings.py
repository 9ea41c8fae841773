"""A corpus that needs no download: the docstrings of libraries that are installed anyway.

About 30,000 English texts about programming, each labelled with the library it comes from. They are read with `ast`, so no
library is imported and nothing is executed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import datasets

from hf_glmd.errors import UsageError

LIBRARIES: tuple[str, ...] = (
    "python",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "peft",
)
"""Where the docstrings come from. `python` is the standard library of the running interpreter."""

SPLIT_PERCENT: dict[str, int] = {"test": 5, "validation": 5, "train": 90}
"""Share of each split in percent, in the order in which the content hash fills them."""

MIN_WORDS = 5
"""Shorter docstrings ("Returns the value.") say nothing about their library and are left out."""

_NOT_LIBRARY_CODE = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
)


def docstring_corpus(libraries: tuple[str, ...] = LIBRARIES, num_proc: int | None = None) -> datasets.DatasetDict:
    """The docstrings of installed libraries, de-duplicated and split by content.

    A text always falls in the same split, whatever else is installed: the split is a function of the text alone, so a model
    trained on the train split of one machine has not seen the test split of another.

    Args:
        libraries: names out of `LIBRARIES`, or of any other installed package.
        num_proc: processes that parse. Default: all cores, at most 8.
    Returns: `DatasetDict` of `train`, `validation`, `test`, each with the columns `text` (str) and `library` (str), cached by
        `datasets` under the versions of the libraries.
    Raises: UsageError, a library is not installed.
    """
    files = [(library, str(path)) for library in libraries for path in _source_files(library)]
    names, paths = zip(*files, strict=True)
    versions = library_versions(libraries)
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 8)
    rows = datasets.Dataset.from_generator(
        _docstrings,
        gen_kwargs={"libraries": list(names), "paths": list(paths), "versions": tuple(versions.items())},
        features=datasets.Features({"text": datasets.Value("string"), "library": datasets.Value("string")}),
        num_proc=num_proc,
    )
    keep: dict[str, list[int]] = {split: [] for split in SPLIT_PERCENT}
    seen: set[bytes] = set()
    for index, text in enumerate(rows["text"]):
        digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            keep[_split_of(digest)].append(index)
    return datasets.DatasetDict({split: rows.select(keep[split]) for split in ("train", "validation", "test")})


def library_versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Library -> installed version, for cards and cache keys."""
    return {
        name: platform.python_version() if name == "python" else metadata.version(name.replace("_", "-")) for name in libraries
    }


def _split_of(digest: bytes) -> str:
    bucket = int.from_bytes(digest[:8], "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if bucket < percent:
            return split
        bucket -= percent
    raise AssertionError("SPLIT_PERCENT does not add up to 100")


def _source_files(library: str) -> list[Path]:
    if library == "python":
        roots = [Path(sysconfig.get_path("stdlib"))]
    else:
        spec = importlib.util.find_spec(library)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(f"library '{library}' is not an installed package. Install it, or leave it out of the corpus.")
        roots = [Path(location) for location in spec.submodule_search_locations]
    return sorted(
        path for root in roots for path in root.rglob("*.py") if _NOT_LIBRARY_CODE.isdisjoint(path.relative_to(root).parts)
    )


def _docstrings(libraries: list[str], paths: list[str], versions: tuple) -> Iterator[dict[str, str]]:
    # `versions` is not read: it is part of the arguments so that `datasets` makes a new cache when a library changes.
    for library, path in zip(libraries, paths, strict=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources
                tree = ast.parse(Path(path).read_bytes())
        except (SyntaxError, ValueError):  # templates and files for other Python versions
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text.split()) >= MIN_WORDS:
                    yield {"text": text, "library": library}
