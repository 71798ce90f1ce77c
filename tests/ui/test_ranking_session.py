"""Decisions: on the disk at once, once only, by several raters, and shown in an order nobody can guess from."""

import json
import os
import subprocess
import sys
import threading

import pytest

from rlhfkit.errors import CannotCreate, DataError, InputOutputError
from rlhfkit.ui.journal import Journal
from rlhfkit.ui.ranking_session import CLAIM_SECONDS, Answer, Conflict, Item, Refused, Session, decisions


def plain(text):
    return (("", text),)


def items(count, texts=("a", "b", "c")):
    return [Item(f"item{i}", plain(f"p{i}"), tuple(plain(f"{t}{i}") for t in texts)) for i in range(count)]


@pytest.fixture
def open_session(tmp_path):
    journals = []

    def start(rater="ann", of=None, **settings):
        journals.append(Journal(tmp_path / "j"))
        return Session(of or items(6), journals[-1], rater, **settings)

    yield start
    for journal in journals:
        journal.close()


def best_first(shown):
    """Places by the letter that each text begins with."""
    return [[shown.completions.index(text)] for text in sorted(shown.completions)]


def rank_all(session, limit=99):
    done = 0
    while done < limit and (shown := session.next()):
        session.decide(shown.item.key, shown.version, os.urandom(8).hex(), Answer(best_first(shown), 2.5))
        done += 1
    return done


def test_order_is_shuffled_by_item_and_rater_and_mapped_back(open_session):
    ann, ben = open_session("ann"), open_session("ben")
    orders = [ann.show(f"item{i}").order for i in range(6)]
    assert orders == [open_session("ann").show(f"item{i}").order for i in range(6)]
    assert orders != [ben.show(f"item{i}").order for i in range(6)]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert rank_all(ann) == 6
    found = decisions(ann.journal, list(ann.items.values()), "ann")
    for (line,), order in zip(found.values(), orders, strict=True):
        assert (line["ranking"], line["shown_order"], line["seconds"]) == ([[0], [1], [2]], order, 2.5)


def test_equal_completions_are_shown_once_and_share_everything(open_session):
    item = Item("k", plain("p"), (plain("x"), plain("y"), plain("x")))
    session = open_session(of=[item])
    shown = session.next()
    assert sorted(shown.order) == [0, 1]
    answer = Answer(
        [[shown.order.index(0)], [shown.order.index(1)]], ratings=tuple(6 - i for i in shown.order)
    )
    session.decide("k", 0, "identity", answer)
    (line,) = decisions(session.journal, [item], None)["k"]
    assert (line["ranking"], line["ratings"]) == ([[0, 2], [1]], [6, 5, 6])


def test_one_decision_a_version_and_one_line_an_identity(open_session):
    first, second = open_session(), open_session()  # two tabs, or two programs
    shown, same = first.next(), second.next()
    assert shown == same
    answer = Answer([[0], [1, 2]])
    first.decide(shown.item.key, 0, "identity1", answer)
    first.decide(shown.item.key, 0, "identity1", answer)  # sent again: the reply was lost
    with pytest.raises(Conflict):
        second.decide(shown.item.key, 0, "identity2", Answer([[2], [1], [0]]))
    assert len(decisions(first.journal, [shown.item], "ann")[shown.item.key]) == 1
    assert second.next().item.key == "item1"


def test_undo_supersedes(open_session):
    session = open_session()
    rank_all(session, 2)
    key = session.before(None)
    assert (key, session.before(key)) == ("item1", "item0")
    assert session.before("item0") is None
    again = session.show(key)
    assert (again.version, again.answer.tiers) == (1, best_first(again))
    session.decide(key, 1, "changed-my-mind", Answer([[0, 1, 2]], note=" hm ", flags=("unsafe", "flagged")))
    lines = [json.loads(line) for line in session.journal.path.read_text().splitlines()]
    assert len(lines) == 3
    assert lines[2]["supersedes"] == lines[1]["decision"]
    (line,) = decisions(session.journal, [again.item], "ann")[key]
    assert (line["ranking"], line["note"], line["flags"]) == ([[0, 1, 2]], "hm", ["flagged", "unsafe"])
    assert session.show(key).answer.note == "hm"
    assert str(session.count()) == "2 of 6 ranked"


def test_skipped_is_decided(open_session):
    session = open_session()
    session.decide("item0", 0, "skipped-it", Answer(None))
    assert session.next().item.key == "item1"
    count = session.count()
    assert (count.ranked, count.skipped, count.left, str(count)) == (0, 1, 5, "0 of 6 ranked, 1 skipped")


def test_overlap(open_session):
    raters = [open_session(name, of=items(40), overlap=10) for name in ("ann", "ben", "cy")]
    while sum(rank_all(session, 3) for session in raters):
        pass
    found = decisions(raters[0].journal, items(40), None)
    by_raters = [sorted(line["rater"] for line in lines) for lines in found.values()]
    assert sum(names == ["ann", "ben", "cy"] for names in by_raters) == 10
    assert sum(len(names) == 1 for names in by_raters) == 30
    assert all(session.count().left == 0 for session in raters)


