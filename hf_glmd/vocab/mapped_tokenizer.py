"""MappedTokenizer: the original tokenizer with the ids of a smaller vocabulary, where removed tokens stand for kept ones."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hf_glmd.errors import UsageError
from hf_glmd.utils.files import SUMS, check_sums, written_whole
from hf_glmd.utils.remote_code import trust_remote_code
from hf_glmd.vocab.counting import backend_of, vocabulary_rows
from hf_glmd.vocab.tokenizer_files import STALE_FILES, load_plain_tokenizer, write_tokenizer
from hf_glmd.vocab.vocab_map import FILE_NAME, VocabMap

ORIGINAL_FOLDER = "original_tokenizer"
TOP_LEVEL_FILES = ("tokenizer_config.json", "chat_template.jinja", "additional_chat_templates", *STALE_FILES)
"""What a plain tokenizer leaves in a folder: beside a mapped one it would be read in its place."""

_SIGNPOST = {
    # Everything that reads a tokenizer.json compares the version first, and quotes it when it refuses the file.
    "version": "hf_glmd: removed tokens stand for kept ones here, load this folder with hf_glmd.MappedTokenizer.from_pretrained",
    "added_tokens": [],  # looked up by transformers before it reads the file
}
_UNMAPPED = ("backend_tokenizer", "prefix_tokens", "suffix_tokens")


class MappedTokenizer(PreTrainedTokenizerBase):
    """The tokenizer of a vocabulary that was cut with removed="nearest" or "unk".

    Text is split as before. The ids that come out are small ids: a removed token has the id of the kept one that stands for it.
    The ids that go in (decode, pad, convert_ids_to_tokens) are small ids too, and read as the kept tokens. All else, such as
    padding side, chat template and special tokens, is read from and set on `original`.

    With `return_original_ids=True` a call also returns `original_input_ids`, which a teacher with the whole vocabulary reads;
    `pad` pads them too. What `BatchEncoding` knows beside its `input_ids` (tokens, offsets, `encodings`) is of the original.

    Args:
        tokenizer: a fast transformers tokenizer. Its settings are copied: what is later set on the one does not change the other.
        vocab_map: with removed="nearest" or "unk".
    Attributes:
        original: the tokenizer before the vocabulary was cut.
    Raises: UsageError, the two do not fit, or a special token was removed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_map: VocabMap) -> None:
        if isinstance(tokenizer, MappedTokenizer):
            raise UsageError("The tokenizer is a MappedTokenizer already: give its .original.")
        if vocab_map.removed == "resegment":
            raise UsageError("Nothing stands for a removed token under removed='resegment': use ShrunkVocab.tokenizer as it is.")
        backend = backend_of(tokenizer)
        rows = vocabulary_rows(tokenizer)
        if rows != vocab_map.original_size:
            raise UsageError(
                f"The tokenizer has {rows} rows, the map is for {vocab_map.original_size}: give the tokenizer it was made for."
            )
        # The backend stays the same: it is large, and CLIP's loses its way of decoding when it is copied.
        original = copy.deepcopy(tokenizer, {id(backend): backend})
        self.__dict__.update(original=original, vocab_map=vocab_map)  # __setattr__ would set them on the original
        self._refuse_removed(tokenizer.all_special_tokens)

    # ---- text -> small ids ----

    def _encode_plus(self, *args: Any, return_original_ids: bool = False, **kwargs: Any) -> BatchEncoding:
        encoding = self.original._encode_plus(*args, **kwargs)
        original_ids = encoding["input_ids"]
        encoding["input_ids"] = self._small_rows(original_ids)
        if return_original_ids:
            encoding["original_input_ids"] = original_ids
        return encoding

    def _small_rows(self, ids: Any) -> Any:
        if not (isinstance(ids, list) and ids and isinstance(ids[0], list)):
            return self.vocab_map.to_small(ids)
        # All rows at once: they are many and short.
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64)
        small = iter(self.vocab_map.to_small(flat).tolist())
        return [list(itertools.islice(small, len(row))) for row in ids]

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        return self.vocab_map.to_small(self.original._encode_without_added_tokens(text))

    def _convert_token_to_id_with_added_voc(self, token: str) -> int | None:
        token_id = self.original.convert_tokens_to_ids(token)
        return None if token_id is None else self.vocab_map.to_small(token_id)

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The tokens the text is split into, removed ones included; `convert_tokens_to_ids` makes small ids of them."""
        return self.original.tokenize(text, pair=pair, add_special_tokens=add_special_tokens, **kwargs)

    # ---- small ids -> text ----

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        return self.original._decode(self.vocab_map.to_original(token_ids), *args, **kwargs)

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        if isinstance(ids, (int, np.integer)):
            return self.original.convert_ids_to_tokens(self.vocab_map.to_original(int(ids)))
        ids = self.vocab_map.to_original([int(token_id) for token_id in ids])
        return self.original.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.original.convert_tokens_to_string(tokens)

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> Any:
        encoded_inputs = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        original_ids = encoded_inputs.get("original_input_ids")
        if original_ids is not None:
            padding = [self.original.pad_token_id] * (len(encoded_inputs[self.model_input_names[0]]) - len(original_ids))
            left = (padding_side or self.padding_side) == "left"
            encoded_inputs["original_input_ids"] = padding + original_ids if left else original_ids + padding
        return encoded_inputs

    # ---- the vocabulary: kept tokens only, each with its own id ----

    def __len__(self) -> int:
        return self.vocab_map.size

    def __bool__(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        return self.vocab_map.size

    def get_vocab(self) -> dict[str, int]:
        """Kept token -> small id. A removed token is not in it, for its id is another token's."""
        return self._kept(self.original.get_vocab())

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        return self._kept(self.original.get_added_vocab())

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        added = self.original.added_tokens_decoder
        return {self.vocab_map.to_small(token_id): token for token_id, token in added.items() if self.vocab_map.keeps(token_id)}

    def _kept(self, vocabulary: dict[str, int]) -> dict[str, int]:
        ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
        rows = zip(vocabulary, self.vocab_map.to_small(ids).tolist(), self.vocab_map.keeps(ids).tolist(), strict=True)
        return {token: small_id for token, small_id, kept in rows if kept}

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        known = self.get_vocab()
        for token in new_tokens:
            if str(token) not in known:
                raise UsageError(f"{str(token)!r} cannot be added to a vocabulary that was cut: add tokens first, then cut it.")
        return self.original._add_tokens(new_tokens, special_tokens=special_tokens)  # may still become special tokens

    def _refuse_removed(self, tokens: Iterable[Any]) -> None:
        kept = self.get_vocab()
        for token in tokens:
            if str(token) not in kept:
                raise UsageError(f"The special token {str(token)!r} is not a token that was kept: name it in keep=.")

    # ---- everything else is the original's ----

    # The base class has values of its own for these, so __getattr__ would not be asked.
    padding_side = property(lambda self: self.original.padding_side)
    truncation_side = property(lambda self: self.original.truncation_side)
    model_input_names = property(lambda self: self.original.model_input_names)
    SPECIAL_TOKENS_ATTRIBUTES = property(lambda self: self.original.SPECIAL_TOKENS_ATTRIBUTES)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return self.original.num_special_tokens_to_add(pair)

    def __getattr__(self, name: str) -> Any:
        # While it is copied or unpickled there is no original yet.
        if name.startswith("__") or "original" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        value = None if name in _UNMAPPED else getattr(self.original, name)
        if name in _UNMAPPED or (callable(value) and _is_ids(name)):
            raise AttributeError(f"{name} knows original ids only: use .original.{name}, and .vocab_map.to_small for its ids.")
        return self._small(value) if _is_ids(name) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
            return
        token_name = name.removesuffix("_ids").removesuffix("_id")
        if token_name == "extra_special_tokens" or token_name in self.SPECIAL_TOKENS_ATTRIBUTES:
            if name != token_name and value is not None:
                value = self.convert_ids_to_tokens(value)
            if value is not None:
                self._refuse_removed([value] if token_name != "extra_special_tokens" else value)
            name = token_name
        setattr(self.original, name, value)

    def _small(self, value: Any) -> Any:
        if isinstance(value, dict):  # token or language -> id
            return {key: self._small(token_id) for key, token_id in value.items()}
        if isinstance(value, list):
            return [self._small(token_id) for token_id in value]
        return None if value is None else self.vocab_map.to_small(value)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.original).__name__}, {self.vocab_map.size} of {self.vocab_map.original_size} "
            f"tokens, removed={self.vocab_map.removed!r})"
        )

    # ---- files ----

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> tuple[str, ...]:
        """Writes `vocab_map.safetensors`, the original tokenizer in a folder of its own, and a tokenizer.json that refuses.

        No tokenizer file can say that two tokens share an id (one of them is lost when it is saved again), so the folder loads
        with `MappedTokenizer.from_pretrained` only. `AutoTokenizer` would find nothing there, and for many models make up an
        empty tokenizer; therefore a tokenizer.json of no known version names the right class in the error.

        Args:
            save_directory: the folder. Other files in it stay, except those of an earlier tokenizer.
            push_to_hub: upload it too; `kwargs` are then those of `push_to_hub`, `repo_id` first of all.
        Returns: the files written.
        Raises: UsageError, `save_directory` is a file.
        """
        with written_whole(save_directory, stale=TOP_LEVEL_FILES) as folder:
            write_tokenizer(self.original, folder / ORIGINAL_FOLDER, ())
            self.vocab_map.save(folder)
            (folder / "tokenizer.json").write_text(json.dumps(_SIGNPOST), encoding="utf-8")
            names = sorted([SUMS, *(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())])
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return tuple(str(Path(save_directory) / name) for name in names)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], revision: str | None = None, **kwargs: Any) -> MappedTokenizer:
        """Reads what `save_pretrained` wrote.

        Args:
            name: the folder, or a repository on the Hub.
            revision: of the repository.
            **kwargs: for `AutoTokenizer`, e.g. padding_side="left".
        Raises: UsageError, there is no vocabulary map or no tokenizer, or they are of another kind.
        """
        try:
            file = cached_file(name, FILE_NAME, revision=revision)
        except (OSError, ValueError) as error:
            raise UsageError(f"There is no {FILE_NAME} in '{name}': give what MappedTokenizer.save_pretrained wrote.") from error
        vocab_map = VocabMap.load(file)
        if vocab_map.removed == "resegment":
            raise UsageError(f"The tokenizer in '{name}' needs no map: load it with AutoTokenizer.")
        try:
            options = {"trust_remote_code": trust_remote_code()} | kwargs
            original = AutoTokenizer.from_pretrained(name, revision=revision, subfolder=ORIGINAL_FOLDER, **options)
        except (OSError, ValueError) as error:
            raise UsageError(f"There is no tokenizer in '{name}/{ORIGINAL_FOLDER}': save the MappedTokenizer again.") from error
        return cls(original, vocab_map)


def _is_ids(name: str) -> bool:
    return name.endswith(("_id", "_ids")) and not name.startswith("_")


def load_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The tokenizer of a Hub name or a folder, a `MappedTokenizer` where tokens stand for removed ones.

    Raises: UsageError, there is none, or its files are damaged.
    """
    check_sums(name, weights=False)
    if (Path(name) / ORIGINAL_FOLDER).is_dir():
        return MappedTokenizer.from_pretrained(name)
    return load_plain_tokenizer(name, revision)
