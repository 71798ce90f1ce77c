"""The commands: one module each, found by file name (`train_rm.py` is `train-rm`).

Finding them reads the first line of every file and imports none, so that `rlhfkit --help` stays instant.
A new command is a new file here; nothing has to be registered.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhfkit.config import Inputs

PACKAGE = "rlhfkit.stages"

#: The order of the pipeline, for help and the reference. A command not named here goes under `OTHER`.
SECTIONS = (
    ("From text to a model", ("train-tokenizer", "tokenize", "pretrain", "sft")),
    ("Preferences", ("sample", "score", "rank", "exchange", "rank2pairs", "agreement", "train-rm")),
    ("Policy", ("ppo", "best-of")),
    ("Results", ("eval-winrate", "plot")),
    ("Files and projects", ("inspect", "init", "completion")),
)
OTHER = "Further commands"


@dataclass(frozen=True)
class Stage:
    """A command's module, as the command line and the Python API see it."""

    name: str
    doc: str
    inputs: Inputs | None
    output: Literal["records", "summary", "text", "none"]
    examples: Sequence[str]
    config: type
    run: Callable[..., Any]
    #: `INSTEAD_OF_INPUTS` of the module: settings that replace the inputs, so that none are read by default
    instead: Sequence[str] = ()
    #: `PRESETS` of the module: what its setting `preset` fills in where nothing else was said
    presets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0].strip()


def fill_in_preset(presets: Mapping[str, Any], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Give the settings that are still at their defaults the values of the preset that was asked for."""
    name = values.get("preset")
    if name is None:
        return
    for setting, value in presets[name].settings.items():
        if setting == "steps" and sources.get("epochs", "default") != "default":
            continue  # a length was asked for in the other unit
        if sources.get(setting, "default") == "default":
            values[setting], sources[setting] = value, "preset"


def names(package: str = PACKAGE) -> dict[str, str]:
    """Every command and its one-line summary, by name; imports no stage."""
    found = {}
    for folder in importlib.import_module(package).__path__:
        for entry in sorted(os.listdir(folder)):
            if entry.endswith(".py") and not entry.startswith("_"):
                found[entry[:-3].replace("_", "-")] = _first_line(os.path.join(folder, entry))
    return found


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if '"""' in line:
                return line.partition('"""')[2].partition('"""')[0].strip()
    return ""


def sections(package: str = PACKAGE) -> list[tuple[str, dict[str, str]]]:
    """The commands with their summaries, in the order of the pipeline, grouped under titles."""
    left = names(package)
    grouped = [
        (title, {name: left.pop(name) for name in members if name in left}) for title, members in SECTIONS
    ]
    return [(title, members) for title, members in [*grouped, (OTHER, left)] if members]


def load(name: str, package: str = PACKAGE) -> Stage:
    """Import the module of one command."""
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    return Stage(
        name=name,
        doc=(module.__doc__ or "").strip(),
        inputs=module.INPUTS,
        output=module.OUTPUT,
        examples=module.EXAMPLES,
        config=module.Config,
        run=module.run,
        instead=getattr(module, "INSTEAD_OF_INPUTS", ()),
        presets=getattr(module, "PRESETS", {}),
    )
