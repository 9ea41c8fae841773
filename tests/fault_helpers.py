"""Commands to which something happens at one of their file operations, in a process of their own that is a fork of this one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

EVERYTHING = os.environ.get("HF_GLMD_FAULTS") == "all"
"""The long form was asked for: `make test-faults`."""

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
FREEING = ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
STOPPED = 99
HANGS_S = 300
"""No command of these tests takes a tenth of it."""

Fault = Callable[[str, str], None]
"""Is called with an operation's name and path before it is done, in the process of the command."""


def stop(event: str, path: str) -> None:
    """As a power cut, or SIGKILL."""
    os._exit(STOPPED)


def full_disk(event: str, path: str) -> None:
    """Whatever takes room fails; to remove and to rename stays possible."""
    if event not in FREEING:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def sent(number: signal.Signals) -> Fault:
    """A signal from outside, once."""

    left = [number]

    def fault(event: str, path: str) -> None:
        if left:
            os.kill(os.getpid(), left.pop())  # gone before it is answered, in the middle of this line: once means once

    return fault


def operations(
    command: Callable[[], int], folder: Path, stop_at: int | None = None, log: Path | None = None, fault: Fault = stop
) -> tuple[int, int]:
    """Runs a command in a fork, to which `fault` happens from its `stop_at`-th change of a file in `folder` on.

    Args:
        log: where its output goes. None: nowhere.
    Returns: its exit status, negative if a signal ended it, and how many changes there were, if it came to its end.
    Raises: TimeoutError, it hangs; it is killed.
    """
    count = 0

    def prepared() -> None:
        sys.addaudithook(audit)

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in CHANGES
        if not changes or not any(str(path).startswith(str(folder)) for path in arguments[:2]):
            return
        count += 1
        if stop_at is not None and count >= stop_at:
            fault(event, str(arguments[0]))

    return forked(command, log, prepared, lambda: count)


def forked(
    command: Callable[[], int],
    log: Path | None = None,
    prepare: Callable[[], None] = lambda: None,
    found: Callable[[], int] = lambda: 0,
    meanwhile: Callable[[int], None] = lambda process: None,
) -> tuple[int, int]:
    """Runs a command in a fork.

    Args:
        log: where its output goes. None: nowhere.
        prepare: called in the fork before the command.
        found: called in the fork after it.
        meanwhile: called here with the number of the fork.
    Returns: its exit status, and what `found` returned, 0 if it did not come to that.
    Raises: TimeoutError, it hangs; it is killed.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 1
        try:
            target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and whoever waits for them waits for ever
            prepare()
            status = command()
            os.write(write, json.dumps(found()).encode())
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    meanwhile(child)
    hangs = not select.select([read], [], [], HANGS_S)[0]
    if hangs:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, code = os.waitpid(child, 0)
    if hangs:
        raise TimeoutError(f"the command hangs: {log and log.read_text()[-1000:]}")
    return os.waitstatus_to_exitcode(code), int(said or 0)


def content(folder: Path) -> dict[str, str]:
    """Path -> hash of every file, hidden ones included."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def litter(folder: Path) -> list[str]:
    """What no finished command leaves: hidden and unfinished files."""
    found = (
        path for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith((".part", ".partial", ".lock"))
    )
    return [path.relative_to(folder).as_posix() for path in found]


def flips(path: Path, times: int, seed: int) -> Iterator[int]:
    """Flips one random bit of a file at a time, and puts it back. Yields: the byte's place."""
    drawn, whole = random.Random(seed), path.read_bytes()
    for _ in range(times if whole else 0):
        place = drawn.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            yield place
        finally:
            path.write_bytes(whole)


def chosen(total: int, wanted: int, everything: bool = EVERYTHING) -> list[int]:
    """Numbers from 1 to `total`: all, or so many of them, seeded."""
    if everything or total <= wanted:
        return list(range(1, total + 1))
    return sorted(random.Random(total).sample(range(1, total + 1), wanted))
