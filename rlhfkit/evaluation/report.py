"""The summary of win rates for a person: tables, and what a reader of them must know."""

from __future__ import annotations

from typing import Any

from rlhfkit.context import note, reporter, warn

Json = dict[str, Any]


def tell(summary: Json) -> None:
    """Show the table of models, one for every field of `by`, and the warnings and notes."""
    baseline, models = summary["baseline"], summary["models"]
    rows = [_row(name, model, summary["bradley_terry"][name]) for name, model in models.items()]
    if "canary" in summary:
        rows.append(_row("(canary)", summary["canary"], None))
    columns = ["model", "win rate", "95% interval", "n", "won/lost/tied", "length", "equal length", "rating"]
    shown = [i for i in range(len(columns)) if i != 6 or any(row[6] != "-" for row in rows)]
    reporter().table(
        f"win rate against {baseline}",
        [columns[i] for i in shown],
        [[row[i] for i in shown] for row in rows],
    )
    for field, groups in summary.get("by", {}).items():
        names = [name for name in models if name != baseline]
        reporter().table(
            f"win rate against {baseline} by {field}",
            [field, *names],
            [[label, *(_interval(row[name]) for name in names)] for label, row in groups.items()],
        )
    _remark(summary)


def _row(name: str, model: Json, rating: Json | None) -> list[str]:
    return [
        name,
        _figure(model["win_rate"]),
        "-" if model["ci_low"] is None else f"{model['ci_low']:.3f} to {model['ci_high']:.3f}",
        str(model["n"]),
        f"{model['wins']}/{model['losses']}/{model['ties']}",
        _figure(model["avg_length"], 0),
        _figure(model["length_controlled_winrate"]),
        _figure(None if rating is None else rating["rating"], 0),
    ]


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(rate: Json) -> str:
    if rate["n"] == 0:
        return "-"
    return f"{rate['win_rate']:.3f} ({rate['ci_low']:.3f} to {rate['ci_high']:.3f}; {rate['n']})"


def _remark(summary: Json) -> None:
    """Say what a reader of the table must know."""
    baseline = summary["baseline"]
    for name, count in summary.get("unanswered", {}).items():
        if count:
            warn(f"{name} lacks an answer to {count} prompts that another model answered; they were left out")
    if summary.get("invalid"):
        warn(f"{summary['invalid']} comparisons got no valid verdict and were left out")
    for name, model in summary["models"].items():
        if model["win_rate"] is None:
            warn(f"{name} was never compared with {baseline}: no win rate, only a rating")
        if model.get("length_control", {}).get("ridge"):
            warn(f"{name}: the length regression has no maximum; a ridge penalty of 1 was used")
    if not summary["connected"]:
        warn("some models were never compared, not even through others: their ratings share no scale")
    if summary["bradley_terry_prior"]:
        games = summary["bradley_terry_prior"]
        note(f"ratings: every model drew {games:g} comparison with an average one, to keep them finite")
    bias = summary.get("position_bias")
    if bias:
        agreed = (
            ""
            if bias["consistent"] is None
            else f"; swapping changed {1 - bias['consistent']:.1%} of verdicts"
        )
        note(f"the completion shown first won {bias['first_win_rate']:.3f}{agreed}")
    canary = summary.get("canary")
    if canary and canary["win_rate"] >= 0.5:
        warn(f"a constant answer wins {canary['win_rate']:.3f} against {baseline}: do not trust this judge")
