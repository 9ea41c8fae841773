"""Token ids in a config and a generation config -> the ids of the smaller vocabulary."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from hf_glmd.errors import UsageError
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

_TOKEN_ID = re.compile(r"(_token_ids?|_token_index|_tokens_ids?|_token_id_list)$|^(pad|bos|eos|unk|mask)_index$")
_SUPPRESSED = frozenset({"suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"})
"""What names tokens that are not to be written: an entry with a removed token has nothing left to do."""

_OTHER_NAMES = _SUPPRESSED | {
    "force_words_ids",
    "forced_decoder_ids",
    "lang_to_id",
    "task_to_id",
    "text_decoder_lang_to_code_id",
    "id_to_text",
}
_OTHER_VOCABULARY = re.compile(r"^(t2u|tts_codec|codebook|codec|char|audio_codebook|vocoder|unit)_")
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
    }
)
PER_LAYER_SIZE = "vocab_size_per_layer_input"
"""Rows of a further table, read by id in every layer; it may leave out the last tokens of the vocabulary (Gemma 3n)."""


@dataclass(frozen=True)
class IdChange:
    """A setting with token ids or a vocabulary size: where it is (`text_config.eos_token_id`), from what, to what."""

    name: str
    before: Any
    after: Any
    owner: Any = field(repr=False, compare=False)
    """The config, dict or module that holds it ..."""
    key: str = field(repr=False, compare=False)
    """... and under which name there."""

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"

    @property
    def is_one(self) -> bool:
        """Whether the setting says something else afterwards."""
        return self.after != self.before or type(self.after) is not type(self.before)

    def apply(self, owner: Any = None) -> None:
        """Writes the new value, if it is another one; into a copy of the owner if one is given."""
        if self.is_one:
            _write(self.owner if owner is None else owner, self.key, self.after)

    def undo(self) -> None:
        """Writes the old value back."""
        _write(self.owner, self.key, self.before)


def is_token_name(name: str) -> bool:
    """Whether a setting of this name holds token ids of the vocabulary that is cut."""
    return (name in _OTHER_NAMES or bool(_TOKEN_ID.search(name))) and not _OTHER_VOCABULARY.match(name)


def update_config_ids(config: Any, vocab_map: VocabMap, table_rows: int | None = None) -> list[IdChange]:
    """Moves all token ids and vocabulary sizes of a config to the smaller vocabulary, in place, those of nested configs too.

    A nested config with a vocabulary of another size (a speech encoder, say) is left alone. Ids that no token of the original
    vocabulary has (a default the model never used, a row that only pads the table) become None, with a warning, for they would
    name another token or none; where the config insists on a number they stay, and name no token of the small vocabulary
    either. Negative ids mean "none" and stay. Works for a config as for a generation config.

    Args:
        config: `PreTrainedConfig`, `GenerationConfig`, or a dict with such names.
        vocab_map: old ids -> new ones.
        table_rows: rows of the embedding table before, >= `vocab_map.original_size`; more if the table is padded. Default: the
            size that the config tells, if it is large enough.
    Returns: what was changed.
    Raises: UsageError, an id that the model needs names a removed token; nothing is changed.
    """
    settings = id_settings(config, vocab_map, table_rows)
    for setting in settings:
        setting.apply()
    return [setting for setting in settings if setting.is_one]


def id_settings(config: Any, vocab_map: VocabMap, table_rows: int | None = None) -> list[IdChange]:
    """All settings that `update_config_ids` looks at with their new values, the same or not; nothing is written.

    Args, raises: as `update_config_ids`.
    """
    sizes = _sizes(config, vocab_map.original_size, table_rows)
    settings = []
    for owner, key, where in _settings(config, sizes, ""):
        before = _values(owner)[key]
        after = moved_size(key, before, vocab_map, sizes)
        if after is None:
            after = map_id_value(where, before, vocab_map)
            if after is None and before is not None and not _may_be_none(owner, key):
                after = before
        settings.append(IdChange(where, before, after, owner, key))
    return settings


def referenced_ids(config: Any, original_size: int, table_rows: int | None = None) -> dict[int, str]:
    """The token ids that a model needs because its config or generation config, or one nested in it, names them.

    What only forbids or favours tokens (suppress lists, bad words, `sequence_bias`) needs none. An id that no token has
    (negative, or `original_size` and more) is left out.

    Args:
        config: `PreTrainedConfig`, `GenerationConfig`, or a dict with such names.
        original_size: V.
        table_rows: as in `update_config_ids`.
    Returns: id -> the setting that names it (the first one), e.g. `text_config.eos_token_id`, sorted by id.
    """
    found: dict[int, str] = {}
    for owner, key, where in _settings(config, _sizes(config, original_size, table_rows), ""):
        if not is_token_name(key):
            continue

        def note(token_id: int, where: str) -> int:
            if 0 <= token_id < original_size:
                found.setdefault(token_id, where)
            return token_id

        _convert(where, _values(owner)[key], note, lambda ids, where: ids, original_size)
    return dict(sorted(found.items()))


def map_id_value(name: str, value: Any, vocab_map: VocabMap) -> Any:
    """The value of one setting in the new ids: an id, a list of ids, lists of lists, pairs or dicts, as the name wants.

    Raises: UsageError, it names a removed token that the model needs.
    """

    def needed(token_id: int, where: str) -> int | None:
        if token_id < 0:
            return token_id
        if token_id >= vocab_map.original_size:
            logger.warning("%s=%d names no token of the vocabulary (%d tokens).", where, token_id, vocab_map.original_size)
            return None
        if not vocab_map.keeps(token_id):
            raise UsageError(f"{where}={token_id} names a removed token: cut the vocabulary again with keep=[{token_id}].")
        return vocab_map.to_small(int(token_id))

    def optional(ids: Sequence[int], where: str) -> list[int] | None:
        if all(token < 0 or vocab_map.keeps(token) for token in ids):
            return [token if token < 0 else vocab_map.to_small(int(token)) for token in ids]
        # A removed token needs no suppressing any more. A forced or biased sequence with a removed token is lost, so it warns.
        level = logging.INFO if where.endswith("suppress_tokens") else logging.WARNING
        logger.log(level, "%s: the entry %s names a removed token and is dropped.", where, list(ids))
        return None

    return _convert(name, value, needed, optional, vocab_map.original_size)


def moved_size(name: str, value: Any, vocab_map: VocabMap, sizes: set[int]) -> int | None:
    """The new value of a setting that is the size of the vocabulary, one of `sizes` before; None for any other setting."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if name == PER_LAYER_SIZE or (name in _SIZES and value in sizes):
        return int((vocab_map.kept_ids < value).sum())
    return None


