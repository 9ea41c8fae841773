"""What lies beside weights and tokenizer of a checkpoint and holds nothing of its vocabulary: it goes along when that is cut.

Carried along are the modules of a sentence-transformers repository, the settings of image, audio and video processors, and the
terms of the licence. `generation_config.json` and chat templates are written by model and tokenizer. Left behind are copies of
the weights in other formats, which have the old vocabulary, and the model card, which tells of another model.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from hf_glmd.errors import UsageError

logger = logging.getLogger(__name__)

_MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
REPLACED_FILES = (
    _MODULES,
    _SETTINGS,
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Those that change how a folder is read: what another checkpoint left of them must not stay beside a new one."""

_TERMS = ("LICEN[CS]E*", "[Ll]icen[cs]e*", "NOTICE*", "COPYING*", "*USE_POLICY*")
_TOP_LEVEL = (*REPLACED_FILES, "sentence_*_config.json", *_TERMS)

_PER_TOKEN = frozenset({"BoW", "WordEmbeddings", "WordWeights", "StaticEmbedding", "SparseStaticEmbedding"})
"""Modules of sentence-transformers with an entry per token."""

_OUT_PER_TOKEN = "SpladePooling"  # has no weights, but its config says how many tokens there are
_SIZES = ("embedding_dimension", "word_embedding_dimension")
_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class CarriedFiles:
    """Files of a checkpoint that hold nothing of its vocabulary.

    Attributes:
        root: where they are.
        names: paths below it.
        prompts: what sentence-transformers writes before texts of some kinds; the model has to know its tokens.
        sized: the configs among them that say how many tokens there are.
    """

    root: Path
    names: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()

    def copy_to(self, folder: Path, size: int) -> None:
        """Copies them; `size` is the number of tokens that are left."""
        for name in self.names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, folder / name)
        for name in self.sized:
            config = _json(folder / name)
            config |= {key: size for key in _SIZES if config.get(key) is not None}
            (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_carried_files(model: str | PathLike[str], revision: str | None = None) -> CarriedFiles:
    """What is to be carried along from a folder or from a model on the Hub.

    Raises: UsageError, a module of sentence-transformers has an entry per token or lies outside of the folder, their list is
        damaged, or the Hub cannot be asked.
    """
    root = _folder(model, revision, _TOP_LEVEL)
    names = {path.name for pattern in _TOP_LEVEL for path in root.glob(pattern) if path.is_file()}
    if _MODULES not in names:
        return CarriedFiles(root, tuple(sorted(names)))
    listed = {entry["path"]: entry["type"].rpartition(".")[2] for entry in _json(root / _MODULES)}
    modules = {path: kind for path, kind in listed.items() if path not in ("", ".")}  # the model itself is at the top
    for path, kind in modules.items():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UsageError(f"'{model}': {_MODULES} names '{path}', outside of the repository: put the module inside.")
        if kind in _PER_TOKEN:
            raise UsageError(f"'{model}': the module {kind} in '{path}' has an entry per token, which cannot be cut.")
    root = _folder(model, revision, (*_TOP_LEVEL, *(f"{path}/*" for path in modules)))
    for path in modules:
        own = {file.relative_to(root).as_posix() for file in (root / path).rglob("*") if file.is_file()}
        if any(PurePosixPath(name).name in _OF_A_TOKENIZER for name in own):
            raise UsageError(f"'{model}': the module in '{path}' has a tokenizer of its own: cut that one, by the path '{path}'.")
        names |= own  # one without settings, such as Normalize, may have no file at all
    prompts = _json(root / _SETTINGS).get("prompts") if _SETTINGS in names else None
    return CarriedFiles(
        root,
        tuple(sorted(names)),
        prompts=tuple(prompt for prompt in (prompts or {}).values() if prompt),
        sized=tuple(f"{path}/config.json" for path, kind in modules.items() if kind == _OUT_PER_TOKEN),
    )


def _folder(model: str | PathLike[str], revision: str | None, patterns: tuple[str, ...]) -> Path:
    """A folder that has the files of these patterns, downloaded if it must be."""
    if Path(model).is_dir():
        return Path(model)
    if constants.HF_HUB_OFFLINE:
        logger.warning("Offline: of what lies beside the weights of '%s' only files in the cache are carried along.", model)
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"The files of '{model}' cannot be listed: {reason}. Try again, or give a folder.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' cannot be read ({error}): copy it once more.") from error
