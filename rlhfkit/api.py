"""Every command as a function, and the two loaders: what `import rlhfkit` offers.

    for pair in rlhfkit.rank2pairs(["rankings.jsonl"], pairs="adjacent"): ...
    summary = rlhfkit.sft(demonstrations, model="base", output="sft", epochs=3)

Inputs are file names or records (mappings); settings are the command's flags as keywords. Nothing is
printed, no signal is caught, and errors are exceptions of `rlhfkit.errors`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rlhfkit import context
from rlhfkit.cli.output import output_file, write_records
from rlhfkit.errors import UsageError
from rlhfkit.stages import Stage, fill_in_preset, load
from rlhfkit.ui.flags import did_you_mean, flags

if TYPE_CHECKING:
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.models.heads import ScalarModel
    from rlhfkit.models.transformer import Transformer

Source = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Iterable[Mapping[str, Any]]

_PRECISIONS = ("float32", "bfloat16", "float16")


def load_model(
    directory: str | os.PathLike[str], dtype: str = "float32", device: str = "cpu"
) -> Transformer | ScalarModel:
    """The model of a directory, in evaluation mode.

    A causal model maps `input_ids` (B, S) to logits (B, S, V); a reward model maps right-padded `input_ids`
    and `attention_mask` to scores (B,).
    """
    if dtype not in _PRECISIONS:
        raise UsageError(
            f"{dtype!r} is not one of {', '.join(_PRECISIONS)}",
            where="dtype",
            hint=did_you_mean(dtype, _PRECISIONS),
        )
    import torch

    from rlhfkit.models import loading

    return loading.load_model(directory, dtype=getattr(torch, dtype), device=device).eval()


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model directory: `encode`, `decode`, `apply_chat_template`."""
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.models.hub import resolve

    return Tokenizer.from_dir(resolve(directory))


def command(name: str) -> Callable[..., Any]:
    """The function of one command, by function name.

    It gives an iterator of records (dicts) where the command writes records, or None when `output` names the
    file to write; the summary (a dict) of a trainer; an iterator of texts where the command prints text.
    """
    stage = load(name.replace("_", "-"))

    def call(inputs: Source = (), **settings: Any) -> Any:
        config = _config(stage, settings)
        source = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
        if stage.output == "text":
            return stage.run(source, config)
        if stage.output == "records":
            batches = stage.run(source, config)
            path = output_file(stage, config)
            return write_records(batches, path, force=config.force) if path else _decoded(batches)
        sources = {
            flag.field: "flag" if flag.field in settings else "default" for flag in flags(stage.config)
        }
        invocation = context.Invocation((f"rlhfkit.{name}",), sources)
        with context.surroundings(context.reporter(), invocation):
            return stage.run(source, config)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = _docstring(stage)
    call.__signature__ = _signature(stage)  # type: ignore[attr-defined]
    return call


def _config(stage: Stage, settings: Mapping[str, Any]) -> Any:
    by_field = {flag.field: flag for flag in flags(stage.config)}
    for field in settings:
        if field not in by_field:
            raise UsageError(f"{stage.name} has no setting {field}", hint=did_you_mean(field, by_field))
    for field, flag in by_field.items():
        if flag.required and field not in settings:
            raise UsageError(f"{stage.name} needs {field}", hint=flag.about.help)
    values = {
        field: by_field[field].from_value(
            os.fspath(value) if isinstance(value, os.PathLike) else value, field
        )
        for field, value in settings.items()
    }
    fill_in_preset(stage.presets, values, dict.fromkeys(values, "flag"))
    return stage.config(**values)


def _decoded(batches: Iterable[Iterable[Any]]) -> Iterator[dict[str, Any]]:
    """Records as plain dicts, fields that a stage passes through undecoded included."""
    import msgspec

    for batch in batches:
        for record in batch:
            yield msgspec.json.decode(msgspec.json.encode(record))


def _signature(stage: Stage) -> inspect.Signature:
    keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    settings = [
        inspect.Parameter(
            flag.field, keyword, default=inspect.Parameter.empty if flag.required else flag.default
        )
        for flag in flags(stage.config)
    ]
    first = [inspect.Parameter("inputs", positional, default=())] if stage.inputs else []
    return inspect.Signature([*first, *settings])


def _docstring(stage: Stage) -> str:
    lines = [f"    {flag.field}: {flag.about.help}" for flag in flags(stage.config)]
    return "\n".join([stage.doc, "", "Settings:", *lines])
