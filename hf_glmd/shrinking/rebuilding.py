"""A vocabulary map is a patch: from its base it makes the cut model again, bit for bit. What `hf-glmd rebuild` does."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.utils.options import option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked

if TYPE_CHECKING:
    from hf_glmd.vocab.vocab_map import MapOrigin, VocabMap

CHECKED = ("*.safetensors", "tokenizer.json")
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


@dataclass
class RebuildOptions:
    """What `hf-glmd rebuild` can be told; each field's help text is its documentation."""

    base: str = option("The model that was cut: a folder, or its name on the Hub, with @revision if that is known.", "")
    vocab_map: str = option("The map, vocab_map.safetensors, or the folder it lies in.", "")
    output: str = option("Folder to write to.", "")
    overwrite: bool = option("Replace what an earlier run left in the output folder.", False)
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        missing = [name for name in ("base", "vocab_map", "output") if not getattr(self, name)]
        if missing:
            raise UsageError(f"{' and '.join(missing)} missing. Write: hf-glmd rebuild BASE vocab_map.safetensors --output DIR.")

    @property
    def base_and_revision(self) -> tuple[str, str | None]:
        if Path(self.base).exists():
            return self.base, None
        name, _, revision = self.base.partition("@")
        return name, revision or None


@dataclass
class RebuildResult:
    """What `rebuild_checkpoint` wrote: the files that were compared with what the map says of them."""

    output: str
    checked: dict[str, str]

    def table(self) -> str:
        """For people."""
        files = [f"{name}: SHA-256 as the map says, {digest[:16]}..." for name, digest in self.checked.items()]
        unchecked = ["Nothing was compared: the map does not say what should come of it."]
        return "\n".join([*(files or unchecked), f"Written to {self.output}"])


@trusting_as_asked
def rebuild_checkpoint(options: RebuildOptions) -> RebuildResult:
    """Writes the model that a map was made with to `options.output`; the folder appears whole, or not at all.

    Raises: UsageError, base or map are missing, the map is of another base or revision, or something else came of it.
    """
    from hf_glmd.models.loading import load_checkpoint
    from hf_glmd.models.surgery import input_layer, resize_model
    from hf_glmd.shrinking.checkpoint_files import find_carried_files
    from hf_glmd.utils.files import locked, written_whole
    from hf_glmd.vocab.counting import vocabulary_rows
    from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
    from hf_glmd.vocab.vocab_map import FILE_NAME, VocabMap, map_file

    vocab_map = VocabMap.load(options.vocab_map)
    base, revision = options.base_and_revision
    with locked(options.output):
        check_output(Path(options.output), options.overwrite)
        tokenizer = load_tokenizer(base, revision)
        rows = vocabulary_rows(tokenizer)
        carried = find_carried_files(base, revision)
        model = load_checkpoint(carried.model, revision=revision)
        _check_base(vocab_map, base, _commit(model), tokenizer, rows)
        carried = carried.without({rows, len(tokenizer), input_layer(model).weight.shape[0]})
        with written_whole(options.output) as folder:
            small, without_row = _small_tokenizer(tokenizer, vocab_map, model)
            resize_model(model, vocab_map, without_row=without_row).save_pretrained(folder)
            _write_tokenizer(small, vocab_map, folder, model.config.model_type)
            carried.copy_to(folder, vocab_map.size)
            shutil.copyfile(map_file(options.vocab_map), folder / FILE_NAME)
            checked = _check_files(vocab_map.origin, folder, f"{base}@{_commit(model)}" if _commit(model) else base)
    return RebuildResult(options.output, checked)


def origin_of(base: str, model: Any, tokenizer: Any, folder: Path) -> MapOrigin:
    """What the map of the cut model in `folder` was made of."""
    from hf_glmd.vocab.counting import tokenizer_fingerprint
    from hf_glmd.vocab.vocab_map import MapOrigin

    name = Path(base).resolve().name if Path(base).exists() else base
    return MapOrigin(name, _commit(model), tokenizer_fingerprint(tokenizer), _sums(folder), _libraries())


