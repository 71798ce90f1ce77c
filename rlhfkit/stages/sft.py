"""Fine-tune a model on demonstrations (behaviour cloning).

Reads {"prompt", "completion"}, {"messages"} or {"text"} records. The loss counts completions only, their
end token included, unless --loss-on all; in a conversation every assistant turn counts. It is the mean
over all such tokens of the global batch, whatever the micro-batches, packing or number of processes.

With --mix, pretraining text is trained on as well, with the weight --mix-fraction. InstructGPT starts PPO
from such a model (10%, two epochs), and chooses the best epoch of a plain one by reward-model score:
--save-epochs keeps them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhfkit import context
from rlhfkit.config import MODEL, RUN, TRAINING, Inputs, ReadConfig, TrainConfig, for_further_inputs, option

if TYPE_CHECKING:
    from rlhfkit.data.batching import Example
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.data.windows import WindowOrder
    from rlhfkit.engine.setup import Setup
    from rlhfkit.models.transformer import Transformer

INPUTS = Inputs("DEMOS", "Files of demonstrations.", kind="demonstration")
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit sft demos.jsonl -m base -o sft --epochs 3 --lr 3e-4",
    "rlhfkit sft chats.jsonl.gz -m Qwen/Qwen2.5-0.5B -o sft --max-seq-len 1024 --dry-run",
)


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig, ReadConfig):
    """Settings of `sft`."""

    model: str = option(short="-m", group=MODEL, metavar="DIR", help="Model to fine-tune.")
    loss_on: Literal["completion", "all"] = option(
        "completion", group=TRAINING, help="Train on completions only, or on prompts as well."
    )
    packing: bool = option(
        False,
        group=TRAINING,
        negative="--no-packing",
        help="Join sequences into full rows (attention stays within each); the loss is the same.",
    )
    mix: tuple[str, ...] = option(
        (), group=TRAINING, metavar="SHARD", help="Token shards of pretraining text to train on as well."
    )
    mix_fraction: float = option(
        0.1,
        group=TRAINING,
        above=0,
        maximum=0.99,
        metavar="F",
        help="Share of --mix: its mean loss counts F, the demonstrations' 1 - F, and F of a step's sequences "
        "are its windows.",
    )
    save_epochs: bool = option(
        False, group=RUN, shapes_result=False, help="Keep the model of every epoch, in epochs/epoch-N."
    )


def run(inputs: Source, config: Config) -> dict[str, object]:
    """Fine-tune; returns the summary (output, steps, tokens, seconds, final losses)."""
    from rlhfkit.data.batching import plan_steps
    from rlhfkit.data.examples import demonstration_examples, marked_pieces
    from rlhfkit.data.records import Demonstration, read_records
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.data.windows import WindowOrder, Windows, open_shards
    from rlhfkit.engine import setup as engine
    from rlhfkit.errors import DataError
    from rlhfkit.models.hub import resolve
    from rlhfkit.models.loading import config_of, load_causal

    setup = engine.prepare(config, config_of(config.model).hidden_size)
    tokenizer = Tokenizer.from_dir(resolve(config.model))
    model = load_causal(config.model, device=setup.device)
    if config.compile:
        engine.compile_blocks(model)
    max_len = min(config.max_seq_len or model.config.max_seq_len, model.config.max_seq_len)

    def read(source: Source) -> list[Example]:
        records = read_records(
            source, Demonstration, config if source is inputs else for_further_inputs(config)
        ).whole()
        examples, account = demonstration_examples(records, tokenizer, max_len, loss_on=config.loss_on)
        if not examples:
            raise DataError("no records", hint="give a file of demonstrations")
        facts.update(account.facts() if source is inputs else {})
        for line in account.lines():
            context.warn(line)
        return examples

    facts: dict[str, object] = {}
    examples = read(inputs)
    held_out = read([config.eval]) if config.eval else []
    total, items = plan_steps(len(examples), config.batch_size, epochs=config.epochs, steps=config.steps)

    mix = None
    if config.mix:
        mix = WindowOrder(Windows(open_shards(config.mix, tokenizer.digest), max_len - 1), config.seed)
        facts["mixed_windows_per_step"] = _windows_per_step(config)

    if config.dry_run:
        count = engine.parameter_count(model)
        return engine.report_dry_run(
            config,
            setup,
            facts={
                "parameters": count,
                **facts,
                "tokens": sum(len(e.ids) for e in examples),
                "trained_tokens": sum(sum(e.mask) for e in examples),
                "longest": max(len(e.ids) for e in examples),
                "steps": total,
            },
            estimate=engine.memory_estimate(
                count,
                0,
                setup.dtype,
                tokens=setup.token_budget,
                width=model.config.hidden_size,
                layers=model.config.num_layers,
            ),
            example=marked_pieces(tokenizer, examples[0]),
        )
    chat = bool(facts["conversations"])
    return _train(config, setup, model, tokenizer, examples, held_out, mix, total, items, max_len, chat)


def _windows_per_step(config: Config) -> int:
    """So many that they are --mix-fraction of all sequences of a step, at least one."""
    return max(1, round(config.batch_size * config.mix_fraction / (1 - config.mix_fraction)))


def _train(
    config: Config,
    setup: Setup,
    model: Transformer,
    tokenizer: Tokenizer,
    examples: list[Example],
    held_out: list[Example],
    mix: WindowOrder | None,
    total: int,
    items: int,
    max_len: int,
    chat: bool,
) -> dict[str, object]:
    from rlhfkit.data.batching import Order, batches_of, step_items
    from rlhfkit.data.windows import shard_digests, window_batches
    from rlhfkit.engine.lm import evaluate_lm, lm_objective
    from rlhfkit.engine.loop import Figures, Objective, fit, optimize
    from rlhfkit.engine.optim import AdamW, learning_rate
    from rlhfkit.engine.run import Run, Snapshot
    from rlhfkit.engine.saving import write_model
    from rlhfkit.engine.setup import digest_of_examples, model_digest

    dist, device = setup.dist, setup.device
    data: dict[str, object] = {
        "model": model_digest(config.model),
        "records": digest_of_examples([(e.ids, e.mask) for e in examples]),
    }
    if config.mix:
        data["mix"] = shard_digests(config.mix)
    with Run.open("sft", config, dist, data=data) as run:
        order = Order(len(examples), config.seed)
        optimizer = AdamW(model, weight_decay=config.weight_decay, dtype=setup.dtype)
        if run.resumed_from:
            optimizer.load_tensors(run.load("optimizer", device))
        elif dist.is_main:
            import shutil

            shutil.rmtree(run.path / "epochs", ignore_errors=True)  # of a run that --force replaces

        def micro(batch: list[Example]) -> list:  # type: ignore[type-arg]
            return batches_of(
                batch,
                rows=config.micro_batch_size,
                tokens=setup.token_budget,
                pad_id=tokenizer.pad_id,
                device=device,
                packed=max_len if config.packing else 0,
                filled=model.fills_rows,
            )

        def mixed(index: int, order: WindowOrder) -> Objective:
            """The windows of a step; their mean loss counts `mix_fraction` (Ouyang et al. 2022, C.3: 10%)."""
            count, width = _windows_per_step(config), order.windows.context
            mine = [index * count + i for i in dist.share(count)]
            rows = config.micro_batch_size or max(1, setup.token_budget // width)
            batches = window_batches(order, mine, rows, device)
            return lm_objective(model, batches, float(len(mine) * width), "mix", config.mix_fraction)

        def write(path: Path) -> None:
            write_model(model, path, tokenizer, optimizer.masters, chat=chat)

        def step(index: int) -> Figures:
            batch = [examples[i] for i in step_items(order, index, config.batch_size, items)]
            mine = [batch[i] for i in dist.share(len(batch))]
            rate = learning_rate(
                index, total, peak=config.lr, schedule=config.lr_schedule, warmup=config.warmup
            )
            weight = float(sum(sum(e.mask[1:]) for e in mine))
            share = 1 - config.mix_fraction if mix else 1.0
            objectives = [lm_objective(model, micro(mine), weight, "train", share)]
            if mix:
                objectives.append(mixed(index, mix))
            figures = optimize(objectives, [(optimizer, rate)], dist, grad_clip=config.grad_clip)
            if config.save_epochs:
                save_epoch(index)
            tokens = sum(len(e.ids) for e in batch)
            if mix:
                tokens += _windows_per_step(config) * mix.windows.context
            return {**figures, "lr": rate, "tokens": float(tokens)}

        def save_epoch(index: int) -> None:
            """Write the model if this step has ended an epoch, which the run's end does, too."""
            done = min((index + 1) * config.batch_size, items)
            epoch = -(-done // len(examples)) if done == items else done // len(examples)
            if epoch > index * config.batch_size // len(examples):
                run.keep_model(f"epochs/epoch-{epoch}", write)

        def evaluate() -> Figures:
            return evaluate_lm(model, micro([held_out[i] for i in dist.share(len(held_out))]), dist)

        figures = fit(
            run,
            total=total,
            step=step,
            snapshot=lambda: Snapshot({"optimizer": optimizer.tensors()}, {}),
            evaluate=evaluate if held_out else None,
        )

        return run.finish(write, figures)
