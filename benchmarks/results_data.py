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
    a, sign, b = re.fullmatch(r"Q: (\\d+) ([+-]) (\\d+)\\nA:", record["prompt"]).groups()
    truth = int(a) + int(b) if sign == "+" else int(a) - int(b)
    found = re.search(r"####\\s*(-?\\d+)\\s*$", record["completion"])
    print(json.dumps({"score": float(found is not None and int(found[1]) == truth)}), flush=True)
'''
LARGEST = 60


def _answer(rng: Random, truth: int, slips: float) -> str:
    """An answer, which with chance `slips` is off by a little."""
    return f" #### {truth + (rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < slips else 0)}"


def arithmetic_files(directory: Path, *, seed: int) -> None:
    """Write pretraining text, demonstrations, prompts, verifier. Test questions are in no other file."""
    rng = Random(seed)
    directory.mkdir(parents=True)
    (directory / "verify.py").write_text(VERIFY)
    numbers = range(1, LARGEST + 1)
    questions = [(f"Q: {a} + {b}\nA:", a + b) for a in numbers for b in numbers]
    questions += [(f"Q: {a} - {b}\nA:", a - b) for a in numbers for b in range(1, a + 1)]
    rng.shuffle(questions)
    test, rest = questions[:1000], questions[1000:]
    drawn = rng.choices(rest, k=24_000)
    _write(directory / "pretrain.jsonl", ({"text": q + _answer(rng, t, 0.3) + "\n"} for q, t in drawn))
    demos = ({"prompt": q, "completion": _answer(rng, t, 0.1)} for q, t in rest[:4000])
    _write(directory / "sft.jsonl", demos)
    _write(directory / "ppo.jsonl", ({"prompt": q} for q, _ in rest))
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
