"""Which checkpoint to go on from: the newest that was written to its end and is as it was written."""

from __future__ import annotations

import logging
from pathlib import Path

from hf_glmd.errors import UsageError
from hf_glmd.utils.files import SUMS, check_sums, remove

logger = logging.getLogger(__name__)


def last_complete_checkpoint(folder: Path, remove_others: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end and is as it was written.

    Our list of sums is written last: a checkpoint without it is one that the process was killed in. A damaged one is named in a
    warning, and the one before it is taken.

    Args:
        remove_others: delete the unfinished and the damaged ones.
    """
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    for path in sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if (path / SUMS).is_file():
            try:
                check_sums(path)
                return path
            except UsageError as error:
                logger.warning("%s Going on without this checkpoint.", error)
        if remove_others:
            remove(path)
    return None
