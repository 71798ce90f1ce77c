"""Throughput of tokenize: `python -m benchmarks.tokenizing FILE.jsonl [--vocab-size N] [--repeat K]`.

Trains a tokenizer on the file's `text` fields, then encodes them with `rlhfkit tokenize`, with the batch
encoding of the tokenizers library and with tiktoken (if that is installed), each on one core and K times in
turn. The same merges are measured with the split of Llama 3 and with that of GPT-4o. One JSON line a case:
megabytes (1e6 bytes of UTF-8) a second of wall time and a CPU second, start-up and reading included, the
latter over that of the library's `encode_batch` with the same tokenizer, and the peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.process import in_turn, median_cpu, median_wall, peak, run
from rlhfkit.data.fast import O200K_SPLIT
from rlhfkit.data.tokenizer_checks import WORD_SPLITS

LIBRARY = """
import json, sys
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
encode = getattr(tokenizer, sys.argv[3])
batch = []
def flush():
    for encoding in encode(batch, add_special_tokens=False):
        np.array(encoding.ids, dtype=np.uint16).tobytes()
    batch.clear()
for line in open(sys.argv[2], encoding="utf-8"):
    batch.append(json.loads(line)["text"])
    if len(batch) == 1000:
        flush()
flush()
"""
TIKTOKEN = """
import json, sys
import numpy as np
from rlhfkit.data.ranks import encode_by_ranks, mergeable_ranks
from rlhfkit.data.split import GPT2_SPLIT
encode = encode_by_ranks(GPT2_SPLIT, mergeable_ranks(open(sys.argv[1], "rb").read()))
for line in open(sys.argv[2], encoding="utf-8"):
    np.array(encode(json.loads(line)["text"]), dtype=np.uint16).tobytes()
"""
#: The command without its fast encoder.
SLOWLY = """
from rlhfkit.cli.main import main
from rlhfkit.data import encoding
encoding.fast_encoder = lambda *_, **__: None
main()
"""
RLHFKIT = [sys.executable, "-m", "rlhfkit"]
PEER = "tokenizers encode_batch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    file = str(options.file.resolve())
    with open(file, encoding="utf-8") as lines:
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in lines) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        own = f"{folder}/own"
        train = [*RLHFKIT, "train-tokenizer", file, "-q", "-o", own]
        used = run([*train, "--vocab-size", str(options.vocab_size)])
        rate = {"MB/s": round(megabytes / used.wall, 2), "MB/cpu-s": round(megabytes / used.cpu, 2)}
        print(json.dumps({"case": "train-tokenizer", **rate, "peak MB": round(used.peak_mb)}), flush=True)
        cases = sides(own, file)
        off = tokenize(own, file, start=[sys.executable, "-c", SLOWLY])
        cases["tokenize --workers 1, plain encoder"] = off
        if options.workers > 1:
            several = f"tokenize --workers {options.workers}, fast encoder"
            cases[several] = tokenize(own, file, workers=options.workers)
        cases[f"{PEER}_fast"] = library(own, file, "encode_batch_fast")
        if importlib.util.find_spec("tiktoken") is not None:
            theirs = [sys.executable, "-c", TIKTOKEN, f"{own}/tokenizer.json", file]
            cases["tiktoken encode_ordinary"] = theirs
        show(cases, PEER, megabytes, options.repeat)
        for name, pattern in (("Llama 3", WORD_SPLITS[0]), ("GPT-4o", O200K_SPLIT)):
            ending = f", split of {name}"
            cases = sides(resplit(own, pattern, name), file, ending)
            show(cases, PEER + ending, megabytes, options.repeat)


def sides(tokenizer: str, file: str, ending: str = "") -> dict[str, list[str]]:
    """rlhfkit and its peer."""
    ours = f"tokenize --workers 1, fast encoder{ending}"
    return {ours: tokenize(tokenizer, file), PEER + ending: library(tokenizer, file)}


def tokenize(tokenizer: str, file: str, *, workers: int = 1, start: Sequence[str] = RLHFKIT) -> list[str]:
    command = [*start, "tokenize", file, "-q", "--force", "--tokenizer", tokenizer]
    return [*command, "-o", f"{tokenizer}.safetensors", "--workers", str(workers)]


def library(tokenizer: str, file: str, method: str = "encode_batch") -> list[str]:
    return [sys.executable, "-c", LIBRARY, f"{tokenizer}/tokenizer.json", file, method]


def resplit(tokenizer: str, pattern: str, name: str) -> str:
    """A copy of the tokenizer that splits text by another pattern; returns its directory."""
    value = json.loads(Path(tokenizer, "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    value["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, {**value["pre_tokenizer"], "use_regex": False}],
    }
    copy = Path(f"{tokenizer}-{name}")
    copy.mkdir()
    (copy / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    config = Path(tokenizer, "tokenizer_config.json").read_bytes()
    (copy / "tokenizer_config.json").write_bytes(config)
    return str(copy)


def show(cases: Mapping[str, Sequence[str]], peer: str, megabytes: float, repeat: int) -> None:
    """Measure, and print a line for each case."""
    # The library is measured on one core, as rlhfkit's workers use it.
    found = in_turn(cases, repeat, TOKENIZERS_PARALLELISM="false")
    for name, runs in found.items():
        line = {
            "case": name,
            "MB/s": round(megabytes / median_wall(runs), 2),
            "MB/cpu-s": round(megabytes / median_cpu(runs), 2),
            "over encode_batch": round(median_cpu(found[peer]) / median_cpu(runs), 2),
            "peak MB": round(peak(runs)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
