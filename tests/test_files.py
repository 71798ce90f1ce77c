"""Outputs appear whole or not at all, whatever goes wrong; one writer at a time in a directory."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhfkit import files
from rlhfkit.errors import CannotCreate, InputOutputError, Locked
from rlhfkit.files import (
    DirectoryLock,
    atomic_directory,
    atomic_file,
    check_output_file,
    require_space,
    sha256_file,
    write_json,
)

BODY_ENDS = (RuntimeError, KeyboardInterrupt, SystemExit)


def write(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with atomic_file(path, force=force) as file:
        file.write(data)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# -- one file ----------------------------------------------------------------------------------------------


def test_a_file_appears_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with atomic_file(path, force=False) as file:
        file.write(b"a" * 3_000_000)
        file.flush()
        assert not path.exists()
        assert len(names(tmp_path)) == 1
    assert path.read_bytes() == b"a" * 3_000_000
    assert names(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_mode_follows_the_umask(umask: int, tmp_path: Path):
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
        with atomic_directory(tmp_path / "dir", force=False) as aside:
            write(aside / "inner")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "dir").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("end", BODY_ENDS)
@pytest.mark.parametrize("force", [False, True])
def test_a_block_that_fails_leaves_what_was_there(end: type[BaseException], force: bool, tmp_path: Path):
    path = tmp_path / "out"
    if force:
        path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path, force=force) as file:
            file.write(b"x" * 2_000_000)
            raise end

    with pytest.raises(end):
        fail()
    assert names(tmp_path) == (["out"] if force else [])
    assert not force or path.read_bytes() == b"old"


def test_existing_outputs_need_force(tmp_path: Path):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(CannotCreate, match="exists already") as caught:
        write(path)
    assert "--force" in str(caught.value.hint)
    assert path.read_bytes() == b"old"
    write(path, force=True)
    assert path.read_bytes() == b"new"


def test_a_file_that_came_up_meanwhile_is_not_replaced(tmp_path: Path):
    path = tmp_path / "out"

    def race() -> None:
        with atomic_file(path, force=False):
            path.write_bytes(b"theirs")

    with pytest.raises(CannotCreate, match="created by another program"):
        race()
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_an_output(tmp_path: Path):
    with pytest.raises(CannotCreate, match="is a directory"):
        write(tmp_path, force=True)
    with pytest.raises(CannotCreate, match="no such directory") as caught:
        write(tmp_path / "none" / "out")
    assert caught.value.hint == f"mkdir -p {tmp_path}/none"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotCreate):
        write(tmp_path / "file" / "out")
    with pytest.raises(CannotCreate):
        write(tmp_path / ("n" * 300))
    check_output_file(tmp_path / "fine", force=False)
    write(tmp_path / ("é" * 127))  # 254 bytes: the name beside it must not be longer


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(CannotCreate, match="permission denied"):
        write(tmp_path / "out")


def test_gzip_by_name_is_the_same_every_time(tmp_path: Path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write(tmp_path / name, b"line\n" * 1000)
    a, b = ((tmp_path / name).read_bytes() for name in names(tmp_path))
    assert a == b
    assert gzip.decompress(a) == b"line\n" * 1000


def test_devices_are_written_directly(tmp_path: Path):
    write(Path(os.devnull))
    assert not Path(os.devnull).is_file()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    write(fifo, b"through")
    assert reader.communicate(timeout=20)[0] == b"through"


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"victim")
    link.symlink_to(victim)
    with pytest.raises(CannotCreate, match="exists already"):
        write(link)
    write(link, force=True)  # the link is replaced, never followed
    assert victim.read_bytes() == b"victim"
    assert not link.is_symlink()
    link.unlink()
    link.symlink_to(victim)
    if os.geteuid() == 0:
        os.chown(link, 12345, 12345, follow_symlinks=False)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(CannotCreate, match="owned by another user"):
        write(link, force=True)
    with pytest.raises(CannotCreate, match="owned by another user"), atomic_directory(link, force=True):
        raise AssertionError("not reached")
    assert victim.read_bytes() == b"victim"


def test_writing_flushes_to_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)

        def noted(*args: Any, _real: Callable[..., Any] = real, _name: str = name) -> Any:
            kind = "directory" if _name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else ""
            done.append(_name + kind)
            return _real(*args)

        monkeypatch.setattr(os, name, noted)
    write(tmp_path / "out")
    assert done == ["fsync", "link", "fsyncdirectory"]
    done.clear()
    write(tmp_path / "out", force=True)
    assert done == ["fsync", "replace", "fsyncdirectory"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_any_failing_call_leaves_the_old_file_or_the_new(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "out"
    for failing in range(1, 6):
        path.write_bytes(b"old")
        real, count = getattr(os, call), 0

        def sometimes(*args: Any, _real: Callable[..., Any] = real, _failing: int = failing) -> Any:
            nonlocal count
            count += 1
            if count == _failing:
                raise OSError(errno.EIO, "Input/output error")
            return _real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, sometimes)
            with contextlib.suppress(InputOutputError):
                write(path, force=True)
        assert path.read_bytes() in {b"old", b"new"}
        assert names(tmp_path) == ["out"]
        if count < failing:
            return
    raise AssertionError("never got through")


# -- full disks --------------------------------------------------------------------------------------------


def test_dev_full():
    with pytest.raises(InputOutputError, match="no space left") as caught:
        write(Path("/dev/full"), b"x" * 100)
    assert caught.value.exit_code == 74


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    """Set the largest file a process may write; Python then sees EFBIG, as with a full disk.

    Not a fixture: pytest reports a test before its fixtures are torn down, and that may go to a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal_before)


