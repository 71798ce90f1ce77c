"""ppo --value-model shared: a value head on the policy's trunk is read, trained, resumed and saved with it."""

from __future__ import annotations

import json
import shlex
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import rlhfkit
from rlhfkit import context
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.loop import optimize
from rlhfkit.engine.optim import AdamW
from rlhfkit.engine.ppo import Losses, ppo_objectives
from rlhfkit.engine.rollout import Episode, measure
from rlhfkit.errors import Interrupted
from rlhfkit.models.config import llama_config
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.loading import init_model
from rlhfkit.models.transformer import Transformer
from rlhfkit.stages import ppo

if TYPE_CHECKING:
    from tests.conftest import Tiny

V, CPU = 23, torch.device("cpu")
COMMON: dict[str, Any] = {"pad_id": 0, "device": CPU}
HOW = Losses(temperature=0.7, clip_eps=0.2, value_clip_eps=None, value_coef=0.3)


@pytest.fixture
def policy() -> Transformer:
    model = init_model(
        llama_config(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=32), 0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def with_head(policy: Transformer) -> ScalarModel:
    """A value head on the policy's own trunk."""
    value = ScalarModel(policy.config).to(policy.dtype)
    value.backbone = policy
    with torch.no_grad():
        value.score.weight.normal_(generator=torch.Generator().manual_seed(2))
    return value


def episodes() -> list[Episode]:
    """Ragged ones with invented measurements, some ratios beyond the clip."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for number, (before, after) in enumerate(((3, 4), (6, 2), (1, 7), (5, 1))):
        prompt, response = (torch.randint(1, V, (n,), generator=generator).tolist() for n in (before, after))
        episode = Episode(number, number, "", prompt, response, True)
        episode.old_logprobs = -3 + torch.randn(after, generator=generator)
        for name in ("scaled", "values", "returns"):
            setattr(episode, name, torch.randn(after, generator=generator))
        out.append(episode)
    return out


def gradients(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{place}.{name}": p.grad.clone()
        for place, module in enumerate(modules)
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def written_out(policy: Transformer, value: ScalarModel, everyone: list[Episode]) -> dict[str, torch.Tensor]:
    """The step's gradients from the definition: no padding, no masks, a sum over single tokens."""
    loss, tokens = torch.zeros((), dtype=torch.float64), 0
    for e in everyone:
        hidden = policy.hidden(torch.tensor([e.ids]))[0].double()
        logprobs = (hidden @ policy.head_weight.double().T / HOW.temperature).log_softmax(-1)
        for place, token in enumerate(e.response_ids):
            at = len(e.prompt_ids) + place - 1
            ratio = (logprobs[at, token] - e.old_logprobs[place]).exp()
            gain = e.scaled[place] * ratio, e.scaled[place] * ratio.clamp(0.8, 1.2)
            error = hidden[at] @ value.score.weight[0].double() - e.returns[place]
            loss = loss - torch.minimum(*gain) + HOW.value_coef * 0.5 * error**2
            tokens += 1
    (loss / tokens).backward()
    return gradients(policy, value.score)


def test_the_gradient_is_that_of_both_losses_written_out(policy: Transformer) -> None:
    everyone, value = episodes(), with_head(policy)
    copies = deepcopy((policy, value.score))
    expected = written_out(policy, value, everyone)
    for module in (policy, value):
        module.zero_grad()
    (objective,) = ppo_objectives(policy, value, [everyone[:3], everyone[3:]], HOW, **COMMON)
    for loss_of in objective.losses:
        (loss_of()[0] / objective.weight).backward()
    found = gradients(policy, value.score)
    assert found.keys() == expected.keys() == gradients_of_all(*copies)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def gradients_of_all(*modules: torch.nn.Module) -> set[str]:
    return {f"{place}.{name}" for place, m in enumerate(modules) for name, _ in m.named_parameters()}


def test_networks_of_their_own_give_the_same_two_parts(policy: Transformer) -> None:
    """A trunk of the same weights that is not shared: the policy's gradient is the sum of the two trunks'."""
    everyone, value = episodes(), with_head(policy)
    other = with_head(deepcopy(policy))
    for objective in ppo_objectives(policy, other, [everyone], HOW, **COMMON):
        for loss_of in objective.losses:
            (loss_of()[0] * objective.coef).backward()
    apart = gradients(policy, other.backbone, other.score)
    policy.zero_grad()
    (objective,) = ppo_objectives(policy, value, [everyone], HOW, **COMMON)
    next(iter(objective.losses))()[0].backward()
    for name, gradient in gradients(policy, value.score).items():
        place, _, parameter = name.partition(".")
        want = apart[f"2.{parameter}"] if place == "1" else apart[name] + apart.get(f"1.{parameter}", 0)
        torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-4, msg=name)


