"""The decoder itself: cache operations, masks, gradients, bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB, make, saved

from rlhfkit.models.attention import attend, plan_prefill
from rlhfkit.models.config import Rope, llama_config
from rlhfkit.models.heads import ScalarModel, last_real_token
from rlhfkit.models.loading import init_model, load_causal
from rlhfkit.models.rope import Rotary, rotate
from rlhfkit.models.transformer import Transformer

CONFIG = llama_config(
    vocab_size=VOCAB, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=32
)


@pytest.fixture
def model() -> Transformer:
    return init_model(CONFIG, 3)


@pytest.fixture(params=["llama", "mistral", "gemma2-caps"])
def any_model(request: pytest.FixtureRequest, tmp_path: Path) -> Transformer:
    return load_causal(saved(make(request.param), tmp_path / "model"))


@torch.no_grad()
def test_samples_of_one_prompt_share_its_reading(any_model, ids):
    prompts, mask = ids[:2, :9], torch.arange(9)[None] < torch.tensor([9, 4])[:, None]
    cache = any_model.new_cache(2, 16)
    any_model.hidden(prompts, attention_mask=mask, cache=cache)
    cache.expand(3)
    tokens = torch.arange(10, 16)[:, None]
    state = any_model.hidden(tokens, cache=cache)
    for row in range(6):
        prompt = prompts[row // 3][mask[row // 3]]
        alone = any_model.hidden(torch.cat([prompt, tokens[row]])[None])[0, -1]
        torch.testing.assert_close(state[row, 0], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_finished_rows_can_be_dropped(any_model, ids):
    mask = torch.arange(9)[None] < torch.tensor([9, 6, 4])[:, None]
    cache = any_model.new_cache(3, 16)
    any_model.hidden(ids[:, :9], attention_mask=mask, cache=cache)
    any_model.hidden(ids[:, 9:10], cache=cache)
    cache.select(torch.tensor([2, 1]))
    assert cache.used == 7
    assert cache.lengths.tolist() == [5, 7]
    state = any_model.hidden(ids[[2, 1], 10:11], cache=cache)
    for place, (row, length) in enumerate([(2, 4), (1, 6)]):
        alone = any_model.hidden(torch.cat([ids[row, :length], ids[row, 9:11]])[None])[0, -1]
        torch.testing.assert_close(state[place, 0], alone, atol=1e-5, rtol=1e-5)


def test_training_forward_is_the_same_every_time(any_model, ids):
    any_model.train()
    assert torch.equal(any_model(ids), any_model(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_puts_no_nan_into_gradients(any_model, ids, side):
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[0, :11] = False
    mask[2, :23] = False
    if side == "right":
        mask = mask.flip(1)
    loss = torch.where(mask, any_model(ids, mask).logsumexp(-1), 0.0).sum()
    loss.backward()
    for name, parameter in any_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_padding_has_no_part_in_the_gradient(any_model, ids):
    lengths = (24, 10)

    def gradients(batches: list[tuple[torch.Tensor, torch.Tensor | None]]) -> list[torch.Tensor]:
        any_model.zero_grad()
        for tokens, mask in batches:
            out = any_model(tokens, mask).logsumexp(-1)
            (out if mask is None else torch.where(mask, out, 0.0)).sum().backward()
        return [parameter.grad.clone() for parameter in any_model.parameters()]

    alone = gradients([(ids[row : row + 1, :length], None) for row, length in enumerate(lengths)])
    mask = torch.arange(24)[None] < torch.tensor(lengths)[:, None]
    for one, two in zip(alone, gradients([(ids[:2], mask)]), strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16_stays_near_float32_cached_or_not(tmp_path, ids):
    path = saved(make("llama"), tmp_path / "model")
    exact, rounded = load_causal(path), load_causal(path, dtype=torch.bfloat16)
    expected = exact.hidden(ids)
    assert rounded.hidden(ids).dtype == torch.bfloat16
    cache = rounded.new_cache(3, 24)
    rounded.hidden(ids[:, :20], cache=cache)
    for step in range(20, 24):
        state = rounded.hidden(ids[:, step : step + 1], cache=cache)
        assert (state[:, 0].float() - expected[:, step]).abs().mean() < 0.05
    assert rounded(ids).dtype == torch.float32


def test_only_masks_that_are_needed_are_built():
    device = torch.device("cpu")
    plain = plan_prefill(8, device, key_mask=None, segment_ids=None, window=None)
    assert plain.full is None
    assert plain.sliding is None
    short = plan_prefill(8, device, key_mask=None, segment_ids=None, window=8)
    assert short.sliding is None
    window = plan_prefill(8, device, key_mask=None, segment_ids=None, window=3)
    assert window.full is None
    assert window.sliding is not None
    assert window.sliding.shape == (1, 1, 8, 8)
    assert window.sliding[0, 0, 5].tolist() == [False, False, False, True, True, True, False, False]


def test_attention_by_hand():
    q = torch.tensor([[[[1.0], [1.0]]]])  # one head of one number, two positions
    k = torch.tensor([[[[0.0], [1.0]]]])
    v = torch.tensor([[[[2.0], [6.0]]]])
    out = attend(q, k, v, mask=None, scale=1.0, softcap=None)
    weight = torch.sigmoid(torch.tensor(1.0))  # softmax over (0, 1)
    torch.testing.assert_close(out.flatten(), torch.stack([torch.tensor(2.0), 2 + 4 * weight]))
    capped = attend(q, k, v, mask=None, scale=1.0, softcap=0.5)
    weight = torch.sigmoid(0.5 * torch.tanh(torch.tensor(2.0)))
    torch.testing.assert_close(capped.flatten()[1], 2 + 4 * weight)


def test_rotation_depends_on_distance_alone():
    rotary = Rotary(Rope(theta=100.0), 8, 64)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind()

    def product(i: int, j: int) -> torch.Tensor:
        at = [torch.tensor([[n]]) for n in (i, j)]
        turned = [rotate(x, *rotary(n, n + 1, torch.float32)) for x, n in zip((q, k), at, strict=True)]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 1), product(40, 38))
    assert not torch.isclose(product(3, 1), product(3, 2))


def test_last_real_token():
    ids = torch.tensor([[5, 6, 0, 0], [0, 0, 5, 6], [5, 0, 6, 0], [0, 0, 0, 0]])
    assert last_real_token(ids, None, 0).tolist() == [1, 3, 2, 0]
    assert last_real_token(ids, None, None).tolist() == [3, 3, 3, 3]
    assert last_real_token(ids, ids != 0, None).tolist() == [1, 3, 2, 0]
    mask = torch.tensor([[1, 0, 0, 0]] * 4).bool()
    assert last_real_token(ids, mask, 0).tolist() == [0, 0, 0, 0]


def test_a_zero_head_scores_zero(ids):
    model = ScalarModel(CONFIG)
    torch.nn.init.zeros_(model.score.weight)
    assert model(ids).tolist() == [0.0, 0.0, 0.0]
    assert model.token_scores(ids).shape == (3, 24)


@torch.no_grad()
def test_decoding_does_not_go_through_compiled_blocks(model, ids):
    expected = model.hidden(ids)
    for layer in model.layers:
        layer._compiled_call_impl = lambda *_: pytest.fail("compiled for every length")
    cache = model.new_cache(3, 24)
    model.hidden(ids[:, :23], cache=cache)
    state = model.hidden(ids[:, 23:], cache=cache)
    torch.testing.assert_close(state[:, 0], expected[:, 23], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_some_places_are_those_of_all(dtype: torch.dtype) -> None:
    """The last layer works on the kept places only; the others' states never reach them, nor do gradients."""
    model = init_model(
        llama_config(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, max_seq_len=32), 0
    )
    model = model.to(dtype)
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([4, 5, 10, 21, 32])
    found = {}
    for name in ("all", "some"):
        model.zero_grad()
        states = model.hidden(ids, keep=keep) if name == "some" else model.hidden(ids).flatten(0, 1)[keep]
        states.float().square().sum().backward()
        found[name] = [states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for a, b in zip(found["all"], found["some"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=2e-2)
