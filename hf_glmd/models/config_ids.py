"""Token ids in a config and a generation config -> the ids of the smaller vocabulary."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

_TOKEN_ID = re.compile(r"(_token_ids?|_token_index|_tokens_ids?|_token_id_list)$|^(pad|bos|eos|unk|mask)_index$")
_SUPPRESSED = frozenset({"suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"})
"""What names tokens that are not to be written: an entry with a removed token has nothing left to do."""

_OTHER_NAMES = _SUPPRESSED | {"force_words_ids", "forced_decoder_ids", "lang_to_id", "task_to_id"}
_OTHER_VOCABULARY = re.compile(r"^(t2u|tts_codec|tts|codebook|codec|char|audio_codebook|vocoder|unit)_")
"""Ids of these belong to another vocabulary of the same model (speech units, audio codes)."""

_SIZES = frozenset(
    {
        "vocab_size",
        "n_words",
        "decoder_vocab_size",
        "src_vocab_size",
        "tgt_vocab_size",
        "text_vocab_size",
        "unpadded_vocab_size",
        "vocab_size_per_layer_input",
    }
)


@dataclass(frozen=True)
class IdChange:
    """One value that was changed: where (`text_config.eos_token_id`), from what, to what."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


def is_token_name(name: str) -> bool:
    """Whether a setting of this name holds token ids of the vocabulary that is cut."""
    return (name in _OTHER_NAMES or bool(_TOKEN_ID.search(name))) and not _OTHER_VOCABULARY.match(name)


def update_config_ids(config: Any, vocab_map: VocabMap, table_rows: int | None = None) -> list[IdChange]:
    """Moves all token ids and vocabulary sizes of a config to the smaller vocabulary, in place, those of nested configs too.

    A nested config with a vocabulary of another size (a speech encoder, say) is left alone. Ids that no token of the original
    vocabulary has (a default the model never used, a row that only pads the table) become None, with a warning, for they would
    name another token or none; negative ids mean "none" and stay. Works for a config as for a generation config.

    Args:
        config: `PreTrainedConfig`, `GenerationConfig`, or a dict with such names.
        vocab_map: old ids -> new ones.
        table_rows: rows of the embedding table before, >= `vocab_map.original_size`; more if the table is padded.
    Returns: what was changed.
    Raises: UsageError, an id that the model needs names a removed token.
    """
    sizes = {vocab_map.original_size, table_rows or vocab_map.original_size}
    return list(_update(config, vocab_map, sizes, ""))


def map_id_value(name: str, value: Any, vocab_map: VocabMap) -> Any:
    """The value of one setting in the new ids: an id, a list of ids, lists of lists, pairs or dicts, as the name wants.

    Raises: UsageError, it names a removed token that the model needs.
    """
    return _map_value(name, value, vocab_map)


def _update(config: Any, vocab_map: VocabMap, sizes: set[int], path: str) -> Iterator[IdChange]:
    values = config if isinstance(config, dict) else vars(config)
    for name, value in list(values.items()):
        where = f"{path}{name}"
        if name in _SIZES and isinstance(value, int) and value in sizes:
            after: Any = vocab_map.size
        elif is_token_name(name):
            after = _map_value(where, value, vocab_map)
        elif _is_config(value) or (name == "task_specific_params" and isinstance(value, dict)):
            if owns_another_vocabulary(value, sizes):
                continue
            yield from _update(value, vocab_map, sizes, f"{where}.")
            continue
        elif isinstance(value, dict) and path.startswith("task_specific_params."):
            yield from _update(value, vocab_map, sizes, f"{where}.")
            continue
        else:
            continue
        if after != value or type(after) is not type(value):
            if isinstance(config, dict):
                config[name] = after
            else:
                setattr(config, name, after)
            yield IdChange(where, value, after)


def _is_config(value: Any) -> bool:
    from transformers import PreTrainedConfig

    return isinstance(value, PreTrainedConfig)


def owns_another_vocabulary(config: Any, sizes: set[int]) -> bool:
    """Whether the ids in a nested config are of some other vocabulary than the one with one of these sizes."""
    if isinstance(config, dict):
        return False
    size = getattr(config, "vocab_size", None)
    # Without a vocabulary of its own (an image encoder) a config has no ids of this one either.
    return size not in sizes


def _map_value(where: str, value: Any, vocab_map: VocabMap) -> Any:
    name = where.rpartition(".")[2]
    one = _mapper(where, vocab_map)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return one(value)
    if name == "forced_decoder_ids":  # [[position, id], ...]
        return [[position, one(token)] for position, token in value]
    if name in ("lang_to_id", "task_to_id"):  # name -> id
        return {key: one(token) for key, token in value.items()}
    if name == "sequence_bias":  # {(id, ...): bias}, or [[[id, ...], bias], ...] as in JSON
        pairs = value.items() if isinstance(value, dict) else value
        moved = [(_kept_or_none(ids, vocab_map, where), bias) for ids, bias in pairs]
        if isinstance(value, dict):
            return {tuple(ids): bias for ids, bias in moved if ids is not None}
        return [[ids, bias] for ids, bias in moved if ids is not None]
    if name == "bad_words_ids":
        words = [_kept_or_none(ids, vocab_map, where) for ids in value]
        return [ids for ids in words if ids is not None] or None
    if name in _SUPPRESSED:
        return [new for token in value for new in _kept_or_none([token], vocab_map, where) or ()]
    if isinstance(value, (list, tuple)):
        return type(value)(_drop_none(_map_nested(item, one) for item in value))
    if isinstance(value, dict):
        return {key: _map_nested(item, one) for key, item in value.items()}
    return value


def _map_nested(value: Any, one: Callable[[int], int | None]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_drop_none(_map_nested(item, one) for item in value))
    return one(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _drop_none(values: Iterator[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mapper(where: str, vocab_map: VocabMap) -> Callable[[int], int | None]:
    def one(token_id: int) -> int | None:
        if token_id < 0:
            return token_id
        if token_id >= vocab_map.original_size:
            logger.warning(
                "%s=%d names no token of the vocabulary (%d tokens); it is set to None.", where, token_id, vocab_map.original_size
            )
            return None
        if not vocab_map.keeps(token_id):
            raise UsageError(f"{where}={token_id} names a removed token: cut the vocabulary again with keep=[{token_id}].")
        return vocab_map.to_small(int(token_id))

    return one


def _kept_or_none(ids: Any, vocab_map: VocabMap, where: str) -> list[int] | None:
    ids = [int(token) for token in ids]
    if all(token < 0 for token in ids) or vocab_map.keeps(ids).all():
        return [token if token < 0 else vocab_map.to_small(token) for token in ids]
    logger.warning("%s: the entry %s names a removed token and is dropped.", where, ids)
    return None
