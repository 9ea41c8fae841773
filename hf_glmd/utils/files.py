"""Files and folders that appear whole or not at all, that survive a power cut, and whose damage is found before they are read."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from hf_glmd.errors import UsageError

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
"""The list of a folder's files, written last, as `sha256sum --check SHA256SUMS` reads it."""

_NOT_SUMMED = ("README.md", "report.html", SUMS)
"""The card is its owner's to edit, and the page can be made anew at any time."""


# One file


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, unless an exception ends the block.

    Raises: UsageError, it cannot be written: the disk is full, or the folder is read-only.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            _sync(unfinished)
            os.replace(unfinished, path)
            _sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes whole or not at all: a run killed meanwhile leaves the old file, or none."""
    with replaced(path) as unfinished:
        unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """What `write_json` wrote. Raises: UsageError, it is missing or damaged; `remedy` is the sentence that says what to do."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' cannot be read ({one_line_of(error)}). {remedy}") from error


def one_line_of(error: BaseException) -> str:
    """The first line of what an error says, or its name, if it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


# A folder


@contextmanager
def written_whole(directory: str | os.PathLike[str], stale: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder to write to; at the end it takes the place of `directory`, unless an exception ends the block.

    Other files of `directory` stay, except those named by `stale`. The folder is replaced by renaming whole folders: it is never
    half old and half new. What a killed process left of this beside it is removed first.

    Args:
        directory: made if it is not there.
        stale: files and folders that would be mixed with the new ones.
    Raises: UsageError, `directory` is a file, cannot be written, or another process is writing it.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is a file: give a folder to save to.")
    beside = directory.parent / f".{directory.name}.{socket.gethostname()}.{os.getpid()}"
    with _writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _clear_litter(directory)
        written, old = beside / "new", beside / "old"
        written.mkdir(parents=True)
        try:
            yield written
            write_sums(written)
            if directory.exists():
                _carry_others(directory, written, set(stale))
            _sync_tree(written)
            if directory.exists():
                os.replace(directory, old)
            os.replace(written, directory)
            _sync(directory.parent)
        finally:
            if old.exists() and not directory.exists():
                os.replace(old, directory)
            shutil.rmtree(beside, ignore_errors=True)


def _carry_others(old: Path, new: Path, stale: set[str]) -> None:
    """Links, or where there are none copies, of what stays in a folder that is replaced."""
    for path in old.iterdir():
        if (new / path.name).exists() or path.name == SUMS:
            continue
        if path.name in stale:
            logger.warning("Removing '%s': it belongs to what is replaced.", path)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, new / path.name)


def _link_or_copy(source: str | Path, target: str | Path, follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _clear_litter(directory: Path) -> None:
    """Removes what dead processes of this machine left beside a folder; one that was on its way is put back."""
    for beside in directory.parent.glob(glob.escape(f".{directory.name}.{socket.gethostname()}.") + "*"):
        process = beside.name.rpartition(".")[2]
        if not process.isdigit() or not beside.is_dir() or (int(process) != os.getpid() and is_alive(int(process))):
            continue
        if not directory.exists() and (beside / "old").exists():
            os.replace(beside / "old", directory)
        shutil.rmtree(beside, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def remove(path: Path) -> None:
    """A file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Unfinished files of `replaced`, anywhere in a folder that nobody else is writing to."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Nobody else who asks may write to a folder meanwhile. Raises: UsageError, somebody does."""
    folder = Path(folder).resolve()
    file = folder.parent / f".{folder.name}.lock"
    with _writing(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(f"another process is writing to '{folder}': wait for it, or name another folder.") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


# Sums


def write_sums(folder: Path, leaving_out: Iterable[str] = ()) -> None:
    """Lists the SHA-256 of a folder's files in it, without card and page, and without folders that have a list of their own.

    Args:
        leaving_out: names of more files and folders.
    """
    left_out = {*_NOT_SUMMED, *leaving_out}
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not (name in left_out or name.startswith(".") or (here / name / SUMS).exists())]
        files = [name for name in files if not (name in left_out or name.startswith("."))]
        names += [(here / name).relative_to(folder).as_posix() for name in files]
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with replaced(folder / SUMS) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def summed(folder: Path) -> dict[str, str]:
    """Path -> SHA-256, as a folder's list has them; empty, if it has no list.

    Raises: UsageError, the list is damaged, is no plain file, or names what is not inside of the folder.
    """
    path = folder / SUMS
    if not (path.exists() or path.is_symlink()):
        return {}
    remedy = f"Write the folder once more; if you changed it on purpose, delete '{path}'."
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"'{path}' is no plain file. {remedy}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read ({one_line_of(error)}). {remedy}") from error
    sums = {}
    for line in lines:
        wanted, separator, name = line.partition("  ")
        parts = PurePosixPath(name)
        if not separator or len(wanted) != 64 or parts.is_absolute() or ".." in parts.parts:
            raise UsageError(f"'{path}' is damaged: '{line[:80]}' is no sum of a file in this folder. {remedy}")
        sums[name] = wanted
    return sums


