"""Train a language model to predict the next token, from scratch or onwards from a model.

Reads token shards made by `tokenize`; writes a model directory in the Hugging Face layout: a
LlamaForCausalLM when started from scratch, the family of `--model` otherwise. A killed run goes on from
its last checkpoint when the same command is given again, and ends in the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhfkit.config import MODEL, TRAINING, Inputs, TrainConfig, option
from rlhfkit.errors import UsageError

if TYPE_CHECKING:
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.data.windows import Windows
    from rlhfkit.engine.setup import Setup
    from rlhfkit.models.config import ModelConfig
    from rlhfkit.models.transformer import Transformer

INPUTS = Inputs("SHARD", "Token shards, or directories of them.", kind="shards", required=True, stdin=False)
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit pretrain corpus.safetensors --tokenizer tok -o base --layers 6 --hidden 384 --context 256",
    "rlhfkit pretrain more.safetensors -m base -o longer --steps 2000 --lr 3e-4",
)


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Settings of `pretrain`."""

    tokenizer: str | None = option(
        None, group=MODEL, metavar="DIR", help="Tokenizer that made the shards (default: that of --model)."
    )
    model: str | None = option(
        None, short="-m", group=MODEL, metavar="DIR", help="Go on from this model instead of a new one."
    )
    layers: int = option(6, group=MODEL, minimum=1, help="Decoder layers of a new model.")
    hidden: int = option(384, group=MODEL, minimum=1, metavar="D", help="Hidden size of a new model.")
    heads: int = option(6, group=MODEL, minimum=1, help="Attention heads of a new model.")
    kv_heads: int | None = option(
        None, group=MODEL, minimum=1, help="Key/value heads of a new model (default: as many as heads)."
    )
    ffn: int | None = option(
        None,
        group=MODEL,
        minimum=1,
        metavar="D",
        help="Feed-forward size of a new model (default: about 8/3 hidden).",
    )
    context: int = option(256, group=MODEL, minimum=2, metavar="TOKENS", help="Context of a new model.")
    tie_embeddings: bool = option(False, group=MODEL, help="Share the embedding with the output layer.")
    lr: float = option(1e-3, group=TRAINING, minimum=0, metavar="RATE", help="Peak learning rate.")
    weight_decay: float = option(0.1, group=TRAINING, minimum=0, help="AdamW weight decay of matrices.")
    warmup: float = option(
        0.02,
        group=TRAINING,
        minimum=0,
        metavar="STEPS",
        help="Warm-up from 10% of the peak, in steps (below 1: a fraction of all steps).",
    )


