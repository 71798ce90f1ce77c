"""Promises of every trainer: how a batch is cut up, packed or spread over processes changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rlhfkit
from rlhfkit import context
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.data.windows import WindowOrder, Windows, open_shards
from rlhfkit.engine.optim import AdamW
from rlhfkit.errors import CannotCreate, DataError, Interrupted, RlhfkitError
from rlhfkit.stages import ppo, pretrain, sft, train_rm

if TYPE_CHECKING:
    from tests.conftest import Tiny


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def assert_close(a: Path, b: Path, atol: float) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=0, msg=name)


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def train_sft(tiny: Tiny, out: Path, **settings: Any) -> dict[str, Any]:
    settings = {"steps": 6, "batch_size": 16, "lr": 1e-3, **settings}
    return sft.run([str(tiny.demos)], sft.Config(model=str(tiny.base), output=str(out), **settings))


def test_micro_batches_and_packing_change_no_weight(tiny: Tiny, tmp_path: Path) -> None:
    train_sft(tiny, tmp_path / "whole")
    for name, settings in {
        "ones": {"micro_batch_size": 1},
        "threes": {"micro_batch_size": 3},
        "packed": {"packing": True},
        "packed-rows": {"packing": True, "micro_batch_size": 1},
    }.items():
        train_sft(tiny, tmp_path / name, **settings)
        assert_close(tmp_path / "whole", tmp_path / name, 2e-6)


def test_micro_batches_change_no_reward_model(tiny: Tiny, tmp_path: Path) -> None:
    for name, rows in (("whole", None), ("cut", 4)):
        config = train_rm.Config(
            model=str(tiny.sft),
            output=str(tmp_path / name),
            steps=5,
            batch_size=12,
            lr=1e-3,
            micro_batch_size=rows,
        )
        train_rm.run([str(tiny.rankings)], config)
    assert_close(tmp_path / "whole", tmp_path / "cut", 1e-5)
    # five steps of Adam at 1e-3 move a weight by up to 5e-3; where a gradient is near 0, rounding shows


def test_pairs_of_a_group_train_like_their_ranking(tiny: Tiny, tmp_path: Path) -> None:
    from rlhfkit.stages import rank2pairs

    pairs = [p for b in rank2pairs.run([str(tiny.rankings)], rank2pairs.Config()) for p in b]
    records = [json.loads(line) for line in _lines(pairs)]
    assert len(records) == 120 * 5
    for name, source in (("rankings", [str(tiny.rankings)]), ("pairs", records)):
        config = train_rm.Config(
            model=str(tiny.sft), output=str(tmp_path / name), steps=5, batch_size=12, lr=1e-3
        )
        train_rm.run(source, config)
    assert_close(tmp_path / "rankings", tmp_path / "pairs", 2e-6)


def _lines(records: list[dict[str, object]]) -> list[bytes]:
    import msgspec

    return [msgspec.json.encode(r) for r in records]


def test_zero_learning_rate_changes_no_bit(tiny: Tiny, tmp_path: Path) -> None:
    train_sft(tiny, tmp_path / "sft", lr=0.0)
    before, after = weights(tiny.base), weights(tmp_path / "sft")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_first_loss_of_a_zeroed_head_is_log_of_the_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    config = pretrain.Config(
        tokenizer=str(tiny.base),
        output=str(tmp_path / "p"),
        layers=1,
        hidden=16,
        heads=2,
        context=16,
        steps=1,
        batch_size=8,
    )
    pretrain.run([str(tiny.shard)], config)
    vocabulary = json.loads((tmp_path / "p" / "config.json").read_text())["vocab_size"]
    first = metrics(tmp_path / "p")[0]["loss/train"]
    assert first == pytest.approx(torch.tensor(float(vocabulary)).log().item(), abs=0.05)


def test_non_finite_loss_stops_before_the_update(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RlhfkitError, match="not finite") as caught:
        train_sft(tiny, tmp_path / "sft", lr=1e30, grad_clip=0.0, steps=50)
    assert caught.value.exit_code == 1


def test_an_existing_output_is_refused_and_force_replaces_it(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_sft(tiny, out)
    with pytest.raises(CannotCreate, match="finished run"):
        train_sft(tiny, out)
    before = (out / "run.json").read_text()
    train_sft(tiny, out, force=True, lr=2e-3)
    assert (out / "run.json").read_text() != before
    assert {p.name for p in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "run.json",
        "metrics.jsonl",
    }
    assert not (out / "checkpoints").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    with pytest.raises(CannotCreate, match="not empty"):
        train_sft(tiny, foreign)


def test_an_unfinished_run_of_other_settings_or_data_is_not_continued(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt_after(tiny, out, 3)
    with pytest.raises(CannotCreate, match=r"lr was 0\.001, is now 0\.002"):
        train_sft(tiny, out, lr=2e-3)
    changed = [{"prompt": "red blue ->", "completion": " blue red"}] * 20
    with pytest.raises(DataError, match="the data changed"):
        sft.run(changed, sft.Config(model=str(tiny.base), output=str(out), steps=6, batch_size=16, lr=1e-3))
    with pytest.raises(CannotCreate, match="--no-resume"):
        train_sft(tiny, out, resume=False)
    train_sft(tiny, out)
    assert [m["step"] for m in metrics(out)] == [1, 6]


def interrupt_after(tiny: Tiny, out: Path, step: int) -> None:
    """Run until `step`, as if SIGTERM had come during it."""

    class Stopper(context.Reporter):
        def progress(self, title: str, total: int | None, unit: str) -> context.Progress:
            class Watch(context.Progress):
                def update(self, done: int, figures: object = None) -> None:
                    if done == step:
                        context.request_stop(15)

            return Watch()

    with context.surroundings(Stopper(), context.Invocation()), pytest.raises(Interrupted) as caught:
        train_sft(tiny, out)
    assert caught.value.exit_code == 143


def test_a_corrupt_checkpoint_is_named(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt_after(tiny, out, 3)
    file = out / "checkpoints" / "step-3" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="SHA-256") as caught:
        train_sft(tiny, out)
    assert caught.value.where is not None
    assert caught.value.where.endswith("optimizer.safetensors")


def test_first_ppo_iteration_is_on_policy_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    config = ppo.Config(
        model=str(tiny.sft),
        reward=str(tiny.rm),
        output=str(tmp_path / "ppo"),
        steps=2,
        batch_size=24,
        minibatches=3,
        max_new_tokens=10,
        lr=1e-3,
        warmup=0,
    )
    ppo.run([str(tiny.prompts)], config)
    first, second = metrics(tmp_path / "ppo")
    assert first["objective/kl"] == first["objective/kl_k2"] == first["objective/kl_k3"] == 0.0
    assert first["policy/ratio_first"] == first["policy/ratio_max_first"] == 1.0
    assert first["policy/approxkl_first"] == 0.0
    assert second["policy/ratio_max_first"] == 1.0
    assert second["objective/kl"] != 0.0


def test_ppo_without_learning_rate_stays_put_in_every_epoch(tiny: Tiny, tmp_path: Path) -> None:
    config = ppo.Config(
        model=str(tiny.sft),
        reward=str(tiny.rm),
        output=str(tmp_path / "ppo"),
        steps=2,
        batch_size=16,
        minibatches=2,
        ppo_epochs=2,
        max_new_tokens=10,
        lr=0.0,
    )
    ppo.run([str(tiny.prompts)], config)
    before, after = weights(tiny.sft), weights(tmp_path / "ppo")
    assert all(torch.equal(before[k], after[k]) for k in before)
    for line in metrics(tmp_path / "ppo"):
        assert line["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
        assert line["val/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert line["policy/clipfrac_avg"] == 0.0


def ppo_of(tiny: Tiny, out: Path, **settings: Any) -> None:
    settings = {
        "steps": 1,
        "batch_size": 12,
        "minibatches": 1,
        "max_new_tokens": 10,
        "lr": 1e-3,
        "warmup": 0,
        **settings,
    }
    config = ppo.Config(model=str(tiny.sft), reward=str(tiny.rm), output=str(out), **settings)
    ppo.run([str(tiny.prompts)], config)


@pytest.mark.parametrize("loss_mean", ["tokens", "responses", "length"])
def test_micro_batches_change_no_policy(tiny: Tiny, tmp_path: Path, loss_mean: str) -> None:
    for name, rows in (("whole", None), ("cut", 5)):
        ppo_of(tiny, tmp_path / name, micro_batch_size=rows, minibatches=2, loss_mean=loss_mean)
    assert_close(tmp_path / "whole", tmp_path / "cut", 5e-6)
    assert_close(tmp_path / "whole" / "value", tmp_path / "cut" / "value", 5e-6)


def test_the_pretraining_loss_joins_the_gradient_of_one_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With coefficient 0 it is plain PPO to the bit; with G the gradient has G times that of the windows."""
    seen: list[dict[str, torch.Tensor]] = []
    take_step = AdamW.step

    def watched(self: AdamW, lr: float) -> None:
        seen.append({name: p.grad.clone() for name, p in self.masters.items() if p.grad is not None})
        take_step(self, lr)

    monkeypatch.setattr(AdamW, "step", watched)
    monkeypatch.setattr(ppo, "_check", lambda config: None)  # which calls a coefficient of 0 a mistake
    common = {"grad_clip": 0.0, "max_seq_len": 24, "seed": 3}
    ppo_of(tiny, tmp_path / "plain", **common)
    for name, coef in (("zero", 0.0), ("some", 0.7)):
        ptx = {"ptx": (str(tiny.shard),), "ptx_coef": coef, "ptx_batch_size": 4}
        ppo_of(tiny, tmp_path / name, **common, **ptx)
    plain, zero = weights(tmp_path / "plain"), weights(tmp_path / "zero")
    assert all(torch.equal(plain[k], zero[k]) for k in plain)

    assert len(seen) == 6  # one step of the policy and one of the value network each time
    without, _, _, _, with_ptx, _ = seen
    model = rlhfkit.load_model(tiny.sft)
    order = WindowOrder(Windows(open_shards([tiny.shard], Tokenizer.from_dir(tiny.sft).digest), 24), 3)
    rows = torch.stack([torch.from_numpy(order[i].copy()) for i in range(4)])
    F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        expected = without[name] + 0.7 * parameter.grad
        torch.testing.assert_close(with_ptx[name], expected, atol=1e-6, rtol=1e-4)


