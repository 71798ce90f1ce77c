"""rlhfkit: composable tools for reinforcement learning from human feedback.

Every command is a function of the same name (`rlhfkit.rank2pairs`, `rlhfkit.train_rm`, ...), beside
`load_model` and `load_tokenizer`. They are looked up on first use, so that importing the package is cheap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhfkit.api import load_model, load_tokenizer

__version__ = "0.1.0"
_LOADERS = ("load_model", "load_tokenizer")


def __getattr__(name: str) -> Any:
    # Whatever is neither a loader nor a stage is none of ours, so that importing a submodule
    # (`from rlhfkit import data`) loads no more than that.
    if name in _LOADERS:
        from rlhfkit import api

        found = getattr(api, name)
    elif not name.startswith("_") and name in _command_functions():
        from rlhfkit import api

        found = api.command(name)
    else:
        raise AttributeError(f"module 'rlhfkit' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADERS, *_command_functions()})


def _command_functions() -> list[str]:
    folder = os.path.join(os.path.dirname(__file__), "stages")
    return [entry[:-3] for entry in os.listdir(folder) if entry.endswith(".py") and entry[0] != "_"]