@pytest.mark.parametrize("size", [0, 1, 4096, 99_999, 1 << 20, (2 << 20) + 17])
@pytest.mark.parametrize("name", ["out", "out.gz"])
def test_a_full_disk_keeps_the_old_file(size: int, name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(b"old")
    noise = os.urandom(1 << 20)  # does not compress
    with size_limit(size), pytest.raises(InputOutputError, match="cannot write") as caught:
        write(path, noise * 3, force=True)
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [name]


def test_a_full_disk_leaves_no_directory(tmp_path: Path):
    def build() -> None:
        with atomic_directory(tmp_path / "out", force=False) as aside:
            (aside / "small").write_bytes(b"x")
            (aside / "large").write_bytes(b"x" * 2000)

    with size_limit(1000), pytest.raises(InputOutputError):
        build()
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True)
    if result.returncode:
        pytest.skip("cannot mount a small file system")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_a_disk_that_is_really_full(small_disk: Path):
    path = small_disk / "out"
    write(path, b"old")
    with pytest.raises(InputOutputError, match="no space left"):
        write(path, b"x" * (2 << 20), force=True)
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["out"]
    with pytest.raises(InputOutputError, match=r"2,097,152 bytes needed, [\d,]+ free"):
        require_space(small_disk, 2 << 20)
    require_space(small_disk, 1)


# -- directories -------------------------------------------------------------------------------------------


