"""Models to Hugging Face directories, in the family's own names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhfkit.models.directory import parse_json
from rlhfkit.models.families import FAMILIES, Piece, pieces
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.layout import Layout
from rlhfkit.models.reading import config_json
from rlhfkit.models.transformer import Transformer

SHARD_BYTES = 5_000_000_000


def save_model(
    model: Transformer | ScalarModel,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    state: Mapping[str, Tensor] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json, generation_config.json and the weights into the existing directory `path`.

    A model that was loaded keeps its family's names, its dtypes, its shards and every setting, so that
    loading and saving changes nothing; `dtype` overrides. A fresh model is written in the dtype it has.
    Token ids that are given go into both config files; a new reward model must have a pad token. `state`
    holds full tensors by our parameter names where the model's own are sharded. Writing is not atomic: that
    is the caller's `atomic_directory`.
    """
    directory = Path(path)
    ids: dict[str, Any] = {
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id if isinstance(eos_token_id, int | None) else list(eos_token_id),
        "pad_token_id": pad_token_id,
    }
    ids = {name: value for name, value in ids.items() if value is not None}
    layout = model.layout or Layout(prefix=FAMILIES[model.config.family].prefix)
    tensors = _tensors(model, layout, dict(model.named_parameters()) if state is None else state)
    dtypes = {name: dtype or layout.dtypes.get(name) or _usual(layout, model.dtype) for name in tensors}
    _write_configs(model, layout, directory, ids, dtype or (None if layout.dtypes else model.dtype))
    _write_weights(tensors, dtypes, layout, directory, shard_bytes)


def _usual(layout: Layout, otherwise: torch.dtype) -> torch.dtype:
    """The commonest dtype of the layout, for tensors it does not know (a fresh head)."""
    known = list(layout.dtypes.values())
    return max(set(known), key=known.count) if known else otherwise


def _tensors(
    model: Transformer | ScalarModel, layout: Layout, state: Mapping[str, Tensor]
) -> dict[str, tuple[Piece, Tensor]]:
    """What goes into the files: by its name there, how to take it and what from."""
    family, config = FAMILIES[model.config.family], model.config
    found = {}
    for name, tensor in state.items():
        ours = name.removeprefix("backbone.")
        for piece in pieces(family, config, ours, tuple(tensor.shape), layout.prefix):
            found[piece.name] = (piece, tensor)
    head = f"{family.modules['lm_head']}.weight"
    if isinstance(model, Transformer) and head not in found and head in layout.dtypes:
        # Tied, yet the checkpoint stored it a second time.
        embedding = state["embed.weight"]
        found[head] = (Piece(head, tuple(embedding.shape), Tensor.clone), embedding)
    return found


def _write_configs(
    model: Transformer | ScalarModel,
    layout: Layout,
    directory: Path,
    ids: dict[str, Any],
    dtype: torch.dtype | None,
) -> None:
    """config.json and, for a language model, generation_config.json."""
    config, text = model.config, layout.config_text
    before = parse_json(text, Path("config.json")) if text else config_json(config)
    after = before | ids
    if dtype is not None:
        after["dtype" if "dtype" in before else "torch_dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(model, ScalarModel):
        after["architectures"] = [FAMILIES[config.family].scalar]
        if before.get("architectures") != after["architectures"]:
            after |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            assert after.get("pad_token_id") is not None, "a new reward model needs a pad token"
        if model.score_offset or "score_offset" in before:
            after["score_offset"] = model.score_offset
    _write_json(directory / "config.json", before, after, text)
    if isinstance(model, Transformer) and (ids or layout.generation_text):
        text = layout.generation_text or b""
        before = parse_json(text, Path("generation_config.json")) if text else {}
        _write_json(directory / "generation_config.json", before, before | ids, text)


def _write_json(path: Path, before: Mapping[str, Any], after: Mapping[str, Any], text: bytes) -> None:
    """The old bytes where nothing has changed."""
    same = text and before == after
    path.write_bytes(text if same else (json.dumps(after, indent=2) + "\n").encode())


def _write_weights(
    tensors: dict[str, tuple[Piece, Tensor]],
    dtypes: Mapping[str, torch.dtype],
    layout: Layout,
    directory: Path,
    shard_bytes: int,
) -> None:
    sizes = {name: _count(piece.shape) * dtypes[name].itemsize for name, (piece, _) in tensors.items()}
    shards = _shards(sizes, layout, shard_bytes)
    for file, names in shards.items():
        _write_shard(directory / file, {name: tensors[name] for name in names}, dtypes)
    if list(shards) != ["model.safetensors"]:
        old = (layout.index or {}).get("metadata")
        metadata = (old if isinstance(old, dict) else {}) | {"total_size": sum(sizes.values())}
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shards(sizes: Mapping[str, int], layout: Layout, shard_bytes: int) -> dict[str, list[str]]:
    """File name -> tensors: as the model was split before, else filled up to `shard_bytes`."""
    known = layout.index["weight_map"] if layout.index else {}
    if known.keys() == sizes.keys():
        files = sorted(set(known.values()))
        return {file: [name for name in sizes if known[name] == file] for file in files}
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _write_shard(
    path: Path, tensors: Mapping[str, tuple[Piece, Tensor]], dtypes: Mapping[str, torch.dtype]
) -> None:
    ready = {}
    for name, (piece, tensor) in tensors.items():
        part = piece.view(tensor.detach()).reshape(piece.shape).to("cpu", dtypes[name])
        # The library refuses tensors that share memory, as the parts of one of our parameters do.
        shared = part.untyped_storage().nbytes() != part.nbytes
        ready[name] = part.clone(memory_format=torch.contiguous_format) if shared else part.contiguous()
    save_file(ready, path, metadata={"format": "pt"})
    # The library writes mode 0600 whatever the umask says.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