def test_ptx_of_weight_zero_is_refused_and_of_some_weight_lowers_its_loss(tiny: Tiny, tmp_path: Path) -> None:
    base = {
        "model": str(tiny.sft),
        "reward": str(tiny.rm),
        "batch_size": 16,
        "minibatches": 2,
        "max_new_tokens": 8,
    }
    config = ppo.Config(
        output=str(tmp_path / "ptx"), steps=6, lr=2e-3, warmup=0, ptx=(str(tiny.shard),), ptx_coef=1.0, **base
    )
    ppo.run([str(tiny.prompts)], config)
    losses = [m["loss/ptx_avg"] for m in metrics(tmp_path / "ptx")]
    assert losses[-1] < losses[0] - 0.1


def test_two_processes_take_the_steps_of_one(tiny: Tiny, tmp_path: Path) -> None:
    rewarded = [str(tiny.prompts), "-m", str(tiny.sft), "-r", str(tiny.rm)]
    rewarded += ["--steps", "2", "--minibatches", "2", "--max-new-tokens", "9"]
    jobs = {
        "sft": [str(tiny.demos), "-m", str(tiny.base), "--steps", "5"],
        "train-rm": [str(tiny.rankings), "-m", str(tiny.sft), "--steps", "5"],
        "ppo": rewarded,
        "ppo --value-model shared": rewarded,
    }
    compare_processes(jobs, ["--batch-size", "14"], tmp_path)