def test_what_one_skips_another_gets(open_session):
    ann, ben = (open_session(name, of=items(1), overlap=0) for name in ("ann", "ben"))
    ann.next()
    assert ben.next() is None  # ann looks at it
    ann.decide("item0", 0, "skipped-it", Answer(None))
    ann.release()
    assert ben.next().item.key == "item0"


def test_a_claim_ends(open_session, monkeypatch):
    ann, ben = (open_session(name, of=items(1), overlap=0) for name in ("ann", "ben"))
    ann.next()
    ann.release()
    assert ben.next() is not None
    assert ann.next() is None
    now = __import__("time").time()
    monkeypatch.setattr("rlhfkit.ui.ranking_session.time.time", lambda: now + CLAIM_SECONDS + 60)
    assert ann.next() is not None  # ben's computer died
    ann.decide("item0", 0, "identity-a", Answer([[0], [1, 2]]))
    ben.decide("item0", 0, "identity-b", Answer([[0], [1, 2]]))  # it had not: both are kept
    assert len(decisions(ann.journal, items(1), None)["item0"]) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer([]),
        Answer([[0]]),
        Answer([[0], []]),
        Answer([[0], [0]]),
        Answer([[0], [3]]),
        Answer([[0], [-1]]),
        Answer([[0], [1]], seconds=float("nan")),
        Answer([[0], [1]], seconds=-1),
        Answer([[0], [1]], flags=("nonsense",)),
        Answer([[0], [1]], ratings=(1, 2)),
        Answer([[0], [1]], ratings=(1, 2, 8)),
        Answer([[0], [1]], note="x" * 10_001),
    ],
)
def test_impossible_answers(open_session, answer):
    session = open_session()
    with pytest.raises(Refused):
        session.decide("item0", 0, "identity", answer)
    assert session.count().ranked == 0


# -- the journal -------------------------------------------------------------------------------------------


def test_a_torn_line_costs_nothing_else(open_session, tmp_path):
    rank_all(open_session(), 2)
    with open(tmp_path / "j", "ab") as file:
        file.write(b'{"decision":"half')
    session = open_session()
    assert rank_all(session, 1) == 1
    assert session.journal.torn == 1
    assert open_session().count().ranked == 3


def test_a_line_that_lacks_only_its_end_counts(open_session, tmp_path):
    rank_all(open_session(), 2)
    os.truncate(tmp_path / "j", os.path.getsize(tmp_path / "j") - 1)
    session = open_session()
    assert (session.journal.torn, session.count().ranked) == (0, 2)
    assert rank_all(session) == 4


def test_a_full_disk_is_said_and_loses_nothing(open_session, monkeypatch):
    session = open_session()
    rank_all(session, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputOutputError, match="no space left"):
            session.decide("item1", 0, "identity", Answer([[0], [1]]))
    session.decide("item1", 0, "identity", Answer([[0], [1]]))  # the page tries again
    assert open_session().count().ranked == 2


def test_a_journal_that_cannot_be_made(tmp_path):
    with pytest.raises(CannotCreate):
        Journal(tmp_path / "no" / "j")


@pytest.mark.parametrize(
    "text", ['{"prompt": "p", "completions": ["a"]}', "\x7fELF\n", '{"decision": "only"}\n']
)
def test_other_files_are_left_alone(tmp_path, text):
    (tmp_path / "samples.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match="no journal"):
        Journal(tmp_path / "samples.jsonl")
    assert (tmp_path / "samples.jsonl").read_text() == text + "\n"


def test_threads_do_not_tear_lines(open_session):
    sessions = [open_session(f"r{i}", of=items(8)) for i in range(3)]
    threads = [threading.Thread(target=rank_all, args=(s,)) for s in sessions for _ in range(1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, decisions(sessions[0].journal, items(8), None).values())) == 24


def test_kill_between_and_during_decisions(tmp_path):
    """Whatever `decide` has returned for is there after SIGKILL, and nothing twice."""
    code = """
import os, sys
from rlhfkit.ui.journal import Journal
from rlhfkit.ui.ranking_session import Answer, Item, Session
items = [Item(f"item{i}", (("", "p"),), ((("", "a"),), (("", "b"),))) for i in range(400)]
session = Session(items, Journal(sys.argv[1]), "ann")
while shown := session.next():
    session.decide(shown.item.key, shown.version, os.urandom(8).hex(), Answer([[0], [1]]))
    os.write(1, (shown.item.key + "\\n").encode())
"""
    acknowledged = []
    for moment in (3, 17, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
        )
        acknowledged += [process.stdout.readline().strip() for _ in range(moment)]
        process.kill()
        acknowledged += process.stdout.read().split()
        process.wait()
    with open(tmp_path / "j") as file:
        kept = [json.loads(line)["item"] for line in file if line.endswith("\n")]
    assert len(kept) == len(set(kept))
    assert set(acknowledged) <= set(kept)
    assert len(acknowledged) == len(set(acknowledged)) >= 60
