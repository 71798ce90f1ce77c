"""How long a model takes to load, and how much memory at the worst moment.

    python benchmarks/load.py [--gigabytes 1.5] [--dtype bfloat16]

Writes a random checkpoint, reads it once to warm the page cache, then loads it in a fresh process, so that
the peak is that of loading alone. Prints one JSON line: seconds after torch is imported, the weights' size in
the run's dtype, the peak above an import of torch, and their ratio (goal: 1.5 s, 1.15).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys, time
import torch
from rlhfkit.models.loading import load_causal
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, started, cpu = peak(), time.perf_counter(), time.process_time()
model = load_causal(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3),
                  "weights": size, "peak": peak() - before,
                  "ratio": round((peak() - before) / size, 3), "dtype": sys.argv[2],
                  "threads": torch.get_num_threads()}))
"""


def write_checkpoint(path: Path, gigabytes: float) -> None:
    import torch

    from rlhfkit.models.config import llama_config
    from rlhfkit.models.loading import init_model, save_model

    vocab, hidden, ffn = 32_000, 2048, 5632
    layer = hidden * hidden * 4 + 3 * hidden * ffn
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * vocab * hidden) / layer))
    config = llama_config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=16,
        ffn_hidden_size=ffn,
        max_seq_len=2048,
    )
    save_model(init_model(config, 0, dtype=torch.bfloat16), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--write", metavar="DIR", help="only write the checkpoint there")
    options = parser.parse_args()
    if options.write:
        write_checkpoint(Path(options.write), options.gigabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: a child's peak starts at its parent's.
        writer = [sys.executable, __file__, "--gigabytes", str(options.gigabytes), "--write", folder]
        subprocess.run(writer, check=True)
        for _ in range(3):
            subprocess.run([sys.executable, "-c", CHILD, folder, options.dtype], check=True)
            print(flush=True, end="")


if __name__ == "__main__":
    main()
