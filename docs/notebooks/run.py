"""Runs every cell of every notebook here: python docs/notebooks/run.py FOLDER, where they are written with what they show."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        try:
            NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
        finally:
            nbformat.write(notebook, folder / path.name)
        print(f"{path.name}: {time.monotonic() - started:.0f} s")  # noqa: T201 - the result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