def test_a_process_without_a_share_of_a_batch_keeps_step(tiny: Tiny, tmp_path: Path) -> None:
    """The last batch of five records in fours, and minibatches of one episode, leave one of two without work."""
    rewarded = [str(tiny.prompts), "-m", str(tiny.sft), "-r", str(tiny.rm)]
    few = ["--batch-size", "4", "--limit", "5"]
    compare_processes({"train-rm": [str(tiny.rankings), "-m", str(tiny.sft)]}, few, tmp_path)
    alone = ["--batch-size", "2", "--minibatches", "2", "--steps", "2", "--max-new-tokens", "9"]
    compare_processes({"ppo": rewarded}, alone, tmp_path)


def compare_processes(jobs: dict[str, list[str]], sizes: list[str], tmp_path: Path) -> None:
    for command, arguments in jobs.items():
        common = [*sizes, "--lr", "1e-3", "-q"]
        for processes in (1, 2):
            out = ["-o", str(tmp_path / f"{command}-{processes}")]
            launch = (
                []
                if processes == 1
                else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            )
            done = subprocess.run(
                [sys.executable, *launch, "-m", "rlhfkit", *command.split(), *arguments, *common, *out],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.splitlines()) == 1
        assert_close(tmp_path / f"{command}-1", tmp_path / f"{command}-2", 1e-5)
        if "ppo" in command:
            assert_close(tmp_path / f"{command}-1" / "value", tmp_path / f"{command}-2" / "value", 1e-5)
