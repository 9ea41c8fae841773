"""What of a local folder goes to the Hub, and whether the folder is one of ours."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from hf_glmd.errors import UsageError
from hf_glmd.reports.card import TAGS, card_metadata, named_in_usage

CARD = "README.md"

TRAINING_STATE = (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "training_args.bin",
)
"""What only a Trainer that goes on needs; training_args.bin is a pickle besides, which nobody should have to load."""

LEFT_OUT = (*TRAINING_STATE, "checkpoint-*", "runs", "_*", ".*", "*.part", "__pycache__")
"""Names, of files and folders, that are not part of a model."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "adapter_config.json")
"""Of a model in Hub format."""

OUR_FILES = ("vocab_map.safetensors", "vocab_report.json")


def files_to_push(folder: Path) -> dict[str, Path]:
    """As `find_files`. Raises: UsageError, there is no such folder, or nothing in it."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is {'a file' if folder.exists() else 'not there'}. Give the folder of a model.")
    if not (found := find_files(folder)):
        raise UsageError(f"'{folder}' holds nothing that could be pushed. Give the folder of a model.")
    return found


def find_files(folder: Path, left_out: Sequence[str] = LEFT_OUT) -> dict[str, Path]:
    """Path in the repository -> file, sorted.

    Args:
        left_out: patterns of names of files and folders.
    """

    def goes(name: str) -> bool:
        return not any(fnmatch.fnmatch(name, pattern) for pattern in left_out)

    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = filter(goes, folders)  # not looked into: others may be writing there
        for name in filter(goes, names):
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def check_ours(folder: Path, files: Sequence[str]) -> None:
    """Raises: UsageError, the folder holds no model or vocabulary made by this package."""
    if any(name in files for name in OUR_FILES) or (
        CARD in files and set(TAGS) & set(card_metadata(folder / CARD).get("tags") or [])
    ):
        return
    inside = next((name for name in ("student", "model") if (folder / name / CARD).is_file()), None)
    remedy = f"Its model is in '{folder / inside}': push that." if inside else "Push one that hf_glmd has written."
    raise UsageError(f"'{folder}' is no model or vocabulary of hf_glmd: it has neither {OUR_FILES[0]} nor its card. {remedy}")


def content_of(name: str, path: Path, repo: str) -> Path | bytes:
    """The file itself; of a card its text, whose usage code loads the repository instead of a folder here."""
    if name != CARD:
        return path
    text = path.read_text(encoding="utf-8")
    named = named_in_usage(text, repo)
    return path if named == text else named.encode()


def check_no_token(files: dict[str, Path], token: str) -> None:
    """Raises: UsageError, one of the files holds the access token. Weights are not searched."""
    for path in files.values():
        if path.suffix != ".safetensors" and token.encode() in path.read_bytes():
            raise UsageError(f"'{path}' holds your access token. Take it out of the file, and revoke it if others saw it.")
