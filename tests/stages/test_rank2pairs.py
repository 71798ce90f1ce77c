"""rank2pairs: which pairs, what they carry, and how much memory a long input takes."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit import context
from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import encode_lines
from rlhfkit.data.records import Pair, read_records
from rlhfkit.errors import DataError
from rlhfkit.stages import rank2pairs
from rlhfkit.stages.rank2pairs import Config

SHARED = Path(__file__).parents[2] / "../shared/data"


class Said(context.Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note


def expand(*records: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    batches = rank2pairs.run(list(records), Config(**settings))
    return [json.loads(line) for batch in batches for line in encode_lines(batch).splitlines()]


def told(*records: dict[str, Any], **settings: Any) -> list[str]:
    said = Said()
    with context.surroundings(said, context.Invocation()):
        expand(*records, **settings)
    return said.lines


def ranking(tiers: list[list[int]], texts: str = "abcdef", **more: Any) -> dict[str, Any]:
    count = max(i for tier in tiers for i in tier) + 1
    return {"prompt": "p", "completions": list(texts[:count]), "ranking": tiers, **more}


def answers(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pair["chosen"], pair["rejected"]) for pair in pairs]


def test_a_ranking_by_hand():
    pairs = expand(ranking([[2], [0, 3], [1]]))
    assert answers(pairs) == [("c", "a"), ("c", "d"), ("c", "b"), ("a", "b"), ("d", "b")]
    assert [list(pair) for pair in pairs] == [["prompt", "chosen", "rejected", "group"]] * 5
    assert {pair["prompt"] for pair in pairs} == {"p"}
    assert answers(expand(ranking([[2], [0, 3], [1]]), pairs="adjacent")) == [
        ("c", "a"),
        ("c", "d"),
        ("a", "b"),
        ("d", "b"),
    ]
    assert answers(expand(ranking([[2], [0, 3], [1]]), pairs="best-worst")) == [("c", "b")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
@pytest.mark.parametrize(("name", "count"), [("gsm8k", 3754), ("oasst", 504), ("vicuna80", 1218)])
def test_real_rankings(name: str, count: int):
    path = SHARED / f"rankings_{name}_train.jsonl"
    pairs = [pair for batch in rank2pairs.run([path], Config()) for pair in batch]
    assert len(pairs) == count
    scored: Counter[tuple[str, str]] = Counter()
    expected: Counter[tuple[str, str]] = Counter()
    for line in path.read_bytes().split(b"\n")[:-1]:
        responses = json.loads(line)["responses"]
        expected.update(
            (a["text"], b["text"]) for a in responses for b in responses if a["score"] > b["score"]
        )
    for line in encode_lines(pairs).split(b"\n")[:-1]:
        pair = json.loads(line)
        scored[pair["chosen"], pair["rejected"]] += 1
        assert set(pair) == {"id", "source", "prompt", "chosen", "rejected", "group"}
    assert scored == expected


def test_other_fields_pass_through_to_every_pair():
    record = ranking(
        [[0], [1]], id=7, rater="r", seconds=1.50, flags={"x": [1e-07]}, chosen="old", margin=9, group="old"
    )
    (pair,) = expand(record)
    assert pair == {
        "prompt": "p", "chosen": "a", "rejected": "b", "group": pair["group"], "id": 7, "rater": "r", "seconds": 1.5,
        "flags": {"x": [1e-07]},
    }  # fmt: skip
    assert pair["group"] != "old"


def test_completions_lose_their_metadata_and_keep_their_shape():
    chat = [{"role": "user", "content": "hi"}]
    reply = [{"role": "assistant", "content": "hello"}]
    record = {
        "prompt": chat,
        "responses": [{"text": "t", "model": "m"}, reply, {"messages": reply, "n": 1}, "s"],
        "ranks": [1, 2, 3, 4],
    }
    pairs = expand(record)
    assert pairs[0] == {"prompt": chat, "chosen": "t", "rejected": reply, "group": pairs[0]["group"]}
    assert answers(pairs)[-2:] == [(reply, "s"), (reply, "s")]
    assert all(list(read_records([pair], Pair, ReadConfig())) for pair in pairs)


def test_groups_tell_rankings_apart():
    same = ranking([[0], [1], [2]], id="x")
    pairs = expand(same, same, ranking([[0], [1]]), ranking([[0], [1]]))
    groups = [pair["group"] for pair in pairs]
    assert groups == sorted(groups)
    assert sorted(Counter(groups).values()) == [1, 1, 3, 3]
    # Stable: the same input gives the same names; files that are joined later do not share them.
    assert groups == [pair["group"] for pair in expand(same, same, ranking([[0], [1]]), ranking([[0], [1]]))]
    assert not {p["group"] for p in expand(same)} & {
        p["group"] for p in expand(ranking([[0], [1], [2]], id="y"))
    }


def test_equal_texts_make_no_pair_and_are_counted(tmp_path: Path):
    record = {"prompt": "p", "completions": ["same", "other", {"text": "same"}], "ranking": [[0], [1], [2]]}
    assert answers(expand(record)) == [("same", "other"), ("other", "same")]
    assert told(record) == ["dropped 1 of 3 pairs: chosen and rejected are the same text"]
    # Equal as text, however it is written.
    line = b'{"prompt": "p", "completions": ["\\u00e9/", "\xc3\xa9\\/"], "ranking": [[0], [1]]}\n'
    path = tmp_path / "r.jsonl"
    path.write_bytes(line)
    assert list(rank2pairs.run([path], Config())) == []


def test_what_is_left_out_is_counted():
    record = {**ranking([[2], [0]]), "completions": ["a", "b", "c", "d"]}
    assert answers(expand(record)) == [("c", "a")]
    assert told(record, record) == ["4 completions left out of their rankings made no pairs"]
    assert told({**record, "ranking": [[0, 1, 2, 3]]}) == ["no pairs: every ranking is one tie"]


def test_margin():
    record = {
        "prompt": "p",
        "completions": [{"text": "a", "score": 1.5}, {"text": "b", "score": -1}],
        "ranking": [[0], [1]],
    }
    assert [pair["margin"] for pair in expand(record, margin=True)] == [2.5]
    assert "margin" not in expand(record)[0]
    assert "margin" not in expand(ranking([[0], [1]]), margin=True)[0]
    far = {
        "prompt": "p",
        "completions": [{"text": "a", "score": 1e308}, {"text": "b", "score": -1e308}],
        "ranks": [1, 2],
    }
    with pytest.raises(DataError, match="too far apart"):
        expand(far, margin=True)


# -- --max-pairs -------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 3))
def test_max_pairs_draws_from_all_pairs(count: int, most: int, seed: int):
    record = {
        "prompt": "p",
        "completions": [f"c{i}" for i in range(count)],
        "ranking": [[i] for i in range(count)],
    }
    every = answers(expand(record))
    drawn = answers(expand(record, max_pairs=most, seed=seed))
    assert len(drawn) == min(most, len(every))
    assert drawn == [pair for pair in every if pair in set(drawn)], "in order, none twice"
    assert drawn == answers(expand(record, max_pairs=most, seed=seed))
    # Where the record stands does not matter.
    assert drawn == answers(expand(ranking([[0], [1]]), record, max_pairs=most, seed=seed))[1:]


def test_max_pairs_has_no_bias_of_order():
    """Of 6 pairs keep 2: each is kept in a third of 600 rankings; 5 standard deviations are 57."""
    records = [
        {"prompt": f"p{n}", "completions": list("abcd"), "ranking": [[0], [1], [2], [3]]} for n in range(600)
    ]
    kept = Counter(answers(expand(*records, max_pairs=2)))
    assert len(kept) == 6
    assert all(abs(n - 200) < 5 * math.sqrt(600 * 2 / 9) for n in kept.values())


def test_a_ranking_of_hundreds_comes_in_small_batches():
    rng = random.Random(0)
    order = rng.sample(range(500), 500)
    record = {"prompt": "p", "completions": [f"c{i}" for i in range(500)], "ranking": [[i] for i in order]}
    batches = list(rank2pairs.run([record], Config()))
    assert sum(map(len, batches)) == 124_750
    assert max(map(len, batches)) <= 1024
    assert len({bytes(pair["group"]) for batch in batches for pair in batch}) == 1
    record = {"prompt": "p", "completions": ["c"] * 1001, "ranking": [[0], [1]]}
    with pytest.raises(DataError, match="more than 1,000"):
        expand(record)


# -- as a stream -------------------------------------------------------------------------------------------


def test_pairs_before_a_bad_line_come_out_first(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ranking([[0], [1]])) + "\n" + json.dumps(ranking([[0], [0]])) + "\n")
    batches = rank2pairs.run([path], Config())
    assert len(next(batches)) == 1
    with pytest.raises(DataError) as caught:
        next(batches)
    assert caught.value.where == f"{path}:2"
    kept = [pair for batch in rank2pairs.run([path], Config(on_bad_line="skip")) for pair in batch]
    assert len(kept) == 1


def test_empty_input_gives_nothing():
    assert expand() == []
    assert told() == ["no records in the input"]


def test_memory_stays_constant(tmp_path: Path):
    """A hundred times the input, with a gigabyte of pairs behind it, takes no more memory."""
    path = tmp_path / "long.jsonl"
    line = json.dumps(
        {"prompt": "p" * 400, "responses": [c * 400 for c in "abcdef"], "ranking": [[i] for i in range(6)]}
    )
    code = """
import sys
from rlhfkit.data.jsonl import encode_lines
from rlhfkit.stages import rank2pairs
written = sum(len(encode_lines(batch)) for batch in rank2pairs.run([sys.argv[1]], rank2pairs.Config()))
print(written, *(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    path.write_text((line + "\n") * 20_000)
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    written, peak = map(int, result.stdout.split())
    assert written > 300_000_000
    assert peak < 60_000  # kB
