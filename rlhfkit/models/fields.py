"""Reads the entries of a config.json and remembers every problem, so that one message tells them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhfkit.errors import DataError

#: larger sizes are a slip or an attack, not a model
LARGEST = 2**31 - 1


class Fields:
    """Typed access to a config.json; a bad entry is noted and replaced by a harmless value until `finish`."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def has(self, name: str) -> bool:
        """Is the entry there and not null?"""
        return self.raw.get(name) is not None

    def size(self, name: str, *, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        """A whole number in a range; required unless there is a default."""
        if not self.has(name):
            if default is None:
                self.problems.append(f"{name}: missing")
            return 1 if default is None else default
        value = self.raw[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.problems.append(f"{name}: must be a whole number from {low} to {high}, is {_shown(value)}")
            return 1
        return value

    def number(self, name: str, default: float | None, *, positive: bool = True) -> float:
        """A finite number; required unless there is a default."""
        if not self.has(name):
            if default is None:
                self.problems.append(f"{name}: missing")
            return 1.0 if default is None else default
        value = self.raw[name]
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
        if not fine or (positive and value <= 0):
            self.problems.append(f"{name}: must be a {'positive ' * positive}number, is {_shown(value)}")
            return 1.0
        return float(value)

    def number_or_none(self, name: str, default: float | None) -> float | None:
        """A positive number, or null; `default` where the entry is not there at all."""
        if name not in self.raw:
            return default
        return self.number(name, None) if self.has(name) else None

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false, is {_shown(value)}")
            return default
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, str]) -> str:
        """One of `choices`, translated."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            self.problems.append(f"{name}: {_shown(value)} is not supported (known: {', '.join(choices)})")
            return next(iter(choices.values()))
        return choices[value]

    def token_id(self, name: str) -> int | None:
        """A token id; null and negative numbers mean none."""
        value = self.raw.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{name}: must be a token id, is {_shown(value)}")
            return None
        return value if value >= 0 else None

    def table(self, name: str) -> Mapping[str, Any]:
        """An object; empty where it is missing or null."""
        value = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{name}: must be an object, is {_shown(value)}")
            return {}
        return value

    def finish(self, where: str) -> None:
        """Raise what has been found."""
        if self.problems:
            shown = "; ".join(self.problems[:10])
            more = len(self.problems) - 10
            raise DataError(shown + (f"; and {more} more" if more > 0 else ""), where=where)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
