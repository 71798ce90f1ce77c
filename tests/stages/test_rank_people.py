"""`rank` by people, without the people: what is asked, what is refused, and the records in the end."""

import json
import subprocess
import sys

import pytest

from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import encode
from rlhfkit.data.records import Ranking, read_records
from rlhfkit.errors import DataError, Interrupted, UsageError
from rlhfkit.stages.rank import Config, run
from rlhfkit.ui import tty
from rlhfkit.ui.ranking_session import Answer

ROWS = [
    {"id": "one", "prompt": "p", "completions": ["long", "mid", "long"], "kind": "x", "ranks": [3, 1, 3]},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "completions": [{"text": "aa", "score": 2.0, "model": "secret"}, {"text": "bb", "score": 1.0}],
    },
    {"prompt": "the same", "completions": ["x", "y"]},
    {"prompt": "the same", "completions": ["x", "y"]},
]


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """Run the stage with a person in place of the terminal."""

    def start(person, rows=ROWS, **settings):
        monkeypatch.setattr(tty, "rank_on_terminal", person)
        settings = {"tty": True, "journal": str(tmp_path / "journal"), "rater": "ann", **settings}
        return [json.loads(encode(r)) for batch in run(rows, Config(**settings)) for r in batch]

    return start


def alphabetical(limit=99, skip=()):
    def person(session):
        for _ in range(limit):
            if (shown := session.next()) is None:
                return
            order = sorted(range(len(shown.order)), key=lambda place: shown.completions[place])
            tiers = None if shown.item.prompt[0][1] in skip else [[place] for place in order]
            session.decide(shown.item.key, 0, f"{session.rater}-{shown.item.key}", Answer(tiers, 1.0))

    return person


def nobody(session):
    raise AssertionError("there is nothing to ask")


def test_records(rank):
    first, second, third, fourth = rank(alphabetical())
    assert first["ranking"] == [[0, 2], [1]]
    assert (first["kind"], first["rater"], first["seconds"], first["flags"]) == ("x", "ann", 1.0, [])
    assert sorted(first["shown_order"]) == [0, 1]
    assert "ranks" not in first
    assert first["ranked_at"].endswith("+00:00")
    assert (second["ranking"], second["completions"][0]["score"]) == ([[0], [1]], 2.0)
    assert third["ranking"] == fourth["ranking"] == [[0], [1]]  # the same record twice is two items
    assert len(list(read_records([first, second, third, fourth], Ranking, ReadConfig()))) == 4


def test_scores_that_disagree_are_renamed(rank):
    rows = [{"prompt": "p", "completions": [{"text": "b", "score": 2.0}, {"text": "a", "score": 1.0}]}]
    (record,) = rank(alphabetical(), rows)
    assert record["ranking"] == [[1], [0]]
    assert record["completions"][0] == {"text": "b", "previous_score": 2.0}


def test_a_person_learns_texts_only(rank):
    def person(session):
        assert "secret" not in repr(session.items)
        raise Interrupted(2, "stopped")

    with pytest.raises(Interrupted):
        rank(person)


def test_going_on_and_finishing(rank, tmp_path):
    def stops(session):
        alphabetical(2)(session)
        raise Interrupted(2, "stopped")

    with pytest.raises(Interrupted):
        rank(stops)
    assert len(rank(nobody, tty=False, finish=True)) == 2
    assert len(rank(alphabetical(skip=("the same",)), ROWS)) == 2
    assert len(rank(nobody)) == 2  # all is decided, so nobody is asked
    assert len(rank(nobody, ROWS[:1])) == 1  # the others stay in the journal
    assert len((tmp_path / "journal").read_text().splitlines()) == 4


def test_raters_share_a_journal(rank):
    ann = rank(alphabetical(), overlap=1)
    ben = rank(alphabetical(), overlap=1, rater="ben")
    assert (len(ann), len(ben)) == (4, 1)
    everybody = rank(nobody, tty=False, finish=True, rater=None)
    assert sorted(record["rater"] for record in everybody) == ["ann"] * 4 + ["ben"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"web": True, "tty": True}, "exclude each other"),
        ({"tty": True, "by": "rm:x"}, "exclude each other"),
        ({"tty": True}, "outlives a crash"),
        ({"tty": True, "output": "-"}, "outlives a crash"),
        ({"tty": True, "output": "x.jsonl", "journal": "./x.jsonl"}, "two files"),
        ({"tty": True, "noise": 1.0}, "own noise"),
        ({"web": True, "quiet": True, "browser": False}, "nobody would learn"),
        ({"finish": True, "journal": "/nowhere/at/all"}, "no decisions are kept"),
    ],
)
def test_usage(settings, message):
    with pytest.raises(UsageError, match=message):
        list(run(ROWS, Config(**settings)))


@pytest.mark.parametrize("texts", [["one"], list("abcdefghij")])
def test_too_few_or_too_many(rank, texts):
    rows = [ROWS[0], {"prompt": "p", "completions": texts}]
    with pytest.raises(DataError, match=r"<records>:2: .* who sees 2 to 9"):
        rank(nobody, rows)
    assert len(rank(alphabetical(), rows, on_bad_line="skip")) == 1


def test_all_the_same_text_is_no_question(rank):
    assert rank(nobody, [{"prompt": "p", "completions": ["a", "a"]}]) == []
    assert rank(nobody, []) == []


def test_no_terminal(tmp_path):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = subprocess.run(
        [sys.executable, "-m", "rlhfkit", "rank", "s.jsonl", "--tty", "-o", "out.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # no controlling terminal
    )
    assert done.returncode == 66
    assert "error: --tty: there is no terminal to rank on\nhint: --web uses a browser" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
