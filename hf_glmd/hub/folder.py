"""What of a local folder goes to the Hub, and whether the folder is one of ours."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_glmd.errors import UsageError
from hf_glmd.reports.card import TAGS, card_metadata, named_in_usage
from hf_glmd.utils.files import SUMS, check_sums, own_file, summed

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

PUSHED = (
    *("README.md", "config.json", "generation_config.json", "adapter_config.json", "model.safetensors"),
    *("model-*-of-*.safetensors", "adapter_model.safetensors", "adapter_model.bin"),
    *(
        "*.safetensors.index.json",
        "pytorch_model*.bin*",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template*",
        "additional_chat_templates/*",
    ),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "original_tokenizer/*"),
    *("[0-9]_*/*.json", "[0-9]_*/*.safetensors"),  # modules of sentence-transformers
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "vocab_map.safetensors", "cloze_task.json"),
    *("vocab_report.json", "vocabulary.png", "plots/*.png", "report.html", "task.json"),
    *("LICEN[CS]E*", "[Ll]icen[cs]e*", "NOTICE*", "COPYING*", "*USE_POLICY*"),
)
"""Paths that belong to a model. Beside them goes what the folder's list of sums names, which is what we wrote into it."""

NEVER = (*TRAINING_STATE, "*.jsonl", "*.pem", "*.key", "id_*", "*credential*", "*counts*.safetensors", "done.json", "run.json")
"""Of a folder that we wrote, too: states of training, data, and what may hold a secret or the text of a corpus."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "adapter_config.json")
"""Of a model in Hub format."""

OUR_FILES = ("vocab_map.safetensors", "vocab_report.json")


def files_to_push(folder: Path) -> dict[str, Path]:
    """As `find_files`. Raises: UsageError, there is no such folder, nothing in it, or a file is not what was written."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is {'a file' if folder.exists() else 'not there'}. Give the folder of a model.")
    if not (found := find_files(folder)):
        raise UsageError(f"'{folder}' holds nothing that could be pushed. {_model_inside(folder)}")
    check_sums(folder)
    return found


def find_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file, sorted: of the files of a folder those that belong to a model.

    Raises: UsageError, one of them is a link that leads out of the folder, or nowhere.
    """
    ours = summed(folder)
    names = [
        name
        for name in _paths(folder)
        if (name in ours or _matches(name, PUSHED)) and not any(_matches(part, NEVER) for part in name.split("/"))
    ]
    return {name: own_file(folder, name) for name in names if name != SUMS}


def files_that_stay(folder: Path, found: Iterable[str]) -> list[str]:
    """What lies in the folder and is not pushed, our own list of sums aside; a folder that is not looked into ends in "/"."""
    unseen = []
    for parent, folders, names in os.walk(folder):
        skipped = [name for name in folders if _is_skipped(name) or Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if name not in skipped]
        paths = [*(f"{name}/" for name in skipped), *(name for name in names if name.startswith("."))]
        unseen += [Path(parent, name).relative_to(folder).as_posix() + "/" * name.endswith("/") for name in paths]
    return sorted({*unseen, *_paths(folder)} - {*found, SUMS})


def checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    """Path -> file, sorted, of everything that a Trainer needs to go on from a checkpoint."""
    return {name: own_file(checkpoint, name) for name in _paths(checkpoint)}


def _paths(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        # Checkpoints and logs are not looked into: others may be writing there.
        folders[:] = [name for name in folders if not _is_skipped(name)]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _is_skipped(folder: str) -> bool:
    return folder == "runs" or folder.startswith(("checkpoint-", ".", "_"))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def check_ours(folder: Path, files: Sequence[str]) -> None:
    """Raises: UsageError, the folder holds no model or vocabulary made by this package."""
    if any(name in files for name in OUR_FILES) or (
        CARD in files and set(TAGS) & set(card_metadata(folder / CARD).get("tags") or [])
    ):
        return
    wanted = f"it has neither {OUR_FILES[0]} nor its card"
    raise UsageError(f"'{folder}' is no model or vocabulary of hf_glmd: {wanted}. {_model_inside(folder)}")


def _model_inside(folder: Path) -> str:
    inside = next((name for name in ("student", "model") if (folder / name / CARD).is_file()), None)
    return f"Its model is in '{folder / inside}': push that." if inside else "Push one that hf_glmd has written."


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
