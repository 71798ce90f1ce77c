"""The people of the demo world: users who ask, a demonstrator who answers, and the text they read.

Prompts are split by user and by text: every simulated user belongs to one split, and so does every question
text (by a hash), so that no held-out question and no held-out user was seen in training, pretraining
included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from rlhfkit.world.gold import KIND_OF, KINDS, OPPOSITE, parse
from rlhfkit.world.grammar import FAMILIES, Pool, ask, demonstrate, wrap

Row = dict[str, object]

#: split -> prompts in it. "train" questions of pretraining text share the bucket of "sft".
SIZES = {"sft": 4000, "rank": 6000, "ppo": 4000, "valid": 500, "test": 1000}
#: split -> share of all question texts, in hundredths; the buckets of `split_of`
_SHARES = {"sft": 35, "rank": 25, "ppo": 20, "valid": 8, "test": 12}
#: chances of the demonstrator's slips, each on its own: a mistake in the task, forgotten or needless manners,
#: no full stop, a word too many
SLIPS = {"task": 0.15, "manners": 0.25, "end": 0.25, "extra": 0.15}
#: the modes of pretraining documents and their shares
MODES = {"questions": 0.2, "chatter": 0.35, "sloppy": 0.35, "good": 0.1}
DOCUMENTS = 16000


def split_of(question: str) -> str:
    """The split that owns a question text."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 100
    for split, share in _SHARES.items():
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("the shares sum to 100")


def prompts(rng: Random, split: str, size: int) -> list[Row]:
    """Distinct prompts of a split, each with an id and its user; a user has favourite families."""
    rows: list[Row] = []
    seen: set[str] = set()
    user, tastes, left = -1, [1.0] * len(FAMILIES), 0
    while len(rows) < size:
        if left == 0:  # a few users ask a lot, most ask little
            user, left = user + 1, min(60, int(rng.paretovariate(1.1) * 3))
            tastes = [rng.expovariate(1.0) + 0.2 for _ in FAMILIES]
        question = ask(rng, rng.choices(FAMILIES, tastes)[0])
        if split_of(question) != split or question in seen:
            continue
        seen.add(question)
        left -= 1
        rows.append({"id": f"{split}-{len(rows)}", "user": f"{split}-user-{user}", "prompt": wrap(question)})
    return rows


def demonstration(rng: Random, question: str) -> str:
    """What the demonstrator writes: mostly right, but in a hurry."""
    return demonstrate(rng, question, [slip for slip, chance in SLIPS.items() if rng.random() < chance])


def documents(rng: Random, size: int) -> Iterator[Row]:
    """Pretraining documents. The mode is drawn once a document: text in front tells what comes after."""
    for _ in range(size):
        mode = rng.choices(tuple(MODES), tuple(MODES.values()))[0]
        pool = {kind: rng.sample(KINDS[kind], 4) for kind in rng.sample(tuple(KINDS), 2)}
        lines = [_exchange(rng, mode, pool) for _ in range(rng.randint(4, 7))]
        yield {"text": "\n".join(lines) + "\n"}


def _exchange(rng: Random, mode: str, pool: Pool) -> str:
    question = ask(rng, rng.choice(FAMILIES), pool)
    while split_of(question) != "sft":
        question = ask(rng, rng.choice(FAMILIES), pool)
    if mode == "questions":
        return f"Q: {question}"
    if mode == "chatter":
        return wrap(question) + " " + " ".join(_chat(rng, question, pool) for _ in range(rng.randint(1, 2)))
    if mode == "sloppy":
        return wrap(question) + _sloppy(rng, question)
    return wrap(question) + demonstration(rng, question)


def _sloppy(rng: Random, question: str) -> str:
    """An answer with several mistakes."""
    return demonstrate(rng, question, rng.choices(tuple(SLIPS), k=rng.choice((2, 3, 3)))).rstrip(".")


_CHAT: tuple[Callable[[str, str], str], ...] = (
    lambda a, b: f"a {a} is a {KIND_OF[a]}.",
    lambda a, b: f"the word {a} starts with {a[0]}.",
    lambda a, b: f"i like the {a} and the {b}.",
    lambda a, b: (
        f"{a} and {b} are {'both ' + KIND_OF[a] + 's' if KIND_OF[a] == KIND_OF[b] else 'not the same'}."
    ),
    lambda a, b: f"in the alphabet {min(a, b)} is before {max(a, b)}.",
)
_ECHO = ("so you said {}?", "why {}?", "{}, {}, all day long.", "well, {}, who knows.")


def _chat(rng: Random, question: str, pool: Pool) -> str:
    """A sentence that answers nothing, though it echoes the question or knows something of the world."""
    items = parse(question).items
    if items and rng.random() < 0.6:
        echo = ", ".join(items)
        return rng.choice(_ECHO).format(echo, echo)
    if rng.random() < 0.15:
        word = rng.choice(tuple(OPPOSITE))
        return f"{word} is not {OPPOSITE[word]}."
    words = [word for words in pool.values() for word in words]
    return rng.choice(_CHAT)(rng.choice(words), rng.choice(words))


#: exchanges in the few-shot prefix of the prompted baseline
SHOTS = 3


def few_shot(rng: Random) -> str:
    """A prefix of exchanges in the manner of the good documents, one a line pair."""
    questions = [row["prompt"] for row in prompts(rng, "sft", SHOTS)]
    return "".join(f"{q}{demonstrate(rng, str(q)[3:-3])}\n" for q in questions)


def write_data(directory: Path, *, seed: int, scale: float = 1.0) -> dict[str, int]:
    """Write data/*.jsonl and few-shot.txt; returns the number of records by file. Same seed, same bytes."""
    directory.mkdir()
    files: dict[str, list[Row]] = {
        "pretrain": list(documents(Random(f"{seed}/documents"), round(DOCUMENTS * scale)))
    }
    for split, size in SIZES.items():
        rng = Random(f"{seed}/{split}")
        rows = prompts(rng, split, max(1, round(size * scale)))
        if split == "sft":
            rows = [{**row, "completion": demonstration(rng, str(row["prompt"])[3:-3])} for row in rows]
        files[split] = rows
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (directory / "few-shot.txt").write_text(few_shot(Random(f"{seed}/few-shot")), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}
