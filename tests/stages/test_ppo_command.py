"""ppo: it learns what is rewarded and only that, leaves the frozen models alone, and logs what it says."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import rlhfkit
from rlhfkit import context
from rlhfkit.engine.actors import load_actors
from rlhfkit.engine.setup import prepare
from rlhfkit.errors import Interrupted, UsageError
from rlhfkit.stages import ppo, train_rm
from tests.conftest import write_jsonl

if TYPE_CHECKING:
    from tests.conftest import Tiny

REPLY = "import json, sys\nfor line in sys.stdin:\n    r = json.loads(line)\n    {}\n    print(json.dumps({{'score': score}}), flush=True)\n"


def program(folder: Path, name: str, body: str) -> str:
    """A scorer that sets `score` from the request `r`."""
    file = folder / f"{name}.py"
    file.write_text(REPLY.format(body.replace("\n", "\n    ")))
    return f"cmd:{shlex.quote(sys.executable)} '{file}'"


def optimise(tiny: Tiny, out: Path, prompts: Path | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Run ppo; returns its metrics, a line per iteration."""
    settings = {
        "model": str(tiny.sft),
        "reward": str(tiny.rm),
        "batch_size": 24,
        "minibatches": 3,
        "max_new_tokens": 8,
        "steps": 3,
        "lr": 1e-3,
        "warmup": 0,
        **settings,
    }
    ppo.run([str(prompts or tiny.prompts)], ppo.Config(output=str(out), **settings))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def column(metrics: list[dict[str, Any]], name: str) -> list[float]:
    return [m[name] for m in metrics]


FRACTION = "words = r['completion'].split()\nscore = words.count('red') / len(words) if words else 0.0"


def test_learns_to_say_what_is_rewarded(tiny: Tiny, tmp_path: Path) -> None:
    """The reward is the share of one word among all, so the maximum is 1."""
    metrics = optimise(
        tiny,
        tmp_path / "ppo",
        reward=program(tmp_path, "fraction", FRACTION),
        kl_coef=0.0,
        missing_eos="off",
        ema_decay=0.0,
        steps=25,
        batch_size=48,
        minibatches=4,
        ppo_epochs=2,
        lr=2e-3,
    )
    scores = column(metrics, "objective/scores")
    assert scores[0] < 0.3
    assert statistics.mean(scores[-3:]) >= 0.95


def test_a_huge_penalty_keeps_it_at_the_reference(tiny: Tiny, tmp_path: Path) -> None:
    """k3 is the estimate of the KL that is never negative and has little noise (objective/kl has much)."""
    common = {
        "reward": program(tmp_path, "fraction", FRACTION),
        "missing_eos": "off",
        "lr": 5e-5,
        "steps": 16,
    }
    held = optimise(tiny, tmp_path / "held", kl_coef=1000.0, **common)
    free = optimise(tiny, tmp_path / "free", kl_coef=0.0, **common)
    assert 0 < statistics.mean(column(held, "objective/kl_k3")[-4:]) < 1e-2
    last = [statistics.mean(column(m, "objective/kl_k3")[-4:]) for m in (held, free)]
    assert last[1] > 4 * last[0]


def digests(*folders: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for d in folders for f in sorted(d.iterdir())}


