"""train-rm: the sign of the loss, what an evaluation reports, centring, and what is dropped and counted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rlhfkit
from rlhfkit import context
from rlhfkit.errors import DataError, UsageError
from rlhfkit.stages import score, train_rm
from tests.conftest import WORDS, write_jsonl

if TYPE_CHECKING:
    from tests.conftest import Tiny


def train(tiny: Tiny, source: Any, out: Path, **settings: Any) -> dict[str, Any]:
    settings = {"model": str(tiny.sft), "steps": 5, "batch_size": 16, "lr": 2e-3, **settings}
    return train_rm.run(source, train_rm.Config(output=str(out), **settings))


def scores_of(model: Path, records: list[dict[str, Any]]) -> list[list[float]]:
    """Scores by `rlhfkit score`, one list a record."""
    batches = score.run(records, score.Config(reward=f"rm:{model}"))
    return [[c["score"] for c in r["completions"]] for batch in batches for r in batch]  # type: ignore[index]


def random_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs without a rule, so that they can only be learnt by heart."""
    rng = random.Random(3)
    pairs = []
    for _ in range(count):
        prompt = " ".join(rng.sample(WORDS, 3)) + " ->"
        chosen, rejected = (" " + " ".join(rng.sample(WORDS, 2)) for _ in range(2))
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def test_learns_pairs_by_heart_and_flipped_labels_the_opposite(tiny: Tiny, tmp_path: Path) -> None:
    pairs = random_pairs(32)
    flipped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    samples = [{"prompt": p["prompt"], "completions": [p["chosen"], p["rejected"]]} for p in pairs]
    for name, data, sign in (("right", pairs, 1), ("flipped", flipped, -1)):
        out = tmp_path / name
        summary = train(tiny, data, out, steps=60, batch_size=32, lr=3e-3)
        gaps = np.array([a - b for a, b in scores_of(out, samples)])
        assert np.mean(sign * gaps > 0) >= 0.99
        assert summary["accuracy"] >= 0.99
        assert summary["chosen_rewards"] > summary["rejected_rewards"]
        assert summary["margin"] == pytest.approx(summary["chosen_rewards"] - summary["rejected_rewards"])


def test_the_evaluation_file_holds_what_the_scores_say(tiny: Tiny, tmp_path: Path) -> None:
    """Every figure of eval.json, and of the last metrics, once more from `rlhfkit score` and numpy."""
    rng = random.Random(0)
    held_out: list[dict[str, Any]] = []
    for number in range(30):
        words = rng.sample(WORDS, 3)
        texts = [" " + " ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(4)]
        record = {"prompt": " ".join(words) + " ->", "completions": texts, "ranking": [[2], [0, 3], [1]]}
        held_out.append(record | ({"source": "odd"} if number % 2 else {"split": "even", "source": "no"}))
    out = tmp_path / "rm"
    evaluation = write_jsonl(tmp_path / "held_out.jsonl", held_out)
    summary = train(tiny, [str(tiny.rankings)], out, eval=str(evaluation))
    report = json.loads((out / "eval.json").read_text())
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])

    tokenizer = rlhfkit.load_tokenizer(out)
    pairs = [(2, 0), (2, 3), (2, 1), (0, 1), (3, 1)]
    owner, gaps, longer = [], [], []
    for number, (record, scores) in enumerate(zip(held_out, scores_of(out, held_out), strict=True)):
        lengths = [len(tokenizer.encode(t)) for t in record["completions"]]
        for a, b in pairs:
            if record["completions"][a] != record["completions"][b]:
                owner.append(number)
                gaps.append(scores[a] - scores[b])
                longer.append(lengths[a] - lengths[b])
    gap, length, group = np.array(gaps), np.array(longer), np.array(owner)
    right = np.where(gap == 0, 0.5, gap > 0)

    assert report["pairs"] == len(gap)
    assert report["comparisons"] == len(set(owner))
    assert report["accuracy"] == last["eval/accuracy"] == pytest.approx(right.mean())
    odd = np.array([held_out[o].get("split", held_out[o]["source"]) == "odd" for o in owner])
    for name, of in (("odd", odd), ("even", ~odd)):
        split = report["accuracy_by_split"][name]
        assert (split["pairs"], split["accuracy"]) == (of.sum(), pytest.approx(right[of].mean()))

    losses = np.array([np.log1p(np.exp(-gap[group == g])).mean() for g in np.unique(group)])
    assert summary["eval/loss"] == last["eval/loss"] == pytest.approx(losses.mean(), rel=1e-5)
    # Cluster-robust variance of a mean (Liang and Zeger, 1986), with the factor G / (G - 1).
    totals = np.array([(right[group == g] - right.mean()).sum() for g in np.unique(group)])
    error = np.sqrt((totals**2).sum() * len(totals) / (len(totals) - 1)) / len(gap)
    assert report["accuracy_se"] == pytest.approx(error)

    edges = [0, 0.25, 0.5, 1, 2, np.inf]
    for row, low, high in zip(report["calibration"], edges, edges[1:], strict=False):
        within = (np.abs(gap) >= low) & (np.abs(gap) < high)
        assert row["pairs"] == within.sum()
        if within.any():
            assert row["accuracy"] == pytest.approx(right[within].mean())
            assert row["promised"] == pytest.approx((1 / (1 + np.exp(-np.abs(gap[within])))).mean(), rel=1e-4)
        else:
            assert row["accuracy"] is row["promised"] is None
    assert report["length"]["longer_wins"] == pytest.approx(np.where(length == 0, 0.5, length > 0).mean())
    expected = np.corrcoef(gap, length)[0, 1]
    assert report["length"]["gap_length_correlation"] == pytest.approx(expected, abs=1e-4)


