"""describe_jsonl: counts that can be done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.data.describe import describe_jsonl
from rlhfkit.errors import BadRecords, DataError

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


def described(
    tmp_path: Path, *records: dict[str, Any], tail: str = ""
) -> tuple[dict[str, Any], DataError | None]:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return describe_jsonl(path)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": "t"}, "text"),
        ({"prompt": "p"}, "prompt"),
        ({"messages": [USER]}, "prompt"),
        ({"messages": [USER, REPLY]}, "demonstration"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "demonstration",
        ),
        ({"prompt": "p", "response": "c"}, "demonstration"),
        ({"prompt": "p", "completion": "c", "finish_reason": "stop"}, "sample"),
        ({"prompt": "p", "completion": "c", "score": 1}, "scored sample"),
        ({"prompt": "p", "completions": ["a", {"text": "b"}]}, "sample"),
        ({"prompt": "p", "completions": [{"text": "b", "score": 0}]}, "scored sample"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}, "ranking"),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY]}, "pair"),
        ({"model_a": "a", "model_b": "b", "preference": 1}, "judgement"),
        ({"turns": ["a", "b"]}, "other"),
    ],
)
def test_kinds(record: dict[str, Any], kind: str, tmp_path: Path):
    facts, error = described(tmp_path, record)
    assert error is None
    assert facts["kinds"] == {kind: 1}


def test_rankings(tmp_path: Path):
    facts, error = described(
        tmp_path,
        {"id": 1, "prompt": "pp", "completions": ["long", "b", "c"], "ranking": [[0], [1, 2]]},
        {"id": 1, "prompt": "p", "completions": ["aa", "bbb"], "ranking": [[0], [1]], "rater": "r"},
        {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [[0, 1]]},
        tail="\n\n",
    )
    assert error is None
    assert facts == {
        "records": 3,
        "kinds": {"ranking": 3},
        "blank_lines": 2,
        "fields": {"prompt": 3, "completions": 3, "ranking": 3, "id": 2, "rater": 1},
        "repeated_ids": 1,
        "completions_per_record": {"2": 1, "3": 2},
        "rankings_with_ties": 2,
        "rankings_all_tied": 1,
        "completions_left_out": 1,
        "pairs": 3,
        "chosen_is_longer": 0.667,
        "prompt_characters": {"mean": 1.3, "max": 2},
        "completion_characters": {"mean": 1.8, "max": 4},
    }


def test_pairs(tmp_path: Path):
    facts, _ = described(
        tmp_path,
        {"prompt": "p", "chosen": "abc", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
    )
    assert (facts["pairs"], facts["chosen_is_longer"], facts["pairs_of_equal_texts"]) == (2, 0.5, 1)


def test_bad_records_are_all_counted_and_the_first_told(tmp_path: Path):
    facts, error = described(
        tmp_path, {"prompt": "p"}, {"prompt": 5}, {"prompt": "p", "completion": " "}, tail="{"
    )
    assert (facts["records"], facts["bad_records"]) == (1, 3)
    assert isinstance(error, BadRecords)
    assert [e.where for e in error.errors] == [f"{tmp_path}/x.jsonl:{n}" for n in ("2", "3", "4:2")]


def test_empty_is_not_bad_and_not_text_is(tmp_path: Path):
    facts, error = described(tmp_path)
    assert (facts["records"], error) == (0, None)
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe{\x00")
    assert "UTF-16" in str(describe_jsonl(tmp_path / "x.jsonl")[1])
