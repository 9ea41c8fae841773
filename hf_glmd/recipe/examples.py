"""The recipes that come along, found by name from any folder, in a checkout as in an installed package."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError, nearest

PREFIX = "recipes/"
"""Of paths in recipes and on command lines that mean what comes along, where there is no such file here."""

WRITTEN = ("output", "output_dir", "folder")
"""Options that say where to write: always here."""


def recipe_folder() -> Path:
    """recipes/ of the repository, or where the installed package keeps its copy."""
    beside = Path(__file__).parents[2] / "recipes"
    return beside if beside.is_dir() else Path(sysconfig.get_path("data")) / "share" / "hf_glmd" / "recipes"


def recipe_names() -> dict[str, Path]:
    """Name -> file: "quickstart", "shrink/mt5-small-german"."""
    folder = recipe_folder()
    files = sorted([*folder.glob("*.yaml"), *folder.glob("shrink/*.yaml")])
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def found_file(path: str | Path) -> Path:
    """A file, or what comes along by that name or path; `path` itself where there is neither."""
    if Path(path).exists():
        return Path(path)
    return recipe_names().get(str(path), Path(with_own_paths(str(path))))


def with_own_paths(data: Any) -> Any:
    """Options' values, in which paths such as recipes/quickstart_teacher that are not here lead to what comes along."""
    if isinstance(data, dict):
        return {key: value if key in WRITTEN else with_own_paths(value) for key, value in data.items()}
    if isinstance(data, list):
        return [with_own_paths(value) for value in data]
    if isinstance(data, str) and data.startswith(PREFIX) and not Path(data).exists():
        there = recipe_folder() / data.removeprefix(PREFIX)
        return str(there) if there.exists() else data
    return data


def recipe_rows() -> list[tuple[str, str]]:
    """(command, what it makes) of each recipe that comes along; the latter is the first sentence of its comment."""
    rows = []
    for name, file in recipe_names().items():
        lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        command = "shrink" if name.startswith("shrink/") else "distill"
        rows.append((f"hf-glmd {command} --config {name}", " ".join(lines[1:]).strip().partition(". ")[0].rstrip(".")))
    return rows


def copy_recipe(name: str) -> Path:
    """Writes a recipe that comes along into the current folder, to be edited.

    Raises: UsageError, there is no such recipe, or a file of that name is here already.
    """
    known = recipe_names()
    if name not in known:
        raise UsageError(f"there is no recipe '{name}'. {nearest(name, known)}")
    path = Path(known[name].name)
    if path.exists():
        raise UsageError(f"'{path}' is here already. Move it away, or edit that one.")
    shutil.copyfile(known[name], path)
    return path
