"""Copy records, slowly if asked to.

A record {"sleep": S} waits, so that tests can interrupt it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhfkit import context
from rlhfkit.config import FilterConfig, Inputs, option

INPUTS = Inputs("ROWS", "Files of records.")
OUTPUT = "records"
INSTEAD_OF_INPUTS = ("invent",)
EXAMPLES = ("rlhfkit copy-rows rows.jsonl", "rlhfkit copy-rows rows.jsonl -o copy.jsonl")


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig):
    """Settings of `copy-rows`."""

    times: int = option(1, minimum=0, help="Write every record this often.")
    talk: bool = option(False, help="Say something about every record.")
    invent: int | None = option(None, help="Make N records up instead.")
    dry_run: bool = option(False, help="Write nothing.")


def run(inputs: Any, config: Config) -> Iterator[list[dict[str, Any]]]:
    """Yield one batch per record."""
    if config.invent is not None:
        assert not inputs
        yield [{"n": n} for n in range(config.invent)]
        return
    from rlhfkit.data.jsonl import read_rows

    for row in read_rows(inputs, config):
        if config.talk:
            context.note(f"row {row.line}")
            context.warn("that was a row\x1b[2J")
        for _ in range(0 if config.dry_run else config.times):
            yield [row.values]
        time.sleep(row.values.get("sleep", 0))
