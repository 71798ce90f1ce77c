"""One training loop for every stage.

`fit` knows of steps, checkpoints, logs and signals, and of nothing else. What a step does is the stage's:
language modelling takes one optimizer step, PPO a whole iteration of rollout and updates.

`optimize` is that optimizer step: it sums losses over micro-batches, divides by the weight of the global
batch once, and so gives the same gradient however the batch was cut up or spread over processes.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhfkit import context
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.optim import AdamW, clip_gradients
from rlhfkit.engine.run import Run, Snapshot
from rlhfkit.errors import Interrupted, RlhfkitError

Sums = dict[str, Tensor]
Figures = dict[str, float]


@dataclass(frozen=True)
class Objective:
    """One term of a step's loss.

    `losses` are thunks, one per micro-batch, each returning (loss sum, metric sums) and called one after
    the other, so that only one graph is alive at a time. `weight` is this process's share of the divisor
    (tokens, rankings); `coef` scales the term.
    """

    name: str
    losses: Iterable[Callable[[], tuple[Tensor, Sums]]]
    weight: float
    coef: float = 1.0


def optimize(
    objectives: Sequence[Objective],
    optimizers: Sequence[tuple[AdamW, float]],
    dist: Dist,
    *,
    grad_clip: float,
    clip_together: bool = False,
) -> Figures:
    """Accumulate the gradients of all objectives, clip, and step every (optimizer, learning rate) once.

    Returns the metric means over the global batch, keyed by metric name, with `loss/NAME` of every
    objective, and the gradient norm before clipping for every optimizer, or with `clip_together` the one of
    all. Raises RlhfkitError before any weight changes when a loss or a gradient is not finite.
    """
    figures: Figures = {}
    for objective in objectives:
        weight = dist.sum_dict({"weight": objective.weight})["weight"]
        divisor = max(weight, 1e-12)
        sums: Figures = {"loss": 0.0}
        maxima: Figures = {}
        for loss_of in objective.losses:
            loss, metrics = loss_of()
            (loss * (objective.coef / divisor)).backward()  # type: ignore[no-untyped-call]
            for optimizer, _ in optimizers:
                optimizer.collect()
            sums["loss"] += float(loss.detach())
            for name, value in metrics.items():
                into, combine = (maxima, max) if name.endswith("_max") else (sums, operator.add)
                into[name] = combine(into.get(name, 0.0), float(value))
        for name in dist.union([*sums, *maxima]):
            if name.endswith("_max"):
                maxima.setdefault(name, -math.inf)
            else:
                sums.setdefault(name, 0.0)
        totals = dist.sum_dict(sums)
        if not math.isfinite(totals["loss"]):
            raise RlhfkitError(
                f"the {objective.name} loss is not finite ({totals['loss']}); the weights were not changed",
                hint="lower --lr, check the data with --dry-run, or try --dtype float32",
            )
        figures[f"loss/{objective.name}"] = totals.pop("loss") / divisor
        figures.update({name: value / divisor for name, value in totals.items()})
        figures.update(dist.max_dict(maxima))
    clipped = [list(optimizer.gradients()) for optimizer, _ in optimizers]
    if clip_together:
        clipped = [[gradient for gradients in clipped for gradient in gradients]]
    for index, gradients in enumerate(clipped):
        dist.sum_gradients(gradients)
        figures["grad_norm" if index == 0 else f"grad_norm_{index}"] = clip_gradients(gradients, grad_clip)
    for optimizer, rate in optimizers:
        optimizer.step(rate)
    return figures


def fit(
    run: Run,
    *,
    total: int,
    step: Callable[[int], Figures],
    snapshot: Callable[[], Snapshot],
    evaluate: Callable[[], Figures] | None = None,
    unit: str = "step",
) -> Figures:
    """Take steps `run.step` .. `total` - 1; returns the last figures, with the last evaluation's.

    `step(i)` must depend on nothing but the weights, the settings and `i`: that is what makes a resumed
    run end in the same bits. The figures of a step may hold `tokens`, which gives tokens per second. A step
    may raise Interrupted while nothing that a snapshot holds has changed; a resumed run does it again.
    """
    config = run.config
    run.start_logs("metrics")
    progress = context.reporter().progress(run.command, total, unit)
    progress.update(run.step)
    last: Figures = {}
    tokens = float(run.state.get("tokens", 0))
    # Wall-clock seconds, those before a resume included.
    began = time.monotonic() - float(run.state.get("seconds", 0.0))

    def full_snapshot() -> Snapshot:
        inner = snapshot()
        extra = {"tokens": tokens, "seconds": time.monotonic() - began}
        return Snapshot(inner.tensors, {**inner.state, **extra})

    try:
        for index in range(run.step, total):
            started = time.monotonic()
            try:
                figures = step(index)
            except Interrupted:  # it was waiting for a scorer and has changed nothing
                run.stop_if_asked(index, full_snapshot)
                raise
            done = run.step = index + 1
            seconds = time.monotonic() - started
            tokens += figures.get("tokens", 0.0)
            if "tokens" in figures:
                figures["tokens_per_second"] = figures.pop("tokens") / max(seconds, 1e-9)
            evaluated = False
            if evaluate and (done == total or (config.eval_every and done % config.eval_every == 0)):
                figures |= evaluate()
                evaluated = True
            last |= figures
            if done == 1 or done == total or done % config.log_every == 0 or evaluated:
                run.log("metrics", {"step": done, "time": round(time.monotonic() - began, 3), **figures})
            progress.update(done, figures)
            if run.save_due(done, total):
                run.save(done, full_snapshot())
            if done < total:
                run.stop_if_asked(done, full_snapshot)
    finally:
        progress.close()
    return {**last, "tokens": tokens, "seconds": time.monotonic() - began}
