import hashlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from rlhfkit.engine.draw import Sampling, draw, row_seed, splitmix64, uniforms

MASK = 2**64 - 1


def reference_splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm with Python's own integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def sampling(**settings: object) -> Sampling:
    return Sampling(max_new_tokens=1, **settings)


def many(logits: list[float], count: int, **settings: object) -> tuple[list[int], Tensor, Tensor]:
    """How often each token is drawn in `count` draws, the tokens, and their log-probabilities."""
    seeds = torch.tensor([row_seed(7, i) for i in range(count)])
    u = uniforms(seeds, torch.zeros_like(seeds))
    tokens, logprobs = draw(torch.tensor([logits]).expand(count, -1), u, sampling(**settings))
    return torch.bincount(tokens, minlength=len(logits)).tolist(), tokens, logprobs


@given(st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_splitmix64_equals_the_published_algorithm_at_any_place(seed: int, step: int) -> None:
    got = splitmix64(torch.tensor([seed]), torch.tensor([step])).item() & MASK
    assert got == reference_splitmix64(seed, step + 1)[step]


def test_splitmix64_known_numbers() -> None:
    got = splitmix64(torch.full((3,), 1234567), torch.arange(3))
    assert [x & MASK for x in got.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniforms_are_uniform_and_rows_independent() -> None:
    seeds = torch.tensor([row_seed(0, i) for i in range(200)])
    u = torch.stack([uniforms(seeds, torch.full_like(seeds, t)) for t in range(200)])
    assert 0 <= u.min() < u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    for pair in (u[:-1].flatten(), u[1:].flatten()), (u[:, :-1].flatten(), u[:, 1:].flatten()):
        assert abs(stats.pearsonr(*(x.numpy() for x in pair)).statistic) < 0.02


def test_row_seeds_are_fixed_distinct_and_fit_63_bits() -> None:
    want = int(hashlib.sha256(b"[1337,[1,2,3],0]").hexdigest()[:16], 16) // 2
    assert row_seed(1337, [1, 2, 3], 0) == row_seed(1337, (1, 2, 3), 0) == want
    seeds = {row_seed(s, ids, n) for s in range(4) for ids in ([1], [2], [1, 2], [12]) for n in range(8)}
    assert len(seeds) == 4 * 4 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_and_logprobs_follow_softmax_at_the_temperature(temperature: float) -> None:
    logits = [0.3, -1.0, 2.0, 0.0, -0.5, 1.1]
    counts, tokens, logprobs = many(logits, 20_000, temperature=temperature)
    weights = [math.exp(x / temperature) for x in logits]
    probs = [w / sum(weights) for w in weights]
    assert stats.chisquare(counts, [20_000 * p for p in probs]).pvalue > 1e-3
    want = torch.tensor([math.log(p) for p in probs])[tokens]
    assert torch.allclose(logprobs, want, atol=1e-5)


def test_temperature_towards_0_is_greedy_and_0_reports_the_plain_logprob() -> None:
    logits = [0.3, 1.9, 2.0, 0.0]
    assert many(logits, 2000, temperature=1e-3)[0] == [0, 0, 2000, 0]
    counts, _, logprobs = many(logits, 100, temperature=0.0)
    assert counts == [0, 0, 100, 0]
    assert logprobs[0].item() == pytest.approx(2.0 - math.log(sum(map(math.exp, logits))), abs=1e-6)


def test_top_k_0_and_top_p_1_and_a_large_top_k_change_nothing() -> None:
    logits = [0.3, -1.0, 2.0, 0.0, -0.5, 1.1]
    _, plain, plain_logprobs = many(logits, 3000)
    for settings in ({"top_k": 0}, {"top_p": 1.0}, {"top_k": 6}, {"top_k": 99}):
        _, tokens, logprobs = many(logits, 3000, **settings)
        assert torch.equal(tokens, plain)
        assert torch.equal(logprobs, plain_logprobs)


PROBS = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_p": 0.75}, {1, 3, 2}),  # 0.4 + 0.3 = 0.7 is not enough: the token that crosses 0.75 stays
        ({"top_p": 0.65}, {1, 3}),
        ({"top_p": 0.05}, {1}),  # never nothing
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),  # of 0.9 left, 0.4 / 0.9 is not yet one half
        ({"top_k": 2, "top_p": 0.56}, {1}),  # 0.4 / 0.7 = 0.571
    ],
)
def test_top_k_and_top_p_keep_exactly_these_in_proportion(settings: dict, kept: set[int]) -> None:
    counts, _, logprobs = many([math.log(p) for p in PROBS], 20_000, **settings)
    assert {i for i, c in enumerate(counts) if c} == kept
    mass = sum(PROBS[i] for i in kept)
    if len(kept) > 1:
        expected = [20_000 * PROBS[i] / mass for i in sorted(kept)]
        assert stats.chisquare([counts[i] for i in sorted(kept)], expected).pvalue > 1e-3
    # log-probabilities are those before tokens were taken away
    assert logprobs.exp().min().item() == pytest.approx(min(PROBS[i] for i in kept), abs=1e-6)


def test_tokens_tied_with_the_last_of_top_k_stay() -> None:
    counts, _, _ = many([1.0, 0.0, 0.0, -1.0], 2000, top_k=2)
    assert [c > 0 for c in counts] == [True, True, True, False]


@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-8, 8, width=32)), min_size=1, max_size=12).filter(
        lambda logits: max(logits) > -math.inf
    ),
    st.integers(0, 2**48 - 1),
)
def test_a_draw_inverts_the_distribution_function(logits: list[float], bits: int) -> None:
    u = torch.tensor([bits * 2.0**-48], dtype=torch.float64)
    tokens, _ = draw(torch.tensor([logits]), u, sampling())
    probs = [Fraction(p) for p in torch.tensor(logits).log_softmax(-1).exp().tolist()]
    goal, below = Fraction(bits, 2**48) * sum(probs), Fraction(0)
    token = tokens.item()
    assert logits[token] > -math.inf, "an impossible token was drawn"
    below = sum(probs[:token])
    slack = Fraction(1, 10**12)
    assert below - slack <= goal <= below + probs[token] + slack


@pytest.mark.parametrize("bits", [0, 2**48 - 1])
def test_the_ends_of_the_unit_interval_hit_possible_tokens(bits: int) -> None:
    u = torch.tensor([bits * 2.0**-48], dtype=torch.float64)
    tokens, _ = draw(torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]), u, sampling())
    assert tokens.item() == (1 if bits == 0 else 2)


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_a_draw_is_the_token_at_that_share_of_the_mass(vocab: int, zeros: float) -> None:
    """Against exact fractions, for vocabularies of one block and of many, ends and empty blocks included."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(vocab, generator=generator) * 3
    logits[torch.rand(vocab, generator=generator) < zeros] = -math.inf
    logits[vocab // 2] = 0.0
    probs = [Fraction(float(p)) for p in logits.softmax(-1)]
    shares = [*uniforms(torch.arange(300), torch.zeros(300, dtype=torch.long)).tolist(), 0.0, 1 - 2.0**-48]
    tokens, _ = draw(logits.expand(len(shares), -1), torch.tensor(shares, dtype=torch.float64), sampling())
    ends = list(itertools.accumulate(probs))
    slack = Fraction(1, 10**6) * ends[-1]  # block sums are float32
    for share, token in zip(shares, tokens.tolist(), strict=True):
        target = Fraction(share) * ends[-1]
        assert probs[token] > 0
        assert ends[token] - probs[token] - slack <= target <= ends[token] + slack
