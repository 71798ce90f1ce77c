"""Optimise a policy against a scorer with PPO, held near a reference by a KL penalty.

Every iteration samples one answer to each of --batch-size prompts, scores it (a reward model, or any
program with --reward 'cmd:...'), and takes --ppo-epochs x --minibatches optimizer steps on the clipped
surrogate and on a value function: a network of its own, or with --value-model shared a second head on the
policy. The reward of a token is -kl_coef * log(pi / pi_ref), and the score lands on the last one. With --ptx,
the pretraining loss is added to every step (PPO-ptx).

Iterations are counted as steps; the first one is logged before any update has changed the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhfkit import context
from rlhfkit.config import MODEL, RUN, TRAINING, Inputs, ReadConfig, TrainConfig, for_further_inputs, option
from rlhfkit.engine.presets import PRESETS
from rlhfkit.errors import UsageError
from rlhfkit.scorers.config import ScorerConfig

if TYPE_CHECKING:
    from rlhfkit.data.examples import PromptSet
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine.actors import Actors
    from rlhfkit.engine.setup import Setup

INPUTS = Inputs("PROMPTS", "Files of prompts.", kind="prompt")
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit ppo prompts.jsonl -m sft -r rm -o ppo --steps 200 --kl-coef 0.05",
    "rlhfkit ppo prompts.jsonl -m sft -r 'cmd:python gold.py' -o ppo --ptx corpus.safetensors --ptx-coef 0.5",
)
PPO = "PPO"


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig, ReadConfig, ScorerConfig):
    """Settings of `ppo`. Defaults follow InstructGPT where the paper gives them (docs/fidelity.md)."""

    model: str = option(
        short="-m", group=MODEL, metavar="DIR", help="Policy to start from: the fine-tuned model."
    )
    reward: str = option(
        short="-r", group=MODEL, metavar="SCORER", help="Reward: DIR or rm:DIR, lm:DIR, cmd:COMMAND."
    )
    eval_reward: str | None = option(
        None, group=MODEL, metavar="SCORER", help="Reward of --eval's prompts (default: --reward)."
    )
    ref: str | None = option(
        None, group=MODEL, metavar="DIR", help="Reference of the KL penalty (default: the starting policy)."
    )
    value_model: str | None = option(
        None,
        group=MODEL,
        metavar="DIR|reward|policy|shared",
        help="Start of the value network (default: the reward model if the reward is one, else the policy); "
        "shared: no network, a head on the policy's trunk.",
    )
    value_head: Literal["keep", "zero"] = option(
        "keep",
        group=MODEL,
        help="Head of a value network that starts from a reward model: its own, or one that says 0 at first.",
    )
    batch_size: int = option(
        512, group=TRAINING, minimum=1, metavar="N", help="Prompts (and episodes) an iteration."
    )
    lr: float = option(
        9e-6, group=TRAINING, minimum=0, metavar="RATE", help="Peak learning rate of the policy."
    )
    value_lr: float | None = option(
        None,
        group=TRAINING,
        minimum=0,
        metavar="RATE",
        help="Peak learning rate of the value network, or of a shared trunk's value head (default: --lr).",
    )
    lr_schedule: Literal["cosine", "linear", "constant"] = option(
        "constant", group=TRAINING, help="Over iterations, after the warm-up."
    )
    warmup: float = option(
        10.0,
        group=TRAINING,
        minimum=0,
        metavar="STEPS",
        help="Warm-up from 10% of the peak, in iterations (below 1: a fraction of all).",
    )
    adam_eps: float = option(1e-5, group=TRAINING, minimum=0, help="AdamW's epsilon.")
    eval: str | None = option(
        None, group=RUN, metavar="FILE", help="Held-out prompts to answer and score as the run goes on."
    )
    log_every: int = option(
        1,
        group=RUN,
        minimum=1,
        metavar="STEPS",
        shapes_result=False,
        help="Iterations between lines of metrics.jsonl.",
    )
    log_samples: int = option(
        4,
        group=RUN,
        minimum=0,
        metavar="N",
        shapes_result=False,
        help="Decoded samples kept per logged iteration.",
    )
    preset: Literal["instructgpt", "stiennon", "ziegler", "nplus", "gao"] | None = option(
        None, group=PPO, help="Settings of a paper, for every flag that is not given."
    )
    kl_coef: float = option(0.02, group=PPO, minimum=0, metavar="B", help="Coefficient of the KL penalty.")
    kl_target: float | None = option(
        None, group=PPO, above=0, metavar="NATS", help="Adapt the coefficient towards this KL per response."
    )
    kl_horizon: float = option(
        10_000.0, group=PPO, above=0, metavar="N", help="Episodes over which it adapts."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option(
        "k1", group=PPO, help="Estimate of the KL that a token is charged for (all three are logged)."
    )
    minibatches: int = option(
        8, group=PPO, minimum=1, metavar="N", help="Optimizer steps per epoch of a rollout."
    )
    ppo_epochs: int = option(1, group=PPO, minimum=1, metavar="N", help="Passes over each rollout.")
    max_new_tokens: int = option(64, group=PPO, minimum=1, metavar="N", help="Longest response.")
    temperature: float = option(1.0, group=PPO, above=0, metavar="T", help="Sampling temperature.")
    clip_eps: float = option(0.2, group=PPO, above=0, help="Clip the probability ratio to 1 +- this.")
    value_clip_eps: float | None = option(
        None, group=PPO, above=0, help="Clip the value's change to +- this."
    )
    value_coef: float | None = option(
        None, group=PPO, minimum=0, help="Weight of the value loss (default: 1, on a shared trunk 0.1)."
    )
    gamma: float = option(1.0, group=PPO, minimum=0, maximum=1, help="Discount.")
    gae_lambda: float = option(
        0.95, group=PPO, minimum=0, maximum=1, help="Lambda of the advantage estimator."
    )
    whiten: Literal["batch", "minibatch", "none"] = option(
        "batch",
        group=PPO,
        help="Scale advantages to mean 0 and variance 1 over the rollout or each minibatch.",
    )
    whiten_rewards: bool = option(False, group=PPO, help="Scale per-token rewards to variance 1, mean kept.")
    loss_mean: Literal["tokens", "responses", "length"] = option(
        "tokens",
        group=PPO,
        help="Average losses over tokens, over responses (each its own mean), or over --max-new-tokens each.",
    )
    missing_eos_penalty: float | None = option(
        1.0, group=PPO, minimum=0, metavar="P", help="A response without an end scores -P."
    )
    missing_eos: Literal["replace", "subtract", "off"] = option(
        "replace", group=PPO, help="What the penalty does to the score."
    )
    min_response: int = option(
        0,
        group=PPO,
        minimum=0,
        metavar="N",
        help="A response of fewer than N tokens counts as one without an end, so that empty ones do not pay.",
    )
    reward_scale: Literal["none", "batch", "running", "first"] = option(
        "none",
        group=PPO,
        help="Divide scores by their standard deviation: of this rollout, of all so far, or of the first.",
    )
    reward_shift: bool = option(
        False, group=PPO, help="With --reward-scale: also take off the mean of the same scores."
    )
    reward_clip: float | None = option(
        None, group=PPO, above=0, metavar="C", help="Clip scores to +-C (after --reward-scale)."
    )
    stop_kl: float | None = option(
        None,
        group=PPO,
        above=0,
        metavar="NATS",
        help="Leave a rollout when the update's approximate KL exceeds this.",
    )
    ema_decay: float = option(
        0.992,
        group=PPO,
        minimum=0,
        maximum=0.999999,
        help="Average of the weights that is saved (0: the last weights).",
    )
    ptx: tuple[str, ...] = option(
        (), group=PPO, metavar="SHARD", help="Token shards for the pretraining loss."
    )
    ptx_coef: float = option(
        0.0, group=PPO, minimum=0, metavar="G", help="Weight of the pretraining loss (mean nats a token)."
    )
    ptx_batch_size: int | None = option(
        None,
        group=PPO,
        minimum=1,
        metavar="N",
        help="Pretraining windows per optimizer step (default: its episodes).",
    )

    @property
    def value_weight(self) -> float:
        """--value-coef, or its default: on a shared trunk it pulls at the policy (Ziegler et al.: 0.1)."""
        if self.value_coef is not None:
            return self.value_coef
        return 0.1 if self.value_model == "shared" else 1.0


def run(inputs: Source, config: Config) -> dict[str, object]:
    """Train a policy; returns the summary (output, steps, tokens, seconds, final figures)."""
    from rlhfkit.data.batching import plan_steps
    from rlhfkit.data.examples import prompt_sequences
    from rlhfkit.data.records import Prompt, read_records
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine import setup as engine
    from rlhfkit.engine.actors import load_actors
    from rlhfkit.errors import DataError
    from rlhfkit.models.hub import resolve
    from rlhfkit.models.loading import config_of

    if config.preset is not None:
        context.note(f"preset {config.preset}: {PRESETS[config.preset].describe(config)}")
    _check(config)
    setup = engine.prepare(config, config_of(config.model).hidden_size)
    tokenizer = Tokenizer.from_dir(resolve(config.model))
    actors = load_actors(config, setup)
    if config.compile:
        engine.compile_blocks(*{actors.policy, actors.ref_policy, actors.value_model.backbone})
    context_len = actors.policy.config.max_seq_len
    room = min(config.max_seq_len or context_len, context_len) - config.max_new_tokens
    if room < 1:
        raise UsageError(
            f"{config.max_new_tokens} leaves no room for a prompt in a context of {context_len}",
            where="--max-new-tokens",
        )
    data, account = prompt_sequences(read_records(inputs, Prompt, config).whole(), tokenizer, room)
    if not data.records:
        raise DataError("no records", hint="give a file of prompts")
    for line in account.lines():
        context.warn(line)
    held_out = None
    if config.eval is not None:
        reading = for_further_inputs(config)
        held_out, _ = prompt_sequences(read_records([config.eval], Prompt, reading).whole(), tokenizer, room)
    total, _ = plan_steps(len(data.records), config.batch_size, epochs=config.epochs, steps=config.steps)
    if config.dry_run:
        return _dry_run(config, setup, actors, tokenizer, data.sequences, account.facts(), total)
    return _train(config, setup, actors, tokenizer, data, held_out, total)


def _check(config: Config) -> None:
    if config.minibatches > config.batch_size:
        raise UsageError(
            f"{config.minibatches} minibatches cannot be cut from {config.batch_size} prompts",
            where="--minibatches",
        )
    if config.reward_shift and config.reward_scale == "none":
        raise UsageError(
            "has no effect without --reward-scale", where="--reward-shift", hint="try --reward-scale running"
        )
    if config.min_response and config.missing_eos == "off":
        raise UsageError("has no effect with --missing-eos off", where="--min-response")
    if config.eval_reward and not config.eval:
        raise UsageError("needs held-out prompts", where="--eval-reward", hint="name them with --eval FILE")
    if config.ptx_coef and not config.ptx:
        raise UsageError("needs token shards", where="--ptx-coef", hint="name them with --ptx SHARD")
    if config.ptx and not config.ptx_coef:
        raise UsageError("has no effect without --ptx-coef", where="--ptx", hint="try --ptx-coef 0.5")


def _dry_run(
    config: Config,
    setup: Setup,
    actors: Actors,
    tokenizer: Tokenizer,
    sequences: Sequence[list[int]],
    facts: dict[str, object],
    total: int,
) -> dict[str, object]:
    from rlhfkit.engine import setup as engine

    policy, value = engine.parameter_count(actors.policy), engine.parameter_count(actors.critic)
    longest = max(sequences, key=len)
    frozen = engine.parameter_count(actors.ref_policy) + actors.reward_parameters
    return engine.report_dry_run(
        config,
        setup,
        facts={
            "policy_parameters": policy,
            "value_parameters": value,
            **facts,
            "longest_prompt": len(longest),
            "steps": total,
            "updates_per_step": config.ppo_epochs * config.minibatches,
        },
        estimate=engine.memory_estimate(
            policy + value,
            frozen,
            setup.dtype,
            tokens=setup.token_budget,
            width=actors.policy.config.hidden_size,
            layers=actors.policy.config.num_layers,
        ),
        example=[(tokenizer.decode(longest, skip_special=False), False)],
    )


def _train(
    config: Config,
    setup: Setup,
    actors: Actors,
    tokenizer: Tokenizer,
    data: PromptSet,
    held_out: PromptSet | None,
    total: int,
) -> dict[str, object]:
    from contextlib import ExitStack

    from rlhfkit.engine.actors import data_identity
    from rlhfkit.engine.evaluation import HeldOut
    from rlhfkit.engine.iteration import Iteration
    from rlhfkit.engine.loop import fit
    from rlhfkit.engine.run import Run
    from rlhfkit.engine.saving import write_model

    with ExitStack() as stack:
        run = stack.enter_context(
            Run.open("ppo", config, setup.dist, data=data_identity(config, data.sequences))
        )
        run.start_logs("samples")
        scorer = stack.enter_context(actors.open_scorer(config.reward, config, setup, tokenizer))
        iteration = Iteration(config, setup, actors, tokenizer, data, scorer, run, total)
        if run.resumed_from:
            iteration.restore()
        evaluate = None
        if held_out is not None:
            judge = scorer
            if config.eval_reward is not None:
                judge = stack.enter_context(actors.open_scorer(config.eval_reward, config, setup, tokenizer))
            evaluate = HeldOut(iteration, held_out, judge)
        figures = fit(
            run,
            total=total,
            step=iteration.step,
            snapshot=iteration.snapshot,
            evaluate=evaluate,
            unit="iteration",
        )

        def write(path: Path) -> None:
            write_model(actors.policy, path, tokenizer, iteration.final_weights())
            value = path / "value"
            value.mkdir()
            write_model(actors.value_model, value, tokenizer, iteration.final_value_weights())

        return run.finish(write, figures)
