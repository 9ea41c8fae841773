"""Whether a tokenizer can be what it says, and what the tokenizers library says where it cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from tokenizers import Tokenizer

from hf_glmd.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def panics_named(function: Function) -> Function:
    """Decorator: an exception or a Rust panic of the tokenizers library becomes a UsageError, "tokenizer.json is damaged"."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            # The library raises nothing but plain exceptions and panics.
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            raise UsageError(f"tokenizers cannot use the tokenizer ({error}): its tokenizer.json is damaged.") from error

    return cast(Function, run)


_MOST_ABSENT = 1_000_000
"""Ids that no token has; published vocabularies leave out some thousands at most."""


def check_vocabulary(backend: Tokenizer, whose: str) -> Tokenizer:
    """Returns: the backend.

    Raises: UsageError, two tokens have one id, an id is far beyond all others, or the unknown token is none of the tokens.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
    if ids.size and ids.max() >= 2 * ids.size + _MOST_ABSENT:
        token = max(vocabulary, key=vocabulary.__getitem__)
        raise UsageError(f"{whose} gives {token!r} the id {ids.max()}, among {ids.size} tokens: tokenizer.json is damaged.")
    if np.unique(ids).size < ids.size:
        first: dict[int, str] = {}
        token, other = next((token, first[id]) for token, id in vocabulary.items() if first.setdefault(id, token) != token)
        raise UsageError(f"{whose} gives {other!r} and {token!r} the same id {vocabulary[token]}: tokenizer.json is damaged.")
    unknown = getattr(backend.model, "unk_token", None)
    if isinstance(unknown, str) and unknown not in vocabulary:
        raise UsageError(f"{whose} names {unknown!r} as its unknown token, and has no such token: tokenizer.json is damaged.")
    return backend
