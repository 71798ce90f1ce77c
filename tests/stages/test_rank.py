"""The command: scores to rankings, ties, noise, and what it refuses."""

import json
import shlex
import sys

import pytest

from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import encode
from rlhfkit.data.records import Ranking, read_records
from rlhfkit.errors import DataError, UsageError
from rlhfkit.stages.rank import Config, run

PROGRAM = """
import json, sys
for line in sys.stdin:
    record = json.loads(line)
    print(json.dumps({"score": len(record["completion"])}), flush=True)
"""


@pytest.fixture
def by(tmp_path):
    path = tmp_path / "length.py"
    path.write_text(PROGRAM)
    return f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(path))}"


def sample(*texts, **more):
    return {"prompt": "p", "completions": list(texts), **more}


def ranked(rows, **settings):
    return [json.loads(encode(record)) for batch in run(rows, Config(**settings)) for record in batch]


def test_best_first_with_ties_and_scores(by):
    (record,) = ranked(
        [sample("aa", "bbbb", "cc", {"text": "d", "finish_reason": "stop"}, id=7, kind="x")], by=by
    )
    assert record["ranking"] == [[1], [0, 2], [3]]
    assert [c["score"] for c in record["completions"]] == [2, 4, 2, 1]
    assert record["completions"][3] == {"text": "d", "finish_reason": "stop", "score": 1}
    assert (record["id"], record["kind"], record["rater"]) == (7, "x", by)


def test_what_comes_out_is_a_ranking(by):
    messages = [{"role": "assistant", "content": "long"}]
    rows = [sample("a", "bb"), sample(messages, [*messages, *messages]), sample("x", "yy", ranks=[1, 2])]
    for settings in ({}, {"noise": 3.0}, {"tie_margin": 1.0}):
        records = ranked(rows, by=by, **settings)
        read = list(read_records(records, Ranking, ReadConfig()))
        assert [r.tiers for r in read] == [r["ranking"] for r in records]


def test_margin_ties_and_keeps_scores_aside(by):
    (record,) = ranked([sample("aaaa", "bbb", "c")], by=by, tie_margin=1.5)
    assert record["ranking"] == [[0, 1], [2]]
    assert record["scores"] == [4, 3, 1]
    assert record["completions"] == ["aaaa", "bbb", "c"]


def test_older_scores_that_disagree_are_kept_under_another_name(by):
    (record,) = ranked([sample({"text": "a", "score": 9}, {"text": "bb", "score": 1})], by=by)
    assert record["completions"] == [
        {"text": "a", "previous_score": 9, "score": 1},
        {"text": "bb", "previous_score": 1, "score": 2},
    ]


def test_equal_texts_tie_whatever_the_noise(by):
    for record in ranked([sample("a", "b", "a", id=i) for i in range(20)], by=by, noise=5.0):
        (tier,) = [t for t in record["ranking"] if 0 in t]
        assert tier == [0, 2]
        assert record["completions"][0]["score"] == record["completions"][2]["score"]


def test_noise_depends_on_the_record_alone(by):
    rows = [{"prompt": f"p{i}", "completions": ["a", "b", "cc"]} for i in range(10)]
    one = ranked(rows, by=by, noise=1.0, batch_size=3)
    two = ranked(rows[::-1], by=by, noise=1.0)
    assert one == two[::-1]
    assert one != ranked(rows, by=by, noise=1.0, seed=1)
    assert len({json.dumps(r["ranking"]) for r in one}) > 1


def test_rater_by_name(by):
    assert ranked([sample("a", "b")], by=by, rater="labeller 3")[0]["rater"] == "labeller 3"


def test_a_single_completion(by):
    rows = [sample("a", "bb"), sample("only"), sample("a", "bb")]
    batches = run(rows, Config(by=by))
    assert len(next(batches)) == 1
    with pytest.raises(DataError, match=r"<records>:2: sample.completions: one completion cannot be ranked"):
        next(batches)
    assert len(ranked(rows, by=by, on_bad_line="skip")) == 2
    with pytest.raises(DataError, match="one completion"):
        ranked([{"prompt": "p", "completion": "x"}], by=by)


def test_how_to_rank_must_be_said():
    with pytest.raises(UsageError, match="--by: how to rank"):
        ranked([sample("a", "b")])


def test_empty_input(by):
    assert ranked([], by=by) == []
