"""Exports as the other programs write them, and what goes back to them."""

import gzip
import json
import uuid

import pytest

from rlhfkit.config import ReadConfig
from rlhfkit.data.exchange import imported
from rlhfkit.data.jsonl import encode
from rlhfkit.data.records import Ranking, read_records
from rlhfkit.errors import DataError, UsageError
from rlhfkit.stages.exchange import Config, run

ITEMS = [
    {"id": "blog", "title": "Ten tips", "body": "long"},
    {"id": "mdn", "title": "Arrow", "body": "short"},
    {"id": 3, "title": "only a title"},
]


def label_studio(ranker, **annotation):
    result = {
        "id": "x",
        "type": "ranker",
        "from_name": "rank",
        "to_name": "list",
        "value": {"ranker": ranker},
    }
    other = {"type": "textarea", "from_name": "why", "to_name": "list", "value": {"text": ["so"]}}
    return {
        "id": 17,
        "data": {"prompt": "How?", "items": ITEMS, "number": 5},
        "annotations": [
            {"id": 1, "completed_by": 4, "lead_time": 12.5, "result": [other, result], **annotation}
        ],
    }


def records(tasks, form):
    return [json.loads(encode(r)) for r in imported(tasks, form)]


@pytest.mark.parametrize(
    ("ranker", "tiers"),
    [
        (["mdn", "3", "blog"], [[1], [2], [0]]),
        (["mdn", "blog"], [[1], [0]]),
        ({"rank": ["mdn", "blog"], "_": ["3"]}, [[1], [0]]),
        ({"10": ["mdn"], "2": ["3", "blog"], "3": []}, [[2, 0], [1]]),
    ],
)
def test_label_studio(ranker, tiers):
    (record,) = records([label_studio(ranker)], "label-studio")
    assert record == {
        "id": 17,
        "prompt": "How?",
        "completions": ["long", "short", "only a title"],
        "ranking": tiers,
        "rater": "4",
        "seconds": 12.5,
    }


def test_label_studio_raters_and_cancelled_ones():
    task = label_studio(["mdn", "blog"])
    other = {"completed_by": {"id": 9, "email": "b@example.org"}, "result": task["annotations"][0]["result"]}
    task["annotations"] += [other, {**other, "was_cancelled": True}, {"completed_by": 5, "result": []}]
    assert [r["rater"] for r in records([task], "label-studio")] == ["4", "b@example.org"]
    assert records([{**task, "annotations": []}], "label-studio") == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"id": 1, "prompt": "flat", "rank": {}}, "JSON-MIN"),
        (label_studio({"good": ["mdn"], "bad": ["blog"]}), "buckets good, bad have no order"),
        (label_studio(["nobody"]), "'nobody' was ranked but is not among blog, mdn, 3"),
        (label_studio("mdn"), "expected a list of ids"),
        ({**label_studio([]), "data": {"prompt": "p", "items": []}}, "expected one list of items"),
        ({**label_studio([]), "data": {"a": "p", "b": "q", "items": ITEMS}}, "no prompt among a, b"),
        ({**label_studio([]), "data": {"prompt": "p", "items": [ITEMS[0]] * 2}}, "two items have one id"),
    ],
)
def test_bad_label_studio(task, message):
    with pytest.raises(DataError) as caught:
        records([task], "label-studio")
    assert message in f"{caught.value} {caught.value.hint}"
    assert caught.value.where == "<records>: task 1"


FIELDS = {"prompt": "How?", "reply-1": "one", "reply-2": "two", "reply-3": "three"}
RANKED = [{"value": "reply-2", "rank": 1}, {"value": "reply-1", "rank": 3}, {"value": "reply-3", "rank": 1}]


