"""Commands that are stopped before one of their file operations, in a process of their own that is a fork of this one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
STOPPED = 99


def operations(command: Callable[[], int], folder: Path, stop_at: int | None = None, log: Path | None = None) -> tuple[int, int]:
    """Runs a command in a fork, which ends at once before it changes a file of `folder` for the `stop_at`-th time.

    Args:
        log: where its output goes. None: nowhere.
    Returns: its exit status, `STOPPED` if it was stopped, and how many changes there were.
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
            count = 0

            def audit(event: str, arguments: tuple) -> None:
                nonlocal count
                if event == "open":
                    changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                else:
                    changes = event in CHANGES
                if not changes or not any(str(path).startswith(str(folder)) for path in arguments[:2]):
                    return
                count += 1
                if count == stop_at:
                    os._exit(STOPPED)

            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and whoever waits for them waits for ever
            sys.addaudithook(audit)
            status = command()
            os.write(write, json.dumps(count).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, code = os.waitpid(child, 0)
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


def chosen(total: int, wanted: int, everything: bool) -> list[int]:
    """Numbers from 1 to `total`: all, or so many of them, seeded."""
    if everything or total <= wanted:
        return list(range(1, total + 1))
    return sorted(random.Random(total).sample(range(1, total + 1), wanted))
