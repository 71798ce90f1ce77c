"""A PPO iteration as a step of the loop: sample, score, measure, update; and what resuming needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhfkit import context
from rlhfkit.data.batching import Order
from rlhfkit.data.examples import PromptSet
from rlhfkit.data.shapes import Message
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.engine.actors import Actors, EpisodeScorer
from rlhfkit.engine.diagnosis import Watch
from rlhfkit.engine.draw import Sampling, row_seed
from rlhfkit.engine.generate import generate
from rlhfkit.engine.lm import lm_objective
from rlhfkit.engine.loop import Figures, Objective, optimize
from rlhfkit.engine.optim import AdamW, WeightAverage, learning_rate
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
from rlhfkit.engine.reward_scale import ScoreScale
from rlhfkit.engine.rollout import Episode, cut, measure
from rlhfkit.engine.run import Run, Snapshot
from rlhfkit.engine.setup import Setup
from rlhfkit.objectives.kl import AdaptiveKL

if TYPE_CHECKING:
    from rlhfkit.data.windows import WindowOrder
    from rlhfkit.stages.ppo import Config

#: Mean over an iteration's updates -> the name it is logged under.
UPDATE_FIGURES = {
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "loss/ptx": "loss/ptx_avg",
    "approxkl": "policy/approxkl_avg",
    "approxkl_k3": "policy/approxkl_k3_avg",
    "clipfrac": "policy/clipfrac_avg",
    "entropy": "policy/entropy_avg",
    "ratio": "val/ratio",
    "value_clipfrac": "val/clipfrac_avg",
    "grad_norm": "policy/grad_norm",
    "grad_norm_1": "val/grad_norm",
}


class Iteration:
    """The state that lives from one iteration to the next: optimizers, average, KL coefficient, counters."""

    def __init__(
        self,
        config: Config,
        setup: Setup,
        actors: Actors,
        tokenizer: Tokenizer,
        data: PromptSet,
        scorer: EpisodeScorer,
        run: Run,
        total: int,
    ) -> None:
        self.config, self.setup, self.actors, self.tokenizer = config, setup, actors, tokenizer
        self.data, self.order = data, Order(len(data.records), config.seed)
        self.scorer, self.run, self.total = scorer, run, total
        adam = partial(AdamW, weight_decay=config.weight_decay, eps=config.adam_eps, dtype=setup.dtype)
        self.policy_optimizer, self.value_optimizer = adam(actors.policy), adam(actors.critic)
        self.average = WeightAverage(self.policy_optimizer, config.ema_decay) if config.ema_decay else None
        # Of a shared trunk the average is saved, so its head has one, too.
        shared_average = config.ema_decay and actors.shared
        self.head_average = WeightAverage(self.value_optimizer, config.ema_decay) if shared_average else None
        self.kl = AdaptiveKL(config.kl_coef, config.kl_target or 1.0, config.kl_horizon)
        self.scale = None
        if config.reward_scale != "none":
            self.scale = ScoreScale(config.reward_scale, config.reward_shift)
        self.updates = 0
        self.watch = Watch(exact=setup.dtype == torch.float32)
        self.last_score = 0.0
        self.ptx = self._windows() if config.ptx else None
        trunks = (actors.policy, actors.ref_policy, actors.value_model.backbone)
        #: do episodes of different lengths share rows?
        self.filled = config.micro_batch_size is None and all(trunk.fills_rows for trunk in trunks)

    # -- one iteration -----------------------------------------------------------------------------------

    def step(self, index: int) -> Figures:
        """Sample, score, measure, log, update; returns the iteration's figures."""
        clock = _Clock()
        episodes = self._sample(index)
        clock.lap("time/rollout")
        # Nothing has changed yet. One of several processes must not leave the others waiting for it.
        with context.interruptible(self.setup.dist.world_size == 1):
            self.scorer.score(episodes)
        config = self.config
        if self.scale:
            self.scale.see([e.scorer_score for e in episodes], self.setup.dist)
        pay(episodes, self._payment(), self.scale)
        clock.lap("time/scoring")
        plans = [self._plan(episodes, index, epoch) for epoch in range(config.ppo_epochs)]
        self._measure(plans[0])
        coef = self.kl.coef
        set_advantages(
            episodes,
            self.setup.dist,
            kl_coef=coef,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            whiten_rewards=config.whiten_rewards,
            kl_estimator=config.kl_estimator,
        )
        scale_advantages(episodes, self.setup.dist, whitened=config.whiten == "batch")
        clock.lap("time/logprobs")
        figures = rollout_figures(episodes, self.setup.dist, kl_coef=coef, kl_estimator=config.kl_estimator)
        if self.scale:
            figures["objective/score_scale"] = self.scale.divisor
        if (index + 1) % config.log_every == 0 or index == 0:
            self._log_samples(episodes, index)
        figures |= self._update(plans, index)
        clock.lap("time/update")
        if config.kl_target is not None:
            self.kl.update(figures["objective/kl"], config.batch_size)
        self.last_score = figures["objective/scores"]
        self.watch.look(figures)
        tokens = figures["response/length"] * config.batch_size
        return {**figures, **clock.laps, "episode": float((index + 1) * config.batch_size), "tokens": tokens}

    def _payment(self) -> Payment:
        config = self.config
        if config.missing_eos == "off":
            return Payment(None, "replace", config.reward_clip)
        penalty, mode = config.missing_eos_penalty, config.missing_eos
        return Payment(penalty, mode, config.reward_clip, config.min_response)

    def _sample(self, index: int) -> list[Episode]:
        numbers = list(self.setup.dist.share(self.config.batch_size))
        picks = [self.order[index * self.config.batch_size + n] for n in numbers]
        seeds = [row_seed(self.config.seed, index, n) for n in numbers]
        return self.answer(self.data, numbers, picks, seeds)

    def answer(
        self, data: PromptSet, numbers: Sequence[int], picks: Sequence[int], seeds: Sequence[int]
    ) -> list[Episode]:
        """Sample one response to each picked prompt with the policy as it stands."""
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_ids=self.tokenizer.eos_ids,
        )
        outputs = generate(self.actors.policy, [data.sequences[i] for i in picks], seeds, sampling)
        return [
            Episode(
                number=n,
                id=data.ids[i],
                prompt=data.records[i].prompt,
                prompt_ids=data.sequences[i],
                response_ids=list(out.ids),
                ended=out.finish_reason == "stop",
                text=self._text(data.records[i].prompt, out.ids),
            )
            for n, i, out in zip(numbers, picks, outputs, strict=True)
        ]

    def _text(self, prompt: str | list[Message], ids: list[int]) -> str:
        """What an answer says, special tokens left out."""
        return (
            self.tokenizer.decode_continuation(ids) if isinstance(prompt, str) else self.tokenizer.decode(ids)
        )

    def _plan(self, episodes: Sequence[Episode], index: int, epoch: int) -> list[list[list[Episode]]]:
        """Minibatches of micro-batches of this process's episodes."""
        config = self.config
        mine = {e.number: e for e in episodes}
        parts = minibatch_plan(config.batch_size, config.minibatches, [config.seed, index, epoch])
        return [
            cut(
                [mine[n] for n in part if n in mine],
                rows=config.micro_batch_size,
                tokens=self.setup.token_budget,
                filled=self.filled,
            )
            for part in parts
        ]

    def _measure(self, plan: Sequence[Sequence[Sequence[Episode]]]) -> None:
        measure(
            [group for minibatch in plan for group in minibatch],
            policy=self.actors.policy,
            ref_policy=self.actors.ref_policy,
            value_model=self.actors.value_model,
            temperature=self.config.temperature,
            pad_id=self.tokenizer.pad_id,
            device=self.setup.device,
            filled=self.filled,
        )

    def _update(self, plans: Sequence[Sequence[Sequence[Sequence[Episode]]]], index: int) -> Figures:
        config = self.config
        schedule = {"schedule": config.lr_schedule, "warmup": config.warmup}
        rate = learning_rate(index, self.total, peak=config.lr, **schedule)  # type: ignore[arg-type]
        peak = config.lr if config.value_lr is None else config.value_lr
        value_rate = learning_rate(index, self.total, peak=peak, **schedule)  # type: ignore[arg-type]
        seen: list[Figures] = []
        for minibatch in chain.from_iterable(plans):
            members = [e for group in minibatch for e in group]
            if config.whiten == "minibatch":
                scale_advantages(members, self.setup.dist, whitened=True)
            weigh(members, self.setup.dist, config.loss_mean, config.max_new_tokens)
            seen.append(
                optimize(
                    self._objectives(minibatch),
                    [(self.policy_optimizer, rate), (self.value_optimizer, value_rate)],
                    self.setup.dist,
                    grad_clip=config.grad_clip,
                    clip_together=self.actors.shared,
                )
            )
            self.updates += 1
            for average in (self.average, self.head_average):
                if average:
                    average.update()
            # After every update, not every epoch: InstructGPT's rollouts have one epoch.
            if config.stop_kl is not None and seen[-1]["approxkl"] > config.stop_kl:
                break
        out = {
            new: sum(s[old] for s in seen) / len(seen)
            for old, new in UPDATE_FIGURES.items()
            if old in seen[0]
        }
        ratios = [s["ratio"] for s in seen]
        return {
            **out,
            "val/ratio_var": sum((r - out["val/ratio"]) ** 2 for r in ratios) / len(ratios),
            "policy/ratio_max": max(s["ratio_max"] for s in seen),
            "policy/ratio_first": ratios[0],
            "policy/ratio_max_first": seen[0]["ratio_max"],
            "policy/approxkl_first": seen[0]["approxkl"],
            "policy/updates": float(len(seen)),
            "lr": rate,
        }

    def _objectives(self, minibatch: Sequence[Sequence[Episode]]) -> list[Objective]:
        config, pad_id, device = self.config, self.tokenizer.pad_id, self.setup.device
        how = Losses(config.temperature, config.clip_eps, config.value_clip_eps, config.value_weight)
        objectives = ppo_objectives(
            self.actors.policy,
            self.actors.value_model,
            minibatch,
            how,
            pad_id=pad_id,
            device=device,
            filled=self.filled,
        )
        if self.ptx is not None:
            objectives.append(self._ptx_objective(self.ptx))
        return objectives

    # -- the pretraining mix -------------------------------------------------------------------------------

    def _windows(self) -> WindowOrder:
        from rlhfkit.data.windows import WindowOrder, Windows, open_shards

        shards = open_shards(self.config.ptx, self.tokenizer.digest)
        limit = self.actors.policy.config.max_seq_len
        return WindowOrder(Windows(shards, min(self.config.max_seq_len or limit, limit)), self.config.seed)

    def _ptx_objective(self, order: WindowOrder) -> Objective:
        """Mean nats a token of the next windows, times --ptx-coef, into the same optimizer step."""
        from rlhfkit.data.windows import window_batch

        config, dist = self.config, self.setup.dist
        width = order.windows.context
        count = config.ptx_batch_size or -(-config.batch_size // config.minibatches)
        mine = [self.updates * count + i for i in dist.share(count)]
        rows = config.micro_batch_size or max(1, self.setup.token_budget // width)
        batches: list[Callable[[], object]] = [
            lambda part=mine[i : i + rows]: window_batch([order[p] for p in part], self.setup.device)  # type: ignore[misc]
            for i in range(0, len(mine), rows)
        ]
        return lm_objective(self.actors.policy, batches, float(len(mine) * width), "ptx", config.ptx_coef)  # type: ignore[arg-type]

    # -- logs and checkpoints --------------------------------------------------------------------------------

    def _log_samples(self, episodes: Sequence[Episode], index: int) -> None:
        for episode in sorted(episodes, key=lambda e: e.number)[: self.config.log_samples]:
            prompt = episode.prompt
            self.run.log(
                "samples",
                {
                    "step": index + 1,
                    "prompt": prompt if isinstance(prompt, str) else [vars_of(m) for m in prompt],
                    "completion": episode.text,
                    "score": episode.scorer_score,
                    "paid": episode.score,
                    "kl": float((episode.old_logprobs - episode.ref_logprobs).sum()),
                    "num_tokens": len(episode.response_ids),
                    "finish_reason": "stop" if episode.ended else "length",
                },
            )

    def snapshot(self) -> Snapshot:
        """Everything that the next iteration depends on."""
        tensors: dict[str, Mapping[str, Tensor]] = {
            "policy": self.policy_optimizer.tensors(),
            "value": self.value_optimizer.tensors(),
        }
        if self.average:
            tensors["average"] = self.average.tensors()
        if self.head_average:
            tensors["head_average"] = self.head_average.tensors()
        state: dict[str, object] = {"kl_coef": self.kl.coef, "updates": self.updates}
        if self.scale:
            state["reward_scale"] = self.scale.state()
        return Snapshot(tensors, state)

    def restore(self) -> None:
        """Take back what `snapshot` gave."""
        device = self.setup.device
        self.policy_optimizer.load_tensors(self.run.load("policy", device))
        self.value_optimizer.load_tensors(self.run.load("value", device))
        if self.average:
            self.average.load_tensors(self.run.load("average", device))
        if self.head_average:
            self.head_average.load_tensors(self.run.load("head_average", device))
        self.kl.coef = float(self.run.state["kl_coef"])
        self.updates = int(self.run.state["updates"])
        if self.scale:
            self.scale = ScoreScale(self.scale.over, self.scale.shifted, **self.run.state["reward_scale"])

    def final_weights(self) -> Mapping[str, Tensor]:
        """The policy's weights to save: the average if there is one."""
        return self.average.weights if self.average else self.policy_optimizer.masters

    def final_value_weights(self) -> Mapping[str, Tensor]:
        """The value model's: its last ones, or where it shares the trunk, what is saved of the policy."""
        if not self.actors.shared:
            return self.value_optimizer.masters
        trunk = {f"backbone.{k}": v for k, v in self.final_weights().items() if k != "lm_head.weight"}
        head = self.head_average.weights if self.head_average else self.value_optimizer.masters
        return {**trunk, "score.weight": head["weight"]}


def vars_of(message: object) -> dict[str, str]:
    """A message as plain data."""
    return {"role": message.role, "content": message.content}  # type: ignore[attr-defined]


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: Figures = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
