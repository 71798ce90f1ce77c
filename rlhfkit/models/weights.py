"""The weights of a directory: headers first, checked against the config, then copied into a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhfkit.errors import DataError
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.directory import verify_digests, weight_files
from rlhfkit.models.families import FAMILIES, Piece, pieces
from rlhfkit.models.safetensors_io import MAX_TENSORS, Reader, TensorInfo, read_header


@dataclass(frozen=True)
class Stored:
    """Weight files whose headers have been read."""

    path: Path
    #: every tensor, by its name in the file
    infos: dict[str, TensorInfo]
    #: model.safetensors.index.json, if the weights are sharded
    index: dict[str, Any] | None
    #: what stands before the decoder's names here: the family's prefix, or nothing
    prefix: str


class Slot(NamedTuple):
    """Where a tensor of the file goes: a part of one of our parameters."""

    parameter: str
    piece: Piece


def read_headers(path: Path, config: ModelConfig, *, verify: bool) -> Stored:
    """Find the weight files, compare their digests where a run.json gives them, and read the headers."""
    files, index = weight_files(path)
    if verify:
        verify_digests(path, {"config.json", *(file.name for file in files)})
    infos: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in infos:
                raise DataError(f"tensor {name!r} stands in {infos[name].file.name}, too", where=str(file))
            infos[name] = info
        if len(infos) > MAX_TENSORS:
            raise DataError(f"more than {MAX_TENSORS} tensors", where=str(path))
    if index is not None:
        listed = index["weight_map"]
        wrong = [name for name in listed if name not in infos or infos[name].file.name != listed[name]]
        if wrong:
            raise DataError(
                f"tensors not in the file that weight_map names: {_some(wrong)}",
                where=str(path / "model.safetensors.index.json"),
            )
    prefix = FAMILIES[config.family].prefix
    return Stored(path, infos, index, prefix if any(name.startswith(prefix) for name in infos) else "")


def has_a_head_of_its_own(stored: Stored, config: ModelConfig) -> bool:
    """Does a model that calls itself tied store a head that differs? Then transformers does not tie it."""
    embedding, head = _stored_as("embed", stored, config), _stored_as("lm_head", stored, config)
    if embedding is None or head is None or embedding.shape != head.shape:
        return False
    return embedding.kind != head.kind or not Reader(embedding.file).same(embedding, Reader(head.file), head)


def _stored_as(module: str, stored: Stored, config: ModelConfig) -> TensorInfo | None:
    shape = (config.vocab_size, config.hidden_size)
    piece = pieces(FAMILIES[config.family], config, f"{module}.weight", shape, stored.prefix)[0]
    return stored.infos.get(piece.name)


def fill(
    model: nn.Module, stored: Stored, config: ModelConfig, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model on the meta device real parameters, filled from the files.

    DataError if the files hold other tensors than the model has parameters.
    """
    slots = _slots(model, config, stored.prefix)
    _check(slots, stored, config)
    for name, parameter in list(model.named_parameters()):
        place(model, name, torch.empty(parameter.shape, dtype=dtype, device=device))
    _copy(model, slots, stored)


def place(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a real tensor where the model has a meta one."""
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.Parameter(value))


def _slots(model: nn.Module, config: ModelConfig, prefix: str) -> dict[str, Slot]:
    """All tensors that make up the model, by their names in the file."""
    family = FAMILIES[config.family]
    return {
        piece.name: Slot(name, piece)
        for name, parameter in model.named_parameters()
        for piece in pieces(family, config, name.removeprefix("backbone."), tuple(parameter.shape), prefix)
    }


def _check(slots: dict[str, Slot], stored: Stored, config: ModelConfig) -> None:
    """The files have exactly the tensors that the config asks for, in their shapes and in floating point."""
    infos, family = stored.infos, FAMILIES[config.family]
    head = f"{family.modules['lm_head']}.weight"  # a tied copy, or what a scalar head replaces
    both = [(infos[name], slot.piece.shape) for name, slot in slots.items() if name in infos]
    found = {
        "missing": [name for name in slots if name not in infos],
        "not in this model": [
            name
            for name in infos
            if name not in slots and name != head and not re.search(family.constants, name)
        ],
        "of another shape than config.json says": [
            f"{info.name} {list(info.shape)} for {list(shape)}" for info, shape in both if info.shape != shape
        ],
        "of another kind than F32, F16, BF16": [
            f"{info.name} {info.kind}" for info, _ in both if info.kind not in ("F32", "F16", "BF16")
        ],
    }
    problems = [f"{what}: {_some(names)}" for what, names in found.items() if names]
    if problems:
        raise DataError("weights " + "; ".join(problems), where=str(stored.path))


def _copy(model: nn.Module, slots: dict[str, Slot], stored: Stored) -> None:
    """Copy file by file, from front to back."""
    parameters = dict(model.named_parameters())
    readers: dict[Path, Reader] = {}
    bad = []
    with torch.no_grad():
        for name, slot in sorted(slots.items(), key=lambda item: _place_in_file(stored.infos[item[0]])):
            info = stored.infos[name]
            reader = readers.get(info.file) or readers.setdefault(info.file, Reader(info.file))
            count = reader.copy(info, slot.piece.view(parameters[slot.parameter]))
            if count:
                bad.append(f"{name} ({count} numbers)")
    if bad:
        raise DataError(f"weights that are not finite: {_some(bad)}", where=str(stored.path))


def _place_in_file(info: TensorInfo) -> tuple[str, int]:
    return info.file.name, info.start


def _some(items: Sequence[str]) -> str:
    """At most ten, then how many more; names from a file are shown without control characters."""
    shown = ", ".join(item.encode("unicode_escape").decode("ascii")[:120] for item in items[:10])
    return shown + (f" and {len(items) - 10} more" if len(items) > 10 else "")