def test_the_frozen_models_stay_as_they_were(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhfkit.engine import actors

    loaded: list[Any] = []
    models: list[Any] = []
    load = actors.load_actors

    class Watched(actors.EpisodeScorer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            models.append(self._model)

    monkeypatch.setattr(actors, "EpisodeScorer", Watched)
    monkeypatch.setattr(actors, "load_actors", lambda *a: loaded.append(load(*a)) or loaded[-1])
    before = digests(tiny.sft, tiny.rm)
    start = {k: v.clone() for k, v in rlhfkit.load_model(tiny.sft).named_parameters()}
    judge = {k: v.clone() for k, v in rlhfkit.load_model(tiny.rm).named_parameters()}
    optimise(tiny, tmp_path / "ppo")

    assert digests(tiny.sft, tiny.rm) == before
    ((found,), (reward_model,)) = loaded, models
    for frozen, expected in ((found.ref_policy, start), (reward_model, judge)):
        for name, parameter in frozen.named_parameters():
            assert parameter.grad is None
            assert not parameter.requires_grad
            assert parameter.equal(expected[name])
    assert any(not p.equal(start[k]) for k, p in found.policy.named_parameters())
    assert any(not p.equal(judge[k]) for k, p in found.value_model.named_parameters())
    value = rlhfkit.load_model(tmp_path / "ppo" / "value")
    assert all(p.equal(dict(found.value_model.named_parameters())[k]) for k, p in value.named_parameters())


def test_held_out_prompts_are_answered_and_judged_apart(tiny: Tiny, tmp_path: Path) -> None:
    metrics = optimise(
        tiny,
        tmp_path / "ppo",
        eval=str(tiny.prompts),
        eval_reward=program(tmp_path, "length", "score = len(r['completion']) / 10"),
        eval_every=2,
        steps=5,
        lr=0.0,
    )
    evaluated = [m for m in metrics if "eval/scores" in m]
    assert [m["step"] for m in evaluated] == [2, 4, 5]
    # Without learning, the same seeds give the same answers every time, and rewards of the model differ.
    assert len({(m["eval/scores"], m["eval/length"], m["eval/eos_rate"]) for m in evaluated}) == 1
    assert evaluated[0]["eval/scores"] > 0
    assert evaluated[0]["eval/scores"] != pytest.approx(evaluated[0]["objective/scorer"], abs=1e-3)
    assert evaluated[0]["eval/scores_se"] > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda ended: 3 * ended - 1 * (1 - ended)),
        ({"missing_eos_penalty": 2.0}, lambda ended: 3 * ended - 2 * (1 - ended)),
        ({"missing_eos": "subtract", "missing_eos_penalty": 2.0}, lambda ended: 3 - 2 * (1 - ended)),
        ({"missing_eos": "off"}, lambda ended: 3),
        ({"reward_clip": 0.5}, lambda ended: 0.5 * ended - 1 * (1 - ended)),
    ],
)
def test_an_answer_without_end_is_paid_as_the_settings_say(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], expected: Any
) -> None:
    """Every answer scores 3; some end within six tokens and some do not."""
    reward = program(tmp_path, "three", "score = 3")
    (metrics,) = optimise(tiny, tmp_path / "ppo", reward=reward, max_new_tokens=6, steps=1, **settings)
    ended = metrics["response/eos_rate"]
    assert 0 < ended < 1
    assert metrics["objective/scorer"] == 3
    assert metrics["objective/scores"] == pytest.approx(expected(ended))


@pytest.mark.parametrize(("over", "shift"), [("batch", False), ("running", True), ("first", False)])
def test_scores_of_any_size_are_brought_to_unit_scale(
    tiny: Tiny, tmp_path: Path, over: str, shift: bool
) -> None:
    """Recomputed from the scores of all samples, which a program gives on a scale of hundreds."""
    metrics = optimise(
        tiny,
        tmp_path / "ppo",
        reward=program(tmp_path, "hundreds", "score = 300 + 100 * len(r['completion'].split())"),
        reward_scale=over,
        reward_shift=shift,
        missing_eos="off",
        log_samples=24,
        kl_coef=0.0,
    )
    samples = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()]
    rollouts = [[s["score"] for s in samples if s["step"] == step] for step in (1, 2, 3)]
    for index, (row, scores) in enumerate(zip(metrics, rollouts, strict=True)):
        assert len(scores) == 24
        all_so_far = [s for rollout in rollouts[: index + 1] for s in rollout]
        seen = {"batch": scores, "running": all_so_far, "first": rollouts[0]}[over]
        spread, mean = statistics.stdev(seen), statistics.mean(seen) if shift else 0.0
        assert row["objective/score_scale"] == pytest.approx(spread)
        paid = statistics.mean((s - mean) / spread for s in scores)
        assert row["objective/scores"] == pytest.approx(paid, abs=1e-5)
        assert row["objective/scorer"] == pytest.approx(statistics.mean(scores))


