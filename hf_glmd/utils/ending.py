"""How a command ends: with its result, one line on what is wrong, or one on how to go on after a signal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hf_glmd.errors import UsageError


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Runs a command to its end, whatever that is.

    Args:
        program: what the user typed before the words of `sys.argv`.
    Returns: what the command returned, or 0; 2 when the user can mend what is wrong; 130 or 143 after a signal; 1 when
        another process of this run has ended.
    """
    try:
        with _raised_by_sigterm():
            return command() or 0
    except UsageError as error:
        return refused(program, str(error))
    except (KeyboardInterrupt, Stopped) as error:
        print(file=sys.stderr)  # noqa: T201 - behind the ^C
        refused(program, f"stopped. {_command('To go on:', program) or 'The same command goes on.'}")
        return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
    except Exception as error:
        from hf_glmd.utils.files import of_the_machine  # imports numpy, which `--help` need not wait for

        if _cut_off(error):
            refused(program, "stopped, for another process has ended. The same command goes on.")
            return 1
        if (said := of_the_machine(error)) is None:
            raise  # a bug of ours, which its traceback helps to find
        said = said.replace(", then run the same command again.", ".")  # which comes with its words
        return refused(program, f"{said} {_command('Then run it again:', program) or 'Then run the same command again.'}")


def _cut_off(error: BaseException) -> bool:
    """Whether a process was waiting for another, and that has ended: which has said why, or the launcher does."""
    waiting = "/gloo/" in str(error) or type(error).__name__ in ("DistBackendError", "DistNetworkError")
    return "WORLD_SIZE" in os.environ and isinstance(error, RuntimeError) and waiting


class Stopped(BaseException):
    """A signal has asked the process to end. As KeyboardInterrupt, it is no error that a library may know how to handle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _command(before: str, program: str) -> str | None:
    """What the user typed; None in a process of a launcher, whose words others have chosen."""
    return None if "WORLD_SIZE" in os.environ else f"{before} {shlex.join([program, *sys.argv[1:]])}"


@contextlib.contextmanager
def _raised_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends what is done inside with `Stopped`, a second one ends the process at once.

    A stage of a recipe has a handler of its own meanwhile: it saves a checkpoint first.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Stopped(number)

    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # who has another handler, has a reason
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def refused(program: str, said: str) -> int:
    """Says in one line what is wrong. Returns: 2."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):  # one that is still open would be drawn once more below the line
        bar.close()
    if int(os.environ.get("RANK", "0")) == 0:  # every process finds the same mistake
        print(_printable(f"{program}: {' '.join(said.splitlines())}"), file=sys.stderr)  # noqa: T201
    return 2


def _printable(text: str) -> str:
    """Names of files in another encoding than UTF-8, which no output takes, with those bytes as numbers."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def say(text: str) -> None:
    """Prints a result."""
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            print(_printable(text), flush=True)  # noqa: T201
        except BrokenPipeError:  # of `| head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try once more at its end
            raise SystemExit(128 + signal.SIGPIPE) from None
