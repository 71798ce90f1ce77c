"""Show the settings that arrived.

One record per setting: its name, its value and where it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlhfkit import context
from rlhfkit.config import MODEL, FilterConfig, option, options

INPUTS = None
OUTPUT = "records"
EXAMPLES = ("rlhfkit settle --model m", "rlhfkit settle --model m --count 3")


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig):
    """One field of every type."""

    model: str = option(short="-m", group=MODEL, metavar="DIR", help="Required.")
    count: int = option(1, minimum=1, maximum=9, help="A whole number.")
    deep: int | None = option(None, help="A whole number or nothing.")
    ratio: float = option(0.5, above=0, maximum=1, names=("--share",), help="A number.")
    name: str = option("plain", help="A text.")
    mode: Literal["fast", "slow"] = option("fast", help="A choice.")
    level: Literal[1, 2] | None = option(None, help="A choice of numbers.")
    tags: tuple[str, ...] = option((), metavar="TAG", help="Several texts.")
    loud: bool = option(False, short="-l", help="A switch.")
    packing: bool = option(True, help="A switch that is on.")
    compile: bool = option(False, negative="--no-compile", help="A switch with two names.")


def run(inputs: object, config: Config) -> Iterator[list[dict[str, Any]]]:
    """Yield one batch."""
    sources = context.invocation().sources
    yield [{"name": n, "value": getattr(config, n), "source": sources[n]} for n in options(Config)]
