"""How a model lay on disk: what saving needs to give the same files back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Layout:
    """Remembered by a loaded model; a fresh model has none."""

    #: what stands before the names of the decoder's weights in the file, "" for bare names
    prefix: str
    #: dtype of each tensor, by its name in the file
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    #: config.json, byte by byte
    config_text: bytes = b""
    #: model.safetensors.index.json of a sharded model
    index: dict[str, Any] | None = None
    #: generation_config.json, byte by byte
    generation_text: bytes | None = None
