"""Matching of answers across files, and the columns made of them."""

import numpy as np
import pytest

from rlhfkit.config import ReadConfig
from rlhfkit.data.records import Judgement, Sample, read_records
from rlhfkit.errors import DataError
from rlhfkit.evaluation.judging import Columns, add_canary, judge_questions
from rlhfkit.evaluation.matching import contests, match, unanswered
from rlhfkit.scorers import Verdict


def samples(model, rows):
    return [(model, s) for s in read_records(rows, Sample, ReadConfig())]


def answers(model, texts, **more):
    return samples(
        model, [{"id": i, "prompt": f"p{i}", "completion": t, **more} for i, t in enumerate(texts)]
    )


class Longest:
    name = "longest"

    def score(self, items):
        self.asked = getattr(self, "asked", 0) + len(items)
        return [float(len(item.completion)) for item in items]


def test_match_by_id_whatever_the_order():
    shuffled = answers("b", ["x", "yy", "zzz"])[::-1]
    models, questions = match([*answers("a", ["x", "y", "z"]), *shuffled])
    assert models == ["a", "b"]
    assert [q.answers["b"][0].text for q in questions] == ["x", "yy", "zzz"]


def test_match_by_prompt_when_an_id_is_missing():
    rows = [
        {"prompt": "p1", "completion": "one"},
        {"prompt": [{"role": "user", "content": "p2"}], "completion": "t"},
    ]
    _, questions = match([*samples("a", [{"id": 7, **r} for r in rows]), *samples("b", rows)])
    assert len(questions) == 2
    assert all(set(q.answers) == {"a", "b"} for q in questions)


def test_one_id_for_two_prompts_is_refused():
    with pytest.raises(DataError, match="id 0 has another prompt at <records>:1"):
        match([*samples("a", [{"id": 0, "prompt": "x", "completion": ""}]), *answers("b", ["y"])])


def test_fields_that_agree_are_kept():
    a, b = answers("a", ["x"], kind="easy", seed=1), answers("b", ["y"], kind="easy", seed=2)
    _, (question,) = match([*a, *b])
    assert question.shared == {"id": 0, "prompt": "p0", "kind": "easy"}


def test_contests_reuse_the_answers_of_who_has_fewer():
    many = samples("a", [{"id": 0, "prompt": "p0", "completions": ["1", "2", "3"]}])
    _, (question,) = match([*many, *answers("b", ["x"])])
    assert list(contests(question, [("a", "b")])) == [("a", 0, "b", 0), ("a", 1, "b", 0), ("a", 2, "b", 0)]
    assert list(contests(question, [("a", "c")])) == []


def test_repeated_records_are_several_answers():
    _, (question,) = match([*answers("a", ["x"]), *answers("a", ["y"])])
    assert [c.text for c in question.answers["a"]] == ["x", "y"]


def test_unanswered_counts():
    _, questions = match([*answers("a", ["x", "y"]), *answers("b", ["x"])])
    assert unanswered(questions, ["a", "b"]) == {"a": 0, "b": 1}


def test_scores_are_asked_once_and_compared():
    _, questions = match([*answers("a", ["1", "22"]), *answers("b", ["22", "22"]), *answers("c", ["1", "1"])])
    scorer = Longest()
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    judged = [j for batch in judge_questions(questions, pairs, scorer) for j in batch]
    assert scorer.asked == 6
    assert [j.verdict.preference for j in judged] == [0, 0.5, 1, 0.5, 1, 1]


def test_batches_do_not_change_verdicts(monkeypatch):
    _, questions = match([*answers("a", ["1", "22", "333"]), *answers("b", ["22", "1", "333"])])
    whole = [j.verdict for batch in judge_questions(questions, [("a", "b")], Longest()) for j in batch]
    monkeypatch.setattr("rlhfkit.evaluation.judging._BATCH", 1)
    batches = list(judge_questions(questions, [("a", "b")], Longest()))
    assert len(batches) == 3
    assert [j.verdict for batch in batches for j in batch] == whole


def test_a_judge_of_pairs_is_asked_about_pairs():
    class Judge(Longest):
        def finish(self): ...
        def close(self): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...
        def compare(self, items):
            return [Verdict(None) if item.id == 1 else Verdict(0.5, 1.0, 0.0) for item in items]

    _, questions = match([*answers("a", ["1", "22"]), *answers("b", ["1", "22"])])
    columns = Columns()
    for batch in judge_questions(questions, [("a", "b")], Judge()):
        columns.add_judged(batch)
        record = batch[0].record("j")
        assert (record["order"], record["a_first"], record["b_first"]) == ("both", 1.0, 0.0)
    assert columns.invalid == 1
    table = columns.build()
    assert (table.a_first.tolist(), table.b_first.tolist()) == ([1.0], [0.0])


def test_judgement_records_read_back_as_they_were(tmp_path):
    a, b = answers("a", ["1", "22"], kind="k"), answers("b", ["22", "22"], kind="k")
    _, questions = match([*a, *b])
    judged = [j for batch in judge_questions(questions, [("a", "b")], Longest()) for j in batch]
    direct, again = Columns(["kind"]), Columns(["kind"])
    direct.add_judged(judged)
    again.add_records(read_records([j.record("me") for j in judged], Judgement, ReadConfig()))
    one, two = direct.build(), again.build()
    assert one.models == two.models
    assert one.groups == two.groups == {"kind": ["k", "k"]}
    for name in ("a", "b", "preference", "prompts", "length_a", "length_b"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_canary_answers_what_the_baseline_answered():
    _, questions = match([*answers("a", ["x", "y"]), *answers("b", ["x"])])
    add_canary(questions, "b")
    assert ["(canary)" in q.answers for q in questions] == [True, False]


def columns_of(rows, by=()):
    columns = Columns(by)
    columns.add_records(read_records(rows, Judgement, ReadConfig()))
    return columns


def judgement(**more):
    return {"model_a": "a", "model_b": "b", "preference": 1, **more}


@pytest.mark.parametrize(
    ("rows", "prompts"),
    [
        ([judgement(prompt="x", id=1), judgement(prompt="x", id=2), judgement(prompt="y", id=3)], [0, 0, 1]),
        (
            [judgement(prompt="x", id=1), judgement(prompt="x", id=2)],
            [0, 1],
        ),  # one text for all tells nothing
        ([judgement(id=1), judgement(id=1), judgement(id=2)], [0, 0, 1]),
        ([judgement(), judgement(), judgement()], [0, 1, 2]),
        ([judgement(prompt="x"), judgement(id="x"), judgement()], [0, 1, 2]),
    ],
)
def test_which_judgements_are_of_one_prompt(rows, prompts):
    assert columns_of(rows).build().prompts.tolist() == prompts


def test_orders():
    table = columns_of(
        [judgement(order="ab"), judgement(order="ba", preference=0), judgement(), judgement(order="?")]
    ).build()
    assert np.isnan(table.a_first).tolist() == [False, True, True, True]
    assert np.isnan(table.b_first).tolist() == [True, False, True, True]
    assert table.b_first[1] == 0


def test_lengths_are_characters_of_the_answer():
    messages = [{"role": "assistant", "content": "äöü"}]
    table = columns_of([judgement(completion_a=messages, completion_b={"text": "four"}), judgement()]).build()
    assert table.length_a[0] == 3
    assert table.length_b[0] == 4
    assert np.isnan(table.length_a[1])


def test_groups_and_missing_fields():
    columns = columns_of([judgement(kind=3), judgement()], by=["kind"])
    assert columns.missing == {"kind": 1}
    assert columns.build().groups["kind"] == ["3", "null"]
