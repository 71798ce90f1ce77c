"""Files that appear whole or not at all, locks, digests and room on the disk.

A writer works under a random name beside its target (`.NAME.xxxxxxxx.tmp`), flushes the bytes to the disk
and renames. Whatever ends it, the name that was asked for holds the old content or the new one, never half.
What a SIGKILL leaves behind carries `TEMPORARY_SUFFIX`; sweeping it is the business of whoever owns the
directory.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlhfkit.errors import CannotCreate, InputOutputError, Locked, RlhfkitError

StrPath = str | os.PathLike[str]

TEMPORARY_SUFFIX = ".tmp"
#: The file that says a directory is complete; it is put in place last.
MANIFEST = "run.json"
LOCK = ".lock"
_BUFFER = 1 << 20
#: What these mean is a failing device or a full one, not a name that cannot be created.
_DEVICE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


# -- one file ----------------------------------------------------------------------------------------------


def check_output_file(path: StrPath, *, force: bool) -> None:
    """Refuse an output file that exists (without `force`) or cannot be created. Raises CannotCreate."""
    target = Path(path)
    found = _lstat(target)
    if found is None:
        parent = target.parent
        if not parent.is_dir():
            raise CannotCreate("no such directory", where=str(parent), hint=f"mkdir -p {parent}")
        return
    _refuse_foreign_link(target, found)
    if target.is_dir():
        raise CannotCreate("is a directory", where=str(target), hint="give the name of a file")
    if not force and not _is_device(target):
        raise CannotCreate("exists already", where=str(target), hint="--force replaces it")


@contextmanager
def atomic_file(path: StrPath, *, force: bool) -> Iterator[BinaryIO]:
    """Write a file that appears under `path` only when the block ends without an exception.

    A name ending in `.gz` is compressed (with the same bytes every time). A device or a pipe, such as
    /dev/null, is written directly. Raises CannotCreate (73) before anything is written, InputOutputError
    (74) when writing fails.
    """
    target = Path(path)
    check_output_file(target, force=force)
    if _is_device(target):
        with _writer(os.open(target, os.O_WRONLY), target) as file:
            yield file
        return
    aside = _aside(target)
    descriptor = _create(aside, target)
    try:
        with _writer(descriptor, target) as buffer:
            if target.suffix == ".gz":
                with gzip.GzipFile(
                    filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0
                ) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield buffer
            buffer.flush()
            with _io_errors(target):
                os.fsync(buffer.fileno())
        with _io_errors(target):
            if force:
                os.replace(aside, target)
            else:
                _rename_new(aside, target)
            fsync_directory(target.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: StrPath, value: object) -> None:
    """Write `value` as indented JSON, replacing what was there."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path, force=True) as file:
        file.write(text.encode() + b"\n")


class _Raw(io.FileIO):
    """A file whose write errors name the target and carry the exit code 74."""

    target: Path

    def write(self, data: Any, /) -> int:
        with _io_errors(self.target):
            return super().write(data)


@contextmanager
def _writer(descriptor: int, target: Path) -> Iterator[BinaryIO]:
    raw = _Raw(descriptor, "wb")
    raw.target = target
    buffer = io.BufferedWriter(raw, _BUFFER)
    try:
        yield cast(BinaryIO, buffer)
        buffer.flush()
    finally:
        # Closing the buffer would try to write once more what has just failed.
        raw.close()


@contextmanager
def _io_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputOutputError(f"cannot write: {_reason(error)}", where=str(target)) from error


def _create(aside: Path, target: Path) -> int:
    try:
        return os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise _cannot_create(error, target) from error


def _rename_new(aside: Path, target: Path) -> None:
    """Give `aside` its final name unless something has taken that name meanwhile."""
    try:
        os.link(aside, target)
    except FileExistsError as error:
        raise CannotCreate("was created by another program", where=str(target), hint="--force") from error
    except OSError:  # a file system without hard links
        os.replace(aside, target)
    else:
        aside.unlink()


# -- a directory -------------------------------------------------------------------------------------------


