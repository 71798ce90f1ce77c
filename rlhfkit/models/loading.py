"""Models from Hugging Face directories, and fresh ones.

Loading checks config.json and the headers of all weight files before it allocates anything, then copies the
tensors straight into their places in the wanted dtype. What it learns about the directory (dtypes, shards,
name prefix, unknown settings) stays with the model as its `Layout`, so that saving gives the same files back.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from rlhfkit.context import warn
from rlhfkit.errors import DataError
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.directory import MAX_JSON, check_directory, open_regular, parse_json, verify_digests
from rlhfkit.models.families import FAMILIES
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.hub import resolve
from rlhfkit.models.layout import Layout
from rlhfkit.models.reading import Kind, read_config
from rlhfkit.models.safetensors_io import DTYPES
from rlhfkit.models.saving import save_model
from rlhfkit.models.transformer import Linear, Transformer
from rlhfkit.models.weights import Stored, fill, has_a_head_of_its_own, place, read_headers

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

Model = TypeVar("Model", Transformer, ScalarModel)


class Opened(NamedTuple):
    """A directory whose config.json has been read and accepted."""

    path: Path
    config: ModelConfig
    kind: Kind
    config_text: bytes


def open_directory(path: str | os.PathLike[str]) -> Opened:
    """Read and check config.json of a directory or hub name; no weights are touched."""
    directory = check_directory(resolve(path))
    text = _bytes_of(directory / "config.json")
    raw = parse_json(text, directory / "config.json")
    return Opened(directory, *read_config(raw, str(directory / "config.json")), text)


def _bytes_of(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(MAX_JSON + 1)


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
    """The model of a directory, of whichever kind it is; the arguments are those of `load_causal`."""
    if kind_of(path) == "scalar":
        return load_scalar(path, dtype=dtype, device=device, verify=verify)
    return load_causal(path, dtype=dtype, device=device, verify=verify)


def load_causal(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Transformer:
    """A language model. A reward model's directory is a DataError.

    `verify`: compare the files with the digests in run.json, where there is one (about 1.2 GB/s).
    """
    opened = open_directory(path)
    config = opened.config
    if opened.kind != "causal":
        raise DataError(
            f"a reward model ({FAMILIES[config.family].scalar}); a language model is needed here",
            where=str(path),
        )
    stored = read_headers(opened.path, config, verify=verify)
    if config.tie_embeddings and has_a_head_of_its_own(stored, config):
        warn(f"{path}: the config ties the head to the embedding, but the file holds another; it is used")
        config = replace(config, tie_embeddings=False)
    with torch.device("meta"):
        model = Transformer(config)
    return _filled(model, opened, stored, dtype, device)


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
    config = opened.config
    fresh = opened.kind == "causal"
    if fresh:
        if init_head is None:
            raise DataError(
                f"a language model ({FAMILIES[config.family].causal}); a reward model is needed here",
                where=str(path),
                hint="train one from it with rlhfkit train-rm",
            )
        # A language model may call EOS its pad token; the score must be read at EOS nevertheless.
        config = replace(config, pad_token_id=None)
    stored = read_headers(opened.path, config, verify=verify)
    with torch.device("meta"):
        model = ScalarModel(config)
    if fresh:
        model.score = None  # type: ignore[assignment]
    model = _filled(model, opened, stored, dtype, device)
    if fresh:
        assert init_head is not None
        model.score = _fresh_head(config, init_head).to(device, dtype)
    else:
        model.score_offset = config.score_offset
    return model


def _fresh_head(config: ModelConfig, seed: int) -> Linear:
    head = Linear(config.hidden_size, 1, bias=False)
    std = 1 / math.sqrt(config.hidden_size + 1)
    nn.init.normal_(head.weight, std=std, generator=torch.Generator().manual_seed(seed))
    return head


def _filled(
    model: Model, opened: Opened, stored: Stored, dtype: torch.dtype, device: str | torch.device
) -> Model:
    """The meta model with its weights and its layout."""
    fill(model, stored, model.config, dtype=dtype, device=torch.device(device))
    generation = opened.path / "generation_config.json"
    generation_text = _bytes_of(generation) if os.path.lexists(generation) else None
    if generation_text is not None:
        parse_json(generation_text, generation)
    model.layout = Layout(
        prefix=stored.prefix,
        dtypes={name: info.dtype for name, info in stored.infos.items() if info.kind in DTYPES},
        config_text=opened.config_text,
        index=stored.index,
        generation_text=generation_text,
    )
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
        place(model, name, value.to(dtype))
    return model
