"""What a person is shown next, and what becomes of the answer: shared by the page and the terminal.

All state lives in the journal. A decision names the version of the item that the person saw (how many
decisions of this rater on it there were), so of two tabs, or two programs, only one can record; and it has an
id of its own, so that a repeated request records nothing new. Changing one's mind appends a decision that
supersedes the former one.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rlhfkit.ui.journal import Journal

#: (role, text) pairs; the role is "" for a plain text.
Turns = tuple[tuple[str, str], ...]
Tiers = list[list[int]]

FEWEST, MOST = 2, 9
FLAGS = ("flagged", "none acceptable", "unsafe", "unclear prompt")
MOST_SECONDS = 86_400.0
MOST_NOTE = 10_000
#: An item that another rater was shown and has not decided on is free again after this long.
CLAIM_SECONDS = 1800.0


class Conflict(Exception):
    """The item was decided on elsewhere since it was shown."""


class Refused(Exception):
    """The answer makes no sense; says why."""


@dataclass(frozen=True)
class Item:
    """Something to rank. Completions with equal texts are shown once and ranked together."""

    key: str
    prompt: Turns
    completions: tuple[Turns, ...]

    @property
    def distinct(self) -> list[list[int]]:
        """Indices of the completions, those of equal text together, in order of appearance."""
        groups: dict[Turns, list[int]] = {}
        for index, completion in enumerate(self.completions):
            groups.setdefault(completion, []).append(index)
        return list(groups.values())


@dataclass(frozen=True)
class Answer:
    """What a person decided. Tiers hold places in the shown order, best first; none means skip."""

    tiers: Tiers | None
    seconds: float = 0.0
    flags: Sequence[str] = ()
    ratings: Sequence[int | None] = ()  # by place, 1 to 7
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """An item as one rater sees it."""

    item: Item
    order: list[int]  # by place, the index of the completion (the first of equal ones)
    version: int  # decisions of this rater so far
    answer: Answer | None  # the last of them

    @property
    def completions(self) -> list[Turns]:
        """The texts by place."""
        return [self.item.completions[index] for index in self.order]


@dataclass(frozen=True)
class Count:
    """How far the rater is."""

    ranked: int
    skipped: int
    total: int

    @property
    def left(self) -> int:
        """Items without a decision."""
        return self.total - self.ranked - self.skipped

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.ranked} of {self.total} ranked{skipped}"


@dataclass
class _Known:
    """What the journal says, taken in entry by entry."""

    read: int = 0
    decisions: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)  # by item, rater
    ids: set[str] = field(default_factory=set)
    claims: dict[str, tuple[str, float]] = field(default_factory=dict)  # item -> rater, until
    ranked_by: dict[str, set[str]] = field(default_factory=dict)  # item -> raters


class Session:
    """One rater at work on a list of items."""

    def __init__(
        self,
        items: Sequence[Item],
        journal: Journal,
        rater: str,
        *,
        overlap: int | None = None,
        seed: int = 0,
    ) -> None:
        """With `overlap`, that many items are for every rater and each of the others for one only."""
        self.rater = rater
        self.journal = journal
        self.items = {item.key: item for item in items}
        self._seed = seed
        self._shared = set(self.items)
        if overlap is not None:
            chosen = sorted(self.items, key=lambda key: _digest(seed, "shared", key))
            self._shared = set(chosen[:overlap])
        self._known = _Known()

    # -- looking -------------------------------------------------------------------------------------------

    def next(self) -> Shown | None:
        """The first item that waits for this rater; None when there is none."""
        with self.journal.locked():
            self._take_in()
            for key in self.items:
                if not self._mine(key) and self._open_to_me(key):
                    self._claim(key)
                    return self._shown(key)
        return None

    def show(self, key: str) -> Shown:
        """One item with the decision on it. Raises Refused for a key that nobody has."""
        if key not in self.items:
            raise Refused("no such item")
        with self.journal.locked():
            self._take_in()
            return self._shown(key)

    def before(self, key: str | None) -> str | None:
        """Of the items that this rater has decided on, the one decided before `key`, or the last one."""
        with self.journal.locked():
            self._take_in()
            decided = sorted(
                (lines[-1]["place"], item)
                for (item, rater), lines in self._known.decisions.items()
                if rater == self.rater and item in self.items
            )
        names = [item for _, item in decided]
        if key in names:
            names = names[: names.index(key)]
        return names[-1] if names else None

    def count(self) -> Count:
        """How far this rater is."""
        with self.journal.locked():
            self._take_in()
            last = [lines[-1] for key in self.items if (lines := self._mine(key))]
            skipped = sum(line["ranking"] is None for line in last)
            waiting = sum(not self._mine(key) and self._open_to_me(key) for key in self.items)
        return Count(len(last) - skipped, skipped, len(last) + waiting)

    # -- deciding ------------------------------------------------------------------------------------------

    def decide(self, key: str, version: int, identity: str, answer: Answer) -> None:
        """Put a decision on the disk.

        One with an `identity` that is there already changes nothing. Raises Conflict when the rater has
        decided on the item since `version`, Refused for an impossible answer, InputOutputError (74).
        """
        if key not in self.items:
            raise Refused("no such item")
        shown = self._shown_order(key)
        _check(answer, len(shown))
        with self.journal.locked():
            self._take_in()
            if identity in self._known.ids:
                self.journal.flush()  # its first attempt may have failed at this very point
                return
            mine = self._mine(key)
            if len(mine) != version:
                raise Conflict
            self.journal.append(
                {
                    "decision": identity,
                    "supersedes": mine[-1]["decision"] if mine else None,
                    "item": key,
                    "rater": self.rater,
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(answer.seconds, 1),
                    "shown_order": shown,
                    "ranking": self._ranking(key, shown, answer),
                    "flags": sorted(answer.flags, key=FLAGS.index),
                    "ratings": self._ratings(key, shown, answer),
                    "note": answer.note.strip(),
                }
            )

    def release(self) -> None:
        """Give back the items that were shown and not decided on."""
        with self.journal.locked():
            self._take_in()
            for key, (rater, until) in list(self._known.claims.items()):
                if rater == self.rater and until > time.time() and not self._mine(key):
                    self.journal.append({"claim": key, "rater": self.rater, "until": 0})

    # -- inside the lock -----------------------------------------------------------------------------------

    def _take_in(self) -> None:
        known = self._known
        for place, line in enumerate(self.journal.entries[known.read :], known.read):
            if isinstance(line.get("claim"), str):
                known.claims[line["claim"]] = line["rater"], line["until"]
            elif isinstance(line.get("decision"), str) and line["decision"] not in known.ids:
                known.ids.add(line["decision"])
                item, rater = line["item"], line["rater"]
                known.decisions.setdefault((item, rater), []).append({**line, "place": place})
                if known.claims.get(item, ("", 0.0))[0] == rater:
                    del known.claims[item]
                raters = known.ranked_by.setdefault(item, set())
                (raters.discard if line["ranking"] is None else raters.add)(rater)
        known.read = len(self.journal.entries)

    def _mine(self, key: str) -> list[dict[str, Any]]:
        return self._known.decisions.get((key, self.rater), [])

    def _open_to_me(self, key: str) -> bool:
        if key in self._shared:
            return True
        if self._known.ranked_by.get(key, set()) - {self.rater}:
            return False
        rater, until = self._known.claims.get(key, (self.rater, 0.0))
        return rater == self.rater or until <= time.time()

    def _claim(self, key: str) -> None:
        """Keep the item from other raters for a while; renewed when half of it is over."""
        if key in self._shared:
            return
        rater, until = self._known.claims.get(key, ("", 0.0))
        if rater != self.rater or until < time.time() + CLAIM_SECONDS / 2:
            self.journal.append({"claim": key, "rater": self.rater, "until": time.time() + CLAIM_SECONDS})
            self._take_in()

    def _shown(self, key: str) -> Shown:
        order, mine = self._shown_order(key), self._mine(key)
        return Shown(self.items[key], order, len(mine), _answer(mine[-1], order) if mine else None)

    # -- places and indices --------------------------------------------------------------------------------

    def _shown_order(self, key: str) -> list[int]:
        """First indices of the distinct completions, shuffled for this rater alone."""
        order = [group[0] for group in self.items[key].distinct]
        random.Random(_digest(self._seed, key, self.rater)).shuffle(order)
        return order

    def _ranking(self, key: str, shown: list[int], answer: Answer) -> Tiers | None:
        """The tiers as indices of the record's completions, equal ones included."""
        if answer.tiers is None:
            return None
        equal = {group[0]: group for group in self.items[key].distinct}
        return [sorted(i for place in tier for i in equal[shown[place]]) for tier in answer.tiers]

    def _ratings(self, key: str, shown: list[int], answer: Answer) -> list[int | None] | None:
        if not any(answer.ratings):
            return None
        by_first = dict(zip(shown, answer.ratings, strict=True))
        ratings: list[int | None] = [None] * len(self.items[key].completions)
        for group in self.items[key].distinct:
            for index in group:
                ratings[index] = by_first[group[0]]
        return ratings


