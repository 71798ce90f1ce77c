"""Training steps and sampling beside transformers: `python -m benchmarks.model [--quick]`.

Both sides get the same random weights' shape, data, token counts and dtype, and run in turn (A B A B) in one
process. Prints one JSON line per measurement: tokens a second of wall time (median of the laps, with the
lowest and highest) and a CPU second. Pretraining is one optimizer step with AdamW and clipping; sampling has
64-token prompts, 128 new tokens, no end token, prefill included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from rlhfkit.data.windows import window_batch
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.draw import Sampling
from rlhfkit.engine.generate import generate
from rlhfkit.engine.lm import lm_objective
from rlhfkit.engine.loop import optimize
from rlhfkit.engine.optim import AdamW
from rlhfkit.engine.setup import keep_freed_memory
from rlhfkit.models.config import llama_config
from rlhfkit.models.loading import init_model

Lap = tuple[float, float]  # tokens a second of wall time, of CPU time


def lap(work: Callable[[], int]) -> Lap:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def in_turn(name: str, sides: dict[str, Callable[[], int]], laps: int) -> None:
    """Warm every side up, then run them in turn and print their rates."""
    for work in sides.values():
        work()
    rates: dict[str, list[Lap]] = {side: [] for side in sides}
    for _ in range(laps):
        for side, work in sides.items():
            rates[side].append(lap(work))
    for side, found in rates.items():
        walls = [wall for wall, _ in found]
        print(
            json.dumps(
                {
                    "benchmark": name,
                    "who": side,
                    "tokens_per_second": round(statistics.median(walls)),
                    "low": round(min(walls)),
                    "high": round(max(walls)),
                    "tokens_per_cpu_second": round(statistics.median(cpu for _, cpu in found)),
                    "threads": torch.get_num_threads(),
                }
            ),
            flush=True,
        )


def theirs(vocab: int, context: int, dtype: torch.dtype) -> torch.nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=context,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype)


def ours(vocab: int, context: int, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    config = llama_config(
        vocab_size=vocab,
        hidden_size=384,
        num_layers=6,
        num_heads=6,
        ffn_hidden_size=1024,
        max_seq_len=context,
    )
    return init_model(config, 0).to(dtype)


def pretraining(dtype: torch.dtype, laps: int) -> None:
    """Shape a: 6 layers of 384, context 256, vocabulary 65, 16 rows a step."""
    rows, context, vocab = 16, 256, 65
    ids = np.random.default_rng(0).integers(0, vocab, (rows, context + 1))
    batch = window_batch(list(ids), torch.device("cpu"))
    model = ours(vocab, context, dtype)
    optimizer = AdamW(model, weight_decay=0.1)

    def step() -> int:
        objective = lm_objective(model, [lambda: batch], float(rows * context), "train")
        optimize([objective], [(optimizer, 1e-3)], Dist(), grad_clip=1.0)
        return rows * context

    other = theirs(vocab, context, torch.float32).train()
    adam = torch.optim.AdamW(other.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, labels = batch.input_ids[:, :-1], batch.input_ids[:, 1:]

    def their_step() -> int:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = other(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        return rows * context

    name = f"pretraining step, {str(dtype).removeprefix('torch.')}"
    in_turn(name, {"rlhfkit": step, "transformers": their_step}, laps)


def sampling(dtype: torch.dtype, rows: int, laps: int) -> None:
    """64 prompt tokens, 128 new ones, vocabulary 8192."""
    vocab, prompt, new = 8192, 64, 128
    ids = np.random.default_rng(1).integers(0, vocab, (rows, prompt))
    model, other = ours(vocab, 512, dtype).eval(), theirs(vocab, 512, dtype).eval()

    def sample() -> int:
        outputs = generate(model, ids.tolist(), list(range(rows)), Sampling(max_new_tokens=new))
        return sum(len(o.ids) for o in outputs)

    def their_sample() -> int:
        with torch.no_grad():
            other.generate(
                torch.from_numpy(ids),
                max_new_tokens=new,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                eos_token_id=None,
            )
        return rows * new

    name = f"sampling, batch {rows}, {str(dtype).removeprefix('torch.')}"
    in_turn(name, {"rlhfkit": sample, "transformers": their_sample}, laps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer laps and batch sizes")
    options = parser.parse_args()
    keep_freed_memory()
    laps = 2 if options.quick else 5
    for dtype in (torch.float32, torch.bfloat16):
        pretraining(dtype, laps)
    for rows in (1, 16) if options.quick else (1, 16, 64):
        sampling(torch.bfloat16, rows, 1 if options.quick else 3)


if __name__ == "__main__":
    main()