def check_output(output: Path, overwrite: bool) -> None:
    """Raises: UsageError, something lies there that may not be replaced."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output '{output}' is a file: name a folder.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"--output '{output}' is not empty: name another folder, or add --overwrite.")
    if not any((output / name).is_file() for name in ("vocab_report.json", "vocab_map.safetensors")):
        raise UsageError(f"--output '{output}' is no model that hf-glmd shrink wrote, and stays: name another folder.")


def _commit(model: Any) -> str:
    """Of a model on the Hub; empty: it came from a folder."""
    return getattr(model.config, "_commit_hash", None) or ""


def _libraries() -> dict[str, str]:
    from hf_glmd.utils.system import versions

    return {name: version for name, version in versions(*LIBRARIES).items() if name in LIBRARIES}


def _sums(folder: Path) -> dict[str, str]:
    from hf_glmd.utils.files import sha256

    names = sorted({path.name for pattern in CHECKED for path in folder.glob(pattern)} - {"vocab_map.safetensors"})
    return {name: sha256(folder / name) for name in names}


def _check_base(vocab_map: VocabMap, base: str, commit: str, tokenizer: Any, rows: int) -> None:
    from hf_glmd.vocab.counting import tokenizer_fingerprint

    origin, here = vocab_map.origin, f"{base}@{commit}" if commit else base
    if vocab_map.original_size != rows:
        of = f"'{origin}'" if origin else "a model"
        raise UsageError(f"The map is of {of} with {vocab_map.original_size:,} tokens, and '{here}' has {rows:,}: name its base.")
    if origin is None:
        return
    another = bool(commit) and (origin.base != base or origin.revision not in ("", commit))
    if another or origin.tokenizer_sha256 != tokenizer_fingerprint(tokenizer):
        raise UsageError(f"The map is of '{origin}', not of '{here}': write hf-glmd rebuild {origin} MAP --output DIR.")


def _small_tokenizer(tokenizer: Any, vocab_map: VocabMap, model: Any) -> tuple[Any, int]:
    """The tokenizer of the kept tokens, and how many tokens the model had no row for."""
    from hf_glmd.shrinking.preparation import tokens_without_row
    from hf_glmd.vocab.counting import backend_of
    from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer
    from hf_glmd.vocab.rewrite import shrink_tokenizer_json, token_ids
    from hf_glmd.vocab.tokenizer_files import small_tokenizer

    if vocab_map.removed != "resegment":
        return MappedTokenizer(tokenizer, vocab_map), 0
    data = json.loads(backend_of(tokenizer).to_str())
    vocabulary = token_ids(data)
    gone = tokens_without_row(model, data, vocabulary)
    data["added_tokens"] = [one for one in data.get("added_tokens") or () if one["content"] not in gone]
    known = {token: token_id for token, token_id in vocabulary.items() if token not in gone}
    small = shrink_tokenizer_json(data, vocab_map.kept_ids, known)
    return small_tokenizer(tokenizer, small, [], model.config.model_type), len(gone)


def _write_tokenizer(tokenizer: Any, vocab_map: VocabMap, folder: Path, model_type: str) -> None:
    from hf_glmd.vocab.tokenizer_files import write_tokenizer

    if vocab_map.removed == "resegment":
        write_tokenizer(tokenizer, folder, [], model_type=model_type)
    else:
        tokenizer.save_pretrained(folder)


def _check_files(origin: MapOrigin | None, folder: Path, here: str) -> dict[str, str]:
    """Raises: UsageError, what was written is not what the map says."""
    if origin is None:
        return {}
    found = _sums(folder)
    differ = sorted(name for name in origin.files.keys() | found.keys() if found.get(name) != origin.files.get(name))
    if not differ:
        return found
    now = _libraries()
    others = [f"{name} {version} (here {now.get(name)})" for name, version in origin.versions.items() if now.get(name) != version]
    why = f"it was made with {', '.join(others)}" if others else "the weights of the two are not the same"
    raise UsageError(f"The map is of '{origin}', and from '{here}' came another {' and '.join(differ)}: {why}. Name its base.")
