"""Fail in a way that can be chosen."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhfkit.config import CommonConfig, Inputs, option
from rlhfkit.errors import BadRecords, CannotCreate, DataError, Locked, RlhfkitError, UsageError

HOW = "bug|memory|disk|pipe|one|many|run|usage|exists|locked|panic|interrupt|fine"
INPUTS = Inputs(HOW, "The way.", required=True, stdin=False, single=True)
OUTPUT = "text"
EXAMPLES = ("rlhfkit fail bug", "rlhfkit fail one")


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Settings of `fail`."""

    size: int = option(12, help="How many bad records.")


class Panic(BaseException):
    """As of a library written in Rust."""


def run(inputs: Sequence[str], config: Config) -> Iterator[str]:
    """Raise."""
    yield "before\n"
    bad = [DataError(f"bad {n}", where=f"rows.jsonl:{n}", hint="mend it") for n in range(1, config.size + 1)]
    failures: dict[str, BaseException] = {
        "bug": KeyError("x"),
        "memory": MemoryError(),
        "disk": OSError(errno.ENOSPC, "No space left on device", "big.bin"),
        "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
        "one": DataError("completion: missing\x1b[31m\nsecond", where="demos.jsonl:17", hint="use --map"),
        "many": BadRecords(bad[:10], more=config.size - 10),
        "run": RlhfkitError("the loss is not finite"),
        "usage": UsageError("does not go with --b", where="--a"),
        "exists": CannotCreate("exists", where="out"),
        "locked": Locked("held by process 7", where="out"),
        "panic": Panic("regex"),
        "interrupt": KeyboardInterrupt(),
    }
    if inputs[0] != "fine":
        raise failures[inputs[0]]
