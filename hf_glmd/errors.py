"""The one exception for what a user can mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_LISTED = 20

ACCESS_TOKEN = re.compile(r"(hf_(oauth_|jwt_)?|api_org_)[A-Za-z0-9]{30,}")
"""As the Hub makes them: none may be written into a record, a card or a message."""


class UsageError(ValueError):
    """Bad input that the caller can mend: the message names the value, the reason and the remedy in one line.

    In Python it is an ordinary `ValueError`; the command line prints the message without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the known name closest to `name`, or the list of all known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # `train.learning_rate` written for `stage1.learning_rate`: the last part still tells what was meant
        leaf = name.rsplit(".", 1)[-1]
        close = [k for k in known if k.rsplit(".", 1)[-1] == leaf][:1]
    if close:
        return f"Did you mean '{close[0]}'?"
    if len(known) > MAX_LISTED:  # name the sections rather than every key
        known = sorted({k.split(".", 1)[0] for k in known})
    return f"Known: {', '.join(known)}."
