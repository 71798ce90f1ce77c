"""`run.json` of a directory that no trainer wrote: what made it, from what, and what is in it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rlhfkit import __version__, context
from rlhfkit.config import CommonConfig
from rlhfkit.data.jsonl import Source
from rlhfkit.files import MANIFEST, sha256_file, write_json


def write_manifest(
    directory: Path, command: str, config: CommonConfig, inputs: Source, summary: Mapping[str, object]
) -> None:
    """Describe the finished files of `directory` in its `run.json`, with their SHA-256 and the inputs'."""
    invocation = context.invocation()
    write_json(
        directory / MANIFEST,
        {
            "command": command,
            "argv": list(invocation.argv),
            "settings": json.loads(json.dumps(asdict(config))),
            "sources": dict(invocation.sources),
            "versions": {"rlhfkit": __version__, "python": platform.python_version()},
            "inputs": _digests(inputs),
            "outputs": {p.name: sha256_file(p) for p in sorted(directory.iterdir()) if p.name != MANIFEST},
            "summary": dict(summary),
        },
    )


def show_settings(config: CommonConfig) -> None:
    """Tell every setting and where it came from, as --dry-run does."""
    sources = context.invocation().sources
    rows = [
        [name.replace("_", "-"), str(value), sources.get(name, "default")]
        for name, value in asdict(config).items()
    ]
    context.reporter().table("settings", ["setting", "value", "from"], rows)


def _digests(inputs: Source) -> dict[str, str | None]:
    """SHA-256 of every input file; None for standard input. Records of a Python caller have no names."""
    names = (
        [os.fspath(i) for i in inputs if isinstance(i, str | os.PathLike)]
        if isinstance(inputs, Sequence)
        else []
    )
    return {name: sha256_file(name) if os.path.isfile(name) else None for name in names}
