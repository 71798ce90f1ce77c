"""What a JSONL file holds: its kinds of records, rankings, ties, lengths, and what is bad in it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import Reader, Row
from rlhfkit.data.records import (
    Demonstration,
    Judgement,
    Pair,
    Prompt,
    Ranking,
    Sample,
    Text,
    converter,
)
from rlhfkit.data.shapes import Turns
from rlhfkit.data.tiers import count_untied_pairs, untied_pairs
from rlhfkit.errors import BadRecords, DataError

#: What `sample` and `score` leave beside a single completion.
_SAMPLED = {"finish_reason", "num_tokens", "logprob", "score"}
_SCORED = "scored sample"


def describe_jsonl(path: str | os.PathLike[str]) -> tuple[dict[str, object], DataError | None]:
    """Facts about a JSONL file, and its bad records as one error (a BadRecords for several), if any.

    Raises InputMissing, and DataError for a file that cannot be read as lines of text at all.
    """
    facts = _Facts()
    reader: Reader[None] = Reader([os.fspath(path)], ReadConfig(), facts.add)
    error: DataError | None = None
    try:
        reader.read_all()
    except BadRecords as bad:
        error = bad
    except DataError as bad:
        error = bad if reader.count or bad.where is not None else None  # an empty file is not bad
    return facts.summary(reader), error


class _Facts:
    """Counts over the records of a file."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()
        self.completions: Counter[int] = Counter()
        self.lengths: dict[str, list[int]] = {}  # what -> [count, sum, max] of characters
        self.ids: Counter[str | int] = Counter()
        self.rankings: Counter[str] = Counter()
        self.pairs = self.longer = self.equal = 0

    def add(self, row: Row) -> None:
        """Check a row as the kind of record that it looks like, and count it. Raises DataError."""
        names = list(row.fields)
        kind = kind_of_row(row)
        if kind is None:
            self.kinds["other"] += 1
        else:
            record: Any = converter(kind)(row)
            scored = kind is Sample and all(c.score is not None for c in record.completions)
            self.kinds[_SCORED if scored else kind.__name__.lower()] += 1
            if record.id is not None:
                self.ids[record.id] += 1
            self._measure(record)
        self.fields.update(names)

    def _measure(self, record: Any) -> None:
        if isinstance(record, Text):
            self._length("text", record.text)
            return
        self._length("prompt", record.prompt)
        if isinstance(record, Sample | Ranking):
            self.completions[len(record.completions)] += 1
            for completion in record.completions:
                self._length("completion", completion.text)
        elif isinstance(record, Demonstration):
            self._length("completion", record.completion or record.messages or record.text)
        elif isinstance(record, Pair):
            self._compare(record.chosen, record.rejected)
        if isinstance(record, Ranking):
            self._rank(record)

    def _rank(self, ranking: Ranking) -> None:
        pairs = count_untied_pairs(ranking.tiers)
        self.rankings["rankings_with_ties"] += any(len(tier) > 1 for tier in ranking.tiers)
        self.rankings["rankings_all_tied"] += pairs == 0
        self.rankings["completions_left_out"] += ranking.unranked
        completions = ranking.completions
        for better, worse in untied_pairs(ranking.tiers):
            self._compare(completions[better].turns, completions[worse].turns)

    def _compare(self, chosen: Turns, rejected: Turns) -> None:
        self.pairs += 1
        self.equal += chosen == rejected
        self.longer += _characters(chosen) > _characters(rejected)

    def _length(self, what: str, turns: Turns | None) -> None:
        if turns is not None:
            size = _characters(turns)
            total = self.lengths.setdefault(what, [0, 0, 0])
            total[0] += 1
            total[1] += size
            total[2] = max(total[2], size)

    def summary(self, reader: Reader[None]) -> dict[str, object]:
        """The counts by name; what does not occur is left out."""
        facts: dict[str, object] = {"records": reader.count, "kinds": _ordered(self.kinds)}
        if reader.bad:
            facts["bad_records"] = reader.bad
        if reader.blank:
            facts["blank_lines"] = reader.blank
        facts["fields"] = dict(self.fields.most_common(20))
        if repeated := sum(count - 1 for count in self.ids.values()):
            facts["repeated_ids"] = repeated
        if self.completions:
            facts["completions_per_record"] = {str(k): n for k, n in sorted(self.completions.items())}
        facts |= {name: count for name, count in self.rankings.items() if count}
        if self.pairs:
            facts["pairs"] = self.pairs
            facts["chosen_is_longer"] = round(self.longer / self.pairs, 3)
        if self.equal:
            facts["pairs_of_equal_texts"] = self.equal
        for what, (count, total, longest) in self.lengths.items():
            facts[f"{what}_characters"] = {"mean": round(total / count, 1), "max": longest}
        return facts


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def _characters(turns: Turns) -> int:
    return len(turns) if isinstance(turns, str) else sum(len(message.content) for message in turns)


def kind_of_row(row: Row) -> type | None:
    """The kind of record that a row looks like, by the names of its fields; None for no known one."""
    names = row.fields.keys()
    if names & {"chosen", "rejected"}:
        return Pair
    if names >= {"model_a", "model_b"}:
        return Judgement
    if names & {"completions", "responses"}:
        return Ranking if names & {"ranking", "ranks"} else Sample
    if names & {"completion", "response"} and names & {"prompt", "messages", "conversations"}:
        return Sample if names & _SAMPLED else Demonstration
    if "prompt" in names:
        return Prompt
    if names & {"messages", "conversations"}:
        return Demonstration if _ends_with_answer(row) else Prompt
    return Text if "text" in names else None


def _ends_with_answer(row: Row) -> bool:
    messages = row.value("messages") or row.value("conversations")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and {last.get("role"), last.get("from")} & {"assistant", "gpt"} != set()
