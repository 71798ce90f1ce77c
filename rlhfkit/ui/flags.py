"""Flags: the fields of a settings class as a person writes them.

The command line, `--config` files, environment variables, Python calls, the reference, man pages and
completions all go through `Flag`, so that a value is spelled, converted and refused in one way.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlhfkit.config import GENERAL, INPUT, MODEL, OUTPUT, RUN, TRAINING, Inputs, Option
from rlhfkit.errors import UsageError

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
#: What every command has in common comes after what is its own.
_LAST_GROUPS = (INPUT, OUTPUT, TRAINING, RUN, GENERAL)


def did_you_mean(word: str, choices: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """A hint naming the closest of `choices`, or `otherwise` when none is close."""
    from difflib import get_close_matches

    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]}?" if close else otherwise


@dataclass(frozen=True)
class Flag:
    """One setting of a command."""

    field: str
    kind: type  # bool, int, float or str: of one value
    about: Option
    default: Any  # MISSING: a run needs a value from somewhere
    choices: tuple[Any, ...] = ()
    optional: bool = False  # None is a legal value
    multiple: bool = False  # a tuple of values

    @property
    def required(self) -> bool:
        """Whether a run needs it from somewhere."""
        return self.default is MISSING

    @property
    def long(self) -> str:
        """The spelling by which messages call it."""
        return "--" + self.field.replace("_", "-")

    @property
    def spellings(self) -> tuple[str, ...]:
        """Short, long and further spellings."""
        short = (self.about.short,) if self.about.short else ()
        return (*short, self.long, *self.about.names)

    @property
    def off(self) -> str | None:
        """The spelling that turns a bool off, if it has one."""
        if self.kind is bool and (self.default is True or self.about.negative):
            return self.about.negative or "--no-" + self.long[2:]
        return None

    @property
    def metavar(self) -> str:
        """What stands for the value in help; empty for a bool."""
        if self.kind is bool:
            return ""
        if self.choices:
            return "|".join(map(str, self.choices))
        return self.about.metavar or {int: "INTEGER", float: "NUMBER", str: "TEXT"}[self.kind]

    @property
    def default_text(self) -> str:
        """The default as help shows it; empty where there is nothing to show."""
        if self.required or self.default is None or self.default is False or self.default == ():
            return ""
        return "on" if self.default is True else str(self.default)

    def from_text(self, text: str, where: str) -> Any:
        """The value of one word of the command line or of an environment variable."""
        if self.kind is bool:
            lowered = text.lower()
            if lowered not in _TRUE + _FALSE:
                raise UsageError(f"{text!r} is neither true nor false", where=where, hint="write 1 or 0")
            return lowered in _TRUE
        if self.choices:
            return self._chosen(text, where)
        if self.kind is str:
            return text
        try:
            value = self.kind(text)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            raise UsageError(f"{text!r} is not {wanted}", where=where) from None
        return self._in_range(value, where)

    def from_value(self, value: Any, where: str) -> Any:
        """The value of a TOML item or of a Python argument."""
        if value is None and self.optional:
            return None
        if self.multiple:
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise UsageError(f"{value!r} is not a list", where=where)
            return tuple(self._one(item, where) for item in value)
        return self._one(value, where)

    def _one(self, value: Any, where: str) -> Any:
        if self.choices:
            return self._chosen(str(value), where)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
            raise UsageError(f"{value!r} is not {wanted[self.kind]}", where=where)
        return self._in_range(value, where)

    def _chosen(self, text: str, where: str) -> Any:
        spelled = {str(choice): choice for choice in self.choices}
        if text not in spelled:
            raise UsageError(
                f"{text!r} is not one of {', '.join(spelled)}", where=where, hint=did_you_mean(text, spelled)
            )
        return spelled[text]

    def _in_range(self, value: Any, where: str) -> Any:
        if self.kind is float and not math.isfinite(value):
            raise UsageError(f"{value} is not a finite number", where=where)
        low, above, high = self.about.minimum, self.about.above, self.about.maximum
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
        ):
            raise UsageError(f"{value} is out of range: it must be {self.range_text}", where=where)
        return value

    @property
    def range_text(self) -> str:
        """The values allowed, in words; empty when all are."""
        about = self.about
        bounds = (("at least", about.minimum), ("above", about.above), ("at most", about.maximum))
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)


def flags(config_class: type) -> list[Flag]:
    """The flags of a settings class, in order of definition."""
    hints = get_type_hints(config_class)
    return [
        _flag(field.name, hints[field.name], field.metadata["option"], field.default)
        for field in fields(config_class)
        if "option" in field.metadata
    ]


def _flag(name: str, hint: Any, about: Option, default: Any) -> Flag:
    optional = multiple = False
    choices: tuple[Any, ...] = ()
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        optional = len(rest) < len(get_args(hint))
        hint = rest[0] if len(rest) == 1 else hint
    if get_origin(hint) is tuple:
        hint, multiple = get_args(hint)[0], True
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = type(choices[0])
    assert hint in (bool, int, float, str), f"{name}: no flag can have the type {hint}"
    return Flag(name, hint, about, default, choices, optional, multiple)


def grouped(flags: Iterable[Flag]) -> list[tuple[str, list[Flag]]]:
    """Flags under the titles of their groups: the model, the command's own, then what all share."""
    by_group: dict[str, list[Flag]] = {MODEL: []}
    for flag in flags:
        by_group.setdefault(flag.about.group, []).append(flag)
    for title in _LAST_GROUPS:
        if title in by_group:
            by_group[title] = by_group.pop(title)
    return [(title, members) for title, members in by_group.items() if members]


def words(inputs: Inputs | None) -> tuple[str, ...]:
    """The values a positional can have when its metavar lists them (`bash|zsh|fish`)."""
    return tuple(inputs.metavar.split("|")) if inputs and "|" in inputs.metavar else ()


CONFIG_FLAG = Flag(
    "config",
    str,
    Option(
        help="Read settings from this TOML file: a table per command, [sft] lr = 1e-5.",
        group=GENERAL,
        metavar="FILE",
    ),
    default=None,
    optional=True,
)
"""`--config`, which every command has and which is no setting itself."""


def all_flags(config_class: type) -> list[Flag]:
    """The flags of a settings class and `--config`."""
    return [*flags(config_class), CONFIG_FLAG]


def variable(command: str, flag: Flag) -> str:
    """The environment variable of a flag, `RLHFKIT_TRAIN_RM_BATCH_SIZE`."""
    return f"{variable_prefix(command)}{flag.field.upper()}"


def variable_prefix(command: str) -> str:
    """What the environment variables of a command begin with."""
    return f"RLHFKIT_{command.replace('-', '_').upper()}_"
