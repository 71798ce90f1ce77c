"""Expand rankings into pairs of a chosen and a rejected completion.

Reads rankings (`prompt`, `completions`, and `ranking`, `ranks` or a score on every completion); writes
`prompt`, `chosen`, `rejected` and `group`, which is the same for all pairs of one ranking and for no others.
Other fields of the ranking are copied to each of its pairs.

By default every two completions of different rank make a pair: C(K,2) for K of them without ties. Tied
completions make none. Two completions with the same text make none either, whatever their ranks: such a pair
says nothing about the text. Completions that the ranking leaves out make none. The last two are counted on
standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhfkit.config import INPUT, FilterConfig, Inputs, RankingReadConfig, option
from rlhfkit.errors import DataError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source

INPUTS = Inputs(metavar="RANKINGS", help="Files of rankings (default: standard input).", kind="ranking")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit rank2pairs rankings.jsonl -o pairs.jsonl",
    "rlhfkit rank samples.jsonl --by rm:reward | rlhfkit rank2pairs --pairs best-worst",
)

GROUP = "Pairs"
#: A ranking of more completions (half a million pairs) is taken for a mistake.
_MOST_COMPLETIONS = 1000
#: Pairs of one ranking made at once, which bounds the memory that a ranking of hundreds needs.
_MOST_PAIRS = 1024
#: Pairs that are enough for one write. Blocks of memory over 128 KB cost more than they save.
_ENOUGH = 64


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, RankingReadConfig):
    """Settings of rank2pairs."""

    pairs: Literal["all", "adjacent", "best-worst"] = option(
        "all",
        group=GROUP,
        help="Which tiers to compare: every two, neighbours only, or only the best with the worst.",
    )
    max_pairs: int | None = option(
        None,
        group=GROUP,
        minimum=1,
        metavar="N",
        help="Keep N pairs of a ranking that has more, drawn without regard to rank (default: keep all).",
    )
    from_format: Literal["label-studio", "argilla"] | None = option(
        None, group=INPUT, names=("--from",), help="Read an export of this program; see `exchange`."
    )
    margin: bool = option(
        False, group=GROUP, help="Add `margin`: the difference of the two scores, where both are known."
    )
    seed: int = option(1337, group=GROUP, minimum=0, maximum=2**63 - 1, help="Seed of --max-pairs.")


def run(inputs: Source, config: Config) -> Iterator[Sequence[Record]]:
    """Yield the pairs of every ranking in input order, best against next best first."""
    from zlib import crc32

    from rlhfkit import context
    from rlhfkit.data.jsonl import Lines
    from rlhfkit.data.records import Ranking, read_records
    from rlhfkit.data.tiers import told_apart, untied_pairs

    if config.from_format is not None:
        from rlhfkit.data.exchange import imported

        inputs = imported(inputs, config.from_format)
    which, most, margin = config.pairs, config.max_pairs, config.margin
    left_out = equal = made = number = 0
    for rankings in read_records(inputs, Ranking, config).batches():
        pieces: list[bytes] = []
        held = 0
        for ranking in rankings:
            number += 1
            if len(ranking.texts) > _MOST_COMPLETIONS:
                message = f"ranking.completions: more than {_MOST_COMPLETIONS:,} to compare with one another"
                raise DataError(message, where=ranking.where)
            left_out += ranking.unranked
            pairs, same = told_apart(untied_pairs(ranking.tiers, which), ranking.texts)
            equal += same
            # Of a line its beginning (id, prompt) and its end (ranking, rater) tell enough.
            raw = ranking.row.raw
            digest = crc32(raw[-200:], crc32(raw[:200]))
            if most is not None and len(pairs) > most:
                pairs = _drawn(pairs, most, f"{config.seed}:{digest}")
            made += len(pairs)
            # Its place makes the name unique; its content keeps files apart that are joined later.
            group = f"{number}-{digest:08x}"
            while pairs:
                now, pairs = pairs[:_MOST_PAIRS], pairs[_MOST_PAIRS:]
                pieces += ranking.pairs(now, group, margin=margin)
                held += len(now)
                if held >= _ENOUGH:
                    yield Lines(b"".join(pieces), held)
                    pieces, held = [], 0
        if held:
            yield Lines(b"".join(pieces), held)
    if left_out:
        context.note(f"{left_out} completions left out of their rankings made no pairs")
    if equal:
        context.note(f"dropped {equal} of {made + equal} pairs: chosen and rejected are the same text")
    if number and not made:
        context.warn("no pairs: every ranking is one tie")


def _drawn(pairs: list[tuple[int, int]], count: int, seed: str) -> list[tuple[int, int]]:
    """A sample without replacement, in the order of `pairs`. It depends on the record, not on its place."""
    from random import Random

    places = Random(seed).sample(range(len(pairs)), count)
    return [pairs[place] for place in sorted(places)]
