"""Train a reward model on rankings or pairs, starting from a fine-tuned model.

Reads rankings ({"prompt", "completions", "ranking"}) and pairs ({"prompt", "chosen", "rejected",
"group"}), also mixed. All pairs of one ranking (or `group`) are one batch element: every completion is
run once, and the loss is the mean over the element's untied pairs of -log sigmoid(r_w - r_l), so that a
ranking of nine weighs as much as one of four (Ouyang et al., 2022, equation 1).

The result is a ...ForSequenceClassification directory with one label.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhfkit import context
from rlhfkit.config import MODEL, TRAINING, Inputs, RankingReadConfig, TrainConfig, for_further_inputs, option
from rlhfkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from rlhfkit.data.comparisons import Comparison
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine.setup import Setup
    from rlhfkit.models.heads import ScalarModel

INPUTS = Inputs("RANKINGS", "Files of rankings or pairs.", kind="preference")
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit train-rm rankings.jsonl -m sft -o rm --eval held_out.jsonl",
    "rlhfkit rank2pairs rankings.jsonl | rlhfkit train-rm -m sft -o rm --center-on demos.jsonl",
)


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig, RankingReadConfig):
    """Settings of `train-rm`."""

    model: str = option(
        short="-m",
        group=MODEL,
        metavar="DIR",
        help="Model to start from: the fine-tuned one, or a reward model.",
    )
    batch_size: int = option(
        64, group=TRAINING, minimum=1, metavar="N", help="Rankings in one optimizer step."
    )
    micro_batch_size: int | None = option(
        None,
        group=TRAINING,
        minimum=1,
        metavar="N",
        help="Completions in one forward pass (default: by tokens).",
    )
    lr: float = option(9e-6, group=TRAINING, minimum=0, metavar="RATE", help="Peak learning rate.")
    loss: Literal["pairwise", "best-of-k"] = option(
        "pairwise",
        group=TRAINING,
        help="Loss over all pairs, or a softmax over who is best (Ziegler et al., 2019).",
    )
    center_coef: float = option(
        0.0,
        group=TRAINING,
        minimum=0,
        metavar="C",
        help="Add C (r_w + r_l)^2 per pair, which holds scores near 0.",
    )
    margin: bool = option(False, group=TRAINING, help="Ask the winner to lead by the pair's `margin`.")
    center_on: str | None = option(
        None,
        group=TRAINING,
        metavar="FILE",
        help="After training, shift scores so that these demonstrations or samples average 0.",
    )
    center_scale: Literal["off", "after", "both"] = option(
        "off",
        group=TRAINING,
        help="Scale scores to variance 1 on --center-on, too: after training, or both before and after.",
    )
    head_std: float | None = option(
        None,
        group=TRAINING,
        minimum=0,
        metavar="STD",
        help="Standard deviation of a fresh head's weights (default: 1/sqrt(D + 1), D the model's width).",
    )


def run(inputs: Source, config: Config) -> dict[str, object]:
    """Train a reward model; returns the summary (output, steps, seconds, final figures)."""
    from rlhfkit.data.batching import plan_steps
    from rlhfkit.data.comparisons import comparisons, longer_wins
    from rlhfkit.data.records import read_preferences
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine import setup as engine
    from rlhfkit.models.hub import resolve
    from rlhfkit.models.loading import config_of, kind_of, load_scalar

    _check(config, fresh_head=kind_of(config.model) == "causal")
    setup = engine.prepare(config, config_of(config.model).hidden_size)
    tokenizer = Tokenizer.from_dir(resolve(config.model))
    model = load_scalar(config.model, device=setup.device, init_head=config.seed)
    if config.head_std is not None:
        # A fresh head is drawn with the deviation of Stiennon et al.'s code; their paper prints 1/(D + 1).
        model.score.weight.data *= config.head_std * (model.config.hidden_size + 1) ** 0.5
    if config.compile:
        engine.compile_blocks(model)
    max_len = min(config.max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
    facts: dict[str, object] = {}

    def read(source: Source) -> list[Comparison]:
        records = read_preferences(source, config if source is inputs else for_further_inputs(config)).whole()
        skip = config.on_bad_line == "skip"
        elements, account = comparisons(records, tokenizer, max_len, skip_bad=skip)
        if not elements:
            raise DataError("no records", hint="give a file of rankings or pairs")
        for line in account.lines():
            context.note(line)
        if source is inputs:
            counts = {"records": account.records, "left_out": account.left_out, "dropped": account.dropped}
            facts.update(counts | {"longer_wins": longer_wins(elements)})
            context.note(f"the longer answer wins {facts['longer_wins']:.0%} of the pairs")
        return elements

    elements = read(inputs)
    held_out = read([config.eval]) if config.eval else []
    answers = _answers(config, tokenizer, max_len)
    total, items = plan_steps(len(elements), config.batch_size, epochs=config.epochs, steps=config.steps)
    if config.dry_run:
        count = engine.parameter_count(model)
        longest = max(elements, key=lambda e: e.longest)
        text = tokenizer.decode(list(longest.sequences[0]), skip_special=False)
        return engine.report_dry_run(
            config,
            setup,
            facts={
                "parameters": count,
                **facts,
                "comparisons": len(elements),
                "pairs": sum(len(e.pairs) for e in elements),
                "sequences": sum(len(e.sequences) for e in elements),
                "tokens": sum(len(s) for e in elements for s in e.sequences),
                "steps": total,
            },
            estimate=engine.memory_estimate(
                count,
                0,
                setup.dtype,
                tokens=max(setup.token_budget, longest.longest * len(longest.sequences)),
                width=model.config.hidden_size,
                layers=model.config.num_layers,
            ),
            example=[(text, True)],
        )
    return _train(config, setup, model, tokenizer, elements, held_out, answers, total, items)


def _check(config: Config, *, fresh_head: bool) -> None:
    if config.center_scale != "off" and config.center_on is None:
        raise UsageError(
            "needs something to measure scores on",
            where="--center-scale",
            hint="name demonstrations or samples of the reference policy with --center-on FILE",
        )
    if config.head_std is not None and not fresh_head:
        raise UsageError(f"{config.model} is a reward model and has its head already", where="--head-std")


def _train(
    config: Config,
    setup: Setup,
    model: ScalarModel,
    tokenizer: Tokenizer,
    elements: list[Comparison],
    held_out: list[Comparison],
    answers: list[list[int]],
    total: int,
    items: int,
) -> dict[str, object]:
    from rlhfkit.data.batching import Order, step_items
    from rlhfkit.data.comparisons import fold
    from rlhfkit.engine.centering import recenter
    from rlhfkit.engine.loop import Figures, fit, optimize
    from rlhfkit.engine.optim import AdamW, learning_rate
    from rlhfkit.engine.preferences import (
        evaluate_preferences,
        ranking_batches,
        ranking_objective,
        until_read,
    )
    from rlhfkit.engine.run import Run, Snapshot
    from rlhfkit.engine.saving import write_model
    from rlhfkit.engine.setup import digest_of_examples, model_digest

    dist, device, pad_id = setup.dist, setup.device, tokenizer.pad_id
    data = {"model": model_digest(config.model), "records": digest_of_examples(fold(elements))}
    if answers:
        data["center_on"] = digest_of_examples([(ids, [True]) for ids in answers])
    center = partial(recenter, model, answers, tokens=setup.token_budget, pad_id=pad_id, device=device)
    with Run.open("train-rm", config, dist, data=data) as run:
        if config.center_scale == "both":
            center(scale=True)
        elements = [until_read(element, model.config.pad_token_id) for element in elements]
        order = Order(len(elements), config.seed)
        optimizer = AdamW(model, weight_decay=config.weight_decay, dtype=setup.dtype)
        if run.resumed_from:
            optimizer.load_tensors(run.load("optimizer", device))
        report: dict[str, object] = {}

        def step(index: int) -> Figures:
            batch = [elements[i] for i in step_items(order, index, config.batch_size, items)]
            mine = [batch[i] for i in dist.share(len(batch))]
            rate = learning_rate(
                index, total, peak=config.lr, schedule=config.lr_schedule, warmup=config.warmup
            )
            batches = ranking_batches(
                mine,
                rows=config.micro_batch_size,
                tokens=setup.token_budget,
                pad_id=pad_id,
                device=device,
                filled=model.backbone.fills_rows,
            )
            objective = ranking_objective(
                model,
                batches,
                float(len(mine)),
                loss=config.loss,
                center_coef=config.center_coef,
                margin=config.margin,
            )
            figures = optimize([objective], [(optimizer, rate)], dist, grad_clip=config.grad_clip)
            return {**figures, "lr": rate, "tokens": float(sum(len(s) for e in batch for s in e.sequences))}

        def evaluate() -> Figures:
            figures, found = evaluate_preferences(
                model, held_out, dist, tokens=setup.token_budget, pad_id=pad_id, device=device
            )
            report.update(found)
            return figures

        figures = fit(
            run,
            total=total,
            step=step,
            snapshot=lambda: Snapshot({"optimizer": optimizer.tensors()}, {}),
            evaluate=evaluate if held_out else None,
        )
        if answers:
            scale = config.center_scale != "off"
            figures |= center(scale=scale, master=optimizer.masters["score.weight"])
            if scale and held_out:  # losses and calibration are those of the scores that are saved
                figures |= evaluate()

        def write(path: Path) -> None:
            from rlhfkit.engine.metrics import finite
            from rlhfkit.files import write_json

            write_model(model, path, tokenizer, optimizer.masters)
            if report:
                write_json(path / "eval.json", finite(report))

        return run.finish(write, figures)


def _answers(config: Config, tokenizer: Tokenizer, max_len: int) -> list[list[int]]:
    """The token sequences of --center-on."""
    from rlhfkit.data.examples import answer_sequences
    from rlhfkit.data.records import read_answers

    if config.center_on is None:
        return []
    records = read_answers([config.center_on], for_further_inputs(config)).whole()
    sequences, account = answer_sequences(records, tokenizer, max_len)
    if not sequences:
        raise DataError("no records", where=config.center_on, hint="give demonstrations or samples")
    for line in account.lines():
        context.warn(line)
    return sequences