def test_one_held_out_ranking_has_no_standard_error(tiny: Tiny, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(tiny.rankings.read_text().splitlines()[0])
    summary = train(tiny, [str(tiny.rankings)], tmp_path / "out", eval=str(one), steps=1)
    assert summary["eval/accuracy_se"] is None
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["accuracy_se"] is None


def test_centring_makes_demonstrations_average_zero_and_keeps_differences(tiny: Tiny, tmp_path: Path) -> None:
    plain, centred = tmp_path / "plain", tmp_path / "centred"
    train(tiny, [str(tiny.rankings)], plain)
    summary = train(tiny, [str(tiny.rankings)], centred, center_on=str(tiny.demos))
    demos = [json.loads(line) for line in tiny.demos.read_text().splitlines()]
    samples = [{"prompt": d["prompt"], "completions": [d["completion"], " red"]} for d in demos]
    before, after = np.array(scores_of(plain, samples)), np.array(scores_of(centred, samples))
    assert after[:, 0].mean() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(after - before, summary["score_offset"], atol=1e-5)
    # The weights are the same; the shift stands in config.json, and going on from there keeps it.
    a, b = load_file(plain / "model.safetensors"), load_file(centred / "model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
    config = json.loads((centred / "config.json").read_text())
    assert config["score_offset"] == summary["score_offset"]
    train(tiny, [str(tiny.rankings)], tmp_path / "on", model=str(centred), steps=1, lr=0.0)
    np.testing.assert_allclose(np.array(scores_of(tmp_path / "on", samples)), after, atol=1e-6)


def test_scaling_gives_samples_mean_0_and_variance_1(tiny: Tiny, tmp_path: Path) -> None:
    """Against the scores of a run without it; the gain is in the head, so transformers agrees but for a shift."""
    rng = random.Random(5)
    samples = [
        {
            "prompt": " ".join(rng.sample(WORDS, 3)) + " ->",
            "completions": [{"text": " " + " ".join(rng.choices(WORDS, k=k))} for k in (1, 3, 4)],
        }
        for _ in range(25)
    ]
    mixed = [*samples, {"prompt": "red ->", "completion": " red"}]
    reference = write_jsonl(tmp_path / "samples.jsonl", mixed)
    held_out = [json.loads(line) for line in tiny.rankings.read_text().splitlines()[:20]]
    evaluation = write_jsonl(tmp_path / "held_out.jsonl", held_out)
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    common = {"eval": str(evaluation), "lr": 1e-3}
    train(tiny, [str(tiny.rankings)], plain, **common)
    summary = train(
        tiny, [str(tiny.rankings)], scaled, center_on=str(reference), center_scale="after", **common
    )

    asked = [{**r, "completions": [c["text"] for c in r["completions"]]} for r in samples]
    asked.append({"prompt": "red ->", "completions": [" red"]})
    before, after = (np.array([s for row in scores_of(m, asked) for s in row]) for m in (plain, scaled))
    assert len(before) == 76
    np.testing.assert_allclose(after, (before - before.mean()) / before.std(), atol=1e-4)
    assert after.mean() == pytest.approx(0, abs=1e-5)
    assert (after**2).mean() == pytest.approx(1, abs=1e-5)
    assert summary["score_gain"] == pytest.approx(1 / before.std(), rel=1e-5)
    a, b = load_file(plain / "model.safetensors"), load_file(scaled / "model.safetensors")
    assert {k for k in a if not torch.equal(a[k], b[k])} == {"score.weight"}
    # What an evaluation says of sizes is said of the scores that are saved.
    gaps = np.array([s[w] - s[k] for s in scores_of(scaled, held_out) for w, k in _order(held_out[0])])
    report = json.loads((scaled / "eval.json").read_text())
    table = {row["gap_from"]: row["pairs"] for row in report["calibration"]}
    assert table[2.0] == (np.abs(gaps) >= 2).sum()
    assert summary["eval/loss"] == pytest.approx(np.log1p(np.exp(-gaps)).mean(), rel=1e-4)


def _order(record: dict[str, Any]) -> list[tuple[int, int]]:
    tiers = record["ranking"]
    return [(a, b) for i, tier in enumerate(tiers) for later in tiers[i + 1 :] for a in tier for b in later]


def test_scaling_before_training_too(tiny: Tiny, tmp_path: Path) -> None:
    """Without learning, the first step already sees the scaled head, and the result is the same."""
    samples = [json.loads(line) for line in tiny.rankings.read_text().splitlines()]
    on = write_jsonl(tmp_path / "on.jsonl", [{k: r[k] for k in ("prompt", "completions")} for r in samples])
    common = {"lr": 0.0, "steps": 1, "batch_size": 8, "model": str(tiny.rm), "center_on": str(on)}
    after, both = tmp_path / "after", tmp_path / "both"
    late = train(tiny, [str(tiny.rankings)], after, center_scale="after", **common)
    early = train(tiny, [str(tiny.rankings)], both, center_scale="both", **common)
    scores = np.concatenate([np.array(row) for row in scores_of(tiny.rm, samples)])
    assert abs(scores.std() - 1) > 0.05
    assert early["margin"] == pytest.approx(late["margin"] / scores.std(), rel=1e-4)
    np.testing.assert_allclose(scores_of(after, samples), scores_of(both, samples), atol=1e-4)


def test_scaling_reaches_the_weights_that_are_saved_of_a_low_precision_run(
    tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "rm"
    train(
        tiny,
        [str(tiny.rankings)],
        out,
        center_on=str(tiny.demos),
        center_scale="after",
        dtype="bfloat16",
        lr=1e-3,
    )
    demos = [json.loads(line) for line in tiny.demos.read_text().splitlines()]
    scores = scores_of(out, [{"prompt": d["prompt"], "completions": [d["completion"]]} for d in demos])
    assert np.std(scores) == pytest.approx(1, abs=0.1)


def test_scaling_needs_answers_that_differ(tiny: Tiny, tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "red ->", "completion": " red"}])
    with pytest.raises(DataError, match="cannot be scaled") as caught:
        train(tiny, [str(tiny.rankings)], tmp_path / "a", center_on=str(one), center_scale="after", steps=1)
    assert caught.value.exit_code == 65
    with pytest.raises(UsageError, match="measure scores on"):
        train(tiny, [str(tiny.rankings)], tmp_path / "b", center_scale="after")
    assert not (tmp_path / "b").exists()


def test_answers_to_centre_on_that_do_not_fit_are_left_out_not_cut(tiny: Tiny, tmp_path: Path) -> None:
    kept = {"prompt": "red ->", "completion": " red"}
    long = {"prompt": "red ->", "completion": " red" * 40}
    for name, records in (("one", [kept]), ("two", [kept, long])):
        on = write_jsonl(tmp_path / f"{name}.jsonl", records)
        train(tiny, [str(tiny.rankings)], tmp_path / name, center_on=str(on), max_seq_len=30, steps=1)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["score_offset"] == configs[1]["score_offset"]


def test_a_fresh_head_has_the_deviation_of_the_code_or_the_one_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    """1/sqrt(D + 1) (Stiennon's code, Ziegler, N+), not the 1/(D + 1) that Stiennon's paper prints."""
    weights = {}
    for name, std in (("default", None), ("paper", 1 / 33), ("none", 0.0)):
        train(tiny, [str(tiny.rankings)], tmp_path / name, lr=0.0, steps=1, head_std=std)
        weights[name] = load_file(tmp_path / name / "model.safetensors")["score.weight"]
    assert weights["default"].shape == (1, 32)
    assert weights["default"].std().item() == pytest.approx(1 / np.sqrt(33), rel=0.3)
    assert torch.allclose(weights["paper"] * np.sqrt(33), weights["default"], rtol=1e-5)
    assert not weights["none"].any()
    with pytest.raises(UsageError, match="head already"):
        train(tiny, [str(tiny.rankings)], tmp_path / "x", model=str(tiny.rm), head_std=0.1)


def test_a_fresh_head_promises_half_and_ties_make_no_pair(tiny: Tiny, tmp_path: Path) -> None:
    """With learning rate 0 and a zeroed head every loss is ln 2, whatever K; all-tied records are counted."""
    model = rlhfkit.load_model(tiny.rm)
    model.score.weight.data.zero_()
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine.saving import write_model

    zeroed = tmp_path / "zeroed"
    zeroed.mkdir()
    write_model(model, zeroed, Tokenizer.from_dir(tiny.rm), dict(model.named_parameters()))
    records = [
        {"prompt": "one ->", "completions": [" a", " b", " c", " d", " e"], "ranking": [[4], [0, 1], [2, 3]]},
        {"prompt": "two ->", "completions": [" a", " b"], "ranking": [[1], [0]]},
        {"prompt": "three ->", "completions": [" a", " b", " c"], "ranking": [[0, 1, 2]]},
        {"prompt": "four ->", "completions": [" same", " same"], "ranking": [[0], [1]]},
    ]
    said: list[str] = []

    class Listener(context.Reporter):
        note = warn = lambda self, text: said.append(text)

    with context.surroundings(Listener(), context.Invocation()):
        summary = train(tiny, records, tmp_path / "out", model=str(zeroed), lr=0.0, batch_size=2, steps=1)
    assert summary["loss/train"] == pytest.approx(np.log(2), abs=1e-6)
    assert summary["accuracy"] == 0.5
    assert said[:1] == ["2 of 4 records dropped: no untied pair"]


def test_completions_that_do_not_fit_take_no_part(tiny: Tiny, tmp_path: Path) -> None:
    long = " red" * 40
    records = [{"prompt": "one ->", "completions": [" a", long, " b"], "ranking": [[0], [1], [2]]}]
    facts = train(tiny, records, tmp_path / "x", max_seq_len=16, dry_run=True)
    assert (facts["comparisons"], facts["pairs"], facts["sequences"], facts["left_out"]) == (1, 1, 2, 1)
    with pytest.raises(DataError, match="fits 16 tokens") as caught:
        train(tiny, [{"prompt": "one ->", "chosen": " a", "rejected": long}], tmp_path / "y", max_seq_len=16)
    assert caught.value.exit_code == 65
    assert not (tmp_path / "y").exists()


def test_margin_asks_the_winner_to_lead(tiny: Tiny, tmp_path: Path) -> None:
    """With learning rate 0 the loss of one pair is -log sigmoid(gap - margin), by hand."""
    pair = {"prompt": "red dog ->", "chosen": " dog red", "rejected": " red", "margin": 1.5}
    ((a, b),) = scores_of(tiny.rm, [{"prompt": pair["prompt"], "completions": [" dog red", " red"]}])
    for margin, expected in ((False, a - b), (True, a - b - 1.5)):
        out = tmp_path / str(margin)
        summary = train(tiny, [pair], out, model=str(tiny.rm), lr=0.0, steps=1, margin=margin)
        assert summary["loss/train"] == pytest.approx(np.log1p(np.exp(-expected)), rel=1e-5)
