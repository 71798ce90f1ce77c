"""Completion scripts for bash, zsh and fish.

They are complete in themselves: pressing TAB never starts Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlhfkit.config import Inputs
from rlhfkit.ui.flags import Flag, words

_HEAD = "completion for rlhfkit; made by `python -m rlhfkit.cli.docs`, not to be edited."
_ROOT_WORDS = ("help", "--help", "--version")


@dataclass(frozen=True)
class Completed:
    """What completion needs to know of a command."""

    name: str
    summary: str
    inputs: Inputs | None
    flags: Sequence[Flag]


def script(shell: str, commands: Sequence[Completed]) -> str:
    """The completion script of a shell."""
    makers: dict[str, Callable[[Sequence[Completed]], Iterator[str]]] = {
        "bash": _bash,
        "zsh": _zsh,
        "fish": _fish,
    }
    return "\n".join(makers[shell](commands)) + "\n"


def _value_kind(flag: Flag) -> str:
    """What can stand after a flag that takes a value: words, files, directories or nothing we know."""
    if flag.choices:
        return "words"
    if {"DIR", "SCORER"} & set(flag.metavar.split("|")):
        return "directories"
    return "files" if any(word in flag.metavar for word in ("FILE", "PATH", "SHARD")) else "none"


def _input_kind(inputs: Inputs | None) -> str:
    if inputs is None:
        return "none"
    return "words" if words(inputs) else "files"


def _short_help(flag: Flag) -> str:
    return flag.about.help.partition(". ")[0].rstrip(".")


def _spellings(flag: Flag) -> list[str]:
    return [*flag.spellings, *([flag.off] if flag.off else [])]


# -- bash --------------------------------------------------------------------------------------------------


def _bash(commands: Sequence[Completed]) -> Iterator[str]:
    names = " ".join(command.name for command in commands)
    yield f"# bash {_HEAD}"
    yield from _BASH_BEGIN.replace("NAMES", names).replace("ROOT", " ".join(_ROOT_WORDS)).splitlines()
    for command in commands:
        yield f"        {command.name})"
        spellings = [word for flag in command.flags for word in _spellings(flag)]
        yield f"            flags='{' '.join([*spellings, '-h', '--help'])}'"
        yield f"            kind={_input_kind(command.inputs)} choices='{' '.join(words(command.inputs))}'"
        yield "            case $previous in"
        alike: dict[str, list[str]] = {}
        for flag in command.flags:
            if flag.metavar:
                listed = f" choices='{' '.join(map(str, flag.choices))}'" if flag.choices else ""
                alike.setdefault(f"value={_value_kind(flag)}{listed}", []).extend(flag.spellings)
        for action, spellings in alike.items():
            yield f"                {' | '.join(spellings)}) {action} ;;"
        yield "            esac"
        yield "            ;;"
    yield from _BASH_END.splitlines()


_BASH_BEGIN = """\
_rlhfkit() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} line
    local flags='' kind=none choices='' value=''
    local commands='NAMES'
    COMPREPLY=()
    # bash cuts --flag=value into three words
    if [[ $current == '=' ]]; then
        current=''
    elif [[ $previous == '=' ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$commands ROOT" -- "$current"))
        return
    fi
    case ${COMP_WORDS[1]} in
        help) kind=words choices=$commands ;;"""

_BASH_END = """\
    esac
    if [[ -n $value ]]; then
        kind=$value
    elif [[ $current == -* ]]; then
        kind=words choices=$flags
    fi
    case $kind in
        words) COMPREPLY=($(compgen -W "$choices" -- "$current")) ;;
        files | directories)
            compopt -o filenames 2>/dev/null
            [[ $kind == files ]] && kind=-f || kind=-d
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "$kind" -- "$current")
            ;;
    esac
}
complete -F _rlhfkit rlhfkit"""


# -- zsh ---------------------------------------------------------------------------------------------------

_ZSH_ACTIONS = {"files": "_files", "directories": "_files -/", "none": " "}


def _zsh(commands: Sequence[Completed]) -> Iterator[str]:
    yield "#compdef rlhfkit"
    yield f"# zsh {_HEAD}"
    yield from ["_rlhfkit() {", "    local -a commands", "    commands=("]
    for command in commands:
        yield f"        {_quote(_zsh_escape(command.name) + ':' + command.summary)}"
    yield from _ZSH_BEGIN.splitlines()
    for command in commands:
        yield f"        {command.name})"
        yield "            _arguments -s -S \\"
        for flag in command.flags:
            yield f"                {_zsh_flag(flag)} \\"
        if command.inputs:
            choices = words(command.inputs)
            action = f"({' '.join(choices)})" if choices else "_files"
            label = "argument" if choices else command.inputs.metavar
            yield f"                {_quote(f'*:{_zsh_escape(label)}:{action}')} \\"
        yield "                '(- *)'{-h,--help}'[show help]'"
        yield "            ;;"
    yield from _ZSH_END.splitlines()


def _zsh_flag(flag: Flag) -> str:
    repeat = "*" if flag.multiple else ""
    spellings = _spellings(flag)
    exclusive = f"({' '.join(spellings)})" if len(spellings) > 1 and not flag.multiple else ""
    about = f"[{_zsh_escape(_short_help(flag))}]"
    if flag.metavar:
        choices = f"({' '.join(map(str, flag.choices))})" if flag.choices else _ZSH_ACTIONS[_value_kind(flag)]
        label = flag.field if flag.choices else flag.metavar
        about += f":{_zsh_escape(label)}:{choices}"
        spellings = [word + ("=" if word.startswith("--") else "+") for word in spellings]
    return " ".join(_quote(f"{exclusive}{repeat}{word}{about}") for word in spellings)


def _zsh_escape(text: str) -> str:
    for char in "\\[]:":
        text = text.replace(char, "\\" + char)
    return text


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_ZSH_BEGIN = """\
    )
    if ((CURRENT == 2)); then
        commands+=('help:Show the help of a command.')
        _describe -t commands 'rlhfkit command' commands
        _arguments '(- *)'{-h,--help}'[show help]' '(- *)--version[show the version]'
        return
    fi
    local command=$words[2]
    shift words
    ((CURRENT--))
    case $command in
        help) _describe -t commands 'rlhfkit command' commands ;;"""

_ZSH_END = """\
    esac
}
# Sourced by hand, or loaded by compinit for the first TAB.
if [[ $funcstack[1] == _rlhfkit ]]; then
    _rlhfkit "$@"
