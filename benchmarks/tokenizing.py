"""Throughput of tokenize: `python benchmarks/tokenizing.py FILE.jsonl [--vocab-size N] [--repeat K]`.

Trains a tokenizer on the file's `text` fields, then encodes them K times each with `rlhfkit tokenize` and
with the batch encoding of the tokenizers library on the same cores, one after the other. Prints one JSON line
per measurement: megabytes (1e6 bytes of UTF-8) a second of wall time and a CPU second, start-up included, and
the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARY = """
import json, sys
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
encode = getattr(tokenizer, sys.argv[3])
batch = []
def flush():
    for encoding in encode(batch, add_special_tokens=False):
        np.array(encoding.ids, dtype=np.uint16)
    batch.clear()
for line in open(sys.argv[2], encoding="utf-8"):
    batch.append(json.loads(line)["text"])
    if len(batch) == 1000:
        flush()
flush()
"""


def measure(name: str, command: list[str], megabytes: float) -> dict[str, object]:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    assert status == 0, command
    return {
        "case": name,
        "MB/s": round(megabytes / seconds, 2),
        "MB/cpu-s": round(megabytes / (usage.ru_utime + usage.ru_stime), 2),
        "peak MB": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with open(options.file, encoding="utf-8") as file:
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = f"{folder}/tokenizer"
        rlhfkit = [sys.executable, "-m", "rlhfkit"]
        train = [*rlhfkit, "train-tokenizer", str(options.file), "-q", "-o", tokenizer]
        train += ["--vocab-size", str(options.vocab_size)]
        print(json.dumps(measure("train-tokenizer", train, megabytes)), flush=True)
        ours = [*rlhfkit, "tokenize", str(options.file), "-q", "--force", "--tokenizer", tokenizer]
        ours += ["-o", f"{folder}/x.safetensors"]
        library = [sys.executable, "-c", LIBRARY, f"{tokenizer}/tokenizer.json", str(options.file)]
        cases = {
            "tokenize --workers 1": [*ours, "--workers", "1"],
            f"tokenize --workers {options.workers}": [*ours, "--workers", str(options.workers)],
            "tokenizers encode_batch": [*library, "encode_batch"],
            "tokenizers encode_batch_fast": [*library, "encode_batch_fast"],
        }
        for _ in range(options.repeat):
            for name, command in cases.items():
                print(json.dumps(measure(name, command, megabytes)), flush=True)


if __name__ == "__main__":
    main()
