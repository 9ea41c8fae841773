"""Tokenizer files as AutoTokenizer reads them: load, write, and see that loading gives the ids of the file."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hf_glmd.errors import UsageError
from hf_glmd.vocab.counting import untrimmed

logger = logging.getLogger(__name__)

_GENERIC_CLASS = "PreTrainedTokenizerFast"  # takes everything from tokenizer.json, and is known to old and new transformers
STALE_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
)
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "MiXeD CaSe, ÀÉÎÕÜ ﬁ ½ x\u0301 naïve façade",
    "  two  spaces\tand\na line break\r\n",
    "1234567890 3.14 a_b-c/d@e.f #hash $5 100% (x) [y] {z} \"q\" 'r' `s` ~ ^ | \\ < >",
    "中文字符 かな 한국어 русский العربية हिन्दी ไทย 🙂",
    "a" * 60 + " " + "b" * 101 + " " + "ab" * 120,
    "\u200b\ufeff\u00a0\u2028",
    "x",
    "",
)


def load_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The tokenizer of a Hub name or a folder. Raises: UsageError, there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"No tokenizer can be loaded from '{name}': {str(error).splitlines()[0].rstrip('.')}. Put tokenizer.json there."
        ) from error


def encode_texts(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    with untrimmed(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def small_tokenizer(original: Any, data: dict[str, Any], probes: list[str]) -> Any:
    """The tokenizer of `data`, of the original's class and settings where that class leaves its ids alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(original, Path(folder), probes, data)
        tokenizer = load_tokenizer(folder)
    # The folder is gone: it must not be looked for, or be written into a model card as the origin.
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.init_kwargs.pop("tokenizer_file", None)
    return tokenizer


def write_tokenizer(tokenizer: Any, folder: Path, probes: Iterable[str], data: dict[str, Any] | None = None) -> None:
    """Writes tokenizer.json (`data`, or the tokenizer's own) and its config so that AutoTokenizer gives the ids of the file.

    Many classes of transformers build their tokenizer anew from the bare vocabulary and ignore the rest of the file. If that
    changes ids here, the generic class is written instead, with all that the specific one knew.
    """
    tokenizer.save_pretrained(folder)
    for item in folder.iterdir():
        if item.is_file() and (item.name in STALE_FILES or item.suffix == ".model"):
            item.unlink()
    if data is not None:
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # Old ids, which would add removed tokens again past the end of the table; tokenizer.json has them all.
    for name in ("added_tokens_decoder", "vocab_size", "is_local", "local_files_only", "name_or_path", "tokenizer_file"):
        config.pop(name, None)
    # save_pretrained writes these only if they were in the file before, not if they were set since.
    config["padding_side"] = tokenizer.padding_side
    config["truncation_side"] = tokenizer.truncation_side
    config["model_input_names"] = list(tokenizer.model_input_names)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = _GENERIC_CLASS
    _dump(config, config_file)
    texts = [*_PROBES, *probes]
    difference = _difference(folder, texts, tokenizer)
    if difference and config["tokenizer_class"] != _GENERIC_CLASS:
        logger.warning(
            "Loaded as %s the tokenizer gives other ids than its file (%s): it is saved as %s instead.",
            config["tokenizer_class"],
            difference,
            _GENERIC_CLASS,
        )
        config |= {"tokenizer_class": _GENERIC_CLASS} | dict(tokenizer.special_tokens_map)
        _dump(config, config_file)
        difference = _difference(folder, texts, tokenizer)
    if difference:
        raise RuntimeError(f"AutoTokenizer gives other ids than the file it loads: {difference}.")


def _dump(config: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _difference(folder: Path, texts: list[str], like: Any) -> str:
    """In words, how what AutoTokenizer makes of the folder differs from its tokenizer.json; empty if it does not."""
    raw, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    if loaded.get_vocab() != raw.get_vocab(with_added_tokens=True):
        return "another vocabulary"
    if {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)} != {
        name: str(token) for name, token in like.special_tokens_map.items() if isinstance(token, str)
    }:
        return "other special tokens"
    with untrimmed(raw), untrimmed(loaded.backend_tokenizer):
        for special in (False, True):
            pairs = list(zip(texts, reversed(texts), strict=True))
            for inputs in (texts, pairs):
                ours, theirs = (one.encode_batch(inputs, add_special_tokens=special) for one in (raw, loaded.backend_tokenizer))
                for text, a, b in zip(inputs, ours, theirs, strict=True):
                    if a.ids != b.ids or a.type_ids != b.type_ids:
                        return f"{text[:60]!r}" if isinstance(text, str) else f"the pair {text[0][:30]!r}, {text[1][:30]!r}"
    return ""
