"""The reward model's objective and its evaluation: accuracy by split, calibration, length correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rlhfkit.data.batching import FILL_WIDTH, micro_batches
from rlhfkit.data.comparisons import Comparison
from rlhfkit.data.trees import Forest, Tree, plant, tree_of
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.loop import Objective, Sums
from rlhfkit.models.heads import ScalarModel
from rlhfkit.objectives.preference import best_of_k_loss, ranking_loss

#: Edges of the score gap by which calibration is reported; the sigmoid of a gap is the promised accuracy.
GAP_EDGES = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)


@dataclass(frozen=True)
class RankingBatch:
    """Some comparisons as tensors: all sequences, and pairs as indices into them."""

    forest: Forest  # of all N sequences
    pairs: Tensor  # (P, 2) long
    weights: Tensor  # (P,) 1 / pairs of the pair's comparison
    margins: Tensor  # (P,)
    owner: Tensor  # (N,) long: which comparison a sequence belongs to
    shares: Tensor  # (N,) target of the best-of-K loss


def ranking_batch(
    elements: Sequence[Comparison], pad_id: int, device: torch.device, *, filled: bool = False
) -> RankingBatch:
    """Put comparisons together; every sequence stands in it once, however many pairs it is in.

    With `filled` the common beginning of an element's sequences stands in it once, too, where rows do not
    become too wide.
    """
    trees = [tree for e in elements for tree in trees_of(e, filled=filled)]
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    margins: list[float] = []
    owner: list[int] = []
    shares: list[float] = []
    start = 0
    for number, element in enumerate(elements):
        pairs.extend((start + w, start + loser) for w, loser in element.pairs)
        weights.extend([1 / len(element.pairs)] * len(element.pairs))
        margins.extend(element.margins)
        losers = {loser for _, loser in element.pairs}
        best = [i not in losers for i in range(len(element.sequences))]
        shares.extend(float(b) / sum(best) if any(best) else 0.0 for b in best)
        owner.extend([number] * len(element.sequences))
        start += len(element.sequences)
    return RankingBatch(
        plant(trees, pad_id, device, filled=filled),
        torch.tensor(pairs, dtype=torch.long, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(margins, device=device),
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.tensor(shares, device=device),
    )


def trees_of(element: Comparison, *, filled: bool) -> list[Tree]:
    """The element's sequences as one tree, or each as its own where they must not or should not share."""
    if filled:
        tree = tree_of(element.sequences)
        if tree.size <= FILL_WIDTH:
            return [tree]
    return [Tree([], [ids]) for ids in element.sequences]


