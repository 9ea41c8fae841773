"""A folder's files, written and checked beside it and then moved in, so that nothing half-written stays."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError

logger = logging.getLogger(__name__)


@contextmanager
def written_whole(directory: str | os.PathLike[str], stale: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder to write to; what is in it at the end is moved into `directory`, unless an exception ends the block.

    Other files of `directory` stay, except those named by `stale`.

    Args:
        directory: made if it is not there, and then it appears all at once.
        stale: files and folders that would be mixed with the new ones.
    Raises: UsageError, `directory` is a file.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is a file: give a folder to save to.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as beside:
        # A folder inside of it: that one is private to the user, the result has the usual permissions.
        written = Path(beside) / "whole"
        written.mkdir()
        yield written
        if not directory.exists():
            os.replace(written, directory)
            return
        for name in stale:
            if (directory / name).exists() and not (written / name).exists():
                logger.warning("Removing '%s': it belongs to what is replaced.", directory / name)
                _remove(directory / name)
        for item in written.iterdir():
            if item.is_dir():
                _remove(directory / item.name)
            os.replace(item, directory / item.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """Writes whole or not at all: a run killed meanwhile leaves the old file, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, path)
