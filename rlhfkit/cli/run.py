"""Running one command: its settings, its surroundings, signals, and what becomes of its result."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any

from rlhfkit import context
from rlhfkit.cli import failures, help, output
from rlhfkit.cli.main import help_width, process_rank
from rlhfkit.cli.params import HelpWanted, parse
from rlhfkit.cli.settings import resolve
from rlhfkit.config import TrainConfig
from rlhfkit.errors import UsageError
from rlhfkit.stages import Stage, load, names
from rlhfkit.ui.terminal import TerminalReporter

#: Under torchrun a signal from the terminal comes again from the launcher; only a later one means impatience.
TORCHRUN_ECHO_SECONDS = 1.0
_SHOW_CURSOR = b"\x1b[?25h"


def run_command(name: str, arguments: Sequence[str], *, stages: str) -> int:
    """Run a command with the words after its name; returns the exit status."""
    stage = load(name, stages)
    try:
        given, inputs = parse(stage, arguments)
    except HelpWanted:
        output.write_text(help.command_help(stage, help_width()))
        return 0
    if _waits_for_a_person(stage, given, inputs):
        print(help.short_help(stage, help_width()), end="", file=sys.stderr)
        return UsageError.exit_code
    config, sources = resolve(
        name, stage.config, given, environ=os.environ, commands=names(stages), presets=stage.presets
    )
    rank = process_rank()
    # A file name may be no UTF-8; what is written to run.json must be.
    words = (word.encode(errors="backslashreplace").decode() for word in arguments)
    invocation = context.Invocation(("rlhfkit", name, *words), sources)
    try:
        _run(stage, config, inputs, invocation, rank)
    except BaseException as error:
        return failures.report(error, name, debug=config.debug, rank=rank)
    return 0


def _reads_standard_input(stage: Stage, inputs: Sequence[str], settings: Container[str]) -> bool:
    """Whether standard input is read though nobody named it."""
    spec = stage.inputs
    replaced = any(name in settings for name in stage.instead)
    return spec is not None and spec.stdin and not (spec.required or inputs or replaced)


def _waits_for_a_person(stage: Stage, given: Container[str], inputs: Sequence[str]) -> bool:
    """Whether the command would sit at a terminal until somebody types records."""
    return _reads_standard_input(stage, inputs, given) and sys.stdin is not None and sys.stdin.isatty()


def _run(stage: Stage, config: Any, inputs: Sequence[str], invocation: context.Invocation, rank: int) -> None:
    replaced = [name for name in stage.instead if getattr(config, name)]
    source = ("-",) if _reads_standard_input(stage, inputs, replaced) else tuple(inputs)
    target = output.output_file(stage, config)
    output.check_inputs(source, target)
    if stage.output != "summary" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{stage.name} runs in one process", hint="start it without torchrun")
    reporter = TerminalReporter(sys.stderr, silent=config.quiet or rank > 0)
    saves = issubclass(stage.config, TrainConfig)
    with context.surroundings(reporter, invocation), _signals(reporter, saves=saves):
        try:
            _deliver(stage, config, source, target, rank)
        finally:
            reporter.close()


def _deliver(stage: Stage, config: Any, source: Sequence[str], target: str | None, rank: int) -> None:
    if stage.output == "records":
        with closing(stage.run(source, config)) as batches:
            output.write_records(batches, target, force=getattr(config, "force", False))
    elif stage.output == "text":
        write = output.standard_output()
        with closing(stage.run(source, config)) as texts:
            for text in texts:
                write(text.encode(errors="backslashreplace"))
    elif stage.output == "summary":
        write = output.standard_output()  # a closed one is found out before the work, not after it
        summary: Mapping[str, object] | None = stage.run(source, config)
        if summary is not None and rank == 0:
            output.write_summary(write, summary)
    else:
        stage.run(source, config)


@contextmanager
def _signals(reporter: TerminalReporter, *, saves: bool) -> Iterator[None]:
    """SIGINT and SIGTERM end the command: at once, or at the next step boundary of a trainer.

    A trainer is asked to stop once its steps have begun; before that there is nothing to save. A second
    signal ends the process on the spot.
    """
    owner = os.getpid()
    echo = TORCHRUN_ECHO_SECONDS if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0
    first_at: float | None = None

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if os.getpid() != owner:  # a forked worker: it has nothing of ours to clean up
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        now = time.monotonic()
        if first_at is not None:
            if now - first_at >= echo:
                if reporter.live:
                    os.write(2, _SHOW_CURSOR)
                os._exit(128 + signum)
            return
        first_at = now
        if not (saves and reporter.started):
            raise failures.Stopped(signum)
        context.request_stop(signum)
        if not reporter.silent:
            # Not through the stream, which may be in the middle of a write of its own.
            os.write(2, b"stopping after this step and saving; once more to stop at once\n")

    caught = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