def ranking_batches(
    elements: Sequence[Comparison],
    *,
    rows: int | None,
    tokens: int,
    pad_id: int,
    device: torch.device,
    filled: bool = False,
) -> list[Callable[[], RankingBatch]]:
    """Micro-batches of whole comparisons, of similar lengths.

    At most `rows` sequences each if given, else as many as fit `tokens`: padded, or as they are with
    `filled`, where sequences share rows and beginnings.
    """
    order = sorted(range(len(elements)), key=lambda i: (-elements[i].longest, i))
    filled = filled and rows is None
    groups: list[list[Comparison]] = []
    used = limit = 0
    for element in (elements[i] for i in order):
        joined = filled and element.longest <= FILL_WIDTH
        size = sum(t.size for t in trees_of(element, filled=True)) if joined else len(element.sequences)
        if not groups or used + size > limit:
            groups.append([])
            used = 0
            limit = tokens if joined else (rows or max(1, tokens // element.longest))
        groups[-1].append(element)
        used += size
    return [partial(ranking_batch, group, pad_id, device, filled=filled) for group in groups]


def forest_scores(model: ScalarModel, forest: Forest) -> Tensor:
    """The score (N,) of every sequence, read at its end."""
    hidden = model.backbone.hidden(
        forest.input_ids,
        attention_mask=None if forest.segment_ids is not None else forest.attention_mask,
        position_ids=forest.position_ids,
        segment_ids=forest.segment_ids,
        branch_ids=forest.branch_ids,
        keep=forest.ends[:, 0] * forest.input_ids.shape[1] + forest.ends[:, 1],
    )
    return model.read(hidden)


def ranking_objective(
    model: ScalarModel,
    batches: Sequence[Callable[[], RankingBatch]],
    weight: float,
    *,
    loss: str,
    center_coef: float,
    margin: bool,
) -> Objective:
    """The reward-model loss of a batch; `weight` is its number of comparisons."""

    def loss_of(make: Callable[[], RankingBatch]) -> tuple[Tensor, Sums]:
        batch = make()
        scores = forest_scores(model, batch.forest)
        if loss == "best-of-k":
            total, metrics = best_of_k_loss(scores, batch.owner, batch.shares)
        else:
            margins = batch.margins if margin else None
            total, metrics = ranking_loss(scores, batch.pairs, batch.weights, margins, center_coef)
        metrics = {k: v for k, v in metrics.items() if k not in {"loss", "pairs", "pair_accuracy"}}
        return total, metrics

    return Objective("train", [lambda make=make: loss_of(make) for make in batches], weight)  # type: ignore[misc]


@torch.no_grad()
def score_sequences(
    model: ScalarModel, sequences: Sequence[Sequence[int]], *, tokens: int, pad_id: int, device: torch.device
) -> list[float]:
    """Scores of token sequences, in order; batched by length."""
    scores = [0.0] * len(sequences)
    filled = model.backbone.fills_rows
    for group in micro_batches([len(s) for s in sequences], rows=None, tokens=tokens, filled=filled):
        trees = [Tree([], [_read_to(sequences[i], model.config.pad_token_id)]) for i in group]
        found = forest_scores(model, plant(trees, pad_id, device, filled=filled))
        for index, score in zip(group, found.tolist(), strict=True):
            scores[index] = score
    return scores


def until_read(element: Comparison, pad_token_id: int | None) -> Comparison:
    """The comparison with its sequences cut where a model with this pad token reads their scores."""
    return replace(element, sequences=[_read_to(ids, pad_token_id) for ids in element.sequences])


def _read_to(sequence: Sequence[int], pad_token_id: int | None) -> Sequence[int]:
    """The sequence up to the last token that is not the model's pad token: there transformers reads, too."""
    end = len(sequence)
    while end > 1 and sequence[end - 1] == pad_token_id:
        end -= 1
    return sequence[:end]


@torch.no_grad()
def evaluate_preferences(
    model: ScalarModel,
    elements: Sequence[Comparison],
    dist: Dist,
    *,
    tokens: int,
    pad_id: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, object]]:
    """(figures, report) on held-out comparisons.

    Figures: `eval/loss` (mean over comparisons of the mean over pairs), `eval/accuracy` (over pairs, equal
    scores half) with its standard error clustered by comparison. The report adds accuracy by split, the
    calibration table (accuracy against the score gap) and the correlation of score and length, with the
    accuracy that preferring the longer answer would have.
    """
    mine = [elements[i] for i in dist.share(len(elements))]
    flat = score_sequences(
        model, [s for e in mine for s in e.sequences], tokens=tokens, pad_id=pad_id, device=device
    )
    # Everything below needs all pairs of all processes: four numbers a pair.
    local: list[float] = []
    start = 0
    for index, element in zip(dist.share(len(elements)), mine, strict=True):
        for w, loser in element.pairs:
            lengths = element.completion_lengths
            local += [float(index), flat[start + w] - flat[start + loser], lengths[w] - lengths[loser]]
        start += len(element.sequences)
    numbers = [x for part in dist.gather(local) for x in part]
    rows = sorted((int(i), gap, length) for i, gap, length in zip(*[iter(numbers)] * 3, strict=True))
    return _figures(rows, elements)


def _figures(
    rows: Sequence[tuple[int, float, float]], elements: Sequence[Comparison]
) -> tuple[dict[str, float], dict[str, object]]:
    right = [_step(gap) for _, gap, _ in rows]
    by_element: dict[int, list[int]] = {}
    for place, (index, _, _) in enumerate(rows):
        by_element.setdefault(index, []).append(place)
    losses = [sum(_softplus(-rows[p][1]) for p in places) / len(places) for places in by_element.values()]
    accuracy = sum(right) / len(right)
    figures = {
        "eval/loss": sum(losses) / len(losses),
        "eval/accuracy": accuracy,
        "eval/accuracy_se": _clustered_error(right, list(by_element.values()), accuracy),
    }
    splits: dict[str, list[float]] = {}
    for (index, _, _), value in zip(rows, right, strict=True):
        splits.setdefault(elements[index].source, []).append(value)
    report: dict[str, object] = {
        "pairs": len(rows),
        "comparisons": len(by_element),
        "accuracy": accuracy,
        "accuracy_se": figures["eval/accuracy_se"],
        "accuracy_by_split": {k: {"accuracy": sum(v) / len(v), "pairs": len(v)} for k, v in splits.items()},
        "calibration": _calibration(rows),
        "length": {
            "longer_wins": sum(_step(length) for _, _, length in rows) / len(rows),
            "gap_length_correlation": _correlation([g for _, g, _ in rows], [n for _, _, n in rows]),
        },
    }
    return figures, report


def _step(x: float) -> float:
    return 0.5 if x == 0 else float(x > 0)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _clustered_error(values: Sequence[float], clusters: Sequence[Sequence[int]], mean: float) -> float:
    """Standard error of the mean of pairs whose errors are shared within a comparison."""
    if len(clusters) < 2:
        return float("nan")
    total = sum(sum(values[i] - mean for i in places) ** 2 for places in clusters)
    return math.sqrt(total * len(clusters) / (len(clusters) - 1)) / len(values)


def _calibration(rows: Sequence[tuple[int, float, float]]) -> list[dict[str, float | int | None]]:
    table: list[dict[str, float | int | None]] = []
    for low, high in itertools.pairwise(GAP_EDGES):
        gaps = [gap for _, gap, _ in rows if low <= abs(gap) < high]
        table.append(
            {
                "gap_from": low,
                "gap_to": None if math.isinf(high) else high,
                "pairs": len(gaps),
                "accuracy": sum(map(_step, gaps)) / len(gaps) if gaps else None,
                "promised": sum(1 / (1 + math.exp(-abs(g))) for g in gaps) / len(gaps) if gaps else None,
            }
        )
    return table


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    return covariance / spread if spread > 0 else None
