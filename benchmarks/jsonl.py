"""Throughput of records: `python -m benchmarks.jsonl [RECORDS] [--repeat K]`.

`rlhfkit rank2pairs` beside the same expansion written with orjson (if it is installed) and with json, neither
of which checks anything; and what goes into it: reading rows, checking rankings, adding scores. Records hold
a prompt and four completions, about 2 kB. One JSON line a case: megabytes (1e6 bytes) of input a CPU second,
the median of K runs in turn, also without the time that an empty input takes; the same over orjson's; and the
peak memory, which does not grow with the input.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks.process import in_turn, median_cpu, peak

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from which
one had all they you were their an she would there her been we more when who will no said its so up time if
out about into them can only other new some could these two may first then do any my now such like our over
man me even most made after also did many off before must well back years"""


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


#: The expansion of rankings by hand, with orjson or json in place of LIBRARY.
BY_HAND = """
import LIBRARY, sys
from itertools import combinations
dumps = LIBRARY.dumps
if "LIBRARY" == "json":
    dumps = lambda pair: json.dumps(pair, ensure_ascii=False).encode()
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb", buffering=1 << 20) as output:
    for line in source:
        ranking = LIBRARY.loads(line)
        prompt, texts, group = ranking["prompt"], ranking["responses"], ranking["id"]
        for (a,), (b,) in combinations(ranking["ranking"], 2):
            pair = {"prompt": prompt, "chosen": texts[a], "rejected": texts[b], "group": group}
            output.write(dumps(pair) + b"\\n")
"""
PEERS = ("orjson", "json")


def work(case: str, source: str) -> None:
    """One of the parts, in this process."""
    from rlhfkit.config import ReadConfig
    from rlhfkit.data.jsonl import encode_lines, read_rows
    from rlhfkit.data.records import Ranking, Sample, read_records

    if case == "scores":
        for samples in read_records([source], Sample, ReadConfig()).batches():
            encode_lines([sample.with_scores([0.5] * len(sample.completions)) for sample in samples])
    elif case == "rankings":
        for _ in read_records([source], Ranking, ReadConfig()).batches():
            pass
    else:
        for _ in read_rows([source], ReadConfig()).batches():
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="?", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--part", nargs=2, metavar=("PART", "IN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(*options.part)
        return
    with tempfile.TemporaryDirectory() as directory:
        rankings, fewer, samples, output = (
            str(Path(directory, name))
            for name in ("rankings.jsonl", "fewer.jsonl", "samples.jsonl", "out.jsonl")
        )
        make_records(Path(rankings), options.records, scored=False)
        make_records(Path(fewer), max(1, options.records // 5), scored=False)
        make_records(Path(samples), options.records, scored=True)
        pairs = [sys.executable, "-m", "rlhfkit", "rank2pairs", "-q"]
        part = [sys.executable, "-m", "benchmarks.jsonl", "--part"]
        piped = f"{shlex.join([*pairs, rankings])} | cat > {os.devnull}"
        # Case: command, and its input.
        cases = {
            "rank2pairs": ([*pairs, rankings, "--force", "-o", output], rankings),
            "pairs into a pipe": (["bash", "-c", piped], rankings),
            "rank2pairs, a fifth of it": ([*pairs, fewer, "--force", "-o", output], fewer),
            "reading rows": ([*part, "rows", rankings], rankings),
            "reading rankings": ([*part, "rankings", rankings], rankings),
            "adding scores": ([*part, "scores", samples], samples),
        }
        for name in PEERS:
            if importlib.util.find_spec(name) is not None:
                by_hand = [sys.executable, "-c", BY_HAND.replace("LIBRARY", name), rankings, output]
                cases[f"{name} by hand"] = by_hand, rankings
        empty = "an empty input"
        commands = {name: command for name, (command, _) in cases.items()} | {empty: [*pairs, os.devnull]}
        found = in_turn(commands, options.repeat)
        start = median_cpu(found.pop(empty))
        megabytes = {name: os.path.getsize(source) / 1e6 for name, (_, source) in cases.items()}
        rates = {name: megabytes[name] / median_cpu(runs) for name, runs in found.items()}
        for name, runs in found.items():
            line: dict[str, object] = {"case": name, "input_mb": round(megabytes[name])}
            line["mb_per_cpu_second"] = round(rates[name], 1)
            if "hand" not in name:
                line["without_start_up"] = round(megabytes[name] / (median_cpu(runs) - start), 1)
            if "orjson by hand" in rates and ("hand" in name or name == "rank2pairs"):
                line["over_orjson"] = round(rates[name] / rates["orjson by hand"], 2)
            line["peak_mb"] = round(peak(runs))
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
