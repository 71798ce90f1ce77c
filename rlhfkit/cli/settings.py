"""Where a setting comes from: flag, then environment, then `--config` file, then default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rlhfkit.errors import InputMissing, UsageError
from rlhfkit.stages import fill_in_preset
from rlhfkit.ui.flags import CONFIG_FLAG, Flag, did_you_mean, flags, variable, variable_prefix

_PREFIX = "RLHFKIT_"
#: Variables that belong to no command.
GENERAL_VARIABLES = ("RLHFKIT_API_KEY",)


def resolve(
    command: str,
    config_class: type,
    given: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    commands: Iterable[str],
    presets: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, str]]:
    """The settings object of a command and the source of each of its values.

    `given` holds what stood on the command line: text, a bool, or a list of texts, by field name.
    Raises UsageError for whatever nobody knows: a variable, a table, a key, a value.
    """
    known = flags(config_class)
    variables = {variable(command, flag): flag for flag in (*known, CONFIG_FLAG)}
    _check_variables(command, variables, environ, commands)
    from_environment = {
        flag.field: environ[name] for name, flag in variables.items() if environ.get(name)
    }  # an empty variable counts as unset, as it does for most programs
    path = given.get("config") or from_environment.get("config")
    from_file = _read_table(path, command, known, commands) if path else {}

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for flag in known:
        name = flag.field
        if name in given:
            values[name], sources[name] = _from_command_line(flag, given[name]), "flag"
        elif name in from_environment:
            where = variable(command, flag)
            values[name], sources[name] = (
                _from_environment(flag, from_environment[name], where),
                "environment",
            )
        elif name in from_file:
            values[name], sources[name] = from_file[name], "file"
        elif flag.required:
            raise UsageError(
                f"{'/'.join(flag.spellings)} is required",
                hint=f"give {flag.long} {flag.metavar} ({flag.about.help.rstrip('.')})",
            )
        else:
            sources[name] = "default"
    fill_in_preset(presets or {}, values, sources)
    return config_class(**values), sources


def _from_command_line(flag: Flag, value: Any) -> Any:
    if flag.kind is bool:
        return value
    if flag.multiple:
        return tuple(flag.from_text(item, flag.long) for item in value)
    return flag.from_text(value, flag.long)


def _from_environment(flag: Flag, text: str, where: str) -> Any:
    """A repeatable flag is a JSON list, or else words between blanks."""
    if not flag.multiple:
        return flag.from_text(text, where)
    if not text.lstrip().startswith("["):
        return tuple(flag.from_text(word, where) for word in text.split())
    import json

    try:
        return flag.from_value(json.loads(text), where)
    except json.JSONDecodeError as error:
        raise UsageError(f"not a JSON list: {error.msg}", where=where) from None


def _check_variables(
    command: str, variables: Mapping[str, Flag], environ: Mapping[str, str], commands: Iterable[str]
) -> None:
    prefixes = {variable_prefix(name): name for name in commands}
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in variables or name in GENERAL_VARIABLES:
            continue
        owners = [prefix for prefix in prefixes if name.startswith(prefix)]
        owner = prefixes[max(owners, key=len)] if owners else None
        if owner == command:
            raise UsageError(f"{command} has no such setting", where=name, hint=_near(name, variables))
        if owner is None:
            near = _near(name, [*GENERAL_VARIABLES, *variables, *prefixes])
            raise UsageError(
                "no command knows this environment variable",
                where=name,
                hint=near or "variables are called RLHFKIT_<COMMAND>_<FLAG>; unset this one",
            )


def _near(name: str, known: Iterable[str]) -> str | None:
    """The closest variable, judged by what follows the RLHFKIT_ that all have in common."""
    hint = did_you_mean(name.removeprefix(_PREFIX), [word.removeprefix(_PREFIX) for word in known])
    return hint and hint.replace("mean ", f"mean {_PREFIX}")


def _read_table(path: str, command: str, known: list[Flag], commands: Iterable[str]) -> dict[str, Any]:
    document = _read_toml(path)
    names = {name.replace("-", "_"): name for name in commands}
    table: dict[str, Any] = {}
    for key, value in document.items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            raise UsageError(
                f"no command is called {key}",
                where=path,
                hint=did_you_mean(key, names.values(), otherwise="settings stand in a table per command"),
            )
        if not isinstance(value, dict):
            raise UsageError(f"{key} is not a table", where=path, hint=f"write its settings under [{name}]")
        if name == command:
            table |= value
    by_field = {flag.field: flag for flag in known}
    values: dict[str, Any] = {}
    for key, value in table.items():
        field = key.replace("-", "_")
        if field not in by_field:
            raise UsageError(
                f"{command} has no setting {key}", where=path, hint=did_you_mean(field, by_field)
            )
        if field in values:
            raise UsageError(f"{field} stands twice in [{command}]", where=path)
        values[field] = by_field[field].from_value(value, f"{path}: {command}.{key}")
    return values


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{at[1]}:{at[2]}" if at else path
        raise UsageError(str(error).partition(" (at ")[0], where=where) from None
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", where=path) from None
    except OSError as error:
        raise InputMissing((error.strerror or str(error)).lower(), where=path) from None