@contextmanager
def atomic_directory(path: StrPath, *, force: bool) -> Iterator[Path]:
    """Build a directory aside; it takes the name `path` only when the block ends without an exception.

    A new or empty target is replaced by one rename. With `force`, the files of a former run are replaced one
    by one: its `run.json` goes first and the new one comes last, so that a directory with `run.json` is
    whole; files that the former run had written and the new one has not are deleted, other files stay.
    Raises CannotCreate (73) before the block runs, InputOutputError (74) when writing fails.
    """
    target = Path(os.path.realpath(path))
    found = _lstat(Path(path))
    if found is not None:
        _refuse_foreign_link(Path(path), found)
        if not target.is_dir():
            raise CannotCreate("exists and is not a directory", where=str(path))
        if any(target.iterdir()) and not force:
            raise CannotCreate("exists and is not empty", where=str(path), hint="--force replaces it")
    aside = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
    except OSError as error:
        raise _cannot_create(error, target) from error
    try:
        with _io_errors(target):
            yield aside
            _fsync_tree(aside)
            _put_in_place(aside, target)
            fsync_directory(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, target: Path) -> None:
    try:
        os.rename(aside, target)  # works on a name that is free or an empty directory
        return
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:  # EBUSY: a mount point
            raise
    stale = _outputs_of(target / MANIFEST)
    (target / MANIFEST).unlink(missing_ok=True)
    names = sorted((p.relative_to(aside) for p in aside.rglob("*") if not p.is_dir()), key=_manifest_last)
    for old in stale - {str(name) for name in names}:
        (target / old).unlink(missing_ok=True)
    for name in names:
        if str(name) == MANIFEST:
            fsync_directory(target)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, target / name)
    fsync_directory(target)


def _manifest_last(name: Path) -> tuple[bool, Path]:
    return str(name) == MANIFEST, name


def _outputs_of(manifest: Path) -> set[str]:
    """Names, relative and inside the directory, that a former run says it wrote."""
    try:
        outputs = json.loads(manifest.read_text(encoding="utf-8"))["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    names = outputs if isinstance(outputs, dict | list) else []
    return {n for n in names if isinstance(n, str) and not os.path.isabs(n) and ".." not in Path(n).parts}


def _fsync_tree(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(parent)


# -- shared by both ----------------------------------------------------------------------------------------


def _aside(target: Path) -> Path:
    # 255 bytes is the longest file name; the target's own name may be that long.
    stem = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{stem}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_create(error, path) from error


def _is_device(path: Path) -> bool:
    """Whether `path` leads to something that cannot be renamed over: a device, a pipe, a socket."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _refuse_foreign_link(path: Path, found: os.stat_result) -> None:
    """A link that somebody else planted must not decide where our output goes (system links may)."""
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in {os.geteuid(), 0}:
        raise CannotCreate("is a symbolic link owned by another user", where=str(path))


def _cannot_create(error: OSError, target: Path) -> RlhfkitError:
    kind = InputOutputError if error.errno in _DEVICE_ERRORS else CannotCreate
    return kind(f"cannot create: {_reason(error)}", where=str(target))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def fsync_directory(path: StrPath) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: StrPath) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(directory: StrPath, needed: int) -> None:
    """Raise InputOutputError (74) unless the file system of `directory` has `needed` bytes left for us."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"not enough space: {needed:,} bytes needed, {free:,} free"
        raise InputOutputError(message, where=str(directory))


class DirectoryLock:
    """One writer in a directory at a time: `flock` on its `.lock`, which also names the holder.

    The kernel drops the lock when the holder dies, however it dies.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise Locked (75) with the holder's pid and host."""
        path = self.directory / LOCK
        while self._descriptor is None:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                raise _cannot_create(error, path) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another run"
                os.close(descriptor)
                raise Locked(f"in use by {holder}", where=str(self.directory)) from None
            except BaseException:
                os.close(descriptor)
                raise
            if _same_file(descriptor, path):
                self._descriptor = descriptor
            else:  # the former holder removed the file between our open and our lock
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._descriptor is not None:
            (self.directory / LOCK).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
