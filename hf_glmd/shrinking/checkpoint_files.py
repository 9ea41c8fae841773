"""What lies beside weights and tokenizer of a checkpoint and holds nothing of its vocabulary: it goes along when that is cut.

Carried along are the modules of a sentence-transformers repository, the settings of image, audio and video processors, code and
its requirements, the terms of the licence, and further weights and settings that have no entry per token. Model, tokenizer and
card are written anew. What else lies there stays behind, and is named with the reason.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from hf_glmd.errors import UsageError
from hf_glmd.models.loading import no_model
from hf_glmd.utils.files import SUMS, own_file
from hf_glmd.utils.remote_code import reason

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
_CODE = ("*.py", "requirements*.txt")
_CARRIED = (*REPLACED_FILES, "sentence_*_config.json", *_TERMS, *_CODE)
_WRITTEN = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"),
    *("additional_chat_templates/*", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("vocab_map.safetensors", "vocab_report.json", "report.html", SUMS, ".gitattributes", ".gitignore", ".cache/*", ".git/*"),
)
"""Written anew, or none of the model's."""

_LEFT = {
    "weights in another format, with the whole vocabulary": (
        *("pytorch_model*", "tf_model*", "flax_model*", "rust_model*", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data"),
        *("onnx/*", "openvino/*", "coreml/*", "*.gguf", "*.tflite", "*.mlmodel", "model*.safetensors", "consolidated*"),
    ),
    "the whole vocabulary, which tokenizer.json has": (
        *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.spm", "*.model"),
        "tekken.json",
    ),
    "an adapter": ("adapter_config.json", "adapter_model.*"),
    "a record of the model before the cut": ("metrics.json", "run.json", "plots/*", "predictions/*"),
    "a state of training": (
        *("training_args.bin", "optimizer*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json", "checkpoint-*/*"),
        *("global_step*/*", "runs/*", "events.out.*", "all_results.json", "*_results.json"),
    ),
}
_TENSORS = (".safetensors", ".pt", ".pth", ".bin")
_LARGEST = 256 * 2**20
"""Bytes of a file that is looked into."""

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
        model: the folder or the name that the model itself loads from.
        names: path below the root -> path in the new folder, which differs where the model had a folder of its own.
        left: path below the root of what stays behind -> the reason.
        prompts: what sentence-transformers writes before texts of some kinds; the model has to know its tokens.
        sized: the configs among them that say how many tokens there are.
    """

    root: Path
    model: str
    names: dict[str, str]
    left: dict[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()

    def without(self, sizes: Iterable[int]) -> CarriedFiles:
        """The same, without further weights and settings that have an entry per token, or may have one.

        Args:
            sizes: how many tokens model and tokenizer have.
        """
        known = frozenset(sizes)
        refused = {name: _doubt(self.root / name, known) for name, new in self.names.items() if _is_unknown(new)}
        refused = {name: doubt for name, doubt in refused.items() if doubt}
        names = {name: new for name, new in self.names.items() if name not in refused}
        return CarriedFiles(self.root, self.model, names, self.left | refused, self.prompts, self.sized)

    def copy_to(self, folder: Path, size: int) -> None:
        """Copies them; `size` is the number of tokens that are left."""
        for name, new in self.names.items():
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / new).exists():  # code of its own is written with the model, whose folder it was read from
                shutil.copyfile(self.root / name, folder / new)
        if _MODULES in self.names:
            _flatten(folder / _MODULES)
        for name in self.sized:
            config = _json(folder / name)
            config |= {key: size for key in _SIZES if config.get(key) is not None}
            (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_carried_files(model: str | PathLike[str], revision: str | None = None) -> CarriedFiles:
    """What is to be carried along from a folder or from a model on the Hub.

    Raises: UsageError, a module of sentence-transformers has an entry per token or lies outside of the folder, a file is a link
        that leads out of it, the list of modules is damaged, or the Hub cannot be asked.
    """
    files = _files(model, revision)
    root = _folder(model, revision, [name for name in (_MODULES, _SETTINGS, "config.json") if name in files])
    _refuse_static(model, root)
    entries = _modules(model, root) if _MODULES in files else []
    own = entries[0][0] if entries and entries[0][0] not in ("", ".") else ""
    names: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, size in files.items():
        module = next((path for path, _ in entries[1:] if path not in ("", ".") and name.startswith(f"{path}/")), None)
        inner = name.removeprefix(f"{own}/") if own else name
        if module is not None and PurePosixPath(name).name in _OF_A_TOKENIZER:
            raise UsageError(
                f"'{model}': the module in '{module}' has a tokenizer of its own: cut that one, by the path '{module}'."
            )
        if _matches(inner, _WRITTEN) and module is None:
            continue
        why = None if module is not None else _reason(inner, size)
        if why is None:
            names[name] = inner
        else:
            left[name] = why
    root = _folder(model, revision, [*names, *([f"{own}/*"] if own else [])])
    there = {path.relative_to(root).as_posix() for path in root.rglob("*")}  # offline, the cache may lack some
    names = {name: new for name, new in names.items() if name in there}
    for name in names:
        own_file(root, name)
    settings = _json(root / _SETTINGS) if _SETTINGS in names else {}
    prompts = settings.get("prompts") if isinstance(settings, dict) else settings
    if not isinstance(prompts, dict | None) or not all(isinstance(text, str | None) for text in (prompts or {}).values()):
        raise UsageError(f"'{root / _SETTINGS}' holds prompts that are not {{name: text}}: mend it, or copy it anew.")
    return CarriedFiles(
        root,
        str(root / own) if own else str(model),
        dict(sorted(names.items())),
        left,
        prompts=tuple(prompt for prompt in (prompts or {}).values() if prompt),
        sized=tuple(f"{path}/config.json" for path, kind in entries if kind == _OUT_PER_TOKEN),
    )


def _flatten(path: Path) -> None:
    """The model stands at the top of the new folder: its list of modules is to say so."""
    entries = _json(path)
    if entries and entries[0]["path"] not in ("", "."):
        entries[0]["path"] = ""
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _reason(name: str, size: int | None) -> str | None:
    """Why a file of the model's folder stays behind; None, if it is carried or has to be looked into."""
    if _matches(name, _CARRIED) and "/" not in name:
        return None
    for why, patterns in _LEFT.items():
        if _matches(name, patterns):
            return why
    if "/" in name:
        return "in a folder that is none of the model's modules"
    if not _is_unknown(name):
        return "neither weights nor settings"
    if size is not None and size > _LARGEST:
        return f"over {_LARGEST // 2**20} MiB, too large to look into"
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_unknown(name: str) -> bool:
    """Whether a file at the top might have an entry per token: weights and settings that are known to nobody here."""
    return "/" not in name and not _matches(name, _CARRIED) and name.endswith((*_TENSORS, ".json"))


def _doubt(path: Path, sizes: frozenset[int]) -> str | None:
    """Why a file may not be carried; None, if nothing in it is as long as the vocabulary."""
    try:
        found = _numbers(_json(path)) if path.suffix == ".json" else _shapes(path)
    except pickle.UnpicklingError:
        return "reading it would run code"
    except (UsageError, SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        return f"it cannot be read ({reason(error).rstrip('.')})"
    return "it has an entry per token" if found & sizes else None


def _shapes(path: Path) -> set[int]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return {length for key in tensors.keys() for length in tensors.get_slice(key).get_shape()}  # noqa: SIM118
    return _numbers(torch.load(path, map_location="meta", weights_only=True))


def _numbers(value: Any) -> set[int]:
    """Lengths and whole numbers anywhere in JSON or in a state of weights."""
    if isinstance(value, torch.Tensor):
        return set(value.shape)
    if isinstance(value, dict):
        return {len(value)}.union(*(_numbers(part) for part in value.values()))
    if isinstance(value, list | tuple):
        return {len(value)}.union(*(_numbers(part) for part in value))
    return {value} if type(value) is int else set()


def _refuse_static(model: str | PathLike[str], root: Path) -> None:
    """Raises: UsageError, the model is a table of token vectors and nothing else."""
    config = root / "config.json"
    if config.is_file() and isinstance(found := _json(config), dict):
        if found.get("model_type") == "model2vec" or "StaticModel" in (found.get("architectures") or ()):
            raise UsageError(
                f"'{model}' is a model2vec table, one vector per token: it has no transformer to cut. Use model2vec's own "
                "quantisation of the vocabulary, or cut the encoder it was distilled from and distil that."
            )


def _modules(model: str | PathLike[str], root: Path) -> list[tuple[str, str]]:
    """Path and kind of the modules that sentence-transformers lists. Raises: UsageError, one cannot go along."""
    try:
        entries = [(entry["path"], entry["type"].rpartition(".")[2]) for entry in _json(root / _MODULES)]
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"'{root / _MODULES}' is no list of modules with path and type: copy it once more.") from error
    for path, kind in entries:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UsageError(f"'{model}': {_MODULES} names '{path}', outside of the repository: put the module inside.")
        if kind in _PER_TOKEN:
            raise UsageError(f"'{model}': the module {kind} in '{path or '.'}' has an entry per token, which cannot be cut.")
    return entries


def _files(model: str | PathLike[str], revision: str | None) -> dict[str, int | None]:
    """Path -> bytes of every file of a folder or of a repository on the Hub; of the cache, if the Hub is not to be asked."""
    folder = Path(model)
    if not folder.is_dir() and not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(str(model), revision=revision, files_metadata=True)
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise no_model(model, error) from error
        return {file.rfilename: file.size for file in info.siblings or ()}
    if not folder.is_dir():
        logger.warning("Offline: of what lies beside the weights of '%s' only files in the cache are carried along.", model)
        folder = _folder(model, revision, None)
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in found}


def _folder(model: str | PathLike[str], revision: str | None, names: list[str] | None) -> Path:
    """A folder that has these files, downloaded if it must be."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=names))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise no_model(model, error) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' cannot be read ({error}): copy it once more.") from error
