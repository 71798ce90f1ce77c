"""An iteration's arithmetic against loops over single episodes in float64: no padding, no masks, no shifts."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rlhfkit.engine.dist import Dist
from rlhfkit.engine.ppo import (
    Losses,
    Payment,
    minibatch_plan,
    pay,
    ppo_objectives,
    rollout_figures,
    scale_advantages,
    set_advantages,
    weigh,
)
from rlhfkit.engine.rollout import Episode, make_piece, measure, read_logprobs, states
from rlhfkit.models.config import llama_config
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.loading import init_model
from rlhfkit.models.transformer import Transformer

V, PAD, EOS = 29, 0, 2
CONFIG = llama_config(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=32)
CPU = torch.device("cpu")


def shaken(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def actors() -> tuple[Transformer, Transformer, ScalarModel]:
    policy, reference, value = init_model(CONFIG, 0), init_model(CONFIG, 0), ScalarModel(CONFIG)
    with torch.no_grad():
        value.score.weight.zero_()
    value.backbone.load_state_dict(policy.state_dict(), strict=False)
    for seed, model in enumerate((policy, reference, value)):
        shaken(model, seed)
    return policy.eval(), reference.eval(), value.eval()


def episodes() -> list[Episode]:
    """Ragged ones; some end in EOS, one has EOS in its prompt, one answers with the PAD token."""
    rng = random.Random(3)
    out = []
    for number in range(6):
        prompt = [rng.randrange(3, V) for _ in range(rng.randint(1, 8))]
        response = [rng.randrange(3, V) for _ in range(rng.randint(1, 7))]
        ended = number % 2 == 0
        if ended:
            response[-1] = EOS
        out.append(Episode(number, number, "", prompt, response, ended, scorer_score=rng.gauss(0, 2)))
    out[1].prompt_ids[0] = EOS
    out[3].response_ids[0] = PAD
    return out


@torch.no_grad()
def prefix_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0, -1].double()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_tokens_are_measured_where_they_were_chosen(actors: tuple, temperature: float) -> None:
    policy, reference, value = actors
    everyone = episodes()
    groups = [everyone[:4], everyone[4:]]
    measure(
        groups,
        policy=policy,
        ref_policy=reference,
        value_model=value,
        temperature=temperature,
        pad_id=PAD,
        device=CPU,
    )
    for e in everyone:
        for place, token in enumerate(e.response_ids):
            before = e.prompt_ids + e.response_ids[:place]
            for model, got in ((policy, e.old_logprobs), (reference, e.ref_logprobs)):
                want = (prefix_logits(model, before) / temperature).log_softmax(-1)[token].item()
                assert got[place].item() == pytest.approx(want, abs=1e-5)
            probs = (prefix_logits(policy, before) / temperature).softmax(-1)
            assert e.entropy[place].item() == pytest.approx(-(probs * probs.log()).sum().item(), abs=1e-5)
            with torch.no_grad():
                state = value.token_scores(torch.tensor([before]))[0, -1].item()
            assert e.values[place].item() == pytest.approx(state, abs=1e-5)


def test_scores_are_clipped_before_a_missing_end_is_punished() -> None:
    three = episodes()[:3]
    for e, score, ended in zip(three, (5.0, 0.25, -9.0), (True, False, False), strict=True):
        e.scorer_score, e.ended = score, ended
    pay(three, Payment(1.5, "replace", reward_clip=2.0))
    assert [e.score for e in three] == [2.0, -1.5, -1.5]
    pay(three, Payment(1.5, "subtract", reward_clip=2.0))
    assert [e.score for e in three] == [2.0, -1.25, -3.5]
    pay(three, Payment(None, "replace"))
    assert [e.score for e in three] == [5.0, 0.25, -9.0]


def measured(seed: int = 0) -> list[Episode]:
    """Episodes with invented measurements."""
    generator = torch.Generator().manual_seed(seed)
    out = episodes()
    for e in out:
        n = len(e.response_ids)
        e.old_logprobs, e.ref_logprobs, e.values = (torch.randn(n, generator=generator) for _ in range(3))
        e.entropy = torch.rand(n, generator=generator)
        e.score = e.scorer_score
    return out


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_rewards_advantages_and_returns_of_each_episode(whiten_rewards: bool) -> None:
    everyone, gamma, lam, coef = measured(), 0.98, 0.9, 0.3
    set_advantages(everyone, Dist(), kl_coef=coef, gamma=gamma, gae_lambda=lam, whiten_rewards=whiten_rewards)
    rewards = []
    for e in everyone:
        x = [a - b for a, b in zip(e.old_logprobs.tolist(), e.ref_logprobs.tolist(), strict=True)]
        rewards.append([-coef * k for k in x])
        rewards[-1][-1] += e.score
    if whiten_rewards:  # variance 1 over all tokens, each reward's mean kept
        flat = [r for row in rewards for r in row]
        mean = sum(flat) / len(flat)
        spread = math.sqrt(sum((r - mean) ** 2 for r in flat) / len(flat))
        rewards = [[(r - mean) / spread + mean for r in row] for row in rewards]
    advantages = []
    for e, r in zip(everyone, rewards, strict=True):
        v, ahead, row = [*e.values.tolist(), 0.0], 0.0, []
        for t in reversed(range(len(r))):
            ahead = r[t] + gamma * v[t + 1] - v[t] + gamma * lam * ahead
            row.insert(0, ahead)
        assert e.rewards.tolist() == pytest.approx(r, abs=1e-5)
        assert e.advantages.tolist() == pytest.approx(row, abs=1e-5)
        assert e.returns.tolist() == pytest.approx([a + b for a, b in zip(row, v, strict=False)], abs=1e-5)
        advantages += row
    scale_advantages(everyone, Dist(), whitened=True)
    mean = sum(advantages) / len(advantages)
    spread = math.sqrt(sum((a - mean) ** 2 for a in advantages) / len(advantages))
    scaled = [x for e in everyone for x in e.scaled.tolist()]
    assert scaled == pytest.approx([(a - mean) / spread for a in advantages], abs=1e-5)
    scale_advantages(everyone, Dist(), whitened=False)
    assert [x for e in everyone for x in e.scaled.tolist()] == pytest.approx(advantages, abs=1e-5)


def test_a_minibatch_counts_its_response_tokens_and_nothing_else(actors: tuple) -> None:
    policy, _, value = actors
    everyone = measured(1)
    for e in everyone:
        e.scaled, e.returns = torch.randn(len(e.response_ids)), torch.randn(len(e.response_ids))
    groups = [everyone[:2], everyone[2:]]
    how = Losses(temperature=1.0, clip_eps=0.2, value_clip_eps=None, value_coef=0.5)
    surrogate, critic = ppo_objectives(policy, value, groups, how, pad_id=PAD, device=CPU)
    assert (surrogate.coef, critic.coef) == (1, 0.5)
    tokens = sum(len(e.response_ids) for e in everyone)
    assert surrogate.weight == critic.weight == tokens
    want_policy, want_value = 0.0, 0.0
    for e in everyone:
        piece = make_piece([e], PAD, CPU)
        now = read_logprobs(policy, states(policy, piece), piece, 1.0)[0][piece.response_mask]
        values = value.read(states(value.backbone, piece))
        for t in range(len(e.response_ids)):
            ratio = math.exp(now[t].item() - e.old_logprobs[t].item())
            a = e.scaled[t].item()
            want_policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            want_value += 0.5 * (values[t].item() - e.returns[t].item()) ** 2
    for objective, want in ((surrogate, want_policy), (critic, want_value)):
        total = sum(make()[0].item() for make in objective.losses)
        assert total == pytest.approx(want, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("mean", ["tokens", "responses", "length"])
def test_the_mean_of_the_losses_is_the_one_asked_for(actors: tuple, mean: str) -> None:
    """Lists of single tokens' losses, averaged by the formula of each name; figures stay token means."""
    policy, _, value = actors
    everyone = measured(4)
    for e in everyone:
        e.scaled, e.returns = torch.randn(len(e.response_ids)), torch.randn(len(e.response_ids))
    weigh(everyone, Dist(), mean, 9)  # type: ignore[arg-type]
    policy_rows, value_rows, ratios = [], [], []
    for e in everyone:
        piece = make_piece([e], PAD, CPU)
        now = read_logprobs(policy, states(policy, piece), piece, 1.0)[0][piece.response_mask].tolist()
        values = value.read(states(value.backbone, piece)).tolist()
        rho = [math.exp(a - b) for a, b in zip(now, e.old_logprobs.tolist(), strict=True)]
        clipped = [min(max(r, 0.8), 1.2) for r in rho]
        policy_rows.append([-min(r * a, c * a) for r, c, a in zip(rho, clipped, e.scaled, strict=True)])
        value_rows.append([0.5 * (v - r) ** 2 for v, r in zip(values, e.returns, strict=True)])
        ratios += rho
    how = Losses(temperature=1.0, clip_eps=0.2, value_clip_eps=None, value_coef=1.0)
    objectives = ppo_objectives(policy, value, [everyone[:4], everyone[4:]], how, pad_id=PAD, device=CPU)
    for objective, rows in zip(objectives, (policy_rows, value_rows), strict=True):
        total, tokens = float(sum(map(sum, rows))), sum(map(len, rows))
        want = {
            "tokens": total / tokens,
            "responses": sum(float(sum(row)) / len(row) for row in rows) / len(rows),
            "length": total / (len(rows) * 9),
        }[mean]
        parts = [make() for make in objective.losses]
        assert sum(loss.item() for loss, _ in parts) / objective.weight == pytest.approx(want, rel=1e-4)
    ratio = sum(figures["ratio"].item() for _, figures in (make() for make in objectives[0].losses))
    assert ratio / objectives[0].weight == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_the_mean_over_responses_spans_all_processes() -> None:
    """Two processes with three responses each: what a token weighs does not depend on who holds it."""
    six = episodes()
    weigh(six, Dist(), "responses", 9)
    whole = [e.weight for e in six]

    class Half(Dist):
        def sum_dict(self, sums: dict[str, float]) -> dict[str, float]:
            return {"tokens": float(sum(len(e.response_ids) for e in six)), "episodes": 6.0}

    weigh(six[:3], Half(), "responses", 9)
    weigh(six[3:], Half(), "responses", 9)
    assert [e.weight for e in six] == whole
    assert sum(e.weight * len(e.response_ids) for e in six) == pytest.approx(
        sum(len(e.response_ids) for e in six)
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_token_is_charged_for_the_estimate_asked_for(estimator: str) -> None:
    everyone = measured(5)
    set_advantages(
        everyone,
        Dist(),
        kl_coef=0.3,
        gamma=1.0,
        gae_lambda=1.0,
        whiten_rewards=False,
        kl_estimator=estimator,  # type: ignore[arg-type]
    )
    formula = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}[estimator]
    charged = []
    for e in everyone:
        x = [a - b for a, b in zip(e.old_logprobs.tolist(), e.ref_logprobs.tolist(), strict=True)]
        charged.append(sum(map(formula, x)))
        assert e.rewards.sum().item() == pytest.approx(e.score - 0.3 * charged[-1], abs=1e-4)
        e.returns = e.values + 0.1
    figures = rollout_figures(everyone, Dist(), kl_coef=0.3, kl_estimator=estimator)  # type: ignore[arg-type]
    assert figures["objective/non_score_reward"] == pytest.approx(
        -0.3 * sum(charged) / len(charged), abs=1e-5
    )


