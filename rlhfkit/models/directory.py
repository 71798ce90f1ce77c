"""Model directories as files: what may be opened, JSON with limits, digests. Nothing here needs torch.

A directory may come from anywhere. A name in it must be a regular file inside it: pipes, devices and links
that leave are refused, except links of the Hugging Face cache into its own blobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection
from io import BufferedReader
from pathlib import Path
from typing import Any

from rlhfkit.errors import DataError, InputMissing

MAX_JSON = 25_000_000
MAX_OBJECTS = 10_000
SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
#: Endings of weights in formats that are not read; most can run code.
FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp", ".msgpack", ".h5")
CONVERT = (
    "convert it once where you trust it: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) writes safetensors"
)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. InputMissing if it is none; DataError if it is a link that leaves."""
    parent = os.path.realpath(path.parent)
    real = os.path.realpath(path)
    if path.is_symlink() and not real.startswith(_allowed_root(parent) + os.sep):
        raise DataError("a symbolic link that leaves the model directory", where=str(path))
    try:
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise InputMissing("not a regular file", where=str(path))
        return open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise InputMissing(f"cannot be read: {error.strerror}", where=str(path)) from None


def _allowed_root(parent: str) -> str:
    """The directory itself; in the Hugging Face cache (snapshots/REVISION) the whole repository's folder."""
    snapshots, _ = os.path.split(parent)
    repository, name = os.path.split(snapshots)
    return repository if name == "snapshots" and os.path.isdir(os.path.join(repository, "blobs")) else parent


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys are all different, or ValueError."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of reasonable size."""
    with open_regular(path) as file:
        text = file.read(MAX_JSON + 1)
    return parse_json(text, path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """The object that `text`, the start of the file at `path`, holds."""
    if len(text) > MAX_JSON:
        raise DataError(f"larger than {MAX_JSON} bytes", where=str(path))
    if text.count(b"{") > MAX_OBJECTS:
        raise DataError(f"more than {MAX_OBJECTS} objects in it", where=str(path))
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {str(error)[:200]}", where=str(path)) from None
    if not isinstance(value, dict):
        raise DataError(f"must hold an object, holds a {type(value).__name__}", where=str(path))
    return value


def check_directory(path: str | os.PathLike[str]) -> Path:
    """The path as an existing directory with a config.json; InputMissing in plain words otherwise."""
    directory = Path(path)
    if not directory.exists():
        raise InputMissing("no such model directory", where=str(path))
    if not directory.is_dir():
        raise InputMissing("not a directory; a model is a directory with a config.json", where=str(path))
    if not os.path.lexists(directory / "config.json"):
        if (directory / "checkpoints").is_dir() and not (directory / "run.json").exists():
            raise InputMissing(
                "an unfinished run, there is no model in it yet",
                where=str(path),
                hint="start the run again with the same settings and it continues",
            )
        raise InputMissing(
            "no config.json; not a model directory",
            where=str(path),
            hint=CONVERT if _foreign(directory) else None,
        )
    return directory


def weight_files(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The safetensors files of a model and its index, if it has one."""
    single, index_path = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if os.path.lexists(single):
        return [single], None
    if not os.path.lexists(index_path):
        foreign = _foreign(directory)
        if foreign:
            raise DataError(
                f"weights only as {foreign}; rlhfkit reads safetensors alone, as the others can run code",
                where=str(directory),
                hint=CONVERT,
            )
        raise InputMissing("no model.safetensors", where=str(directory))
    index = read_json(index_path)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise DataError("weight_map: must be an object that names each tensor's file", where=str(index_path))
    for name in names.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise DataError(
                f"weight_map: {str(name)[:80]!r} is not the name of a .safetensors file in this directory",
                where=str(index_path),
            )
    return [directory / name for name in sorted(set(names.values()))], index


def _foreign(directory: Path) -> str | None:
    """The first file with weights in a format that is not read."""
    found = sorted(path.name for path in directory.iterdir() if path.name.endswith(FOREIGN))
    return found[0] if found else None


def verify_digests(directory: str | os.PathLike[str], names: Collection[str] | None = None) -> None:
    """Compare files with the SHA-256 that run.json gives for them; does nothing without a run.json.

    `names` restricts the check to these files. Raises DataError naming the file and both digests.
    """
    path = Path(directory) / "run.json"
    if not os.path.lexists(path):
        return
    outputs = read_json(path).get("outputs")
    if not isinstance(outputs, dict):
        return
    for name, expected in outputs.items():
        if names is not None and name not in names:
            continue
        if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts:
            raise DataError(f"outputs: {name!r} lies outside the directory", where=str(path))
        with open_regular(Path(directory) / name) as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            raise DataError(
                f"digest mismatch: expected sha256 {expected}, actual {actual}",
                where=str(Path(directory) / name),
                hint="the file changed after it was written; take it from a backup or run again",
            )
