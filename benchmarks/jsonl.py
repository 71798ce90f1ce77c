"""Throughput of reading and writing records: `python benchmarks/jsonl.py [RECORDS]`.

Prints one JSON line per measurement with megabytes (1e6 bytes) of input per second of CPU time, and the peak
memory of the process that did the work. Records hold a prompt and four completions, about 2 kB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from which
one had all they you were their an she would there her been we more when who will no said its so up time if
out about into them can only other new some could these two may first then do any my now such like our over
man me even most made after also did many off before must well back years"""
CASES = ("rank2pairs", "score", "parse", "rows")


def make_records(path: Path, count: int, *, scored: bool) -> None:
    """Write records of about 2 kB; `scored` ones have completions as objects and no ranking."""
    rng = random.Random(0)

    def text(size: int) -> str:
        end = rng.choice(["no", "no", "no", "no", "na\u00efve \u2014 no"])
        return " ".join(rng.choices(WORDS.split(), k=size)) + f'\nHe said "{end}".\n'

    pool = [text(82) for _ in range(500)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            texts = rng.sample(pool, 5)
            record: dict[str, object] = {"id": f"r{number}", "prompt": texts[0]}
            if scored:
                record["completions"] = [
                    {"text": t, "finish_reason": "stop", "num_tokens": 80, "logprob": -91.25}
                    for t in texts[1:]
                ]
            else:
                record["responses"] = texts[1:]
                record["ranking"] = [[i] for i in rng.sample(range(4), 4)]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def work(case: str, source: str, output: str) -> None:
    """Do one case in this process."""
    from rlhfkit.config import ReadConfig
    from rlhfkit.data.jsonl import encode_lines, read_rows
    from rlhfkit.data.records import Ranking, Sample, read_records
    from rlhfkit.stages import rank2pairs

    with open(output, "wb", buffering=0) as file:
        if case == "rank2pairs":
            for batch in rank2pairs.run([source], rank2pairs.Config()):
                file.write(encode_lines(batch))
        elif case == "score":
            for samples in read_records([source], Sample, ReadConfig()).batches():
                scored = [sample.with_scores([0.5] * len(sample.completions)) for sample in samples]
                file.write(encode_lines(scored))
        elif case == "parse":
            for _ in read_records([source], Ranking, ReadConfig()).batches():
                pass
        else:
            for _ in read_rows([source], ReadConfig()).batches():
                pass


def measure(case: str, source: str, output: str) -> dict[str, object]:
    """Run one case in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--case", case, source, output], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = os.path.getsize(source)
    return {
        "case": case,
        "input_mb": round(size / 1e6, 1),
        "output_mb": round(os.path.getsize(output) / 1e6, 1) if output != os.devnull else None,
        "cpu_seconds": round(seconds, 2),
        "mb_per_cpu_second": round(size / 1e6 / seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="?", type=int, default=100_000)
    parser.add_argument("--case", nargs=3, metavar=("CASE", "IN", "OUT"))
    arguments = parser.parse_args()
    if arguments.case:
        work(*arguments.case)
        print(
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", file=sys.stderr
        )
        return
    with tempfile.TemporaryDirectory() as directory:
        rankings, samples = Path(directory, "rankings.jsonl"), Path(directory, "samples.jsonl")
        make_records(rankings, arguments.records, scored=False)
        make_records(samples, arguments.records, scored=True)
        for case, output in itertools.product(CASES, (os.path.join(directory, "out.jsonl"), os.devnull)):
            if case in {"parse", "rows"} and output != os.devnull:
                continue
            source = samples if case == "score" else rankings
            best = max(
                (measure(case, str(source), output) for _ in range(3)), key=lambda m: m["mb_per_cpu_second"]
            )
            print(json.dumps(best), flush=True)


if __name__ == "__main__":
    main()
