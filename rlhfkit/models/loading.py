"""Models from and to Hugging Face directories.

Loading checks config.json and the headers of all weight files before it allocates anything, then copies the
tensors straight into their places in the wanted dtype. What it learns about the directory (dtypes, shards,
name prefix, unknown settings) stays with the model as its `Layout`, so that saving gives the same files back.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhfkit.errors import DataError
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.directory import (
    check_directory,
    open_regular,
    parse_json,
    read_json,
    verify_digests,
    weight_files,
)
from rlhfkit.models.families import FAMILIES, Family, Piece, pieces
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.layout import Layout
from rlhfkit.models.reading import Kind, read_config
from rlhfkit.models.safetensors_io import DTYPES, Reader, TensorInfo, read_header
from rlhfkit.models.saving import save_model
from rlhfkit.models.transformer import Transformer

__all__ = [
    "config_of",
    "init_model",
    "kind_of",
    "load_causal",
    "load_model",
    "load_scalar",
    "save_model",
    "verify_digests",
]


class Opened(NamedTuple):
    """A directory whose config.json has been read and accepted."""

    path: Path
    config: ModelConfig
    kind: Kind
    config_text: bytes


def open_directory(path: str | os.PathLike[str]) -> Opened:
    """Read and check config.json; no weights are touched."""
    directory = check_directory(path)
    config_path = directory / "config.json"
    with open_regular(config_path) as file:
        text = file.read(25_000_001)
    config, kind = read_config(parse_json(text, config_path), str(config_path))
    return Opened(directory, config, kind, text)


def config_of(path: str | os.PathLike[str]) -> ModelConfig:
    """The sizes and switches of a model directory, without its weights."""
    return open_directory(path).config


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Is the directory a language model ("causal") or a reward model ("scalar")?"""
    return open_directory(path).kind


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Transformer | ScalarModel:
    """The model of a directory, of whichever kind it is."""
    if open_directory(path).kind == "scalar":
        return load_scalar(path, dtype=dtype, device=device, verify=verify)
    return load_causal(path, dtype=dtype, device=device, verify=verify)


