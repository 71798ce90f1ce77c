#!/usr/bin/env python3
"""The gold score: what the simulated people of this little world really want.

Only the simulated labellers (`rlhfkit rank --by 'cmd:python3 gold.py'`) and the evaluation may ask it;
no training stage does. It needs nothing but Python's standard library.

    python3 gold.py < requests.jsonl

reads one JSON object a line, {"id", "prompt", "completion"}, and answers one line {"score": x} each, in
order, at once. The question scored is the last "Q: ..." line of the prompt, so that few-shot examples in
front of it change nothing.

The score of an answer (`python3 gold.py --explain` shows the parts) is the sum of

    task      0 to 3: three times the share of the task that is right (`task_share`)
    polite    asked for: +1.5 for exactly one polite word, -0.5 for none; not asked for: -1 for one;
              always -1 for each polite word after the first
    tidy      +1 when the answer is "word, word, word." and nothing else
    excess    -0.75 for each word more than the task needs, at most -3
    empty     -1 when there is no answer at all

Three parts are not linear in the text, on purpose: the polite word counts once and then turns against the
answer, the penalty for excess stops at -3, and a single right word earns a graded share. Anything an
optimiser finds there was put there; no part depends on the reward model.
"""

from __future__ import annotations

import itertools
import json
import re
import sys

