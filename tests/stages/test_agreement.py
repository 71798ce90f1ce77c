"""The command over ranking records of several raters."""

import json

import pytest

from rlhfkit.errors import DataError
from rlhfkit.stages.agreement import Config, run


def record(rater, ranking, **more):
    return {"prompt": "p", "completions": ["a", "b", "c"], "ranking": ranking, "rater": rater, **more}


def test_two_raters_who_saw_another_order():
    rows = [
        record("ann", [[0], [1], [2]], seconds=12),
        {**record("ben", [[2], [1], [0]], seconds=8.5), "completions": ["c", {"text": "b"}, "a"]},
    ]
    summary = run(rows, Config())
    assert summary["pairs"][0]["agreement"] == 1
    assert summary["raters"]["ben"]["median_seconds"] == 8.5
    json.dumps(summary, allow_nan=False)


def test_items_are_matched_by_id():
    rows = [
        record("ann", [[0], [1], [2]], id=1),
        record("ben", [[2], [1], [0]], id=1),
        record("ben", [[0]], id=2),
    ]
    (pair,) = run(rows, Config())["pairs"]
    assert (pair["items"], pair["agreement"]) == (1, 0)


def test_who_ranked_must_be_known():
    rows = [{"prompt": "p", "completions": ["a", "b"], "ranking": [[0], [1]], "by": "ann"}]
    with pytest.raises(DataError, match=r"<records>:1: ranking.rater: missing") as caught:
        run(rows, Config())
    assert "--map rater" in caught.value.hint
    assert list(run(rows, Config(map=("rater=by",)))["raters"]) == ["ann"]


def test_empty():
    with pytest.raises(DataError, match="no rankings"):
        run([], Config())
