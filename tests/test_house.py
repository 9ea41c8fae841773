"""The house: imports run one way, between rooms and inside of them; few files at the root; no file is a hall."""

import ast
import graphlib
import re
import statistics

import pytest
import recipe_helpers

PACKAGE = recipe_helpers.ROOT / "hf_glmd"
FLOORS = (
    {"errors"},
    {"utils", "losses"},
    {"data"},
    {"vocab"},
    {"models"},
    {"tasks", "teachers"},
    {"reports"},
    {"hub"},
    {"shrinking", "training"},
    {"evaluation"},
    {"recipe"},
    {"cli"},
    {"__main__"},
)
"""A file may import from its own room and from the floors above it in this list."""

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path) -> set[str]:
    """Modules of the package that a file names, wherever in it: in functions and for types, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_glmd"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("hf_glmd.") for name in found} & set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_from_its_own_room_and_those_above(module):
    room = module.split(".")[0]
    others = {other.split(".")[0] for other in imports(MODULES[module])} - {room}
    below = sorted(other for other in others if FLOOR_OF[other] >= FLOOR_OF[room])
    assert not below, f"{module} imports from {below}"


def test_no_imports_run_in_a_circle():
    list(graphlib.TopologicalSorter({module: imports(path) for module, path in MODULES.items()}).static_order())


def test_few_files_lie_at_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_files_are_of_a_size_to_read():
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()]
    assert max(lines) <= 450 and 120 <= statistics.median(lines) <= 220


def test_the_map_in_the_readme_names_every_room():
    readme = (recipe_helpers.ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(re.findall(r"^ +(\w+)/ ", readme, flags=re.MULTILINE)) & rooms
