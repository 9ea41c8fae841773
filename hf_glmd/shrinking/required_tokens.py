"""Which tokens stay whatever their count: what tokenizer, chat template and model refer to, and what spells the rest."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import input_layer
from hf_glmd.vocab.closure import MergeTree
from hf_glmd.vocab.counting import backend_of
from hf_glmd.vocab.rewrite import (
    LOWEST_SCORE,
    byte_tokens,
    control_pieces,
    is_byte_level,
    model_type,
    pinned_ids,
    placeholder_ids,
)
from hf_glmd.vocab.selection import single_characters
from hf_glmd.vocab.tokenizer_files import encode_texts, template_texts

logger = logging.getLogger(__name__)

SPECIAL, TEMPLATE, MODEL = "special", "written by the chat template", "named by the model"
CONTROL = "written like sentinels, language codes or chat marks"
BYTES, CHARACTERS = "bytes", "single characters"

KEEP, KEEP_TEXTS = "from keep=", "from keep_texts="


def required_tokens(
    tokenizer: Any,
    data: dict[str, Any],
    vocabulary: dict[str, int],
    counts: np.ndarray,
    *,
    keep: Iterable[str | int] = (),
    keep_texts: Iterable[str] = (),
    alphabet: str = "seen",
    lossless: bool = True,
    merges: MergeTree | None = None,
    model: Any = None,
) -> dict[str, np.ndarray]:
    """The ids that stay, by kind; an id may be of several kinds, and a kind of which there is nothing to say is left out.

    Args:
        tokenizer: a fast transformers tokenizer.
        data: its tokenizer.json, parsed.
        vocabulary: token -> id, added tokens included.
        counts: [V].
        keep, keep_texts, alphabet, model: see `VocabShrinker.shrink`.
        lossless: the text of removed tokens has to be spelt otherwise; False: another token stands for each.
        merges: of a BPE model.
    Raises: UsageError, a special token or one named by `keep` does not exist, or the model does not fit.
    """
    special = _special(tokenizer, data, vocabulary, counts, lossless)
    written = _written(tokenizer, data)
    named = {} if model is None else _named_by(model, vocabulary, counts.size)
    for token_id in sorted(named.keys() - special - written):
        logger.info("The token %d stays because the model's settings name it: %s.", token_id, named[token_id])
    bytes_ = {vocabulary[token] for token in byte_tokens(data) if token in vocabulary}
    skip = special | bytes_ | set(merges.never if merges else ())
    kinds = {
        SPECIAL: special,
        TEMPLATE: written,
        MODEL: named,
        CONTROL: control_pieces(data, merges and set(merges.never)).keys() - special if lossless else (),
        BYTES: bytes_,
        CHARACTERS: _characters(data, vocabulary, counts, alphabet, skip, lossless),
        KEEP: _kept_ids(keep, vocabulary),
        KEEP_TEXTS: ids_of_texts(tokenizer, keep_texts),
    }
    optional = (TEMPLATE, MODEL, CONTROL, BYTES)
    arrays = {name: np.array(sorted(ids), dtype=np.int64) for name, ids in kinds.items()}
    return {name: ids for name, ids in arrays.items() if ids.size or name not in optional}


def _special(tokenizer: Any, data: dict[str, Any], vocabulary: dict[str, int], counts: np.ndarray, lossless: bool) -> set[int]:
    known = tokenizer.get_vocab()  # `vocabulary` is without the tokens that have no row
    roles = {name: token for name, token in tokenizer.special_tokens_map.items() if token in vocabulary or token not in known}
    for name, token in roles.items():
        if token not in vocabulary:
            raise UsageError(f"The {name} {token!r} is not in the vocabulary: add it with tokenizer.add_tokens before counting.")
    placeholders = placeholder_ids(data)
    special = {token_id for token_id, reason in pinned_ids(data).items() if lossless or reason != LOWEST_SCORE}
    special |= {vocabulary[token] for token in roles.values()}
    special |= {token_id for token_id in placeholders if counts[token_id]}
    # That a placeholder is listed among the special tokens does not mean that it is used. A map needs all of that list, though.
    listed = {vocabulary[token] for token in tokenizer.all_special_tokens if token in vocabulary}
    return special | (listed - placeholders.keys() if lossless else listed)


def _written(tokenizer: Any, data: dict[str, Any]) -> set[int]:
    """What chat templates write, placeholders that they put to use included."""
    texts = template_texts(tokenizer)
    used = {token_id for token_id, token in placeholder_ids(data).items() if any(token in text for text in texts)}
    return used | set(ids_of_texts(tokenizer, texts).tolist())


def _characters(
    data: dict[str, Any], vocabulary: dict[str, int], counts: np.ndarray, alphabet: str, skip: set[int], lossless: bool
) -> Iterable[int]:
    kind, model, in_bytes = model_type(data), data["model"], bool(byte_tokens(data))
    if is_byte_level(data) or kind == "WordLevel":  # which have bytes for characters, or no use for them
        return ()
    if kind == "BPE" and lossless and alphabet != "all" and not in_bytes and model.get("unk_token") is None:
        logger.warning("The tokenizer has no unknown token: characters that are not kept will vanish. alphabet='all' keeps all.")
    return single_characters(
        vocabulary,
        counts,
        alphabet,
        prefix=model.get("continuing_subword_prefix") or "",
        suffix=model.get("end_of_word_suffix") or "",
        skip=skip,
        spelt_in_bytes=in_bytes or not lossless,
    )


def ids_of_texts(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """int64, increasing: the ids that these texts are split into. Raises: UsageError, one is no text."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"keep_texts holds a {type(text).__name__}, not a text.")
    ids = [token_id for ids in encode_texts(backend_of(tokenizer), texts) for token_id in ids]
    return np.unique(np.array(ids, dtype=np.int64))


