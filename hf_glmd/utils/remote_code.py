"""Code that lies beside a checkpoint: it never runs unless it was asked for by name, and nothing asks on standard input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_trusted: ContextVar[bool] = ContextVar("trust_remote_code", default=False)

HELP = "Run the Python code in the model's repository, for architectures that transformers does not have. Read that code first."
REMEDY = (
    "Read that code; if you trust it, add --trust-remote-code (in a recipe: teacher.trust_remote_code: true; in Python: load the "
    "model yourself with trust_remote_code=True)"
)


def trust_remote_code() -> bool:
    """What `from_pretrained` of transformers is told as `trust_remote_code`: True only inside of `trusting_remote_code(True)`."""
    return _trusted.get()


@contextmanager
def trusting_remote_code(trusted: bool) -> Iterator[None]:
    """Whether models and tokenizers that are loaded meanwhile may run the code of their repositories."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def trusting_as_asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument has `trust_remote_code`, which holds while the function runs."""

    @functools.wraps(command)
    def run(options: Any, *args: Any, **kwargs: Any) -> Any:
        with trusting_remote_code(options.trust_remote_code):
            return command(options, *args, **kwargs)

    return run


def reason(error: Exception) -> str:
    """The first line of an error as a sentence; of one that asks for `trust_remote_code`, what a user of ours can do."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return f"it needs code that lies in its repository. {REMEDY}."
    return f"{first}."