else
    compdef _rlhfkit rlhfkit
fi"""


# -- fish --------------------------------------------------------------------------------------------------

_FISH_VALUES = {"files": "-r -F", "directories": "-x -a '(__fish_complete_directories)'", "none": "-x"}


def _fish(commands: Sequence[Completed]) -> Iterator[str]:
    names = " ".join(command.name for command in commands)
    yield f"# fish {_HEAD}"
    yield "complete -c rlhfkit -f"
    yield "complete -c rlhfkit -n __fish_use_subcommand -l version -d 'Show the version'"
    yield "complete -c rlhfkit -s h -l help -d 'Show help'"
    yield "complete -c rlhfkit -n __fish_use_subcommand -a help -d 'Show the help of a command'"
    yield f"complete -c rlhfkit -n '__fish_seen_subcommand_from help' -a '{names}'"
    for command in commands:
        about = _fish_quote(command.summary)
        yield f"complete -c rlhfkit -n __fish_use_subcommand -a {command.name} -d {about}"
    for command in commands:
        begin = f"complete -c rlhfkit -n '__fish_seen_subcommand_from {command.name}'"
        if choices := words(command.inputs):
            yield f"{begin} -a '{' '.join(choices)}'"
        elif command.inputs:
            yield f"{begin} -F"
        for flag in command.flags:
            yield f"{begin} {_fish_flag(flag)}"
            if flag.off:
                yield f"{begin} -l {flag.off[2:]} -d {_fish_quote('Not: ' + _short_help(flag))}"


def _fish_flag(flag: Flag) -> str:
    parts = [f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in flag.spellings]
    if flag.choices:
        parts.append(f"-x -a '{' '.join(map(str, flag.choices))}'")
    elif flag.metavar:
        parts.append(_FISH_VALUES[_value_kind(flag)])
    return " ".join([*parts, f"-d {_fish_quote(_short_help(flag))}"])


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
