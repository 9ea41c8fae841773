"""Tokenizer files as AutoTokenizer reads them: load, write, and see that loading gives the ids of the file."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_glmd.errors import UsageError
from hf_glmd.utils.remote_code import REMEDY, reason, trust_remote_code
from hf_glmd.vocab.counting import untrimmed
from hf_glmd.vocab.soundness import check_vocabulary, panics_named

logger = logging.getLogger(__name__)

_CONFIG_FILE = "tokenizer_config.json"
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
_STALE_SETTINGS = ("added_tokens_decoder", "vocab_size", "is_local", "local_files_only", "name_or_path", "tokenizer_file")
"""Old ids, which would add removed tokens again past the end of the table (tokenizer.json has them all), and old places."""

_FILES = ("tokenizer.json", _CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "config.json")
_TOKEN_LISTS = ("extra_special_tokens", "additional_special_tokens")
_PAIRS = 30
"""Probe texts that are compared in pairs, too."""

_ROLES = ("system", "user", "assistant", "tool")
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


@panics_named
def load_plain_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The tokenizer of a Hub name or folder, as `AutoTokenizer` reads it. Raises: UsageError, there is none, or it is damaged."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code())
    except Exception as error:  # tokenizers raises plain Exception, and for JSON of another kind it may be any class
        said = reason(error)
        if not isinstance(error, (OSError, ValueError)):
            said = f"{type(error).__name__}: {said}"
        there = [file for file in _FILES if (Path(name) / file).is_file()]
        damaged = next((file for file in there if not _is_json(Path(name) / file)), "tokenizer.json")
        remedy = f"Its {damaged} is damaged: copy it once more." if damaged in there else "Put tokenizer.json there."
        raise UsageError(f"No tokenizer can be loaded from '{name}': {said}{'' if REMEDY in said else ' ' + remedy}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer) and len(backend.get_added_tokens_decoder()) >= backend.get_vocab_size() - 1:
        # Some classes make up a vocabulary of their special tokens, and T5's of a space besides.
        raise UsageError(f"No vocabulary is found in '{name}': tokenizer.json is missing or damaged, copy it once more.")
    if isinstance(backend, Tokenizer):
        check_vocabulary(backend, f"The tokenizer in '{name}'")
    return tokenizer


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def set_missing_pad_token(tokenizer: Any) -> None:
    """Lets the end of a text pad, too, where no token does, as trl does: nothing reads padding, and nothing counts it.

    GPT-2 and Llama are published without a token for it.
    """
    if getattr(tokenizer, "pad_token_id", None) is None and getattr(tokenizer, "eos_token", None) is not None:
        logger.info("The tokenizer has no padding token: its end token %r pads.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token


def encode_texts(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    with untrimmed(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def template_texts(tokenizer: Any) -> list[str]:
    """The literal texts of the tokenizer's chat templates, and the roles they are filled with; none if there is no template.

    Raises: UsageError, a template is no valid Jinja.
    """
    import jinja2

    templates = getattr(tokenizer, "chat_template", None) or {}
    texts: list[str] = []
    for template in [templates] if isinstance(templates, str) else templates.values():
        try:
            tokens = list(jinja2.Environment().lex(template))
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"The chat template is no valid Jinja ({error}): mend tokenizer.chat_template, or set None."
            ) from error
        for _, kind, value in tokens:
            if kind == "data":
                texts.append(value)
            elif kind == "string":
                texts.append(_unescaped(value[1:-1]))
    return [*texts, *_ROLES] if texts else []


def _unescaped(text: str) -> str:
    """What a string of a template stands for; with a broken escape in it, itself."""
    try:
        return text.encode("ascii", "backslashreplace").decode("unicode-escape")
    except UnicodeDecodeError:
        return text


def small_tokenizer(original: Any, data: dict[str, Any], probes: list[str], model_type: str | None = None) -> Any:
    """The tokenizer of `data`, of the original's class and settings where that class leaves its ids alone.

    Args: see `write_tokenizer`.
    Raises: RuntimeError, tokenizers numbers tokens otherwise than `data` says.
    """
    if type(original) is PreTrainedTokenizerFast and model_type is None:  # takes any file as it is
        tokenizer = _with_backend(original, Tokenizer.from_str(json.dumps(data, ensure_ascii=False)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = write_tokenizer(original, Path(folder), probes, data, model_type)
    backend = tokenizer.backend_tokenizer
    for token in data.get("added_tokens") or ():
        if backend.token_to_id(token["content"]) != token["id"]:
            raise RuntimeError(f"tokenizers gives {token['content']!r} another id than {token['id']}.")
    # It was loaded from somewhere else: that must not be looked for, or be written into a model card as the origin.
    tokenizer.name_or_path = ""
    for name in ("name_or_path", "tokenizer_file"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _with_backend(original: Any, backend: Tokenizer) -> Any:
    """A copy with another backend; special tokens that this one lacks are forgotten."""
    tokenizer = copy.copy(original)
    tokenizer._tokenizer = Tokenizer(WordLevel())  # so that the large one is not copied
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer._tokenizer = backend
    tokenizer._extra_special_tokens = _known(tokenizer._extra_special_tokens, backend)
    for name in _STALE_SETTINGS:
        tokenizer.init_kwargs.pop(name, None)
    for name in _TOKEN_LISTS:
        if tokenizer.init_kwargs.get(name):
            tokenizer.init_kwargs[name] = _known(tokenizer.init_kwargs[name], backend)
    return tokenizer


def write_tokenizer(
    tokenizer: Any,
    folder: Path,
    probes: Iterable[str],
    data: dict[str, Any] | None = None,
    model_type: str | None = None,
) -> Any:
    """Writes tokenizer.json (`data`, or the tokenizer's own) and its config so that AutoTokenizer gives the ids of the file.

    Many classes of transformers build their tokenizer anew from the bare vocabulary and ignore the rest of the file. If that
    changes ids here, the generic class is written instead, with all that the specific one knew.

    Args:
        tokenizer: whose class and settings are written.
        folder: is made.
        probes: texts whose ids are compared, besides some of our own.
        data: a parsed tokenizer.json to write in place of the tokenizer's own.
        model_type: of the model whose config.json will lie beside the files. For a few types AutoTokenizer then takes the class
            that goes with the model, whatever the files say. A config.json that is in the folder already counts as well.
    Returns: the tokenizer as AutoTokenizer loads it.
    Raises: UsageError, the class that AutoTokenizer takes for this model changes ids. RuntimeError, so does the generic class.
    """
    raw, config = _write_files(tokenizer, folder, data)
    texts = [*_PROBES, *(f"x {token} y{token}" for token in tokenizer.all_special_tokens[:20]), *probes]
    with _beside_config(folder, model_type):
        loaded, difference = _loaded(folder, raw, texts, tokenizer)
        if difference and config["tokenizer_class"] != _GENERIC_CLASS:
            logger.warning(
                "Loaded as %s the tokenizer gives other ids than its file (%s): it is saved as %s instead.",
                config["tokenizer_class"],
                difference,
                _GENERIC_CLASS,
            )
            _dump(config | {"tokenizer_class": _GENERIC_CLASS} | tokenizer.special_tokens_map, folder)
            loaded, difference = _loaded(folder, raw, texts, tokenizer)
    if difference and loaded is not None and type(loaded) is not PreTrainedTokenizerFast:
        raise UsageError(
            f"Beside a model of type '{model_type}' AutoTokenizer loads any tokenizer as {type(loaded).__name__}, and that gives "
            f"other ids than tokenizer.json ({difference}): keep it in a folder of its own, without the model's config.json."
        )
    if difference:
        raise RuntimeError(f"AutoTokenizer gives other ids than the file it loads: {difference}.")
    return loaded


def _write_files(tokenizer: Any, folder: Path, data: dict[str, Any] | None) -> tuple[Tokenizer, dict[str, Any]]:
    """Writes all files. Returns: what tokenizer.json gives by itself, and the content of tokenizer_config.json."""
    twin = copy.copy(tokenizer)
    twin._tokenizer = Tokenizer(WordLevel())  # only the settings are of interest, and a large tokenizer takes long to write
    twin.save_pretrained(folder)
    for item in folder.iterdir():
        if item.is_file() and (item.name in STALE_FILES or item.suffix == ".model"):
            item.unlink()
    content = tokenizer.backend_tokenizer.to_str() if data is None else json.dumps(data, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    for name in _STALE_SETTINGS:
        config.pop(name, None)
    for name in _TOKEN_LISTS:
        if config.get(name):
            config[name] = _known(config[name], raw)
    for name, token in list(config.items()):
        if name.endswith("_token") and isinstance(token, (str, dict)) and raw.token_to_id(_content(token)) is None:
            del config[name]  # it would be added on loading
    # save_pretrained writes these only if they were in the file before, not if they were set since.
    config["padding_side"] = tokenizer.padding_side
    config["truncation_side"] = tokenizer.truncation_side
    config["model_input_names"] = list(tokenizer.model_input_names)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = _GENERIC_CLASS
    _dump(config, folder)
    return raw, config


def _known(tokens: Any, raw: Tokenizer) -> Any:
    """Of a list of tokens, or a dict name -> token, those that are still there: any other one would be added on loading."""
    if isinstance(tokens, dict):
        return {name: token for name, token in tokens.items() if raw.token_to_id(_content(token)) is not None}
    return [token for token in tokens if raw.token_to_id(_content(token)) is not None]


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


@contextmanager
def _beside_config(folder: Path, model_type: str | None) -> Iterator[None]:
    """Makes AutoTokenizer see a model of this type in the folder; a config.json that is there already is left alone."""
    file = folder / "config.json"
    if model_type is None or file.exists():
        yield
        return
    try:
        file.write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)


def _dump(config: dict[str, Any], folder: Path) -> None:
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / _CONFIG_FILE).write_text(text, encoding="utf-8")


def _loaded(folder: Path, raw: Tokenizer, texts: list[str], like: Any) -> tuple[Any, str]:
    """What AutoTokenizer makes of the folder, and in words how it differs from its tokenizer.json; empty if it does not."""
    try:
        tokenizer = load_plain_tokenizer(folder)
    except UsageError as error:
        return None, f"it cannot be loaded: {error.__cause__ or error}"
    return tokenizer, _difference(tokenizer, raw, texts, like)


def _difference(loaded: Any, raw: Tokenizer, texts: list[str], like: Any) -> str:
    if loaded.get_vocab() != raw.get_vocab(with_added_tokens=True):
        return "another vocabulary"
    roles = (
        {
            name: token
            for name, token in one.special_tokens_map.items()
            if isinstance(token, str) and raw.token_to_id(token) is not None
        }
        for one in (loaded, like)
    )
    if next(roles) != next(roles):
        return "other special tokens"
    few = texts[:_PAIRS]
    with untrimmed(raw), untrimmed(loaded.backend_tokenizer):
        for inputs in (texts, list(zip(few, reversed(few), strict=True))):
            ours, theirs = (one.encode_batch(inputs) for one in (raw, loaded.backend_tokenizer))
            for text, a, b in zip(inputs, ours, theirs, strict=True):
                if a.ids != b.ids or a.type_ids != b.type_ids:
                    return f"{text[:60]!r}" if isinstance(text, str) else f"the pair {text[0][:30]!r}, {text[1][:30]!r}"
    return ""
