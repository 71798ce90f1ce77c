"""Write what derives from the commands: the reference, man pages and completion scripts.

    python -m rlhfkit.cli.docs            # bring the files up to date
    python -m rlhfkit.cli.docs --check    # only say which are stale; exit 1 if any is

Run it from the top of the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhfkit.cli import manpage
from rlhfkit.cli.help import EXIT_CODES, flag_label, inputs_help, is_prose, paragraphs, usage
from rlhfkit.cli.settings import GENERAL_VARIABLES
from rlhfkit.stages import Stage, load, sections
from rlhfkit.stages.completion import script_for
from rlhfkit.ui.flags import Flag, all_flags, grouped

COMPLETIONS = {"bash": "rlhfkit.bash", "zsh": "_rlhfkit", "fish": "rlhfkit.fish"}


def generated() -> dict[str, str]:
    """Every generated file by its path from the top of the repository."""
    chapters = [(title, [load(name) for name in members]) for title, members in sections()]
    files = {"docs/reference.md": "\n".join(_reference(chapters)) + "\n"}
    files |= {f"completions/{name}": script_for(shell) for shell, name in COMPLETIONS.items()}
    files["man/rlhfkit.1"] = manpage.root(chapters)
    for _, stages in chapters:
        files |= {f"man/rlhfkit-{stage.name}.1": manpage.command(stage) for stage in stages}
    return files


def stale(top: Path) -> list[str]:
    """Paths whose content is not what the commands say, files of commands that are gone included."""
    files = generated()
    differing = [path for path, text in files.items() if _read(top / path) != text]
    present = {str(path.relative_to(top)) for path in top.glob("man/*.1")}
    return sorted({*differing, *(present - files.keys())})


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: Sequence[str]) -> int:
    """Write or check; returns the exit status."""
    top = Path.cwd()
    old = stale(top)
    if "--check" in arguments:
        for path in old:
            print(f"{path} is stale: run python -m rlhfkit.cli.docs", file=sys.stderr)
        return 1 if old else 0
    files = generated()
    for path in old:
        if path in files:
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_text(files[path], encoding="utf-8")
        else:
            (top / path).unlink()
        print(f"{'wrote' if path in files else 'removed'} {path}")
    return 0


def _reference(chapters: Sequence[tuple[str, Sequence[Stage]]]) -> Iterator[str]:
    yield from _REFERENCE_HEAD.splitlines()
    yield ""
    yield from ("| status | meaning |", "| --- | --- |")
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES)
    yield ""
    yield f"Variables that belong to no command: {', '.join(f'`{name}`' for name in GENERAL_VARIABLES)}."
    for title, stages in chapters:
        yield from ("", f"## {title}")
        for stage in stages:
            yield from _command(stage)


_REFERENCE_HEAD = """\
# Reference

Made from the commands themselves by `python -m rlhfkit.cli.docs`; edits belong into `rlhfkit/stages/`.

Every flag is also a setting: `--batch-size` of `train-rm` is `batch_size` (or `batch-size`) in the table
`[train-rm]` of the file that `--config` names, `RLHFKIT_TRAIN_RM_BATCH_SIZE` in the environment, and the
keyword `batch_size` of `rlhfkit.train_rm` in Python. A flag beats the environment, the environment the file,
the file the default. In the environment a bool is `1` or `0`, and a repeatable flag is words between blanks
or a JSON list; an empty variable counts as unset.

## Exit status
"""


def _command(stage: Stage) -> Iterator[str]:
    yield from ("", f"### rlhfkit {stage.name}", "", stage.summary)
    for paragraph in paragraphs(stage)[1:]:
        prose = is_prose(paragraph)
        yield ""
        yield paragraph if prose else f"```text\n{paragraph}\n```"
    yield from ("", "```sh", usage(stage), "```", "")
    yield f"Examples and advice: [{stage.name}](commands/{stage.name}.md)."
    if stage.inputs:
        yield from ("", f"`{stage.inputs.metavar}`: {inputs_help(stage)}")
    yield from ("", "| flag | default | meaning |", "| --- | --- | --- |")
    for title, flags in grouped(all_flags(stage.config)):
        yield f"| *{title}* | | |"
        for flag in flags:
            yield f"| {_cell(f'`{flag_label(flag)}`')} | {_default(flag)} | {_cell(_meaning(flag))} |"


def _default(flag: Flag) -> str:
    if flag.required:
        return "required"
    return f"`{flag.default_text}`" if flag.default_text else ""


def _meaning(flag: Flag) -> str:
    return f"{flag.about.help} ({flag.range_text})" if flag.range_text else flag.about.help


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