def decisions(journal: Journal, items: Sequence[Item], rater: str | None) -> dict[str, list[dict[str, Any]]]:
    """The decisions that stand, by item and in the order made: of one rater, or (None) of everybody."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    with journal.locked():
        for line in journal.entries:
            if isinstance(line.get("decision"), str) and rater in (None, line["rater"]):
                last[line["item"], line["rater"]] = line
    found: dict[str, list[dict[str, Any]]] = {item.key: [] for item in items}
    for (key, _), line in last.items():
        if key in found:
            found[key].append(line)
    return found


def _answer(line: dict[str, Any], order: list[int]) -> Answer:
    """A decision as it looked to the rater."""
    place = {index: place for place, index in enumerate(order)}
    ratings = line["ratings"] or []
    return Answer(
        tiers=None
        if line["ranking"] is None
        else [[place[index] for index in tier if index in place] for tier in line["ranking"]],
        seconds=line["seconds"],
        flags=tuple(line["flags"]),
        ratings=tuple(ratings[index] for index in order) if ratings else (None,) * len(order),
        note=line["note"],
    )


def _check(answer: Answer, places: int) -> None:
    """Raise Refused for what no person can have meant."""
    if answer.tiers is not None:
        named = [place for tier in answer.tiers for place in tier]
        if not answer.tiers or not all(answer.tiers) or len(named) < FEWEST:
            raise Refused("rank at least two completions")
        if len(set(named)) < len(named) or not set(named) <= set(range(places)):
            raise Refused("the ranking names a completion twice or one that is not there")
    if not math.isfinite(answer.seconds) or not 0 <= answer.seconds <= MOST_SECONDS:
        raise Refused("seconds out of range")
    if not set(answer.flags) <= set(FLAGS) or len(set(answer.flags)) < len(answer.flags):
        raise Refused("no such flag")
    if answer.ratings and len(answer.ratings) != places:
        raise Refused("a rating for every completion, or none")
    if any(rating is not None and not 1 <= rating <= 7 for rating in answer.ratings):
        raise Refused("ratings go from 1 to 7")
    if len(answer.note) > MOST_NOTE:
        raise Refused("the note is too long")


def _digest(*parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