def test_the_coefficient_follows_the_target(tiny: Tiny, tmp_path: Path) -> None:
    """Ziegler's controller, recomputed from what was logged; it starts below its target and then exceeds it."""
    settings = {"kl_coef": 0.1, "kl_target": 0.2, "kl_horizon": 240.0, "lr": 2e-3, "steps": 8}
    metrics = optimise(tiny, tmp_path / "ppo", **settings)
    coefs, kls = column(metrics, "objective/kl_coef"), column(metrics, "objective/kl")
    assert coefs[0] == 0.1
    for now, following, kl in zip(coefs, coefs[1:], kls, strict=False):
        error = max(-0.2, min(0.2, kl / 0.2 - 1))
        assert following == pytest.approx(now * (1 + error * 24 / 240))
    assert coefs[1] < coefs[0]
    assert coefs[-1] > min(coefs)


def test_a_rollout_is_left_once_its_updates_have_gone_too_far(tiny: Tiny, tmp_path: Path) -> None:
    """The first update starts on policy, so its KL is 0; the second sees what a large rate has done."""
    common = {"steps": 1, "lr": 1e-2, "minibatches": 4, "ppo_epochs": 2}
    (left,) = optimise(tiny, tmp_path / "left", stop_kl=1e-6, **common)
    (stayed,) = optimise(tiny, tmp_path / "stayed", stop_kl=1e6, **common)
    assert (left["policy/updates"], stayed["policy/updates"]) == (2, 8)
    assert left["policy/approxkl_avg"] * 2 > 1e-6


def test_metrics_have_the_names_that_are_promised(tiny: Tiny, tmp_path: Path) -> None:
    """TRL's where it has one; every figure is a finite number."""
    first, *_, last = optimise(tiny, tmp_path / "ppo", kl_coef=0.1)
    promised = {
        *("step", "time", "episode", "lr", "tokens_per_second"),
        *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"),
        *("objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg"),
        *("loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var"),
        *(
            "val/num_eos_tokens",
            "objective/kl_coef",
            "objective/kl_k2",
            "objective/kl_k3",
            "objective/scorer",
        ),
        *("policy/approxkl_k3_avg", "policy/ratio_max", "policy/grad_norm", "val/grad_norm"),
        *("val/explained_variance", "response/length", "response/eos_rate", "response/truncated"),
        *("time/rollout", "time/scoring", "time/logprobs", "time/update"),
    }
    for line in (first, last):
        assert promised <= line.keys()
        assert all(isinstance(value, int | float) for value in line.values())
    assert last["response/eos_rate"] + last["response/truncated"] == pytest.approx(1)
    assert last["response/eos_rate"] * 24 == last["val/num_eos_tokens"]
    reward = last["objective/scores"] - 0.1 * last["objective/kl"]
    assert last["objective/rlhf_reward"] == pytest.approx(reward, abs=1e-6)
    assert first["policy/approxkl_k3_avg"] > 0


def test_samples_are_logged_with_their_scores(tiny: Tiny, tmp_path: Path) -> None:
    reward = program(tmp_path, "length", "score = len(r['completion'])")
    optimise(tiny, tmp_path / "ppo", reward=reward, log_samples=2, log_every=2, steps=4)
    samples = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [1, 1, 2, 2, 4, 4]
    assert all(s["score"] == len(s["completion"]) for s in samples)
    assert all(s["paid"] == (s["score"] if s["finish_reason"] == "stop" else -1) for s in samples)
    assert all(s["finish_reason"] == "stop" for s in samples if s["num_tokens"] < 8)
    prompts = {json.loads(line)["prompt"] for line in tiny.prompts.read_text().splitlines()}
    assert {s["prompt"] for s in samples} <= prompts


