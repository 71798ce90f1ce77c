import dataclasses
import random
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor

from rlhfkit.engine.draw import Sampling, row_seed
from rlhfkit.engine.generate import Generated, generate
from rlhfkit.errors import RlhfkitError
from rlhfkit.models.config import ModelConfig, Rope, llama_config
from rlhfkit.models.loading import init_model, save_model
from rlhfkit.models.transformer import Transformer

V, EOS = 61, (2, 3, 4)
CONFIG = llama_config(
    vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=256
)


def lively(config: ModelConfig) -> Transformer:
    """A model whose distributions are far from uniform, so that every mistake shows."""
    model = init_model(config, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return lively(CONFIG)


def ragged_prompts(count: int = 23, longest: int = 90) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(5, V) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def seeds_of(prompts: list[list[int]]) -> list[int]:
    return [row_seed(11, prompt, 0) for prompt in prompts]


PLAIN = Sampling(max_new_tokens=40, eos_ids=EOS)


class Spy:
    """Counts what a model is asked to compute."""

    def __init__(self, model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefill_rows, self.decode_rows = 0, []
        hidden = model.hidden

        def watched(input_ids: Tensor, **kwargs: object) -> Tensor:
            if input_ids.shape[1] == 1:
                self.decode_rows.append(len(input_ids))
            else:
                self.prefill_rows += len(input_ids)
            return hidden(input_ids, **kwargs)

        monkeypatch.setattr(model, "hidden", watched)


VARIANTS = {
    "llama": CONFIG,
    "learned positions": dataclasses.replace(CONFIG, rope=None),
    "sliding window": dataclasses.replace(CONFIG, sliding_window=7, sliding_layers=(True, False)),
    "soft cap": dataclasses.replace(CONFIG, logit_softcap=3.0),
    "dynamic rope": dataclasses.replace(CONFIG, rope=Rope(partial=0.5)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_a_full_forward(variant: str, temperature: float) -> None:
    model = lively(VARIANTS[variant])
    prompts = ragged_prompts()
    settings = dataclasses.replace(PLAIN, temperature=temperature)
    for prompt, out in zip(prompts, generate(model, prompts, seeds_of(prompts), settings), strict=True):
        logits = model(torch.tensor([prompt + out.ids]))[0].double() / temperature
        full = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        want = full.gather(-1, torch.tensor(out.ids)[:, None])[:, 0]
        assert (want - torch.tensor(out.logprobs)).abs().max().item() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_completion_depends_on_neither_batch_nor_order_nor_neighbours(dtype: torch.dtype) -> None:
    model = lively(CONFIG).to(dtype)
    prompts = ragged_prompts()
    seeds = seeds_of(prompts)
    whole = generate(model, prompts, seeds, PLAIN)
    assert len({tuple(out.ids) for out in whole}) == len(prompts)
    for rows in (1, 3, 8, 100):
        assert generate(model, prompts, seeds, PLAIN, max_rows=rows) == whole
    assert generate(model, prompts[::-1], seeds[::-1], PLAIN)[::-1] == whole
    some = [3, 17, 9]
    assert generate(model, [prompts[i] for i in some], [seeds[i] for i in some], PLAIN) == [
        whole[i] for i in some
    ]
    assert [generate(model, [p], [s], PLAIN)[0] for p, s in zip(prompts, seeds, strict=True)] == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_does_it_beside_much_longer_prompts_with_grouped_queries(dtype: torch.dtype) -> None:
    model = lively(dataclasses.replace(CONFIG, hidden_size=64, num_heads=8, head_dim=8, max_seq_len=1024)).to(
        dtype
    )
    rng = random.Random(2)
    prompts = [[rng.randrange(5, V) for _ in range(n)] for n in (5, 180, 250, 310, 400, 700)]
    settings = Sampling(max_new_tokens=12)
    whole = generate(model, prompts, seeds_of(prompts), settings)
    alone = [generate(model, [p], seeds_of([p]), settings)[0] for p in prompts]
    assert alone == whole


def test_seeds_and_sample_numbers_give_other_completions(model: Transformer) -> None:
    prompt = [7, 8, 9]
    seeds = [row_seed(seed, prompt, number) for seed in (0, 1) for number in range(10)]
    outs = generate(model, [prompt] * 20, seeds, PLAIN)
    assert len({tuple(out.ids) for out in outs}) >= 18  # some end at once
    assert generate(model, [prompt] * 20, seeds, PLAIN) == outs


def test_greedy_equals_transformers(model: Transformer, tmp_path: object) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(model, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = ragged_prompts(12)
    outs = generate(model, prompts, [0] * 12, dataclasses.replace(PLAIN, temperature=0.0))
    assert {out.finish_reason for out in outs} == {"stop", "length"}
    for prompt, out in zip(prompts, outs, strict=True):
        ids = torch.tensor([prompt])
        full = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=list(EOS),
            pad_token_id=0,
        )
        assert full[0, len(prompt) :].tolist() == out.ids


def test_first_and_second_tokens_follow_the_models_distribution(model: Transformer) -> None:
    """Chi-square over 20,000 completions of one prompt, which is read once."""
    prompt, count = [9, 30, 12], 20_000
    settings = Sampling(max_new_tokens=2, temperature=1.3)
    outs = generate(model, [prompt] * count, [row_seed(0, prompt, n) for n in range(count)], settings)
    with torch.no_grad():
        first = (model(torch.tensor([prompt]))[0, -1] / 1.3).softmax(-1).double()
    chi_square(torch.tensor([out.ids[0] for out in outs]), first)
    common = int(first.argmax())
    with torch.no_grad():
        second = (model(torch.tensor([[*prompt, common]]))[0, -1] / 1.3).softmax(-1).double()
    chi_square(torch.tensor([out.ids[1] for out in outs if out.ids[0] == common]), second)


def chi_square(tokens: Tensor, probs: Tensor) -> None:
    counts, expected = torch.bincount(tokens, minlength=V).double(), probs / probs.sum() * len(tokens)
    rare = expected < 5
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    keep = expected > 0
    assert stats.chisquare(counts[keep].numpy(), expected[keep].numpy()).pvalue > 1e-3


def test_the_end_token_is_kept_and_nothing_follows_it(model: Transformer) -> None:
    prompts = ragged_prompts()
    outs = generate(model, prompts, seeds_of(prompts), PLAIN)
    for out in outs:
        ended = out.finish_reason == "stop"
        assert len(out.ids) == len(out.logprobs)
        assert (out.ids[-1] in EOS) == ended
        assert not set(out.ids[:-1]) & set(EOS)
        assert ended or (out.finish_reason == "length" and len(out.ids) == 40)
    assert {out.finish_reason for out in outs} == {"stop", "length"}


def test_an_end_token_never_shortens_what_others_get(model: Transformer) -> None:
    """Without end tokens the same draws come out, only longer."""
    prompts = ragged_prompts()
    short = generate(model, prompts, seeds_of(prompts), PLAIN)
    long = generate(model, prompts, seeds_of(prompts), Sampling(max_new_tokens=40))
    for a, b in zip(short, long, strict=True):
        assert b.ids[: len(a.ids)] == a.ids
        assert len(b.ids) == 40


def test_a_stop_condition_ends_a_row_with_the_token_that_met_it(model: Transformer) -> None:
    prompts = ragged_prompts()
    free = generate(model, prompts, seeds_of(prompts), Sampling(max_new_tokens=40))
    stopped = generate(
        model, prompts, seeds_of(prompts), Sampling(max_new_tokens=40), stop=lambda ids: ids[-1] % 7 == 0
    )
    for a, b in zip(free, stopped, strict=True):
        first = next((place for place, token in enumerate(a.ids) if token % 7 == 0), None)
        assert b.ids == (a.ids if first is None else a.ids[: first + 1])
        assert b.finish_reason == ("length" if first is None else "stop")


def test_equal_prompts_are_read_once(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(model, monkeypatch)
    a, b = [7, 8, 9], [9, 8]
    generate(model, [a, b] * 6, list(range(12)), Sampling(max_new_tokens=3))
    assert spy.prefill_rows == 2


def test_ended_rows_leave_and_waiting_ones_take_their_place(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ragged_prompts(64)
    spy = Spy(model, monkeypatch)
    outs = generate(model, prompts, seeds_of(prompts), PLAIN, max_rows=16)
    needed = sum(len(out.ids) - 1 for out in outs)
    longest = max(len(out.ids) for out in outs)
    assert max(spy.decode_rows) == 16
    assert sum(spy.decode_rows) < 1.25 * needed + 8 * longest
    assert sum(spy.decode_rows) < 0.6 * 64 * longest


def test_prompt_and_completion_may_fill_the_context_exactly(model: Transformer) -> None:
    prompts = [[5] * 250, [6] * 3, [7] * 100]
    outs = generate(model, prompts, [1, 2, 3], Sampling(max_new_tokens=6))
    assert [len(out.ids) for out in outs] == [6, 6, 6]
    with pytest.raises(AssertionError, match="context"):
        generate(model, prompts, [1, 2, 3], Sampling(max_new_tokens=7))


def test_one_token_and_no_prompts(model: Transformer) -> None:
    assert generate(model, [], [], PLAIN) == []
    (out,) = generate(model, [[9]], [4], Sampling(max_new_tokens=1))
    assert (len(out.ids), out.finish_reason) == (1, "length")


def test_the_model_comes_back_as_it_was(model: Transformer) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    generate(model, [[9, 8]], [0], PLAIN)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_end_the_run_in_plain_words(temperature: float) -> None:
    model = lively(CONFIG)
    with torch.no_grad():
        model.head_weight.fill_(torch.nan)
    with pytest.raises(RlhfkitError, match="not finite"):
        generate(model, [[9]], [0], dataclasses.replace(PLAIN, temperature=temperature))


def test_results_compare_by_value() -> None:
    assert Generated([1], [-0.5], "stop") == Generated([1], [-0.5], "stop")
