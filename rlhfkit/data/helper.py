"""Helper processes: how a function of this package is started in a fresh interpreter."""

from __future__ import annotations

import json
import sys

_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).serve(*sys.argv[3:])"
)


def helper_command(module: str, *arguments: str) -> list[str]:
    """Command line that calls `serve(*arguments)` of a module, isolated from the user's environment.

    The helper finds its modules where this process does, however that was set up.
    """
    return [sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), module, *arguments]
