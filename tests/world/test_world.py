"""The generated world: gold scores by hand, splits that do not touch, the same bytes for a seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from statistics import mean

import pytest

from rlhfkit.world import gold, grammar, people


@pytest.mark.parametrize(
    ("question", "completion", "expected"),
    [
        # task 3 + tidy 1; with manners asked and given 1.5 more
        ("Sort plum, fig.", " fig, plum.", 4.0),
        ("Sort plum, fig, politely.", " Gladly: fig, plum.", 5.5),
        ("Sort plum, fig, politely.", " fig, plum.", 3.5),
        ("Sort plum, fig.", " Gladly: fig, plum.", 3.0),
        ("Sort plum, fig, politely.", " Gladly: certainly, fig, plum.", 4.5),
        # both words there, none in its place: half of 3; no full stop: not tidy
        ("Put plum, fig in order.", " plum, fig.", 2.5),
        ("Put plum, fig in order.", " plum, fig", 1.5),
        # a word too many costs 0.75, at most 3
        ("Reverse cat, dog.", " dog, cat, axe.", 3.25),
        ("Reverse cat, dog.", " dog, cat, axe, axe, axe, axe, axe, axe.", 1.0),
        ("List 2 fruits besides fig.", " apple, kiwi.", 4.0),
        ("List 2 fruits besides fig.", " fig, kiwi.", 2.5),
        ("List 2 fruits in alphabetical order.", " kiwi, apple.", 3.1),
        ("Repeat cat 2 times.", " cat, cat.", 4.0),
        ("Pick the last of axe, saw.", " saw.", 4.0),
        ("Pick the last of axe, saw.", " axe.", 1.75),
        ("Find the odd one in cat, dog, milk.", " milk.", 4.0),
        ("How many fruits in fig, cat, kiwi?", " 2.", 4.0),
        ("Count the fruits in fig, cat, kiwi.", " 3.", 2.5),
        ("What is the opposite of hot, big?", " cold, small.", 4.0),
        ("Give the kind of tea, cat.", " drink, tool.", 2.5),
        ("Give the first letter of zinc.", " z.", 4.0),
        ("Sort plum, fig.", "", -1.0),
    ],
)
def test_gold_by_hand(question: str, completion: str, expected: float) -> None:
    assert gold.score(grammar.wrap(question), completion) == pytest.approx(expected)


def test_a_few_shot_prefix_changes_no_score() -> None:
    prefix = people.few_shot(Random(0))
    prompt = grammar.wrap("Sort plum, fig.")
    assert gold.score(prefix + prompt, " fig, plum.") == gold.score(prompt, " fig, plum.")


@pytest.mark.parametrize("family", grammar.FAMILIES)
def test_every_question_is_understood_and_its_reference_is_right(family: str) -> None:
    rng = Random(family)
    for _ in range(200):
        text = grammar.ask(rng, family)
        question = gold.parse(grammar.wrap(text))
        assert question.family == family
        assert question.polite == ("politely" in text)
        best = 5.5 if question.polite else 4.0
        assert gold.score(grammar.wrap(text), grammar.demonstrate(rng, text)) == best


def test_the_demonstrator_is_good_but_not_perfect_and_sloppy_is_worse() -> None:
    rng = Random(0)
    prompts = [str(row["prompt"]) for row in people.prompts(rng, "sft", 600)]
    lost = {"demonstrator": [], "sloppy": []}
    for prompt in prompts:
        question = prompt[3:-3]
        best = gold.score(prompt, grammar.demonstrate(rng, question))
        lost["demonstrator"].append(best - gold.score(prompt, people.demonstration(rng, question)))
        lost["sloppy"].append(best - gold.score(prompt, people._sloppy(rng, question)))
    assert 0.5 < mean(lost["demonstrator"]) < 1.3
    assert mean(lost["sloppy"]) > mean(lost["demonstrator"]) + 0.8


def test_splits_share_neither_users_nor_questions_with_each_other_or_the_pretraining_text(
    tmp_path: Path,
) -> None:
    people.write_data(tmp_path / "data", seed=3, scale=0.1)
    rows = {
        split: [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()]
        for split in people.SIZES
    }
    for a in rows:
        assert len({r["prompt"] for r in rows[a]}) == len(rows[a]) == round(people.SIZES[a] * 0.1)
        for b in rows:
            if a != b:
                assert not {r["prompt"] for r in rows[a]} & {r["prompt"] for r in rows[b]}
                assert not {r["user"] for r in rows[a]} & {r["user"] for r in rows[b]}
    text = (tmp_path / "data" / "pretrain.jsonl").read_text() + (
        tmp_path / "data" / "few-shot.txt"
    ).read_text()
    seen = {line for line in text.replace("\\n", "\n").splitlines() if line.startswith("Q: ")}
    for split in ("rank", "ppo", "valid", "test"):
        assert not seen & {r["prompt"].splitlines()[0] for r in rows[split]}


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        people.write_data(tmp_path / name, seed=seed, scale=0.02)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


def test_gold_is_a_program_that_answers_line_by_line() -> None:
    program = Path(gold.__file__)
    with subprocess.Popen(
        [sys.executable, "-I", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for completion, expected in ((" fig, plum.", 4.0), (" plum, fig.", 2.5)):
            request = {"id": 1, "prompt": grammar.wrap("Sort plum, fig."), "completion": completion}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"score": expected}
        process.stdin.close()