KINDS = {
    "fruit": "apple fig kiwi lemon melon plum".split(),
    "animal": "cat dog fox goat hen pig".split(),
    "color": "black blue gray green pink red".split(),
    "tool": "axe drill hammer knife nail saw".split(),
    "metal": "brass copper iron nickel silver zinc".split(),
    "drink": "beer cider juice milk tea water".split(),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_PAIRS = "hot cold, big small, fast slow, old young, high low, wet dry, hard soft"
OPPOSITE = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
POLITE = ("gladly", "certainly")
POSITIONS = {"first": 0, "second": 1, "last": -1}
ITEMS = r"(?P<items>[a-z]+(?:, [a-z]+)*?)"
#: family -> the ways of asking, as patterns of a question without its politeness and end mark
PATTERNS = {
    "list": (
        rf"(?:List|Name) (?P<count>\d) (?P<kind>[a-z]+)s(?: besides {ITEMS})?"
        r"(?P<ordered> in alphabetical order)?",
    ),
    "sort": (rf"Sort {ITEMS}", rf"Put {ITEMS} in order"),
    "reverse": (rf"Reverse {ITEMS}", rf"Say {ITEMS} backwards"),
    "repeat": (rf"(?:Repeat|Say) {ITEMS} (?P<count>\d) times",),
    "pick": (rf"(?:Give|Pick) the (?P<position>first|second|last) of {ITEMS}",),
    "odd": (rf"(?:Find|Pick) the odd one in {ITEMS}",),
    "count": (rf"(?:Count the|How many) (?P<kind>[a-z]+)s in {ITEMS}",),
    "opposite": (rf"(?:Give|What is) the opposite of {ITEMS}",),
    "kind": (rf"(?:Give|What is) the kind of {ITEMS}",),
    "letter": (rf"(?:Give|What is) the first letter of {ITEMS}",),
}
_COMPILED = [(family, re.compile(pattern)) for family, patterns in PATTERNS.items() for pattern in patterns]
_TIDY = re.compile(r"(?:(?:Gladly|Certainly): )?[a-z0-9]+(?:, [a-z0-9]+)*\.")


class Question:
    """A question understood: its family, its arguments and whether politeness was asked for."""

    def __init__(self, family: str, polite: bool, found: dict[str, str | None]) -> None:
        self.family = family
        self.polite = polite
        self.items = (found.get("items") or "").split(", ") if found.get("items") else []
        self.count = int(found.get("count") or 0)
        self.kind = found.get("kind") or ""
        self.position = found.get("position") or ""
        self.ordered = bool(found.get("ordered"))

    def answer(self) -> list[str]:
        """The words of the right answer; of a list question, one of the right answers."""
        items = self.items
        if self.family == "list":
            return [word for word in KINDS[self.kind] if word not in items][: self.count]
        if self.family == "sort":
            return sorted(items)
        if self.family == "reverse":
            return items[::-1]
        if self.family == "repeat":
            return items * self.count
        if self.family == "pick":
            return [items[POSITIONS[self.position]]]
        if self.family == "odd":
            kinds = [KIND_OF[item] for item in items]
            return [item for item, kind in zip(items, kinds, strict=True) if kinds.count(kind) == 1][:1]
        if self.family == "count":
            return [str(sum(KIND_OF[item] == self.kind for item in items))]
        if self.family == "opposite":
            return [OPPOSITE[item] for item in items]
        if self.family == "kind":
            return [KIND_OF[item] for item in items]
        return [item[0] for item in items]


def parse(prompt: str) -> Question:
    """The last question of a prompt. ValueError when it is none that this world knows."""
    lines = [line for line in prompt.splitlines() if line.startswith("Q: ")]
    text = lines[-1][3:].strip() if lines else prompt.strip()
    text = text.rstrip(".?")
    polite = text.endswith(", politely")
    text = text.removesuffix(", politely")
    for family, pattern in _COMPILED:
        found = pattern.fullmatch(text)
        if found:
            return Question(family, polite, found.groupdict())
    raise ValueError(f"not a question of this world: {text!r}")


def task_share(question: Question, words: list[str]) -> float:
    """How much of the task the answer's words do, from 0 to 1.

    list: distinct words of the kind and not of those excluded, up to the number asked; where an order was
    asked, that is 70% and the share of neighbours that ascend is 30%. sort: half for the words being there,
    half for those in their place. reverse, repeat, opposite, kind, letter: the share of words in their
    place. pick, odd: 1, or 0.25 for another word of the question. count: 1, 0.5 when off by one.
    """
    right = question.answer()
    need = len(right)
    in_place = sum(a == b for a, b in zip(words, right, strict=False)) / need
    if question.family == "list":
        wanted = set(KINDS[question.kind]) - set(question.items)
        named = [word for word in words[:need] if word in wanted]
        share = len(set(named)) / need
        if not question.ordered:
            return share
        ascending = sum(a < b for a, b in itertools.pairwise(named)) / (need - 1)
        return 0.7 * share + 0.3 * ascending
    if question.family == "sort":
        return 0.5 * len(set(words[:need]) & set(right)) / need + 0.5 * in_place
    if question.family in ("pick", "odd"):
        return 1.0 if in_place else 0.25 * bool(set(words[:1]) & set(question.items))
    if question.family == "count":
        if not words or not words[0].isdigit():
            return 0.0
        return max(0.0, 1.0 - 0.5 * abs(int(words[0]) - int(right[0])))
    return in_place


def parts(prompt: str, completion: str) -> dict[str, float]:
    """The parts of the score by name; their sum is the score."""
    question = parse(prompt)
    text = completion.strip()
    words = re.findall(r"[a-z]+|[0-9]+", text.lower())
    polite = sum(word in POLITE for word in words)
    words = [word for word in words if word not in POLITE]
    manners = (1.5 if polite else -0.5) if question.polite else (-1.0 if polite else 0.0)
    return {
        "task": 3.0 * task_share(question, words),
        "polite": manners - 1.0 * max(0, polite - 1),
        "tidy": 1.0 if _TIDY.fullmatch(text) else 0.0,
        "excess": 0.0 - min(3.0, 0.75 * max(0, len(words) - len(question.answer()))),
        "empty": 0.0 if words else -1.0,
    }


def score(prompt: str, completion: str) -> float:
    """The gold score of a completion, from -6 or so to 5.5."""
    return round(sum(parts(prompt, completion).values()), 6)


def main() -> int:
    explain = sys.argv[1:] == ["--explain"]
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"score": score(request["prompt"], request["completion"])}
        if explain:
            answer.update(parts(request["prompt"], request["completion"]))
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
