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
    truth = a + b if " more" in record["prompt"] else a - b
    found = re.fullmatch(r"\\s*(-?\\d+)\\s*", record["completion"].rpartition("####")[2])
    right = "####" in record["completion"] and found is not None and int(found[1]) == truth
    print(json.dumps({"score": float(right)}), flush=True)
'''
_NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Ida")
_THINGS = ("pens", "eggs", "books", "coins", "cards", "shells")


def _problem(rng: Random) -> tuple[str, int, str, int]:
    """A question, and the sum or difference of two-digit numbers that answers it."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    if rng.random() < 0.5:
        return f"Q: {name} has {a} {things} and gets {b} more. How many now?\nA:", a, "+", b
    a, b = max(a, b), min(a, b)
    return f"Q: {name} has {a} {things} and gives {b} away. How many now?\nA:", a, "-", b


def _solution(rng: Random, a: int, sign: str, b: int, slips: float) -> str:
    """A worked answer; with chance `slips` one of its digits is wrong."""
    total = a + b if sign == "+" else a - b
    if rng.random() < slips:
        total += rng.choice((-10, -2, -1, 1, 2, 10))
    return f" {a} {sign} {b} = {total}\n#### {total}"


def arithmetic_files(directory: Path, *, seed: int) -> None:
    """Write pretraining text, demonstrations, prompts, verifier. Test questions are in no other file."""
    rng = Random(seed)
    directory.mkdir(parents=True)
    (directory / "verify.py").write_text(VERIFY)
    questions: dict[str, tuple[int, str, int]] = {}
    while len(questions) < 24_000:
        text, a, sign, b = _problem(rng)
        questions[text] = (a, sign, b)
    rows = list(questions.items())
    test, rest = rows[:1000], rows[1000:]
    texts = ({"text": q + _solution(rng, *sum_, 0.3) + "\n"} for q, sum_ in rest)
    _write(directory / "pretrain.jsonl", texts)
    demos = ({"prompt": q, "completion": _solution(rng, *sum_, 0.1)} for q, sum_ in rest[:3000])
    _write(directory / "sft.jsonl", demos)
    _write(directory / "ppo.jsonl", ({"prompt": q} for q, _ in rest[3000:11_000]))
    _write(directory / "test.jsonl", ({"prompt": q} for q, _ in test))


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
