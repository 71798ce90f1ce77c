"""From the words of the command line to settings by field name, with click's parser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from rlhfkit.errors import UsageError
from rlhfkit.stages import Stage
from rlhfkit.ui.flags import Flag, all_flags, did_you_mean, words


class HelpWanted(Exception):
    """`-h` or `--help` stood among the arguments."""


def parse(stage: Stage, arguments: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(What was given, by field name and still as text; the positionals).

    Raises UsageError for a flag that does not exist or lacks its value, HelpWanted for `--help`.
    """
    known = all_flags(stage.config)
    command = click.Command(
        stage.name,
        params=[click.Argument(["inputs"], nargs=-1), *map(_click_option, known), _help_option()],
        add_help_option=False,
    )
    try:
        context = command.make_context(stage.name, list(arguments))
    except click.UsageError as error:
        raise _reworded(error, stage.name, known, arguments) from None
    given = {
        flag.field: context.params[flag.field]
        for flag in known
        if context.get_parameter_source(flag.field) is ParameterSource.COMMANDLINE
    }
    inputs: tuple[str, ...] = context.params["inputs"]
    _check_inputs(stage, inputs)
    return given, inputs


def _click_option(flag: Flag) -> click.Option:
    *others, spelling = flag.spellings
    if flag.off:
        spelling = f"{spelling}/{flag.off}"
    return click.Option(
        [flag.field, *others, spelling],
        is_flag=flag.kind is bool,
        multiple=flag.multiple,
        default=None,
        type=click.BOOL if flag.kind is bool else click.UNPROCESSED,
    )


def _help_option() -> click.Option:
    def show(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            raise HelpWanted

    return click.Option(
        ["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, callback=show, default=False
    )


def _reworded(
    error: click.UsageError, command: str, known: list[Flag], arguments: Sequence[str]
) -> UsageError:
    """Click's complaint in the words of this program."""
    if isinstance(error, click.NoSuchOption):
        spellings = [word for flag in known for word in (*flag.spellings, flag.off or flag.long)]
        # click reads `-lr` as `-l -r`; whoever wrote it meant `--lr`.
        clumped = [
            word for word in arguments if word[:1] == "-" and f"-{word.partition('=')[0]}" in spellings
        ]
        name = clumped[0] if clumped else error.option_name
        otherwise = f"`rlhfkit {command} --help` lists the options"
        hint = did_you_mean("--" + name.lstrip("-"), spellings, otherwise=otherwise)
        return UsageError(f"no such option: {name}", hint=hint)
    if isinstance(error, click.BadOptionUsage):
        flag = next((flag for flag in known if error.option_name in flag.spellings), None)
        if flag and flag.kind is not bool:
            return UsageError(f"{error.option_name} needs a value ({flag.metavar})")
        return UsageError(f"{error.option_name} takes no value")
    return UsageError(error.format_message())


def _check_inputs(stage: Stage, inputs: tuple[str, ...]) -> None:
    spec = stage.inputs
    if spec is None:
        if inputs:
            raise UsageError(f"unexpected argument: {inputs[0]}", hint=f"{stage.name} takes flags only")
        return
    if spec.required and not inputs:
        raise UsageError(f"{spec.metavar} is missing", hint=f"{spec.metavar}: {spec.help}")
    if spec.single and len(inputs) > 1:
        raise UsageError(f"unexpected argument: {inputs[1]}", hint=f"{stage.name} takes one {spec.metavar}")
    if not spec.stdin and "-" in inputs:
        raise UsageError(f"{stage.name} cannot read {spec.metavar} from standard input", where="-")
    if choices := words(spec):
        for word in inputs:
            if word not in choices:
                raise UsageError(
                    f"{word!r} is not one of {', '.join(choices)}", hint=did_you_mean(word, choices)
                )
