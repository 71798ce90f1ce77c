"""Inputs of benchmarks/results.py that rlhfkit does not generate: sums to check, and splits of real data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

#: The reward: 1 when the number behind #### is the answer to the question, else 0.
VERIFY = '''"""Read samples as JSON lines; answer each with whether its final number is right."""

import json
import re
import sys

for line in sys.stdin:
    record = json.loads(line)
    a, b = map(int, re.findall(r"\\d+", record["prompt"]))
    found = re.search(r"####\\s*(-?\\d+)\\s*$", record["completion"])
    print(json.dumps({"score": float(found is not None and int(found[1]) == a + b)}), flush=True)
'''
NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn"]
THINGS = ["figs", "pens", "cups", "eggs", "nuts", "hats"]
LARGEST = 99
#: chances of a wrong sum in the text that the model reads, and in a demonstration
SLIPS = {"pretrain": 0.1, "sft": 0.1}
Sum = tuple[int, int]


def _total(rng: Random, numbers: Sum, slips: float) -> int:
    """The sum, which with chance `slips` is off by a little."""
    error = rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < slips else 0
    return max(0, sum(numbers) + error)


def _question(rng: Random, numbers: Sum) -> str:
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    return f"Q: {who} has {numbers[0]} {what} and gets {numbers[1]} more. How many {what}?\nA:"


def _answer(rng: Random, numbers: Sum, slips: float) -> str:
    total = _total(rng, numbers, slips)
    return f" {numbers[0]} + {numbers[1]} = {total} #### {total}"


def _document(rng: Random, sums: list[Sum]) -> str:
    """Two questions with answers, or ten lines of sums."""
    slips = SLIPS["pretrain"]
    if rng.random() < 0.3:
        drawn = rng.choices(sums, k=2)
        return "".join(f"{_question(rng, s)}{_answer(rng, s, slips)}\n" for s in drawn)
    return "".join(f"{s[0]} + {s[1]} = {_total(rng, s, slips)}\n" for s in rng.choices(sums, k=10))


def arithmetic_files(directory: Path, *, seed: int) -> None:
    """Write pretraining text, demonstrations, prompts, verifier. The test's sums are in no other file."""
    rng = Random(seed)
    directory.mkdir(parents=True)
    (directory / "verify.py").write_text(VERIFY)
    numbers = range(1, LARGEST + 1)
    sums = [(a, b) for a in numbers for b in numbers]
    rng.shuffle(sums)
    test, rest = sums[:1000], sums[1000:]
    _write(directory / "pretrain.jsonl", ({"text": _document(rng, rest)} for _ in range(40_000)))
    demos = ({"prompt": _question(rng, s), "completion": _answer(rng, s, SLIPS["sft"])} for s in rest[:2000])
    _write(directory / "sft.jsonl", demos)
    _write(directory / "ppo.jsonl", ({"prompt": _question(rng, s)} for s in rest))
    _write(directory / "test.jsonl", ({"prompt": _question(rng, s)} for s in test))


def people_files(source: Path, directory: Path) -> None:
    """Split comparisons by a hash of the first message of the prompt; train.jsonl gets two thirds.

    text.jsonl holds the words of the training part for the tokenizer and the language model.
    """
    train, held_out, texts = [], [], []
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = row["prompt"] if isinstance(row["prompt"], list) else [{"content": row["prompt"]}]
        digest = hashlib.sha256(turns[0]["content"].encode()).digest()
        if int.from_bytes(digest[:4], "big") % 3 == 0:
            held_out.append(row)
            continue
        train.append(row)
        said = "\n\n".join(turn["content"] for turn in turns)
        answers = row.get("responses") or (row["chosen"][0], row["rejected"][0])
        texts += [{"text": f"{said}\n\n{a.get('text') or a.get('content')}"} for a in answers]
    directory.mkdir(parents=True)
    _write(directory / "train.jsonl", train)
    _write(directory / "held-out.jsonl", held_out)
    _write(directory / "text.jsonl", texts)


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