def owns_another_vocabulary(config: Any, sizes: set[int]) -> bool:
    """Whether the ids in a nested config are of some other vocabulary than the one with one of these sizes.

    Without any vocabulary, its own or that of a config in it (an image encoder), it has no ids of this one either.
    """
    return sizes.isdisjoint(_vocabulary_sizes(config))


def nested_configs(config: Any) -> Iterator[PreTrainedConfig]:
    """The configs within a config, at any depth."""
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield value
            yield from nested_configs(value)


def _vocabulary_sizes(config: PreTrainedConfig) -> set[int]:
    """What a config says about the size of its vocabulary; if it says nothing, what the configs in it do."""
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        return {size}
    return {size for part in nested_configs(config) for size in [getattr(part, "vocab_size", None)] if isinstance(size, int)}


def _sizes(config: Any, original_size: int, table_rows: int | None) -> set[int]:
    """What a setting may say that means the size of the vocabulary: its tokens, or the rows of a table padded beyond them."""
    told = _vocabulary_sizes(config) if table_rows is None and isinstance(config, PreTrainedConfig) else {table_rows}
    padded = min((size for size in told if size and size >= original_size), default=original_size)
    return {original_size, padded} | ({table_rows} if table_rows else set())  # which may lack rows of the last tokens


def _settings(config: Any, sizes: set[int], path: str) -> Iterator[tuple[Any, str, str]]:
    """(holder, name, full name) of each setting with token ids or a vocabulary size, in a config and those nested in it."""
    for name, value in _values(config).items():
        where = f"{path}{name}"
        if name == PER_LAYER_SIZE or name in _SIZES or is_token_name(name):
            yield config, name, where
        elif isinstance(value, PreTrainedConfig):
            if not owns_another_vocabulary(value, sizes):
                yield from _settings(value, sizes, f"{where}.")
        elif isinstance(value, dict) and (name == "task_specific_params" or path.startswith("task_specific_params.")):
            yield from _settings(value, sizes, f"{where}.")


def _values(owner: Any) -> dict[str, Any]:
    return owner if isinstance(owner, dict) else vars(owner)


def _write(owner: Any, key: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[key] = value
    else:
        setattr(owner, key, value)


def _may_be_none(owner: Any, key: str) -> bool:
    """Configs check what they are given, by the type their class declares; asked on a shallow copy, so nothing is changed."""
    try:
        _write(copy.copy(owner), key, None)
    except StrictDataclassFieldValidationError:
        return False
    return True


def _convert(
    where: str,
    value: Any,
    needed: Callable[[int, str], int | None],
    optional: Callable[[Sequence[int], str], list[int] | None],
    original_size: int,
) -> Any:
    """The value of one setting, its ids replaced.

    Args:
        where: its full name; the last part tells how it is built.
        needed: (id, name) -> the new id, or None to drop it.
        optional: (ids of one entry, name) -> the new ones, or None to drop the entry.
    """
    name = where.rpartition(".")[2]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if name == "no_timestamps_token_id" and 0 < value < original_size:
            # Whisper: "no speech" stands right before it, and all after it are time stamps, read off their distance from it.
            for token_id in (value - 1, *range(value + 1, original_size)):
                needed(token_id, f"{where} (its time stamps)")
        return needed(value, where)
    if name == "forced_decoder_ids":  # [[position, id or None], ...]
        return [[position, None if token is None else needed(token, where)] for position, token in value]
    if name == "id_to_text":  # {"id": text}
        moved = ((optional([int(token)], where), text) for token, text in value.items())
        return {str(ids[0]): text for ids, text in moved if ids is not None}
    if name == "sequence_bias":  # {(id, ...): bias}, or [[[id, ...], bias], ...] as in JSON
        pairs = value.items() if isinstance(value, dict) else value
        entries = [(ids, bias) for ids, bias in ((optional(ids, where), bias) for ids, bias in pairs) if ids is not None]
        return {tuple(ids): bias for ids, bias in entries} if isinstance(value, dict) else [list(entry) for entry in entries]
    if name == "bad_words_ids":
        return [ids for ids in (optional(ids, where) for ids in value) if ids is not None] or None
    if name in _SUPPRESSED:
        return [new for token in value for new in optional([token], where) or ()]
    return _convert_nested(value, lambda token: needed(token, where))


def _convert_nested(value: Any, one: Callable[[int], int | None]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(item for item in (_convert_nested(item, one) for item in value) if item is not None)
    if isinstance(value, dict):
        return {key: _convert_nested(item, one) for key, item in value.items()}
    return one(value) if isinstance(value, int) and not isinstance(value, bool) else value
