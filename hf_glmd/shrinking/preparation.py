"""A tokenizer and its counts, made ready to be cut at any size."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_glmd.errors import UsageError
from hf_glmd.shrinking.required_tokens import required_tokens, table_rows
from hf_glmd.vocab.closure import MergeTree
from hf_glmd.vocab.counting import backend_of, tokenizer_fingerprint
from hf_glmd.vocab.rewrite import byte_tokens, is_byte_level, model_type, refuse_unsupported, token_ids
from hf_glmd.vocab.selection import ORDERS, load_order
from hf_glmd.vocab.vocab_map import REMOVED_MODES

logger = logging.getLogger(__name__)

FEW_TOKENS = 8
"""That many added tokens may lack a row in a model's table; with more the two do not belong together."""


@dataclass(frozen=True)
class Preparation:
    """What every size of a vocabulary is cut from.

    Attributes:
        data: tokenizer.json, parsed, without the tokens that the model has no row for; `without_row` names these.
        vocabulary: token -> id.
        merges: of a BPE vocabulary, where removed text is to be split into kept pieces.
        required: ids that stay, by kind.
        absent: ids that no token has.
    """

    data: dict[str, Any]
    vocabulary: dict[str, int]
    without_row: list[str]
    merges: MergeTree | None
    required: dict[str, np.ndarray]
    absent: np.ndarray

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        counts: np.ndarray,
        keep: Iterable[str | int] = (),
        keep_texts: Iterable[str] = (),
        alphabet: str | None = None,
        lossless: bool = True,
        model: Any = None,
    ) -> Preparation:
        """Args: as of `VocabShrinker.shrink`. Raises: UsageError, the tokenizer cannot be cut, or counts or model do not fit."""
        data = json.loads(backend_of(tokenizer).to_str())
        if lossless:
            refuse_unsupported(data)
        vocabulary = counted_vocabulary(data, counts)
        absent = absent_ids(vocabulary, counts.size)
        without_row = tokens_without_row(model, data, vocabulary) if lossless else set()
        if without_row:
            vocabulary = {token: token_id for token, token_id in vocabulary.items() if token not in without_row}
            absent = absent_ids(vocabulary, counts.size)
            data["added_tokens"] = [one for one in data.get("added_tokens") or () if one["content"] not in without_row]
        merges = merge_tree(data, counts.size) if lossless else None
        required = required_tokens(
            tokenizer,
            data,
            vocabulary,
            counts,
            keep=keep,
            keep_texts=keep_texts,
            alphabet=alphabet or (default_alphabet(data) if lossless else "none"),
            lossless=lossless,
            merges=merges,
            model=model,
        )
        return cls(data, vocabulary, sorted(without_row), merges, required, absent)


def default_alphabet(data: dict[str, Any]) -> str:
    """Where characters without a token are not spelt in bytes, more of them are kept than were counted."""
    return "seen" if is_byte_level(data) or byte_tokens(data) else "scripts"


def counted_vocabulary(data: dict[str, Any], counts: np.ndarray) -> dict[str, int]:
    """Token -> id. Raises: UsageError, it is not the vocabulary that was counted."""
    vocabulary = token_ids(data)
    rows = max(vocabulary.values()) + 1
    if rows != counts.size:
        raise UsageError(
            f"The tokenizer had {counts.size} rows when the counting began, now {rows}: add tokens first, then count."
        )
    if not counts.any():
        raise UsageError("Nothing was counted, so it is unknown which tokens matter: call count(corpus) first.")
    return vocabulary


def merge_tree(data: dict[str, Any], rows: int) -> MergeTree | None:
    return MergeTree.of(data["model"], rows) if model_type(data) == "BPE" else None


def absent_ids(vocabulary: dict[str, int], rows: int) -> np.ndarray:
    """Ids that no token has."""
    missing = np.ones(rows, dtype=bool)
    missing[np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))] = False
    return np.flatnonzero(missing)


def order_of(tokenizer: Any, order: str | os.PathLike[str] | np.ndarray) -> str | np.ndarray:
    """An order as `select` takes it; that of a file is read."""
    if isinstance(order, os.PathLike) or (isinstance(order, str) and order not in ORDERS):
        return load_order(order, tokenizer_fingerprint(tokenizer))
    return order if isinstance(order, str) else np.asarray(order)


def check_mode(removed: str, similarity: str, embeddings: torch.Tensor | np.ndarray | None) -> None:
    if removed not in REMOVED_MODES:
        raise UsageError(f"removed={removed!r} is unknown: use one of {', '.join(REMOVED_MODES)}.")
    if similarity not in ("dot", "cosine", "euclidean"):
        raise UsageError(f"similarity={similarity!r} is unknown: use 'dot', 'cosine' or 'euclidean'.")
    if embeddings is not None and removed != "nearest":
        raise UsageError("embeddings are used by removed='nearest' only: leave them out.")
    if embeddings is None and removed == "nearest":
        raise UsageError("removed='nearest' compares embeddings: give embeddings=model.get_input_embeddings().weight.")


def tokens_without_row(model: Any, data: dict[str, Any], vocabulary: dict[str, int]) -> set[str]:
    """Added tokens without a row in a model's table, such as Gemma 3's image token in its text models: none can be read."""
    rows = None if model is None else table_rows(model)
    added = {one["content"] for one in data.get("added_tokens") or ()}
    found = {token for token, token_id in vocabulary.items() if rows is not None and token_id >= rows}
    if not found or len(found) > FEW_TOKENS or not found <= added:
        return set()
    shown = ", ".join(map(repr, sorted(found)))
    logger.warning("%d tokens have no row in the model's table of %d rows, and are removed: %s.", len(found), rows, shown)
    return found


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A vocabulary is hundreds of thousands of small objects, and the collector would go through them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
