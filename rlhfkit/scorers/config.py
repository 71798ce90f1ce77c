"""Settings of scorers, defined once for every command that takes a SCORER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhfkit.config import RUN, option

SCORER = "Scorer"

#: What `SCORER` may be, for the help of the flag that takes one.
SCORER_HELP = (
    "DIR or rm:DIR (a reward model), lm:DIR (log-probability under a causal model), "
    'cmd:COMMAND (your program: one JSON line in, one {"score": number} line out) '
    "or http://... (a chat endpoint as judge)."
)


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Flags of every command that scores or judges; inherit it after FilterConfig or TrainConfig."""

    scorer_timeout: float = option(
        300.0,
        group=SCORER,
        above=0,
        metavar="SECONDS",
        shapes_result=False,
        help="Longest silence of cmd: and longest single request of http: before it counts as failed.",
    )
    scorer_restarts: int = option(
        0,
        group=SCORER,
        minimum=0,
        metavar="N",
        shapes_result=False,
        help="Start a crashed or silent cmd: again at most N times; unanswered completions are sent again.",
    )
    per_token: bool = option(
        False, group=SCORER, help="lm: score by the mean log-probability of a token instead of the sum."
    )
    batch_tokens: int = option(
        16384,
        group=SCORER,
        minimum=1,
        metavar="TOKENS",
        shapes_result=False,
        help="rm: and lm: tokens, padding included, in one forward pass.",
    )
    judge_model: str | None = option(
        None, group=SCORER, metavar="NAME", help="http: the model to ask for (required with http)."
    )
    judge_cache: str | None = option(
        None,
        group=SCORER,
        metavar="FILE",
        shapes_result=False,
        help="http: keep every verdict in this JSONL file and never ask twice for the same one.",
    )
    max_requests: int | None = option(
        None,
        group=SCORER,
        minimum=0,
        metavar="N",
        shapes_result=False,
        help="http: stop with exit 1 rather than send more than N requests, retries included.",
    )
    concurrency: int = option(
        16,
        group=SCORER,
        minimum=1,
        metavar="N",
        shapes_result=False,
        help="http: requests in flight at once.",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", group=RUN, help="Where to run.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", group=RUN, help="Compute precision (auto: float32 when scoring)."
    )