def test_a_scorer_is_asked_with_id_prompt_and_completion(tiny: Tiny, tmp_path: Path) -> None:
    """It sees the prompt as given, the answer without its end token, and an id to look up references by."""
    prompts = [json.loads(line)["prompt"] for line in tiny.prompts.read_text().splitlines()]
    named = write_jsonl(tmp_path / "named.jsonl", [{"prompt": p, "id": f"the {p}"} for p in prompts])
    log = tmp_path / "asked.jsonl"
    reward = program(tmp_path, "tell", f"score = 1\nopen({str(log)!r}, 'a').write(line)")
    optimise(tiny, tmp_path / "a", reward=reward, steps=1)
    optimise(tiny, tmp_path / "b", reward=reward, steps=1, prompts=named)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(asked) == 48
    assert all(a["prompt"] == prompts[a["id"]] for a in asked[:24])
    assert all(a["id"] == f"the {a['prompt']}" for a in asked[24:])
    assert not any("<|" in a["completion"] for a in asked)


@pytest.mark.parametrize("head", ["keep", "zero"])
def test_a_value_network_keeps_the_reward_models_head_or_says_nothing_at_first(
    tiny: Tiny, tmp_path: Path, head: str
) -> None:
    """N+ keep the head; AlpacaFarm sets it to 0, and then nothing of a centred model's shift is left, either."""
    reward = tmp_path / "rm"
    centred = train_rm.Config(
        model=str(tiny.rm), output=str(reward), steps=1, lr=0.0, center_on=str(tiny.demos)
    )
    train_rm.run([str(tiny.rankings)], centred)
    config = ppo.Config(model=str(tiny.sft), output="-", reward=str(reward), value_head=head)
    value = load_actors(config, prepare(config, 32)).value_model
    scores = value.token_scores(torch.tensor([[5, 6, 7]]))
    assert scores.any() == (head == "keep")


def test_a_stop_does_not_wait_for_a_scorer_and_costs_no_bit(tiny: Tiny, tmp_path: Path) -> None:
    """The program falls silent in the second iteration and would then fail; the first one is saved."""
    hangs, silent = tmp_path / "hangs", tmp_path / "silent"
    body = f"""
        import os, time
        served = globals().get('served', 0) + 1
        if served == 30 and os.path.exists({str(hangs)!r}):
            open({str(silent)!r}, 'w').close()
            time.sleep(20)
            sys.exit('too late')
        score = len(r['completion'])
    """
    reward = program(tmp_path, "hanging", textwrap.dedent(body).strip())
    optimise(tiny, tmp_path / "whole", reward=reward, reward_scale="running")

    def stop_when_silent() -> None:
        while not silent.exists():
            time.sleep(0.01)
        context.request_stop(15)

    hangs.touch()
    with context.surroundings(context.Reporter(), context.Invocation()):
        thread = threading.Thread(target=stop_when_silent)
        thread.start()
        with pytest.raises(Interrupted, match="after step 1") as caught:
            optimise(tiny, tmp_path / "cut", reward=reward, reward_scale="running")
        thread.join()
    assert caught.value.exit_code == 143
    hangs.unlink()
    metrics = optimise(tiny, tmp_path / "cut", reward=reward, reward_scale="running")
    assert column(metrics, "step") == [1, 2, 3]
    whole, cut = (digests(tmp_path / name / "value").values() for name in ("whole", "cut"))
    assert list(whole) == list(cut)
    for name in ("model.safetensors", "samples.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"minibatches": 25}, "--minibatches"),
        ({"reward_shift": True}, "--reward-shift"),
        ({"min_response": 2, "missing_eos": "off"}, "--min-response"),
        ({"eval_reward": "cmd:true"}, "--eval-reward"),
        ({"ptx_coef": 1.0}, "--ptx-coef"),
        ({"ptx": ("x.safetensors",)}, "--ptx"),
        ({"max_new_tokens": 64}, "--max-new-tokens"),
        ({"reward": "cmd:true", "value_model": "reward"}, "--value-model"),
    ],
)
def test_settings_that_do_not_go_together(tiny: Tiny, tmp_path: Path, settings: Any, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        optimise(tiny, tmp_path / "ppo", **settings)
    assert (caught.value.where or "").startswith(where)
    assert not (tmp_path / "ppo").exists()