def fill(directory: Path, **contents: str) -> None:
    for name, text in contents.items():
        path = directory / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_directory_appears_when_the_block_ends(tmp_path: Path):
    target = tmp_path / "deep" / "out"
    with atomic_directory(target, force=False) as aside:
        fill(aside, a="1", sub__b="2", run_json="{}")
        assert not target.exists()
    assert names(target) == ["a", "run.json", "sub"]
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("end", BODY_ENDS)
def test_a_directory_that_fails_does_not_appear(end: type[BaseException], tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()

    def fail() -> None:
        with atomic_directory(target, force=False) as aside:
            fill(aside, a="1")
            raise end

    with pytest.raises(end):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(target) == []


def test_an_existing_directory(tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_directory(target, force=False) as aside:  # empty: fine
        fill(
            aside,
            a="old",
            stale="old",
            run_json=json.dumps({"outputs": {"a": "", "stale": "", "../notes": ""}}),
        )
    fill(tmp_path, notes="mine")
    fill(target, mine="mine")
    with pytest.raises(CannotCreate, match="not empty"), atomic_directory(target, force=False):
        raise AssertionError("not reached")
    with atomic_directory(target, force=True) as aside:
        fill(aside, a="new", sub__b="new", run_json='{"new": 1}')
    assert names(target) == ["a", "mine", "run.json", "sub"]
    assert (target / "a").read_text() == "new"
    assert (target / "run.json").read_text() == '{"new": 1}'
    assert names(tmp_path) == ["notes", "out"]
    fill(tmp_path, file="")
    with (
        pytest.raises(CannotCreate, match="not a directory"),
        atomic_directory(tmp_path / "file", force=True),
    ):
        raise AssertionError("not reached")


def test_the_manifest_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whenever the replacement of a directory is cut short, there is no run.json to call it whole."""
    target = tmp_path / "out"
    with atomic_directory(target, force=False) as aside:
        fill(aside, a="old", z="old", run_json='{"old": 1}')
    real, moved = os.replace, []

    def replace(source: Path, destination: Path) -> None:
        assert not (target / "run.json").exists()
        moved.append(Path(destination).name)
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with atomic_directory(target, force=True) as aside:
        fill(aside, a="new", z="new", run_json='{"new": 1}')
    assert moved == ["a", "z", "run.json"]
    moved.clear()

    def broken(source: Path, destination: Path) -> None:
        if Path(destination).name == "z":
            raise OSError(5, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(InputOutputError), atomic_directory(target, force=True) as aside:
        fill(aside, a="newer", z="newer", run_json='{"newer": 1}')
    assert names(target) == ["a", "z"]
    assert names(tmp_path) == ["out"]


def test_a_linked_directory_stays_a_link(tmp_path: Path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "out").symlink_to("big-disk")
    with atomic_directory(tmp_path / "out", force=False) as aside:
        fill(aside, a="1")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "big-disk") == ["a"]


# -- locks -------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from rlhfkit.errors import Locked
from rlhfkit.files import DirectoryLock
try:
    with DirectoryLock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except Locked as error:
    print(error, flush=True)
"""


def hold(directory: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, directory, str(seconds)], stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_holder_at_a_time_and_sigkill_frees_it(tmp_path: Path):
    holder = hold(tmp_path, 60)
    assert said(holder) == "held"
    started = time.monotonic()
    with pytest.raises(Locked, match=f"in use by pid {holder.pid} on ") as caught:
        DirectoryLock(tmp_path).acquire()
    assert time.monotonic() - started < 1
    assert (caught.value.exit_code, caught.value.where) == (75, str(tmp_path))
    holder.kill()
    holder.communicate()
    with DirectoryLock(tmp_path):
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []


def test_of_many_at_once_one_gets_it(tmp_path: Path):
    processes = [hold(tmp_path, 30) for _ in range(8)]
    lines = [said(process) for process in processes]
    winners = [p for p, line in zip(processes, lines, strict=True) if line == "held"]
    assert len(winners) == 1
    assert sum("in use by" in line for line in lines) == 7
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_can_be_taken_again_and_again(tmp_path: Path):
    lock = DirectoryLock(tmp_path)
    for _ in range(3):
        lock.acquire()
        lock.release()
        lock.release()
    with pytest.raises(CannotCreate):
        DirectoryLock(tmp_path / "none").acquire()


def test_taking_turns_never_overlaps(tmp_path: Path):
    """The file of a lock goes away with it; nobody may hold a file that is no longer there."""
    code = """
import os, sys, time
from rlhfkit.errors import Locked
from rlhfkit.files import DirectoryLock
taken, end = 0, time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        with DirectoryLock(sys.argv[1]):
            os.close(os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL))
            os.unlink(sys.argv[1] + "/inside")
            taken += 1
    except Locked:
        pass
print(taken)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(3)
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) > 100


# -- the rest ----------------------------------------------------------------------------------------------


def test_digests(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_json_files(tmp_path: Path):
    path = tmp_path / "run.json"
    write_json(path, {"é": [1, None]})
    write_json(path, {"é": [2, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [2, None]}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert names(tmp_path) == ["run.json"]
    assert files.TEMPORARY_SUFFIX == ".tmp"


def test_sigkill_leaves_the_old_file_and_a_name_to_sweep(tmp_path: Path):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    code = """
import os, signal, sys
from rlhfkit.files import atomic_file
with atomic_file(sys.argv[1], force=True) as file:
    file.write(b"x" * 3_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(path)])
    assert path.read_bytes() == b"old"
    (left,) = set(names(tmp_path)) - {"out"}
    assert left.startswith(".out.")
    assert left.endswith(files.TEMPORARY_SUFFIX)