def test_figures_of_a_rollout_by_hand() -> None:
    everyone = measured(2)
    for e in everyone:
        e.returns = e.values + 0.1
    figures = rollout_figures(everyone, Dist(), kl_coef=0.3)
    n = len(everyone)
    x = [
        [a - b for a, b in zip(e.old_logprobs.tolist(), e.ref_logprobs.tolist(), strict=True)]
        for e in everyone
    ]
    kl = sum(map(sum, x)) / n
    assert figures["objective/kl"] == pytest.approx(kl, abs=1e-5)
    assert figures["objective/kl_k2"] == pytest.approx(sum(k * k / 2 for row in x for k in row) / n, abs=1e-5)
    k3 = sum(math.exp(-k) - 1 + k for row in x for k in row) / n
    assert figures["objective/kl_k3"] == pytest.approx(k3, abs=1e-5)
    score = sum(e.score for e in everyone) / n
    assert figures["objective/rlhf_reward"] == pytest.approx(score - 0.3 * kl, abs=1e-5)
    assert figures["objective/entropy"] == pytest.approx(sum(e.entropy.sum().item() for e in everyone) / n)
    assert figures["response/length"] == sum(len(e.response_ids) for e in everyone) / n
    assert figures["response/eos_rate"] == 0.5


def test_minibatches_take_every_episode_once_and_epochs_differ() -> None:
    for count, parts in ((16, 4), (10, 3), (3, 8)):
        plan = minibatch_plan(count, parts, [1, 2, 3])
        assert sorted(i for part in plan for i in part) == list(range(count))
        assert max(map(len, plan)) - min(map(len, plan)) <= 1
    assert minibatch_plan(64, 4, [1, 2, 0]) != minibatch_plan(64, 4, [1, 2, 1])
    assert minibatch_plan(64, 4, [1, 2, 0]) == minibatch_plan(64, 4, [1, 2, 0])
