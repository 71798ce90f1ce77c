"""Checkpoints: whole or absent, verified to the bit, no stale leftovers, a full disk keeps the old one."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rlhfkit.engine import checkpoint
from rlhfkit.errors import DataError, InputOutputError


def write(parent: Path, step: int) -> Path:
    tensors = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([step])}}
    return checkpoint.write_checkpoint(parent, step, tensors, {"kl_coef": 0.1})


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    assert checkpoint.read_checkpoint(path) == (3, {"kl_coef": 0.1})
    tensors = checkpoint.load_tensors(path, "model", torch.device("cpu"))
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert oct(path.joinpath("model.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~umask())


def umask() -> int:
    import os

    value = os.umask(0)
    os.umask(value)
    return value


def test_a_flipped_bit_anywhere_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    file = path / "model.safetensors"
    good = file.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        bad = bytearray(good)
        bit = rng.randrange(len(bad) * 8)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(DataError, match="SHA-256"):
            checkpoint.read_checkpoint(path)
    file.write_bytes(good)
    checkpoint.read_checkpoint(path)


def test_other_formats_and_broken_states_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99, "rlhfkit": "9.9"}))
    with pytest.raises(DataError, match=r"rlhfkit 9\.9 in checkpoint format 99"):
        checkpoint.read_checkpoint(path)
    (path / "state.json").write_text("{")
    with pytest.raises(DataError):
        checkpoint.read_checkpoint(path)


def test_pruning_keeps_the_newest_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    (tmp_path / "step-11").mkdir()
    (tmp_path / ".writing-step-12").mkdir()
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-2", "step-9", "step-10"]
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-9", "step-10"]
    checkpoint.sweep(tmp_path)
    assert not (tmp_path / ".writing-step-12").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    old = write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 10, 200, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(InputOutputError):
                checkpoint.write_checkpoint(tmp_path, 2, {"model": {"a": torch.zeros(10_000)}}, {})
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    checkpoint.read_checkpoint(old)


def test_killed_at_every_system_call_that_matters_a_valid_checkpoint_remains(tmp_path: Path) -> None:
    """The writer dies at its N-th open, fsync, rename or mkdir, for all N until it survives."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import torch
        from rlhfkit.engine import checkpoint
        parent, count = Path(sys.argv[1]), 0
        for fail_at in range(1, 60):
            pid = os.fork()
            if pid == 0:
                seen = 0
                def counted(function):
                    def call(*args, **kwargs):
                        global seen
                        seen += 1
                        if seen == fail_at:
                            os.kill(os.getpid(), signal.SIGKILL)
                        return function(*args, **kwargs)
                    return call
                for name in ("fsync", "rename", "replace", "mkdir", "open", "rmdir", "unlink"):
                    setattr(os, name, counted(getattr(os, name)))
                checkpoint.save_file = counted(checkpoint.save_file)
                checkpoint.write_checkpoint(parent, fail_at, {"m": {"a": torch.full((4,), float(fail_at))}}, {})
                checkpoint.prune(parent, 2)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            found = checkpoint.checkpoints(parent)
            assert found, fail_at
            step, _ = checkpoint.read_checkpoint(found[-1])
            value = checkpoint.load_tensors(found[-1], "m", torch.device("cpu"))["a"]
            assert torch.equal(value, torch.full((4,), float(step))), fail_at
            if status == 0:
                print("survived", fail_at)
                break
        else:
            raise AssertionError("never survived")
        """
    )
    checkpoint.write_checkpoint(tmp_path, 0, {"m": {"a": torch.zeros(4)}}, {})
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 6
