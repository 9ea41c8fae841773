"""A call to the Hub, repeated while the failure may pass by itself."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 8.0
"""As `huggingface_hub` does where it repeats by itself: uploads, but not the creation of a repository, nor a commit."""

PASSING_STATUS = (429, 500, 502, 503, 504)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server is busy or broken, or the connection is."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    # A gateway's error page is no JSON, and some calls read the answer before they look at its status.
    return isinstance(error, (HTTPError, ConnectionError, json.JSONDecodeError)) and not isinstance(error, OfflineModeIsEnabled)


def with_retries(call: Callable[[], Result], what: str) -> Result:
    """The result of `call`, which must be safe to repeat.

    Args:
        what: named in the log, e.g. "commit".
    Raises: what `call` raises, at once if it will not pass, else after `RETRIES` repetitions.
    """
    for number in range(RETRIES + 1):
        try:
            return call()
        except Exception as error:
            if number == RETRIES or not is_passing(error):
                raise
            wait = _asked_to_wait(error) or min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S)
            logger.warning("%s: %s. Trying again in %g s (%d of %d).", what, type(error).__name__, wait, number + 1, RETRIES)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _asked_to_wait(error: Exception) -> float | None:
    """Seconds of a Retry-After header, if it is a number and not too long to sit it out."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("Retry-After", "")
    return min(float(text), 60.0) if text.isdigit() and int(text) else None
