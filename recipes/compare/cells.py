"""Results of a comparison, one file per cell, made once: by whichever process claims it first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_glmd.errors import UsageError
from hf_glmd.utils.files import read_json, write_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        name: for people.
        facts: everything that decides its result; its key is made of them.
        make: measures it; files of its own go into the folder that it is given.
    """

    name: str
    facts: Mapping[str, Any]
    make: Callable[[Path], Result] = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]


class Cells:
    """The folder of results: `KEY.json` with facts and result of a cell, and a folder `KEY` where it has files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def files(self, cell: Cell) -> Path:
        return self.folder / cell.key

    def result(self, cell: Cell) -> Result | None:
        """None: it is not measured yet. Raises: UsageError, the file is damaged or tells of something else."""
        path = self.folder / f"{cell.key}.json"
        if not path.exists():
            return None
        remedy = "Delete the file, and the cell is measured again."
        held = read_json(path, remedy)
        if not isinstance(held, dict) or "result" not in held or held.get("facts") != json.loads(json.dumps(cell.facts)):
            raise UsageError(f"{path} is not the result of '{cell.name}'. {remedy}")
        return held["result"]

    def has_key(self, key: str) -> bool:
        return (self.folder / f"{key}.json").exists()

    def measure(self, cell: Cell) -> bool:
        """Measures a cell unless another process is at it. Returns: whether it did."""
        try:
            with FileLock(self.folder / f"{cell.key}.lock", timeout=0):  # falls open when its process dies
                if self.result(cell) is None:
                    result = cell.make(self.files(cell))
                    write_json(self.folder / f"{cell.key}.json", {"name": cell.name, "facts": cell.facts, "result": result})
        except Timeout:
            return False
        return True

    def others(self, cells: list[Cell]) -> list[str]:
        """Names of results in the folder that none of these cells made."""
        ours = {f"{cell.key}.json" for cell in cells}
        return sorted(path.name for path in self.folder.glob("*.json") if path.name not in ours)
