"""Rows shared by sequences, and common beginnings computed once, change no score, loss or gradient."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from rlhfkit.data.batching import Example, batches_of
from rlhfkit.data.comparisons import Comparison
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.lm import lm_objective
from rlhfkit.engine.preferences import (
    forest_scores,
    ranking_batches,
    ranking_objective,
    score_sequences,
    until_read,
)
from rlhfkit.engine.rollout import Episode, cut, make_piece, measure, read_logprobs, states
from rlhfkit.models.config import Rope, llama_config
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.loading import init_model

CPU = torch.device("cpu")
V, PAD = 61, 0
CONFIG = llama_config(
    vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=128
)
VARIANTS = {"grouped queries": CONFIG, "learned positions": dataclasses.replace(CONFIG, rope=None)}


def trunk(config=CONFIG, dtype=torch.float32):  # type: ignore[no-untyped-def]
    model = init_model(config, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if dtype == torch.float32:
                parameter.mul_(4)  # far from the uniform answers of a fresh model
    return model.to(dtype)


def scorer(config=CONFIG, dtype=torch.float32) -> ScalarModel:  # type: ignore[no-untyped-def]
    model = ScalarModel(config)
    source = trunk(config, dtype)
    model.backbone.load_state_dict({k: v for k, v in source.state_dict().items() if "lm_head" not in k})
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    return model.to(dtype)


def ids(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(1, V) for _ in range(rng.randint(low, high))]


def elements() -> list[Comparison]:
    rng = random.Random(3)
    out = []
    for count, longest in ((2, 12), (5, 12), (3, 9), (2, 2), (4, 12), (2, 2)):
        prompt = ids(rng, 3, 20 if longest > 2 else 4)
        answers = [ids(rng, 1, longest) for _ in range(count)]
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        out.append(
            Comparison([prompt + a for a in answers], [len(a) for a in answers], pairs, [0.0] * len(pairs))
        )
    return out


def gradients(model: torch.nn.Module, objective) -> tuple[float, list[Tensor]]:  # type: ignore[no-untyped-def]
    model.zero_grad()
    total = 0.0
    for loss_of in objective.losses:
        loss, _ = loss_of()
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_in_trees_are_those_of_the_sequences_alone(variant: str) -> None:
    model = scorer(VARIANTS[variant])
    wanted = [model(torch.tensor([s])).item() for e in elements() for s in e.sequences]
    batches = [
        make()
        for make in ranking_batches(elements(), rows=None, tokens=4096, pad_id=PAD, device=CPU, filled=True)
    ]
    assert len(batches) == 1
    assert batches[0].forest.branch_ids is not None
    assert len(batches[0].forest.input_ids) < len(elements())
    order = sorted(range(6), key=lambda i: (-elements()[i].longest, i))
    scores = iter(forest_scores(model, batches[0].forest).tolist())
    found = {i: [next(scores) for _ in elements()[i].sequences] for i in order}
    assert [s for i in range(6) for s in found[i]] == pytest.approx(wanted, abs=1e-4)
    together = score_sequences(
        model, [s for e in elements() for s in e.sequences], tokens=100, pad_id=PAD, device=CPU
    )
    assert together == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("tokens", [40, 4096])
def test_a_ranking_loss_and_its_gradient_do_not_depend_on_sharing(tokens: int) -> None:
    model = scorer()
    results = []
    for filled in (False, True):
        batches = ranking_batches(elements(), rows=None, tokens=tokens, pad_id=PAD, device=CPU, filled=filled)
        objective = ranking_objective(model, batches, 6.0, loss="pairs", center_coef=0.01, margin=False)
        results.append(gradients(model, objective))
    (loss, grads), (filled_loss, filled_grads) = results
    assert filled_loss == pytest.approx(loss, rel=1e-5)
    for one, two in zip(grads, filled_grads, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4 * one.abs().max().item(), rtol=1e-3)


def test_a_trunk_is_not_blind_to_its_branches_gradients() -> None:
    """The shared prompt's embedding gets the sum of what each sequence alone would give it."""
    model = scorer()
    element = elements()[1]
    prompt_token = element.sequences[0][0]
    alone = torch.zeros(32)
    for sequence in element.sequences:
        model.zero_grad()
        model(torch.tensor([sequence])).sum().backward()
        alone += model.backbone.embed.weight.grad[prompt_token]
    (make,) = ranking_batches([element], rows=None, tokens=4096, pad_id=PAD, device=CPU, filled=True)
    model.zero_grad()
    forest_scores(model, make().forest).sum().backward()
    torch.testing.assert_close(
        model.backbone.embed.weight.grad[prompt_token], alone, atol=1e-4 * alone.abs().max().item(), rtol=1e-3
    )