def test_argilla_2():
    order = ["reply-3", "reply-1", "reply-2"]
    answers = [{"value": order, "user_id": "u1"}, {"value": RANKED, "user_id": "u2"}]
    task = {
        "id": "r",
        "fields": FIELDS,
        "metadata": {},
        "responses": {"why": [{"value": "x", "user_id": "u1"}], "rank": answers},
    }
    first, second = records([task], "argilla")
    assert first == {
        "id": "r",
        "prompt": "How?",
        "completions": ["one", "two", "three"],
        "ranking": [[2], [0], [1]],
        "rater": "u1",
    }
    assert (second["ranking"], second["rater"]) == ([[1, 2], [0]], "u2")


def test_argilla_1():
    def response(user, status):
        return {
            "user_id": user,
            "status": status,
            "values": {"rank": {"value": RANKED}, "score": {"value": 3}},
        }

    task = {
        "fields": FIELDS,
        "responses": [response("u1", "submitted"), response("u2", "draft"), response("u3", "discarded")],
    }
    assert [(r["rater"], r["ranking"]) for r in records([task], "argilla")] == [("u1", [[1, 2], [0]])]


def test_bad_argilla():
    with pytest.raises(DataError, match=r"record\.fields: missing"):
        records([{"prompt": "p", "rank.responses": []}], "argilla")
    with pytest.raises(DataError, match="'nothing' was ranked"):
        records(
            [{"fields": FIELDS, "responses": {"q": [{"value": ["reply-1", "nothing"], "user_id": "u"}]}}],
            "argilla",
        )


@pytest.mark.parametrize("suffix", ["json", "jsonl", "json.gz"])
def test_files(tmp_path, suffix):
    tasks = [label_studio(["mdn", "blog"]), label_studio(["blog", "mdn"])]
    text = "\n".join(map(json.dumps, tasks)) if suffix == "jsonl" else json.dumps(tasks, indent=1)
    path = tmp_path / f"export.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert [r["ranking"] for r in records([str(path)], "label-studio")] == [[[1], [0]], [[0], [1]]]


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "expected a task"), ("[{]", "not JSON"), ("[" * 9999, "not JSON")]
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        records([str(tmp_path / "e.json")], "argilla")
    assert caught.value.where.startswith(str(tmp_path / "e.json"))


ROWS = [
    {
        "id": 5,
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "ranking": [[2], [0], [1]],
        "rater": "ann",
        "seconds": 3.5,
    },
    {
        "id": 6,
        "prompt": "q",
        "completions": [{"text": "a"}, {"text": "b"}, {"text": "c"}],
        "ranking": [[1, 2], [0]],
        "rater": "ben",
    },
]


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
def test_there_and_back(form):
    tasks = [json.loads(encode(t)) for batch in run(ROWS, Config(to_format=form)) for t in batch]
    back = [r for batch in run(tasks, Config(from_format=form)) for r in batch]
    read = list(read_records([json.loads(encode(r)) for r in back], Ranking, ReadConfig()))
    assert [(r.tiers, r.row.values["rater"], str(r.id)) for r in read] == [
        ([[2], [0], [1]], "ann", "5"),
        ([[1, 2], [0]], "ben", "6"),
    ]
    assert [[c.text for c in r.completions] for r in read] == [["a", "b", "c"]] * 2
    assert [r.prompt for r in read] == ["p", "q"]
    if form == "argilla":
        assert uuid.UUID(tasks[0]["responses"]["ranking"][0]["user_id"])
        assert tasks[0]["responses"]["ranking"][0]["value"] == [
            "completion-3",
            "completion-1",
            "completion-2",
        ]
    else:
        assert tasks[0]["annotations"][0]["result"][0]["value"] == {"ranker": ["2", "0", "1"]}
        assert read[0].row.values["seconds"] == 3.5


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
def test_samples_become_tasks_to_rank(form):
    row = {"prompt": [{"role": "user", "content": "q"}], "completions": ["a", "b"]}
    ((task,),) = run([row], Config(to_format=form))
    assert "annotations" not in task
    assert "responses" not in task
    assert "user: q" in json.dumps(task)


def test_one_direction():
    for settings in ({}, {"from_format": "argilla", "to_format": "argilla"}):
        with pytest.raises(UsageError):
            list(run([], Config(**settings)))