def run(inputs: Sequence[str], config: Config) -> dict[str, object]:
    """Pretrain; returns the summary (output, steps, tokens, seconds, final losses)."""
    from rlhfkit.data.batching import plan_steps
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.data.windows import WindowOrder, Windows, open_shards, shard_digests
    from rlhfkit.engine import setup as engine
    from rlhfkit.models.hub import resolve
    from rlhfkit.models.loading import config_of

    if config.model is None and config.tokenizer is None:
        raise UsageError("a new model needs --tokenizer, a continued one --model", where="pretrain")
    width = config.hidden if config.model is None else config_of(config.model).hidden_size
    setup = engine.prepare(config, width)
    tokenizer = Tokenizer.from_dir(resolve(config.tokenizer or str(config.model)))
    model, source = _model(config, tokenizer, setup)
    source |= {"tokenizer": tokenizer.digest, "shards": shard_digests(inputs)}
    if config.compile:
        engine.compile_blocks(model, dynamic=False)
    window = min(config.max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
    windows = Windows(open_shards(inputs, tokenizer.digest), window)
    held_out = (
        Windows(open_shards([config.eval], tokenizer.digest), window, shuffle=False) if config.eval else None
    )
    total, items = plan_steps(len(windows), config.batch_size, epochs=config.epochs, steps=config.steps)

    if config.dry_run:
        count = engine.parameter_count(model)
        rows = config.micro_batch_size or max(1, setup.token_budget // window)
        return engine.report_dry_run(
            config,
            setup,
            facts={
                "parameters": count,
                "windows": len(windows),
                "tokens_per_step": config.batch_size * window,
                "steps": total,
            },
            estimate=engine.memory_estimate(
                count,
                0,
                setup.dtype,
                tokens=min(rows, config.batch_size) * window,
                width=model.config.hidden_size,
                layers=model.config.num_layers,
            ),
            example=[
                (tokenizer.decode(WindowOrder(windows, config.seed)[0].tolist(), skip_special=False), True)
            ],
        )
    return _train(config, setup, model, source, tokenizer, windows, held_out, total, items)


def _train(
    config: Config,
    setup: Setup,
    model: Transformer,
    source: dict[str, object],
    tokenizer: Tokenizer,
    windows: Windows,
    held_out: Windows | None,
    total: int,
    items: int,
) -> dict[str, object]:
    from rlhfkit.data.windows import WindowOrder, window_batch
    from rlhfkit.engine.lm import evaluate_lm, lm_objective
    from rlhfkit.engine.loop import Figures, fit, optimize
    from rlhfkit.engine.optim import AdamW, learning_rate
    from rlhfkit.engine.run import Run, Snapshot
    from rlhfkit.engine.saving import write_model

    dist, device = setup.dist, setup.device
    width = windows.context
    rows = config.micro_batch_size or max(1, setup.token_budget // width)
    order = WindowOrder(windows, config.seed)
    with Run.open("pretrain", config, dist, data=source) as run:
        optimizer = AdamW(model, weight_decay=config.weight_decay, dtype=setup.dtype)
        if run.resumed_from:
            optimizer.load_tensors(run.load("optimizer", device))

        def step(index: int) -> Figures:
            positions = range(index * config.batch_size, min((index + 1) * config.batch_size, items))
            mine = [positions[i] for i in dist.share(len(positions))]
            batches = [
                lambda part=mine[i : i + rows]: window_batch([order[p] for p in part], device)
                for i in range(0, len(mine), rows)
            ]
            rate = learning_rate(
                index, total, peak=config.lr, schedule=config.lr_schedule, warmup=config.warmup
            )
            objective = lm_objective(model, batches, float(len(mine) * width), "train")
            figures = optimize([objective], [(optimizer, rate)], dist, grad_clip=config.grad_clip)
            return {**figures, "lr": rate, "tokens": float(len(positions) * width)}

        def evaluate() -> Figures:
            assert held_out is not None
            mine = list(dist.share(len(held_out)))
            batches = [
                lambda part=mine[i : i + rows]: window_batch([held_out.window(w, ()) for w in part], device)
                for i in range(0, len(mine), rows)
            ]
            return evaluate_lm(model, batches, dist)

        figures = fit(
            run,
            total=total,
            step=step,
            snapshot=lambda: Snapshot({"optimizer": optimizer.tensors()}, {}),
            evaluate=evaluate if held_out else None,
        )
        return run.finish(lambda path: write_model(model, path, tokenizer, optimizer.masters), figures)


def _model(config: Config, tokenizer: Tokenizer, setup: Setup) -> tuple[Transformer, dict[str, object]]:
    """The model to train, and what identifies where it came from."""
    from rlhfkit.engine.setup import model_digest
    from rlhfkit.models.loading import init_model, load_causal

    if config.model is not None:
        return load_causal(config.model, device=setup.device), {"model": model_digest(config.model)}
    return init_model(_architecture(config, tokenizer), seed=config.seed).to(setup.device), {}


def _architecture(config: Config, tokenizer: Tokenizer) -> ModelConfig:
    from rlhfkit.models.config import llama_config

    kv_heads = config.kv_heads or config.heads
    if config.hidden % config.heads or (config.hidden // config.heads) % 2:
        raise UsageError(f"{config.hidden} is not {config.heads} heads of an even size", where="--hidden")
    if config.heads % kv_heads:
        raise UsageError(f"{config.heads} heads cannot share {kv_heads} key/value heads", where="--kv-heads")
    return llama_config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden,
        num_layers=config.layers,
        num_heads=config.heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=config.ffn,
        max_seq_len=config.context,
        tie_embeddings=config.tie_embeddings,
    )