def load_causal(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Transformer:
    """A language model. A reward model's directory is a DataError."""
    opened = open_directory(path)
    if opened.kind != "causal":
        raise DataError(
            f"a reward model ({FAMILIES[opened.config.family].scalar}); a language model is needed here",
            where=str(path),
        )
    with torch.device("meta"):
        model = Transformer(opened.config)
    _fill(model, opened, dtype, torch.device(device), verify)
    return model.eval()


def load_scalar(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    verify: bool = True,
    init_head: int | None = None,
) -> ScalarModel:
    """A reward or value model.

    A language model's directory is a DataError unless `init_head` gives a seed: then its decoder is taken and
    gets a fresh head, N(0, 1 / sqrt(D + 1)) as Stiennon et al. (2020) start theirs.
    """
    opened = open_directory(path)
    if opened.kind == "causal" and init_head is None:
        raise DataError(
            f"a language model ({FAMILIES[opened.config.family].causal}); a reward model is needed here",
            where=str(path),
            hint="train one from it with rlhfkit train-rm",
        )
    with torch.device("meta"):
        model = ScalarModel(opened.config)
    _fill(model, opened, dtype, torch.device(device), verify)
    if opened.kind == "causal" and init_head is not None:
        generator = torch.Generator().manual_seed(init_head)
        head = torch.randn(1, opened.config.hidden_size, generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(head / math.sqrt(opened.config.hidden_size + 1))
    return model.eval()


def init_model(config: ModelConfig, seed: int, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """A fresh model on the CPU: N(0, 0.02), smaller where layers add up (Radford et al., 2019).

    The same seed gives the same bits.
    """
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        value = torch.empty(parameter.shape)
        if name.endswith("bias"):
            value.zero_()
        elif value.dim() == 1:
            value.fill_(0.0 if config.norm_plus_one else 1.0)
        else:
            adds_up = name.endswith(("attn.out.weight", "ffn.down.weight"))
            std = 0.02 / math.sqrt(2 * config.num_layers) if adds_up else 0.02
            value.normal_(0.0, std, generator=generator)
        _place(model, name, value.to(dtype))
    return model


def _place(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a real tensor where the model has a meta one."""
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.Parameter(value))


class Slot(NamedTuple):
    """One tensor of the file and the parameter it goes to."""

    parameter: str
    piece: Piece


def _slots(model: nn.Module, config: ModelConfig, prefix: str) -> dict[str, Slot]:
    """All tensors that make up the model, by their names in the file."""
    family = FAMILIES[config.family]
    found = {}
    for name, parameter in model.named_parameters():
        ours = name.removeprefix("backbone.")
        for piece in pieces(family, config, ours, tuple(parameter.shape), prefix):
            found[piece.name] = Slot(name, piece)
    return found


def _fill(
    model: Transformer | ScalarModel, opened: Opened, dtype: torch.dtype, device: torch.device, verify: bool
) -> None:
    """Give the meta model its weights and its layout."""
    files, index = weight_files(opened.path)
    if verify:
        verify_digests(opened.path, {"config.json", *(file.name for file in files)})
    infos = _read_headers(files, index, opened.path)
    family = FAMILIES[opened.config.family]
    prefix = family.prefix if any(name.startswith(family.prefix) for name in infos) else ""
    slots = _slots(model, opened.config, prefix)
    if opened.kind == "causal":
        slots.pop("score.weight", None)
    _check_names(slots, infos, family, opened)
    model.layout = Layout(
        prefix=prefix,
        dtypes={name: info.dtype for name, info in infos.items() if info.kind in DTYPES},
        config_text=opened.config_text,
        index=index,
        generation_text=_generation_text(opened.path),
    )
    for name, parameter in list(model.named_parameters()):
        _place(model, name, torch.empty(parameter.shape, dtype=dtype, device=device))
    _copy_all(model, slots, infos, opened.path)


def _read_headers(files: list[Path], index: dict[str, Any] | None, path: Path) -> dict[str, TensorInfo]:
    """The tensors of all files by name; each in one file only, and where the index says."""
    infos: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in infos:
                raise DataError(f"tensor {name!r} stands in {infos[name].file.name}, too", where=str(file))
            infos[name] = info
    if index is not None:
        listed = index["weight_map"]
        wrong = [name for name in listed if name not in infos or infos[name].file.name != listed[name]]
        if wrong:
            raise DataError(
                f"tensors not in the file that the index names: {_some(wrong)}",
                where=str(path / "model.safetensors.index.json"),
            )
    return infos


def _check_names(
    slots: dict[str, Slot], infos: dict[str, TensorInfo], family: Family, opened: Opened
) -> None:
    """The file has exactly the tensors that the config asks for, in their shapes and in floating point."""
    problems = []
    missing = [name for name in slots if name not in infos]
    if missing:
        problems.append(f"missing: {_some(missing)}")
    extra = [
        name for name in infos if name not in slots and not _may_stay_out(name, family, infos[name], opened)
    ]
    if extra:
        problems.append(f"not in this model: {_some(extra)}")
    both = [(infos[name], slot.piece) for name, slot in slots.items() if name in infos]
    shapes = [f"{i.name} is {list(i.shape)}, not {list(p.shape)}" for i, p in both if i.shape != p.shape]
    if shapes:
        problems.append(f"other shape than config.json says: {_some(shapes)}")
    kinds = [f"{i.name} is {i.kind}" for i, _ in both if i.kind not in ("F32", "F16", "BF16")]
    if kinds:
        problems.append(f"weights must be F32, F16 or BF16: {_some(kinds)}")
    if problems:
        raise DataError("weights: " + "; ".join(problems), where=str(opened.path))


def _may_stay_out(name: str, family: Family, info: TensorInfo, opened: Opened) -> bool:
    """Constants of old checkpoints, and a head that is tied or, under a fresh scalar head, not wanted."""
    if re.search(family.constants, name):
        return True
    config = opened.config
    return name == f"{family.modules['lm_head']}.weight" and info.shape == (
        config.vocab_size,
        config.hidden_size,
    )


def _copy_all(model: nn.Module, slots: dict[str, Slot], infos: dict[str, TensorInfo], path: Path) -> None:
    parameters = dict(model.named_parameters())
    bad: list[str] = []
    by_file: dict[Path, list[str]] = {}
    for name in slots:
        by_file.setdefault(infos[name].file, []).append(name)
    with torch.no_grad():
        for file, names in by_file.items():
            reader = Reader(file)
            for name in sorted(names, key=lambda name: infos[name].start):
                slot = slots[name]
                count = reader.copy(infos[name], slot.piece.view(parameters[slot.parameter]))
                if count:
                    bad.append(f"{name} ({count})")
    if bad:
        raise DataError(f"weights that are not finite: {_some(bad)}", where=str(path))


def _some(items: Sequence[str]) -> str:
    """At most ten, then how many more."""
    shown = ", ".join(item.encode("unicode_escape").decode("ascii") for item in items[:10])
    return shown + (f" and {len(items) - 10} more" if len(items) > 10 else "")


def _generation_text(path: Path) -> bytes | None:
    file = path / "generation_config.json"
    if not os.path.lexists(file):
        return None
    read_json(file)
    with open_regular(file) as opened:
        return opened.read()
