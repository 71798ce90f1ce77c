"""Exchange rankings with Label Studio and Argilla.

With --to, reads samples or rankings and writes one task a line: tasks with a ranking where there is one, else
tasks to be ranked there. With --from, reads an export (a JSON list, or one object a line) and writes ranking
records with `rater` and `seconds` as far as they are known, one for every rater of a task;
`rank2pairs --from` does the same on its way.

Label Studio: its JSON export (not JSON-MIN) of a Ranker over a List. Its order has no ties; rankings with
ties are written and read as buckets named 1, 2, 3. Argilla: a RankingQuestion whose values are names of text
fields, as `dataset.records.to_json` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhfkit.config import FilterConfig, Inputs, RankingReadConfig, option
from rlhfkit.errors import UsageError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Row, Source

INPUTS = Inputs("RECORDS", "Samples or rankings, or an export (default: standard input).")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit exchange samples.jsonl --to label-studio | jq -s . > tasks.json",
    "rlhfkit exchange export.json --from label-studio -o rankings.jsonl",
)

GROUP = "Exchange"


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, RankingReadConfig):
    """Settings of `exchange`."""

    from_format: Literal["label-studio", "argilla"] | None = option(
        None, group=GROUP, names=("--from",), help="Read an export of this program."
    )
    to_format: Literal["label-studio", "argilla"] | None = option(
        None, group=GROUP, names=("--to",), help="Write tasks for this program."
    )


def run(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Yield ranking records, or tasks of the other program."""
    from rlhfkit.data.exchange import imported
    from rlhfkit.data.jsonl import read_rows

    if (config.from_format is None) == (config.to_format is None):
        raise UsageError("give one of --from and --to", where="--from")
    if config.from_format is not None:
        from rlhfkit.data.records import Ranking, read_records

        for batch in read_records(imported(inputs, config.from_format), Ranking, config).batches():
            yield [dict(ranking.fields) for ranking in batch]
        return
    for rows in read_rows(inputs, config).batches():
        yield [_task(row, config) for row in rows]


def _task(row: Row, config: Config) -> Record:
    from rlhfkit.data.exchange import exported
    from rlhfkit.data.shapes import many_completions, prompt_field
    from rlhfkit.data.tiers import tiers_field

    assert config.to_format is not None
    prompt, completions = prompt_field(row, "ranking"), many_completions(row, "ranking")
    tiers: list[list[int]] = []
    if row.value("ranking") is not None or row.value("ranks") is not None:
        tiers = tiers_field(row, "ranking", len(completions), completions, config.rank_order)
    return exported(row.values, prompt, completions, tiers, config.to_format)