def check_sums(folder: str | os.PathLike[str], weights: bool = True) -> None:
    """Compares a folder of ours with its list; one without a list, as of other programs, is taken as it is.

    Args:
        weights: False leaves out *.safetensors, which take longest.
    Raises: UsageError, a file is missing, or is not what was written, or as `summed`.
    """
    folder = Path(folder)
    remedy = f"Write it once more; if you changed it on purpose, delete '{folder / SUMS}'."
    for name, wanted in summed(folder).items():
        if not weights and name.endswith(".safetensors"):
            continue
        file = folder / name
        if not file.is_file():
            raise UsageError(f"'{file}' is missing, though it was written. {remedy}")
        if sha256(file) != wanted:
            raise UsageError(f"'{file}' is damaged: it is not what was written. {remedy}")


def own_file(folder: Path, name: str) -> Path:
    """A file of a folder, or of the Hub's cache, whose files are links to ../../blobs.

    Raises: UsageError, it is a link that leads out of the folder, or no file at all: it would be copied or published.
    """
    path = folder / name
    try:
        target, inside = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise UsageError(f"'{path}' is a link to nothing: remove it.") from error
    if inside.parent.name == "snapshots":
        inside = inside.parent.parent
    if not target.is_relative_to(inside):
        raise UsageError(f"'{path}' is a link to '{target}', outside of the folder: put a copy in its place, or remove it.")
    if not target.is_file():
        raise UsageError(f"'{path}' is {'a link to nothing' if path.is_symlink() else 'no plain file'}: remove it.")
    return path


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal, of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Hexadecimal, of names, shapes, types and values, and of what is said of them: for a file that stands alone."""
    digest = hashlib.sha256(json.dumps(sorted((name, said) for name, said in metadata.items() if name != "sha256")).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_sha256(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Any, remedy: str) -> None:
    """Raises: UsageError, arrays or metadata are not what was written."""
    if metadata.get("sha256") != sha256_of(arrays, metadata):
        raise UsageError(f"'{path}' is damaged: it is not what was written. {remedy}")


# The disk


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says of an error of the disk what could not be written, in one line."""
    try:
        yield
    except OSError as error:
        error = _first_of(error)
        if error.errno in (errno.EXDEV, errno.EBUSY):
            raise UsageError(f"'{path}' is where another disk is mounted: name a folder in it.") from error
        if error.errno in _DISK_ERRORS:
            raise UsageError(f"'{path}' cannot be written: {one_line_of(error)}. {_DISK_ERRORS[error.errno]}") from error
        raise


_ELSEWHERE = "Name another folder."
_DISK_ERRORS = {
    errno.ENOSPC: "Make room on the disk, then run the same command again.",
    errno.EDQUOT: "Make room in your quota, then run the same command again.",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "Name it more shortly.",
    errno.EEXIST: "A part of its path is a file: name another folder.",
    errno.ENOTDIR: "A part of its path is a file: name another folder.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.EFBIG: "The file system takes no file of this size: name another folder.",
    errno.EIO: "The disk reports an error: name another folder.",
}


def _first_of(error: OSError) -> OSError:
    """The first error of those that `shutil.copytree` has gone past, of which it keeps the words alone; else the error itself."""
    if not isinstance(error, shutil.Error) or not isinstance(error.args[0], list):
        return error
    _, target, said = error.args[0][0]
    number = re.match(r"\[Errno (\d+)\]", str(said))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(target)) if number else error


def disk_error(error: OSError) -> str | None:
    """What the user can do about an error of the disk; None, if it is none."""
    return _DISK_ERRORS.get(error.errno or 0)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not (Path(parent) / name).is_symlink():
                _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """On the disk, not only on its way there: a rename must not reach it before what is renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def of_the_machine(error: BaseException) -> str | None:
    """What to say of an error that no program can prevent, wherever a library met it; None, if it is of another kind."""
    from safetensors import SafetensorError

    while error is not None:
        error = _first_of(error) if isinstance(error, OSError) else error
        if isinstance(error, OSError) and (remedy := disk_error(error)):
            where = f"'{error.filename}'" if error.filename else "a file"
            return f"{where} cannot be written or read: {one_line_of(error)}. {remedy}"
        if isinstance(error, SafetensorError):
            full = "No space left" in str(error)
            remedy = "Make room on the disk." if full else "A file of weights is damaged: copy or write it once more."
            return f"{one_line_of(error)}. {remedy}"
        if isinstance(error, RuntimeError) and "inline_container" in str(error):  # so torch.save says that a disk is full
            return "a checkpoint cannot be written to its end: the disk is full, or takes no more. Make room on it."
        if isinstance(error, MemoryError):
            return "there is not enough memory. Use smaller batches, fewer texts or shorter rows."
        error = error.__cause__  # type: ignore[assignment]
    return None