def table_rows(model: Any) -> int | None:
    """Rows of a model's input table, or as its config says; None: it does not."""
    if hasattr(model, "get_input_embeddings"):
        return len(input_layer(model).weight)
    return getattr(getattr(model, "config", model).get_text_config(), "vocab_size", None)


def _named_by(model: Any, vocabulary: dict[str, int], tokens: int) -> dict[int, str]:
    """Ids that a model (or its config) refers to, and the setting that does, e.g. `eos_token_id`."""
    from hf_glmd.models.config_ids import referenced_ids

    config, rows = getattr(model, "config", model), table_rows(model) or tokens
    if rows <= max(vocabulary.values()):
        raise UsageError(
            f"The model's table has {rows} rows, fewer than the {tokens} tokens of the tokenizer: they do not belong together, "
            "or tokens were added without resizing the model. Use the tokenizer that the model was trained with."
        )
    settings = [part for part in (getattr(model, "generation_config", None), config) if part is not None]
    known = set(vocabulary.values())
    named = {token_id: where for part in settings for token_id, where in referenced_ids(part, tokens, rows).items()}
    return {token_id: where for token_id, where in named.items() if token_id in known}


def _kept_ids(keep: Iterable[str | int], vocabulary: dict[str, int]) -> list[int]:
    known = set(vocabulary.values())
    ids = []
    for item in [keep] if isinstance(keep, (str, int)) else keep:
        if isinstance(item, str):
            if item not in vocabulary:
                raise UsageError(f"keep names {item!r}, which is not a token of this tokenizer.{_closest(item, vocabulary)}")
            ids.append(vocabulary[item])
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if int(item) not in known:
                raise UsageError(f"keep names the id {item}, which no token has: the ids go from 0 to {max(known)}.")
            ids.append(int(item))
        else:
            raise UsageError(f"keep holds {item!r}: give tokens (str) or ids (int).")
    return ids


def _closest(token: str, vocabulary: dict[str, int]) -> str:
    """A hint. Only tokens of about the same length are compared: a vocabulary may hold a quarter of a million."""
    if not token:
        return ""
    near = [known for known in sorted(vocabulary) if abs(len(known) - len(token)) <= 2 and known[:1].lower() == token[:1].lower()]
    close = difflib.get_close_matches(token, near, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} To keep the pieces of a word or phrase, use keep_texts=."
