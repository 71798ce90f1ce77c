"""Checkpoints of a running trainer: a directory of safetensors files and one `state.json`.

Written aside, flushed to the disk and renamed, so that a directory called `step-N` is always whole.
`state.json` holds the SHA-256 of every other file: safetensors itself does not notice a flipped bit.
Nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhfkit import __version__
from rlhfkit.context import warn
from rlhfkit.errors import DataError, InputOutputError
from rlhfkit.files import fsync_directory, sha256_file

FORMAT = 1
STATE = "state.json"
_ASIDE = ".writing-"


def write_checkpoint(
    parent: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]
) -> Path:
    """Write `parent/step-N/` with one safetensors file per entry of `tensors`; returns its path.

    Raises InputOutputError when the disk is full; what stood there before is untouched.
    """
    final = parent / f"step-{step}"
    aside = parent / f"{_ASIDE}step-{step}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        digests = {}
        for name, group in tensors.items():
            path = aside / f"{name}.safetensors"
            save_file({k: v.contiguous() for k, v in group.items()}, path)
            _flush(path)
            digests[path.name] = sha256_file(path)
        document = {
            "format": FORMAT,
            "rlhfkit": __version__,
            "torch": torch.__version__,
            "step": step,
            "files": digests,
            "state": dict(state),
        }
        with open(aside / STATE, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        fsync_directory(aside)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
        fsync_directory(parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputOutputError(
            f"cannot write the checkpoint: {error.strerror or error}", where=str(final)
        ) from error
    except Exception as error:  # safetensors raises its own error type for a full disk
        shutil.rmtree(aside, ignore_errors=True)
        raise InputOutputError(f"cannot write the checkpoint: {error}", where=str(final)) from error
    return final


def _flush(path: Path) -> None:
    """safetensors saves with mode 0600 and without fsync; mend both."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def checkpoints(parent: Path) -> list[Path]:
    """Complete checkpoints, newest last."""
    found = []
    for path in parent.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and (path / STATE).is_file():
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def sweep(parent: Path) -> None:
    """Remove what a killed writer left behind: directories under a temporary name, or without a state."""
    for path in [
        *parent.glob(f"{_ASIDE}*"),
        *(p for p in parent.glob("step-*") if not (p / STATE).is_file()),
    ]:
        warn(f"ignoring an unfinished checkpoint: {path.name}")
        shutil.rmtree(path, ignore_errors=True)


def prune(parent: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints. A failure to delete never stops a run."""
    for path in checkpoints(parent)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> tuple[int, dict[str, object]]:
    """Verify every file of a checkpoint and return (step, state). DataError names a bad file."""
    try:
        document = json.loads((path / STATE).read_text(encoding="utf-8"))
        version, step, files, state = (
            document["format"],
            document["step"],
            document["files"],
            document["state"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "not a readable checkpoint state", where=str(path / STATE), hint=_older(path)
        ) from error
    if version != FORMAT:
        raise DataError(
            f"made by rlhfkit {document.get('rlhfkit')} in checkpoint format {version}, not {FORMAT}",
            where=str(path),
        )
    for name, expected in files.items():
        file = path / name
        actual = sha256_file(file) if file.is_file() else "nothing"
        if actual != expected:
            raise DataError(
                f"damaged: its SHA-256 is {actual[:12]}, {expected[:12]} was written",
                where=str(file),
                hint=_older(path),
            )
    return step, state


def _older(path: Path) -> str:
    others = [p for p in checkpoints(path.parent) if p != path]
    older = f"continue from {others[-1].name}" if others else "start again"
    return f"delete {path} to {older}"


def load_tensors(path: Path, name: str, device: torch.device) -> dict[str, Tensor]:
    """One group of tensors of a checkpoint."""
    return load_file(path / f"{name}.safetensors", device=str(device))
