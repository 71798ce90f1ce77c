"""Everything that matters on one CUDA device, in one command of under 8 minutes.

    python -m benchmarks.gpu   # needs a CUDA device
    python -m benchmarks.gpu --tiny   # the same code on tiny shapes, on whatever there is

Method. *Matrix rate*: the best of several bfloat16 products of 8192 x 8192, twice the multiply-adds over
time; it is what "100%" means for compute. *Bandwidth*: a device-to-device copy of 4 GiB, read and write
counted. *Pretraining*: optimizer steps of rlhfkit's own loop (bfloat16 weights, float32 masters, fused
AdamW, clipping); model FLOPs per token are 6 x parameters of matrices, plus 12 x layers x hidden x context
for attention, halved because it is causal. *Decoding*: `engine.generate` without an end token; the floor of
a step is the bytes of the weights plus the keys and values read, over the bandwidth. *PPO*: one iteration of
the real trainer with a program-free reward model; its own `time/...` figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rlhfkit.data.windows import window_batch
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.draw import Sampling
from rlhfkit.engine.generate import generate
from rlhfkit.engine.lm import lm_objective
from rlhfkit.engine.loop import optimize
from rlhfkit.engine.optim import AdamW
from rlhfkit.engine.setup import compile_blocks
from rlhfkit.models.config import ModelConfig, llama_config
from rlhfkit.models.loading import init_model


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a square bfloat16 product."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ b, 10)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of a copy, both directions counted."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), 10)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that take part in matrix products, the output layer included."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    ffn = 3 * config.hidden_size * config.ffn_hidden_size
    return config.num_layers * (attention + ffn) + config.vocab_size * config.hidden_size


def pretraining(config: ModelConfig, device: torch.device, rows: int, *, compiled: bool) -> dict[str, float]:
    """Tokens per second of whole optimizer steps, and what share of the model FLOPs that is."""
    model = init_model(config, 0).to(device, torch.bfloat16)
    if compiled:
        compile_blocks(model, dynamic=False)
    optimizer = AdamW(model, weight_decay=0.1)
    rng = np.random.default_rng(0)
    width = config.max_seq_len
    batch = window_batch(list(rng.integers(0, config.vocab_size, (rows, width + 1))), device)

    def step() -> None:
        objective = lm_objective(model, [lambda: batch], float(rows * width), "train")
        optimize([objective], [(optimizer, 1e-4)], Dist(), grad_clip=1.0)

    rate = rows * width / seconds(step)
    per_token = 6 * matrix_parameters(config) + 6 * config.num_layers * config.hidden_size * width
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return {"tokens_per_second": rate, "flops": rate * per_token, "peak_gib": memory}


def decoding(
    config: ModelConfig, device: torch.device, rows: int, prompt: int, new: int, floor_rate: float
) -> dict[str, float]:
    """New tokens per second without an end token, and the share of the bandwidth floor."""
    model = init_model(config, 0).to(device, torch.bfloat16)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, config.vocab_size, prompt).tolist() for _ in range(rows)]
    sampling = Sampling(max_new_tokens=new)
    taken = seconds(lambda: generate(model, prompts, list(range(rows)), sampling), 3)
    weights = 2 * matrix_parameters(config)
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * rows * (prompt + new / 2)
    return {
        "tokens_per_second": rows * new / taken,
        "share_of_floor": (weights + cache) / floor_rate * new / taken,
    }


def ppo_phases(device: torch.device, config: ModelConfig, prompts: int, new: int) -> dict[str, float]:
    """Seconds by phase of the second iteration of a real run."""
    from rlhfkit.data.tokenizer import train_tokenizer
    from rlhfkit.engine.saving import write_model
    from rlhfkit.models.heads import ScalarModel
    from rlhfkit.stages import ppo

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tokenizer = train_tokenizer(["some words to learn from, " * 50], 300)
        policy = init_model(config, 0)
        scorer = ScalarModel(config)
        torch.nn.init.normal_(scorer.score.weight, std=0.02)
        for directory, model in (("sft", policy), ("rm", scorer)):
            (root / directory).mkdir()
            write_model(model, root / directory, tokenizer, dict(model.named_parameters()))
        records = [{"prompt": f"question number {i} about some words"} for i in range(prompts)]
        settings = ppo.Config(
            model=str(root / "sft"),
            reward=str(root / "rm"),
            output=str(root / "ppo"),
            steps=2,
            batch_size=prompts,
            max_new_tokens=new,
            device=device.type,
            lr=1e-6,
        )
        ppo.run(records, settings)
        lines = (root / "ppo" / "metrics.jsonl").read_text().splitlines()
    return {k: v for k, v in json.loads(lines[-1]).items() if k.startswith("time/")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script without a GPU")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no CUDA device; --tiny tries the script without one")
    tiny = options.tiny
    one_b = llama_config(
        vocab_size=512 if tiny else 32_768,
        hidden_size=64 if tiny else 2048,
        num_layers=2 if tiny else 18,
        num_heads=4 if tiny else 16,
        max_seq_len=64 if tiny else 2048,
    )
    small = llama_config(
        vocab_size=300,
        hidden_size=32 if tiny else 1024,
        num_layers=2 if tiny else 16,
        num_heads=4 if tiny else 16,
        max_seq_len=64 if tiny else 512,
    )
    rate = matrix_rate(device, 256 if tiny else 8192)
    copies = bandwidth(device, 2**20 if tiny else 2**32)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"bfloat16 matrix rate {rate / 1e12:.1f} TFLOP/s, copy bandwidth {copies / 1e12:.3f} TB/s\n")
    print(f"{'work':40} {'tokens/s':>12} {'of the limit':>13} {'peak GiB':>9}")
    for compiled in (False, True):
        found = pretraining(one_b, device, 2 if tiny else 8, compiled=compiled)
        label = f"pretraining 1B class{', compiled' if compiled else ''}"
        figures = f"{found['tokens_per_second']:12.0f} {found['flops'] / rate:13.1%} {found['peak_gib']:9.1f}"
        print(f"{label:40} {figures}")
    for rows in (1, 16, 64, 256):
        found = decoding(one_b, device, rows, 16 if tiny else 64, 16 if tiny else 128, copies)
        label = f"decoding 1B class, batch {rows}"
        print(f"{label:40} {found['tokens_per_second']:12.0f} {found['share_of_floor']:13.1%}")
    phases = ppo_phases(device, small, 16 if tiny else 512, 16 if tiny else 256)
    whole = sum(phases.values())
    print(
        "\nPPO iteration: "
        + ", ".join(f"{k.removeprefix('time/')} {v:.2f} s ({v / whole:.0%})" for k, v in phases.items())
    )


if __name__ == "__main__":
    main()
