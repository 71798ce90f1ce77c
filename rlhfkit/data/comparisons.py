"""Preferences as a reward model trains on them: the completions of one prompt, each once, and its pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from rlhfkit.data.examples import Account, answer_ids
from rlhfkit.data.records import Pair, Ranking
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.errors import DataError

#: Of pairs, at most this share may have two equal texts.
MOST_EQUAL = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """One batch element: all pairs of one ranking (or of one `group` of pairs)."""

    sequences: Sequence[Sequence[int]]  # prompt + completion, end token included
    completion_lengths: Sequence[int]
    pairs: Sequence[tuple[int, int]]  # (winner, loser) indices into sequences
    margins: Sequence[float]  # one a pair, 0 where none was given
    source: str = ""  # split by which accuracy is reported

    @property
    def longest(self) -> int:
        """Length of its longest sequence."""
        return max(len(s) for s in self.sequences)


def comparisons(
    records: Iterable[Pair | Ranking], tokenizer: Tokenizer, max_len: int, *, skip_bad: bool = False
) -> tuple[list[Comparison], Account]:
    """Batch elements from rankings and from pairs, which are brought together by their `group`.

    A completion that does not fit `max_len` tokens with its prompt takes no part: a score is read at the
    end of an answer, so a cut answer would be judged by its middle. Ties and equal texts make no pair; a
    ranking without any pair is dropped and counted. Raises DataError when none is left, and, unless
    `skip_bad`, when over one in a hundred pairs has two equal texts: then something is wrong with the file.
    """
    account = Account()
    equal: list[Pair] = []
    pairs = 0
    out: list[Comparison] = []
    groups: dict[object, list[Pair]] = {}
    order: list[list[Pair] | Ranking] = []
    for number, record in enumerate(records):
        account.records += 1
        if isinstance(record, Ranking):
            order.append(record)
            continue
        pairs += 1
        if record.chosen == record.rejected:
            equal.append(record)
            continue
        key = ("group", record.group) if record.group is not None else ("alone", number)
        if key not in groups:
            groups[key] = []
            order.append(groups[key])
        groups[key].append(record)
    if equal:
        _report_equal(equal, pairs, account, skip_bad)
    for entry in order:
        element = (
            _from_ranking(entry, tokenizer) if isinstance(entry, Ranking) else _from_pairs(entry, tokenizer)
        )
        element = _fitting(element, max_len, account)
        if element.pairs:
            out.append(element)
        else:
            account.drop("no untied pair")
    if account.records and not out:
        raise DataError(
            f"none of the {account.records} records has a pair of different rank that fits {max_len} tokens",
            hint="raise --max-seq-len, or check the rankings with `rlhfkit inspect`",
        )
    return out, account


def _report_equal(equal: list[Pair], pairs: int, account: Account, skip_bad: bool) -> None:
    """Count pairs of equal texts; too many of them are bad data."""
    if len(equal) > MOST_EQUAL * pairs and not skip_bad:
        raise DataError(
            f"{len(equal)} of {pairs} pairs have the same text as chosen and rejected",
            where=equal[0].where,
            hint="--on-bad-line skip drops them",
        )
    for _ in equal:
        account.drop("chosen and rejected are the same text")


def longer_wins(elements: Sequence[Comparison]) -> float:
    """In which share of pairs the longer answer won, equal lengths half: what length alone would predict."""
    lengths = [
        (e.completion_lengths[w], e.completion_lengths[loser]) for e in elements for w, loser in e.pairs
    ]
    return sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths)


def _from_ranking(record: Ranking, tokenizer: Tokenizer) -> Comparison:
    answers = [answer_ids(tokenizer, record.prompt, c.turns) for c in record.completions]
    texts = [c.text for c in record.completions]
    pairs = [
        (w, loser)
        for better, worse in combinations(record.tiers, 2)
        for w, loser in product(better, worse)
        if texts[w] != texts[loser]
    ]
    return Comparison(
        [before + after for before, after in answers],
        [len(after) for _, after in answers],
        pairs,
        [0.0] * len(pairs),
        _source(record),
    )


def _from_pairs(records: Sequence[Pair], tokenizer: Tokenizer) -> Comparison:
    """Pairs of one group share their completions: each distinct text becomes one sequence."""
    index: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    pairs: list[tuple[int, int]] = []
    margins: list[float] = []
    for record in records:
        ends = []
        for completion in (record.chosen, record.rejected):
            before, after = answer_ids(tokenizer, record.prompt, completion)
            ends.append(index.setdefault((tuple(before), tuple(after)), len(index)))
        if ends[0] != ends[1]:
            pairs.append((ends[0], ends[1]))
            margins.append(record.margin or 0.0)
    return Comparison(
        [[*before, *after] for before, after in index],
        [len(after) for _, after in index],
        pairs,
        margins,
        _source(records[0]),
    )


def _fitting(element: Comparison, max_len: int, account: Account) -> Comparison:
    """The element without completions that are too long, their pairs gone with them."""
    keep = [i for i, ids in enumerate(element.sequences) if len(ids) <= max_len]
    used = sorted({i for pair in element.pairs for i in pair} & set(keep))
    dropped = len(element.sequences) - len(keep)
    account.left_out += dropped
    place = {old: new for new, old in enumerate(used)}
    kept = [
        (pair, margin)
        for pair, margin in zip(element.pairs, element.margins, strict=True)
        if pair[0] in place and pair[1] in place
    ]
    if len(kept) < len(element.pairs):
        used = sorted({i for pair, _ in kept for i in pair})
        place = {old: new for new, old in enumerate(used)}
    return Comparison(
        [element.sequences[i] for i in used],
        [element.completion_lengths[i] for i in used],
        [(place[w], place[loser]) for (w, loser), _ in kept],
        [margin for _, margin in kept],
        element.source,
    )


def _source(record: Pair | Ranking) -> str:
    """The record's own `split` or `source` field, by which accuracies are broken down."""
    for name in ("split", "source"):
        value = record.row.value(name)
        if isinstance(value, str):
            return value
    return ""


def fold(elements: Sequence[Comparison]) -> list[tuple[list[int], list[bool]]]:
    """Comparisons as (ids, mask) lists, for a digest: sequences, then pairs and margins."""
    out: list[tuple[list[int], list[bool]]] = []
    for element in elements:
        out.extend((list(ids), [False]) for ids in element.sequences)
        out.append(([i for pair in element.pairs for i in pair], [True]))
        out.append(([round(m * 1_000_000) for m in element.margins], [True]))
    return out
