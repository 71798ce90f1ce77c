"""Questions of the demo world and answers to them, good and bad.

A question is one line of text; its arguments are drawn at random, so that there are hundreds of thousands of
different ones. Answers come from `reference` (right), `demonstrate` (right but for the mistakes a hurried
person makes) and `sloppy`. Everything takes a `random.Random`: the same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from rlhfkit.world.gold import KIND_OF, KINDS, OPPOSITE, POLITE, POSITIONS, Question, parse

WORDS = tuple(KIND_OF)
#: how likely a question asks for politeness
POLITE_SHARE = 0.4


def wrap(question: str) -> str:
    """The prompt of a question: what stands in front of the answer in every file and every model."""
    return f"Q: {question}\nA:"


Pool = Mapping[str, Sequence[str]]  # kind -> the words of it that may be used


def ask(rng: Random, family: str, pool: Pool = KINDS) -> str:
    """A question of a family about words of the pool, in one of its wordings, polite or not."""
    text = _ASK[family](rng, pool)
    polite = ", politely" if rng.random() < POLITE_SHARE else ""
    return text + polite + ("?" if text.startswith(("What", "How")) else ".")


def _some(rng: Random, pool: Pool, low: int, high: int) -> str:
    words = [word for words in pool.values() for word in words]
    return ", ".join(rng.sample(words, rng.randint(low, high)))


def _list(rng: Random, pool: Pool) -> str:
    kind = rng.choice(tuple(pool))
    excluded = rng.sample(pool[kind], rng.randint(0, 2))
    besides = f" besides {', '.join(excluded)}" if excluded else ""
    order = rng.choice(("", " in alphabetical order"))
    return f"{rng.choice(('List', 'Name'))} {rng.randint(2, 4)} {kind}s{besides}{order}"


def _sort(rng: Random, pool: Pool) -> str:
    items = _some(rng, pool, 2, 3)
    return rng.choice((f"Sort {items}", f"Put {items} in order"))


def _reverse(rng: Random, pool: Pool) -> str:
    items = _some(rng, pool, 2, 3)
    return rng.choice((f"Reverse {items}", f"Say {items} backwards"))


def _repeat(rng: Random, pool: Pool) -> str:
    items = _some(rng, pool, 1, 2)
    return f"{rng.choice(('Repeat', 'Say'))} {items} {rng.randint(2, 3)} times"


def _pick(rng: Random, pool: Pool) -> str:
    return f"{rng.choice(('Give', 'Pick'))} the {rng.choice(tuple(POSITIONS))} of {_some(rng, pool, 2, 3)}"


def _odd(rng: Random, pool: Pool) -> str:
    kind, other = rng.sample(tuple(pool), 2)
    items = [*rng.sample(pool[kind], rng.randint(2, 3)), rng.choice(pool[other])]
    rng.shuffle(items)
    return f"{rng.choice(('Find', 'Pick'))} the odd one in {', '.join(items)}"


def _count(rng: Random, pool: Pool) -> str:
    kind, other = rng.sample(tuple(pool), 2)
    items = rng.sample(pool[kind], rng.randint(1, 3)) + rng.sample(pool[other], rng.randint(0, 2))
    rng.shuffle(items)
    return f"{rng.choice(('Count the', 'How many'))} {kind}s in {', '.join(items)}"


def _opposite(rng: Random, pool: Pool) -> str:
    items = ", ".join(rng.sample(tuple(OPPOSITE), rng.randint(1, 3)))
    return f"{rng.choice(('Give', 'What is'))} the opposite of {items}"


def _kind(rng: Random, pool: Pool) -> str:
    return f"{rng.choice(('Give', 'What is'))} the kind of {_some(rng, pool, 1, 3)}"


def _letter(rng: Random, pool: Pool) -> str:
    return f"{rng.choice(('Give', 'What is'))} the first letter of {_some(rng, pool, 1, 3)}"


_ASK: dict[str, Callable[[Random, Pool], str]] = {
    "list": _list,
    "sort": _sort,
    "reverse": _reverse,
    "repeat": _repeat,
    "pick": _pick,
    "odd": _odd,
    "count": _count,
    "opposite": _opposite,
    "kind": _kind,
    "letter": _letter,
}
FAMILIES = tuple(_ASK)


def phrase(words: list[str], polite: str | None = None, end: str = ".") -> str:
    """Words as the text of an answer; it begins with a space, as it follows "A:"."""
    return f" {polite + ': ' if polite else ''}{', '.join(words)}{end}"


def reference(rng: Random, question: Question) -> tuple[list[str], str | None]:
    """The words of a right answer, and its polite word where one was asked for."""
    words = question.answer()
    if question.family == "list":
        allowed = [word for word in KINDS[question.kind] if word not in question.items]
        words = rng.sample(allowed, question.count)
        if question.ordered:
            words.sort()
    return words, rng.choice(POLITE).capitalize() if question.polite else None


def demonstrate(rng: Random, text: str, slips: Sequence[str] = ()) -> str:
    """An answer to a question with these slips in it: "task", "manners", "end" or "extra"."""
    question = parse(text)
    words, polite = reference(rng, question)
    end = "."
    for slip in slips:
        if slip == "task":
            _mistake(rng, question, words)
        elif slip == "manners":
            polite = None if polite else rng.choice(POLITE).capitalize()
        elif slip == "extra":
            words.append(rng.choice(WORDS))
        else:
            end = ""
    return phrase(words, polite, end)


def _mistake(rng: Random, question: Question, words: list[str]) -> None:
    """Forget a word, swap two neighbours, or write a wrong word."""
    kind = rng.choice(("drop", "swap", "wrong"))
    if kind == "drop" and len(words) > 1:
        words.pop(rng.randrange(len(words)))
    elif kind == "swap" and len(words) > 1:
        at = rng.randrange(len(words) - 1)
        words[at : at + 2] = words[at : at + 2][::-1]
    else:
        words[rng.randrange(len(words))] = _wrong(rng, question)


def _wrong(rng: Random, question: Question) -> str:
    """A word that might well be taken for an answer."""
    if question.family == "count":
        return str(rng.randint(1, 4))
    if question.family == "kind":
        return rng.choice(tuple(KINDS))
    if question.family == "letter":
        return rng.choice(WORDS)[0]
    if question.family == "opposite":
        return rng.choice(tuple(OPPOSITE))
    return rng.choice(question.items or WORDS)