def test_one_norm_clips_trunk_and_head_together(policy: Transformer) -> None:
    everyone, value = episodes(), with_head(policy)
    expected = written_out(policy, value, everyone)
    for module in (policy, value):
        module.zero_grad()
    optimizers = [(AdamW(policy), 0.0), (AdamW(value.score), 0.0)]
    figures = optimize(
        ppo_objectives(policy, value, [everyone], HOW, **COMMON),
        optimizers,
        Dist(),
        grad_clip=0.1,
        clip_together=True,
    )
    norm = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    assert norm > 0.1
    assert figures["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert "grad_norm_1" not in figures
    for place, (optimizer, _) in enumerate(optimizers):
        for name, master in optimizer.masters.items():
            first_moment = optimizer.inner.state[master]["exp_avg"]
            want = 0.1 * expected[f"{place}.{name}"] * 0.1 / norm
            torch.testing.assert_close(first_moment, want, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_update_sees_what_was_measured_to_the_bit(policy: Transformer, dtype: torch.dtype) -> None:
    everyone = episodes()
    groups = [everyone[:3], everyone[3:]]
    policy = policy.to(dtype)
    value, reference = with_head(policy), init_model(policy.config, 5, dtype=dtype)
    measure(
        groups,
        policy=policy,
        ref_policy=reference,
        value_model=value,
        temperature=HOW.temperature,
        **COMMON,
    )
    for e in everyone:
        assert not e.old_logprobs.equal(e.ref_logprobs)
        e.returns = e.values
    (objective,) = ppo_objectives(policy, value, groups, HOW, **COMMON)
    for loss_of, group in zip(objective.losses, groups, strict=True):
        figures = loss_of()[1]
        assert figures["ratio"] == sum(len(e.response_ids) for e in group)
        assert figures["ratio_max"] == 1
        assert figures["approxkl"] == figures["value_error"] == 0


# -- the command ---------------------------------------------------------------------------------------------


def config(tiny: Tiny, out: Path, **settings: Any) -> ppo.Config:
    settings = {
        "model": str(tiny.sft),
        "reward": str(tiny.rm),
        "value_model": "shared",
        "batch_size": 16,
        "minibatches": 2,
        "max_new_tokens": 8,
        "steps": 4,
        "lr": 1e-3,
        "warmup": 0,
        **settings,
    }
    return ppo.Config(output=str(out), **settings)


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_the_value_directory_is_the_saved_policy_with_a_head(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    """The head that is saved is the average over updates, as the trunk is; the next round starts from it."""
    from rlhfkit.engine import iteration

    steps: list[torch.Tensor] = []

    class Watched(iteration.Iteration):
        def step(self, index: int) -> dict[str, float]:
            if not steps:
                steps.append(self.value_optimizer.masters["weight"].detach().clone())
            figures = super().step(index)
            steps.append(self.value_optimizer.masters["weight"].detach().clone())
            return figures

    monkeypatch.setattr(iteration, "Iteration", Watched)
    out = tmp_path / "ppo"
    ppo.run([str(tiny.prompts)], config(tiny, out, minibatches=1, ema_decay=ema_decay))
    assert not steps[0].any()
    average = steps[0]
    for step in steps[1:]:
        average = ema_decay * average + (1 - ema_decay) * step
    policy, value = rlhfkit.load_model(out), rlhfkit.load_model(out / "value")
    assert isinstance(value, ScalarModel)
    torch.testing.assert_close(value.score.weight.detach(), average)
    trunk = dict(value.backbone.named_parameters())
    assert trunk.keys() == dict(policy.named_parameters()).keys() - {"lm_head.weight"}
    assert all(p.equal(dict(policy.named_parameters())[name]) for name, p in trunk.items())

    def value_model(self: object, *arguments: Any) -> None:
        started.update(arguments[2].value_model.named_parameters())
        raise KeyboardInterrupt

    started: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(iteration.Iteration, "__init__", value_model)
    second = config(tiny, tmp_path / "again", model=str(out), value_model=str(out / "value"))
    with pytest.raises(KeyboardInterrupt):
        ppo.run([str(tiny.prompts)], second)
    assert all(p.equal(started[name]) for name, p in value.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_on_policy_at_first_and_learns_values(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    """Every answer is worth 2, so that is what the value of every token becomes."""
    program = tmp_path / "two.py"
    program.write_text("import sys\nfor _ in sys.stdin:\n    print('{\"score\": 2}', flush=True)\n")
    out = tmp_path / "ppo"
    reward = {"reward": f"cmd:{shlex.quote(sys.executable)} '{program}'", "missing_eos": "off", "kl_coef": 0}
    ptx = {"ptx": (str(tiny.shard),), "ptx_coef": 0.1}
    rates = {"value_coef": 0.5, "value_lr": 2e-2}
    ppo.run([str(tiny.prompts)], config(tiny, out, steps=12, dtype=dtype, **rates, **reward, **ptx))
    seen = metrics(out)
    assert seen[0]["objective/kl"] == seen[0]["objective/kl_k3"] == 0
    assert all(m["policy/ratio_first"] == m["policy/ratio_max_first"] == 1 for m in seen)
    assert all(m["policy/approxkl_first"] == 0 for m in seen)
    assert seen[-1]["objective/kl"] != 0
    assert 1 < seen[0]["loss/value_avg"] <= 2
    assert seen[-1]["loss/value_avg"] < 0.1
    assert seen[-1]["loss/ptx_avg"] < seen[0]["loss/ptx_avg"]
    assert "policy/grad_norm" in seen[0]
    assert "val/grad_norm" not in seen[0]


def test_stopping_and_going_on_changes_no_bit(tiny: Tiny, tmp_path: Path) -> None:
    class Stopper(context.Reporter):
        def progress(self, title: str, total: int | None, unit: str) -> context.Progress:
            class Watch(context.Progress):
                def update(self, done: int, figures: object = None) -> None:
                    if done == 2:
                        context.request_stop(15)

            return Watch()

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ppo.run([str(tiny.prompts)], config(tiny, whole))
    stop = context.surroundings(Stopper(), context.Invocation())
    with stop, pytest.raises(Interrupted):
        ppo.run([str(tiny.prompts)], config(tiny, parts))
    ppo.run([str(tiny.prompts)], config(tiny, parts))
    for name in ("model.safetensors", "value/model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_the_value_rate_is_the_heads(tiny: Tiny, tmp_path: Path) -> None:
    """With no rate for the policy, --value-lr moves the head and leaves the trunk."""
    ppo.run([str(tiny.prompts)], config(tiny, tmp_path / "ppo", lr=0.0, value_lr=1e-2))
    before, after = rlhfkit.load_model(tiny.sft), rlhfkit.load_model(tmp_path / "ppo")
    assert all(p.equal(dict(before.named_parameters())[name]) for name, p in after.named_parameters())
    value = rlhfkit.load_model(tmp_path / "ppo" / "value")
    assert isinstance(value, ScalarModel)
    assert value.score.weight.any()


def test_a_dry_run_counts_the_trunk_once(tiny: Tiny, tmp_path: Path) -> None:
    apart, shared = (
        ppo.run([str(tiny.prompts)], config(tiny, tmp_path / "ppo", dry_run=True, **settings))
        for settings in ({"value_model": "policy"}, {})
    )
    policy = rlhfkit.load_model(tiny.sft)
    trunk = sum(p.numel() for n, p in policy.named_parameters() if n != "lm_head.weight")
    assert shared["policy_parameters"] == apart["policy_parameters"]
    assert shared["value_parameters"] == 32
    assert apart["value_parameters"] == trunk + 32
    # float32: master, gradient and two moments of every trained parameter
    assert apart["memory_estimate_bytes"] - shared["memory_estimate_bytes"] == 16 * trunk
    assert shared["settings"]["value_coef"] is None
