"""Add a score beside every completion.

Reads samples, `{"prompt", "completion"}` or `{"prompt", "completions": [...]}`, and writes them with
`score` beside each completion; every other field passes through unchanged. Higher is better.

SCORER is a reward model (DIR or rm:DIR), the log-probability under a causal model (lm:DIR), a program of
yours (cmd:COMMAND, which reads one JSON line a completion and answers one {"score": number} each) or a chat
endpoint as judge (http://..., which grades from 1 to 10).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import FilterConfig, Inputs, option
from rlhfkit.context import reporter
from rlhfkit.scorers.config import SCORER, SCORER_HELP, ScorerConfig

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source

INPUTS = Inputs("SAMPLES", "Samples to score: JSONL files, `-` or nothing for standard input.", kind="sample")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit score samples.jsonl -r rm -o scored.jsonl",
    "rlhfkit sample prompts.jsonl -m sft -n 4 | rlhfkit score -r 'cmd:python gold.py'",
    "rlhfkit score samples.jsonl -r lm:base --per-token",
)


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, ScorerConfig):
    """Settings of `score`."""

    reward: str = option(short="-r", group=SCORER, metavar="SCORER", help=SCORER_HELP)
    batch_size: int = option(
        64, group=OUTPUT_GROUP, minimum=1, metavar="RECORDS", help="Records scored and written together."
    )


def run(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Yield the records with their scores, a batch at a time and in order.

    The batches depend on `batch_size` alone, never on how a pipe delivers, so that the same input gives
    the same bytes.
    """
    from rlhfkit.data.records import Sample, read_records
    from rlhfkit.scorers import Scorable, open_scorer

    reader = read_records(inputs, Sample, config)
    progress = reporter().progress("score", None, "records")
    done = 0
    with open_scorer(config.reward, config) as scorer:
        progress.update(done)
        for batch in reader.batches(config.batch_size):
            items = [
                Scorable(number if sample.id is None else sample.id, sample.prompt, completion.turns)
                for number, sample in enumerate(batch, done)
                for completion in sample.completions
            ]
            scores = iter(scorer.score(items))
            yield [sample.with_scores([next(scores) for _ in sample.completions]) for sample in batch]
            done += len(batch)
            progress.update(done)
    progress.close()