def test_scores_are_read_before_the_models_pad_tokens() -> None:
    model = scorer(dataclasses.replace(CONFIG, pad_token_id=5))
    sequences = [[7, 8, 9, 5], [7, 8, 5, 5], [5, 5, 3]]
    wanted = [model(torch.tensor([s])).item() for s in sequences]
    assert score_sequences(model, sequences, tokens=64, pad_id=PAD, device=CPU) == pytest.approx(
        wanted, abs=1e-5
    )
    cut_off = until_read(Comparison(sequences, [1, 1, 1], [(0, 1)], [0.0]), 5)
    assert list(map(list, cut_off.sequences)) == [[7, 8, 9], [7, 8], [5, 5, 3]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_language_loss_and_its_gradient_do_not_depend_on_sharing(variant: str) -> None:
    model = trunk(VARIANTS[variant])
    rng = random.Random(5)
    examples = []
    for _ in range(12):
        prompt, answer = ids(rng, 2, 30), ids(rng, 1, 20)
        examples.append(Example(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    weight = float(sum(sum(e.mask[1:]) for e in examples))
    results = []
    for filled in (False, True):
        batches = batches_of(examples, rows=None, tokens=400, pad_id=PAD, device=CPU, filled=filled)
        assert any(make().segment_ids is not None for make in batches) == filled
        results.append(gradients(model, lm_objective(model, batches, weight)))
    (loss, grads), (filled_loss, filled_grads) = results
    assert filled_loss == pytest.approx(loss, rel=1e-5)
    for one, two in zip(grads, filled_grads, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4 * one.abs().max().item(), rtol=1e-3)


def test_not_where_positions_depend_on_the_row() -> None:
    stretched = Rope(scaling="dynamic", settings={"factor": 2.0})
    assert trunk().fills_rows
    assert not trunk(dataclasses.replace(CONFIG, rope=stretched)).fills_rows
    windowed = dataclasses.replace(CONFIG, sliding_window=7, sliding_layers=(True, False))
    assert not trunk(windowed).fills_rows


def episodes() -> list[Episode]:
    rng = random.Random(9)
    return [
        Episode(
            number=n, id=n, prompt="", prompt_ids=ids(rng, 2, 25), response_ids=ids(rng, 1, 20), ended=True
        )
        for n in range(14)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_ppo_measures_is_that_of_each_episode_alone_and_the_first_ratio_is_one(
    dtype: torch.dtype,
) -> None:
    policy, reference, value = trunk(dtype=dtype), init_model(CONFIG, 2).to(dtype), scorer(dtype=dtype)
    several = episodes()
    groups = cut(several, rows=None, tokens=200, filled=True)
    about = {"policy": policy, "ref_policy": reference, "value_model": value, "temperature": 0.7}
    measure(groups, **about, pad_id=PAD, device=CPU, filled=True)
    shared = 0
    for group in groups:
        piece = make_piece(group, PAD, CPU, filled=True)
        shared += piece.segment_ids is not None
        again, _ = read_logprobs(policy, states(policy, piece), piece, 0.7, with_entropy=True)
        mask = piece.response_mask
        assert torch.equal(again[mask], piece.spread("old_logprobs")[mask])
    assert shared
    alone = episodes()
    measure([[e] for e in alone], **about, pad_id=PAD, device=CPU)
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    for one, two in zip(several, alone, strict=True):
        assert one.number == two.number
        for name in ("old_logprobs", "ref_logprobs", "values", "entropy"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=tolerance, rtol=1e-2)


def test_one_optimizer_step_of_both_forms_agrees(tmp_path: object) -> None:
    from rlhfkit.engine.loop import optimize
    from rlhfkit.engine.optim import AdamW

    results = []
    for filled in (False, True):
        model = scorer()
        batches = ranking_batches(elements(), rows=None, tokens=4096, pad_id=PAD, device=CPU, filled=filled)
        objective = ranking_objective(model, batches, 6.0, loss="pairs", center_coef=0.0, margin=False)
        figures = optimize([objective], [(AdamW(model), 1e-3)], Dist(), grad_clip=1.0)
        results.append(figures)
    for name in results[0]:
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-4, abs=1e-6), name
