"""Records: every shape that is read, every one that is refused and how, and what is written back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.config import RankingReadConfig, ReadConfig
from rlhfkit.data.jsonl import encode
from rlhfkit.data.records import (
    Demonstration,
    Judgement,
    Message,
    Pair,
    Prompt,
    Ranking,
    Sample,
    Text,
    read_preferences,
    read_records,
)
from rlhfkit.errors import DataError

SHARED = Path(__file__).parents[2] / "../shared/data"

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}


def read(kind: type, *records: dict[str, Any], **settings: Any) -> Any:
    """The one record, or the list of several."""
    found = list(read_records(list(records), kind, RankingReadConfig(**settings)))
    return found[0] if len(found) == 1 else found


def refused(kind: type, record: dict[str, Any], **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(kind, record, **settings)
    return caught.value


# -- prompts -----------------------------------------------------------------------------------------------


def test_prompts():
    assert read(Prompt, {"prompt": "p", "id": "x"}).prompt == "p"
    assert read(Prompt, {"prompt": "p", "id": 7}).id == 7
    assert read(Prompt, {"prompt": "p", "id": None}).id is None
    chat = [Message("system", "be kind"), Message("user", "hi")]
    assert read(Prompt, {"prompt": [SYSTEM, USER]}).prompt == chat
    assert read(Prompt, {"messages": [SYSTEM, USER]}).prompt == chat


def test_a_conversation_is_a_prompt_without_its_answer():
    record = read(Prompt, {"messages": [USER, REPLY, USER, REPLY, REPLY], "n": 1})
    assert record.prompt == [Message("user", "hi"), Message("assistant", "hello"), Message("user", "hi")]
    # What is written on from here must read the same again.
    again = json.loads(encode(record.fields))
    assert again == {"n": 1, "prompt": [USER, REPLY, USER]}
    assert read(Prompt, again).prompt == record.prompt


def test_sharegpt_conversations():
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    demo = read(Demonstration, {"conversations": talk})
    assert demo.messages == [Message("user", "hi"), Message("assistant", "hello")]
    prompt = read(Prompt, {"conversations": talk})
    assert prompt.prompt == [Message("user", "hi")]
    assert json.loads(encode(prompt.fields)) == {"prompt": [USER]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "t", "id": 1}, "prompt.prompt: missing (has: id, text)"),
        ({"prompt": None}, "prompt.prompt: expected a string or a list of messages, got null"),
        ({"prompt": 5}, "prompt.prompt: expected a string or a list of messages, got an integer"),
        (
            {"prompt": {"role": "user"}},
            "prompt.prompt: expected a string or a list of messages, got an object",
        ),
        ({"prompt": []}, "prompt.prompt: an empty list of messages"),
        ({"prompt": ["hi"]}, "prompt.prompt[0]: expected a message, got a string"),
        (
            {"prompt": [USER, {"role": "robot", "content": "x"}]},
            "prompt.prompt[1].role: unknown role 'robot'",
        ),
        (
            {"prompt": [{"role": "user", "content": None}]},
            "prompt.prompt[0].content: expected a string, got null",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"text": "x"}]}]},
            "prompt.prompt[0].content: expected a string, got a list",
        ),
        ({"prompt": [{"content": "x"}]}, "prompt.prompt[0].role: missing (has: content)"),
        ({"prompt": [{"from": "alien", "value": "x"}]}, "prompt.prompt[0].from: unknown role 'alien'"),
        ({"prompt": [{"from": ["x"], "value": "x"}]}, "prompt.prompt[0].from: unknown role ['x']"),
        ({"prompt": [{"role": [], "content": "x"}]}, "prompt.prompt[0].role: unknown role []"),
        ({"prompt": [SYSTEM]}, "prompt.prompt: no user message"),
        ({"prompt": [REPLY, USER]}, "prompt.prompt[0]: the first turn is the assistant's"),
        ({"prompt": [SYSTEM, REPLY, USER]}, "prompt.prompt[1]: the first turn is the assistant's"),
        ({"prompt": [SYSTEM, SYSTEM, USER]}, "prompt.prompt[1]: a system message after the first place"),
        ({"prompt": [USER, SYSTEM]}, "prompt.prompt[1]: a system message after the first place"),
        (
            {"prompt": "p", "id": 9007199254740993.0},
            "prompt.id: expected a string or an integer, got a number",
        ),
        ({"prompt": "p", "id": True}, "prompt.id: expected a string or an integer, got true"),
    ],
)
def test_bad_prompts(record: dict[str, Any], message: str):
    assert refused(Prompt, record).message.startswith(message)


def test_errors_say_where_and_how_to_mend(tmp_path: Path):
    path = tmp_path / "demos.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "answer": "a"}\n')
    with pytest.raises(DataError) as caught:
        list(read_records([path], Demonstration, ReadConfig()))
    error = caught.value
    assert error.where == f"{path}:2"
    assert error.message == "demonstration.completion: missing (has: answer, prompt)"
    assert error.hint == "rename fields with --map completion=answer"
    found = list(read_records([path], Demonstration, ReadConfig(map=("completion=answer",))))
    assert [demo.completion for demo in found] == ["c", "a"]


# -- demonstrations ----------------------------------------------------------------------------------------


def test_demonstrations():
    both = read(Demonstration, {"prompt": "p", "completion": " c"})
    assert (both.prompt, both.completion, both.messages, both.text) == ("p", " c", None, None)
    assert read(Demonstration, {"prompt": "p", "response": " c"}).completion == " c"
    assert read(Demonstration, {"prompt": [USER], "completion": [REPLY]}).completion == [
        Message("assistant", "hello")
    ]
    assert read(Demonstration, {"prompt": "p", "completion": {"text": "c", "n": 1}}).completion == "c"
    assert read(Demonstration, {"messages": [USER, REPLY]}).messages[1].content == "hello"
    assert read(Demonstration, {"text": "whole"}).text == "whole"
    # `text` beside a prompt and completion is metadata, as is `messages` beside a prompt.
    assert read(Demonstration, {"text": "t", "prompt": "p", "completion": "c"}).text is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "completion": " \n"}, "demonstration.completion: blank"),
        (
            {"prompt": "p", "completion": [{"role": "assistant", "content": ""}]},
            "demonstration.completion: blank",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "demonstration.messages: no words of the assistant",
        ),
        ({"messages": [USER]}, "demonstration.messages: no words of the assistant"),
        ({"text": "  "}, "demonstration.text: blank"),
        ({"prompt": "p", "completion": None}, "demonstration.completion: expected a string"),
        ({"prompt": "p", "completion": [USER]}, "demonstration.completion: no assistant message"),
        (
            {"prompt": "p", "completion": [SYSTEM, REPLY]},
            "demonstration.completion[0]: a system message in a completion",
        ),
        ({"completion": "c"}, "demonstration.prompt: missing"),
        ({}, "demonstration.prompt: missing (has: nothing)"),
    ],
)
def test_bad_demonstrations(record: dict[str, Any], message: str):
    assert refused(Demonstration, record).message.startswith(message)


# -- samples and scores ------------------------------------------------------------------------------------


def test_samples():
    one = read(Sample, {"prompt": "p", "completion": "c", "score": 2})
    assert (one.single, one.completions[0].text, one.completions[0].score) == (True, "c", 2)
    several = read(Sample, {"prompt": "p", "completions": ["a", {"text": "b", "score": 1.5}, [REPLY]]})
    assert not several.single
    assert [c.text for c in several.completions] == ["a", "b", "hello"]
    assert [c.score for c in several.completions] == [None, 1.5, None]
    assert [c.turns for c in several.completions] == ["a", "b", [Message("assistant", "hello")]]
    assert read(Sample, {"prompt": "p", "responses": ["a"]}).completions[0].text == "a"
    # A reference answer of the prompt's own file stays metadata.
    assert [
        c.text for c in read(Sample, {"prompt": "p", "response": "r", "completions": ["a"]}).completions
    ] == ["a"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p"}, "sample.completion: missing (has: prompt)"),
        ({"prompt": "p", "completions": []}, "sample.completions: an empty list"),
        ({"prompt": "p", "completions": "c"}, "sample.completions: expected a list, got a string"),
        (
            {"prompt": "p", "completions": [1]},
            "sample.completions[0]: expected a string, messages or an object",
        ),
        (
            {"prompt": "p", "completions": ["a", {"txt": "b"}]},
            "sample.completions[1].text: missing (has: txt)",
        ),
        (
            {"prompt": "p", "completions": [{"text": None}]},
            "sample.completions[0].text: expected a string, got null",
        ),
        (
            {"prompt": "p", "completions": [{"text": "a", "score": "9"}]},
            "sample.completions[0].score: expected a number",
        ),
        ({"prompt": "p", "completion": "c", "score": True}, "sample.score: expected a number, got true"),
        (
            {"prompt": "p", "completion": "c", "score": 10**400},
            "sample.score: an integer too large for a float",
        ),
    ],
)
def test_bad_samples(record: dict[str, Any], message: str):
    assert refused(Sample, record).message.startswith(message)


def test_scores_go_beside_completions_and_nothing_else_changes(tmp_path: Path):
    line = (
        '{"n": 1e-07, "prompt": "p", "responses": ["a", {"text": "b", "logprob": -1.50, "m": {"k": [1E5]}},'
        ' {"text": "c", "score": 1, "z": 0.10}, [{"role": "assistant", "content": "d"}]], "big": 123456789012345678901}'
    )
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    (sample,) = read_records([path], Sample, ReadConfig())
    assert encode(sample.with_scores([1, 2.5, -3, 4])).decode() == (
        '{"n":1e-07,"prompt":"p","big":123456789012345678901,"completions":[{"text":"a","score":1.0},'
        '{"text":"b","logprob":-1.50,"m":{"k":[1E5]},"score":2.5},{"text":"c","score":-3.0,"z":0.10},'
        '{"messages":[{"role":"assistant","content":"d"}],"score":4.0}]}'
    )
    again = read(Sample, json.loads(encode(sample.with_scores([1, 2, 3, 4]))))
    assert [(c.text, c.score) for c in again.completions] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    single = read(Sample, {"prompt": "p", "completion": "c", "id": "x"})
    assert encode(single.with_scores([2])) == b'{"prompt":"p","completion":"c","id":"x","score":2.0}'


def test_a_new_ranking_keeps_scores_that_disagree_under_another_name():
    sample = read(
        Sample,
        {
            "prompt": "p",
            "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 2}],
            "ranks": [2, 1],
        },
    )
    agreeing = json.loads(encode(sample.with_ranking([[1], [0]])))
    assert agreeing == {
        "prompt": "p", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 2}], "ranking": [[1], [0]],
    }  # fmt: skip
    other = json.loads(encode(sample.with_ranking([[0], [1]])))
    assert other["completions"] == [{"text": "a", "previous_score": 1}, {"text": "b", "previous_score": 2}]
    assert read(Ranking, other).tiers == [[0], [1]]


# -- rankings ----------------------------------------------------------------------------------------------

THREE = {"prompt": "p", "completions": ["a", "b", "c"]}


def scores(*values: object) -> dict[str, Any]:
    return {
        "prompt": "p",
        "completions": [{"text": t, "score": s} for t, s in zip("abc", values, strict=True)],
    }


@pytest.mark.parametrize(
    ("record", "settings", "tiers"),
    [
        ({**THREE, "ranking": [[2], [0, 1]]}, {}, [[2], [0, 1]]),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [[1], [0]]}, {}, [[1], [0]]),
        ({**THREE, "ranking": [[2]]}, {}, [[2]]),
        ({**THREE, "ranking": []}, {}, []),
        ({**THREE, "ranks": [2, 1, 2]}, {}, [[1], [0, 2]]),
        ({**THREE, "ranks": [1, 3, 3]}, {}, [[0], [1, 2]]),
        ({**THREE, "ranking": [2, 0, 1]}, {"rank_order": "order"}, [[2], [0], [1]]),
        ({**THREE, "ranking": [2, 3, 1]}, {"rank_order": "ranks"}, [[2], [0], [1]]),
        ({**THREE, "ranking": [[2], [0], [1]]}, {"rank_order": "ranks"}, [[2], [0], [1]]),
        (scores(1, 2.5, 1), {}, [[1], [0, 2]]),
        ({**scores(-1, -2.5, 0), "ranking": [[2], [0], [1]]}, {}, [[2], [0], [1]]),
        ({**scores(-1, -2.5, 0), "ranking": [[2], [1]]}, {}, [[2], [1]]),
        ({**scores(1, 1, 0), "ranking": [[1, 0], [2]], "ranks": [1, 1, 3]}, {}, [[1, 0], [2]]),
        ({**scores(1, None, 0), "ranking": [[2], [0]]}, {}, [[2], [0]]),  # not every completion has a score
        ({**THREE, "ranking": None, "ranks": [1, 2, 3]}, {}, [[0], [1], [2]]),
    ],
)
def test_rankings(record: dict[str, Any], settings: dict[str, Any], tiers: list[list[int]]):
    ranking = read(Ranking, record, **settings)
    assert ranking.tiers == tiers
    assert ranking.prompt == "p"
    assert [c.text for c in ranking.completions] == list("abc")[: len(ranking.completions)]
    assert ranking.unranked == len(ranking.completions) - sum(map(len, tiers))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (THREE, "ranking.ranking: missing (has: completions, prompt)"),
        (scores(1, None, 2), "ranking.ranking: missing"),
        (
            {**THREE, "ranking": [2, 0, 1]},
            "ranking.ranking: a flat list can mean an order or ranks: [2, 0, 1]",
        ),
        ({**THREE, "ranking": [[0], [1], [0]]}, "ranking.ranking[2]: index 0 is named twice"),
        ({**THREE, "ranking": [[0, 0]]}, "ranking.ranking[0]: index 0 is named twice"),
        ({**THREE, "ranking": [[0], [3]]}, "ranking.ranking[1]: index 3 is outside 0..2"),
        ({**THREE, "ranking": [[-1]]}, "ranking.ranking[0]: index -1 is outside 0..2"),
        ({**THREE, "ranking": [[0.0]]}, "ranking.ranking[0]: expected an index, got a number"),
        ({**THREE, "ranking": [[True]]}, "ranking.ranking[0]: expected an index, got true"),
        ({**THREE, "ranking": [["a"], ["b"]]}, "ranking.ranking[0]: expected an index, got a string"),
        ({**THREE, "ranking": ["a", "b"]}, "ranking.ranking[0]: expected a list of indices, got a string"),
        (
            {**THREE, "ranking": [[0], []]},
            "ranking.ranking[1]: expected a list of indices, got an empty list",
        ),
        ({**THREE, "ranking": [[0], 1]}, "ranking.ranking[1]: expected a list of indices, got an integer"),
        ({**THREE, "ranking": "abc"}, "ranking.ranking: expected a list of tiers, got a string"),
        ({**THREE, "ranks": [1, 2]}, "ranking.ranks: 2 ranks for 3 completions"),
        ({**THREE, "ranks": [0, 1, 2]}, "ranking.ranks[0]: rank 0 is outside 1..3"),
        ({**THREE, "ranks": [1, 2, 4]}, "ranking.ranks[2]: rank 4 is outside 1..3"),
        ({**THREE, "ranks": [1, 2.0, 3]}, "ranking.ranks[1]: expected a whole number from 1, got a number"),
        ({**scores(1, 2, 3), "ranking": [[0], [1], [2]]}, "ranking.ranking: disagrees with score"),
        ({**scores(1, 1, 3), "ranking": [[2], [1], [0]]}, "ranking.ranking: disagrees with score"),
        ({**THREE, "ranking": [[0], [1], [2]], "ranks": [1, 3, 2]}, "ranking.ranking: disagrees with ranks"),
        ({**scores(1, 2, 3), "ranks": [1, 2, 3]}, "ranking.ranks: disagrees with score"),
        (
            {"prompt": "p", "completions": ["a"], "ranking": [[0]]},
            "ranking.completions: one completion cannot be ranked",
        ),
        ({"completions": ["a", "b"], "ranking": [[0], [1]]}, "ranking.prompt: missing"),
        ({"prompt": None, "completions": ["a", "b"], "ranking": [[0], [1]]}, "ranking.prompt: expected"),
        (
            {"prompt": [REPLY], "completions": ["a", "b"], "ranking": [[0], [1]]},
            "ranking.prompt: no user message",
        ),
        (
            {"prompt": "p", "completions": ["a", {"t": 1}], "ranking": [[0], [1]]},
            "ranking.completions[1].text: missing",
        ),
    ],
)
def test_bad_rankings(record: dict[str, Any], message: str):
    assert refused(Ranking, record).message.startswith(message)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_scores_that_are_not_finite(score: str, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt": "p", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": ' + score + "}]}\n"
    )
    with pytest.raises(DataError, match="is not finite"):
        list(read_records([path], Ranking, ReadConfig()))


# -- pairs -------------------------------------------------------------------------------------------------


def test_pairs_with_a_prompt():
    pair = read(Pair, {"prompt": "p", "chosen": "c", "rejected": "r", "group": 3, "margin": 0.5})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.group, pair.margin) == ("p", "c", "r", "3", 0.5)
    chat = read(
        Pair, {"prompt": [USER], "chosen": [REPLY, REPLY], "rejected": [{"role": "assistant", "content": ""}]}
    )
    assert len(chat.chosen) == 2
    assert chat.group is chat.margin is None
    mixed = read(Pair, {"prompt": [USER], "chosen": "c", "rejected": {"text": "r", "model": "m"}})
    assert (mixed.chosen, mixed.rejected) == ("c", "r")


def test_pairs_with_the_prompt_inside_as_messages():
    other = {"role": "assistant", "content": "bye"}
    for extra in ({}, {"prompt": "hi"}):  # some files repeat the prompt as a string beside conversations
        pair = read(Pair, {**extra, "chosen": [SYSTEM, USER, REPLY], "rejected": [SYSTEM, USER, other]})
        assert pair.prompt == [Message("system", "be kind"), Message("user", "hi")]
        assert pair.chosen == [Message("assistant", "hello")]
        assert pair.rejected == [Message("assistant", "bye")]
    same = read(Pair, {"chosen": [USER, REPLY], "rejected": [USER, REPLY]})
    assert same.chosen == same.rejected == [Message("assistant", "hello")]
    # A string prompt beside bare answers is the user's turn.
    assert read(Pair, {"prompt": "hi", "chosen": [REPLY], "rejected": [other]}).prompt == [
        Message("user", "hi")
    ]


def test_pairs_with_the_prompt_inside_as_text():
    """Where TRL's extract_prompt cuts, except that an answer never starts after its own first words."""
    pair = read(
        Pair, {"chosen": "\n\nHuman: a\n\nAssistant: I am", "rejected": "\n\nHuman: a\n\nAssistant: I was"}
    )
    assert (pair.prompt, pair.chosen, pair.rejected) == ("\n\nHuman: a\n\nAssistant:", " I am", " I was")
    plain = read(Pair, {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (plain.prompt, plain.chosen, plain.rejected) == ("The sky is", " blue.", " green.")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "c"}, "pair.rejected: missing (has: chosen, prompt)"),
        (
            {"chosen": "abc", "rejected": "xyz"},
            "pair.prompt: missing, and chosen and rejected share no beginning",
        ),
        (
            {"chosen": "abc", "rejected": "abcd"},
            "pair.prompt: missing, and one of chosen and rejected begins the other",
        ),
        (
            {"chosen": [USER, REPLY], "rejected": [{**USER, "content": "?"}, REPLY]},
            "pair.prompt: missing, and",
        ),
        ({"chosen": [USER, REPLY], "rejected": [USER, USER]}, "pair.rejected: no assistant message after"),
        ({"chosen": "c", "rejected": [REPLY]}, "pair.prompt: missing"),
        ({"prompt": "p", "chosen": 1, "rejected": "r"}, "pair.chosen: expected a string"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "group": 1.5}, "pair.group: expected"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": "x"}, "pair.margin: expected a number"),
    ],
)
def test_bad_pairs(record: dict[str, Any], message: str):
    assert refused(Pair, record).message.startswith(message)


def test_preferences_may_be_mixed():
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    found = list(read_preferences([pair, {**THREE, "ranking": [[0], [1]]}, pair], ReadConfig()))
    assert [type(record) for record in found] == [Pair, Ranking, Pair]


# -- judgements and texts ---------------------------------------------------------------------------------


def test_judgements():
    base = {"model_a": "x", "model_b": "y"}
    full = read(
        Judgement,
        {
            **base,
            "id": 1,
            "prompt": "p",
            "completion_a": "a",
            "completion_b": "b",
            "preference": 0.25,
            "order": "ab",
            "judge": "rm",
        },
    )
    assert (full.preference, full.completion_a, full.order, full.judge) == (0.25, "a", "ab", "rm")
    for winner, preference in (("a", 1.0), ("model_b", 0.0), ("tie", 0.5), ("tie (bothbad)", 0.5)):
        assert read(Judgement, {**base, "winner": winner}).preference == preference
    assert "outside 0..1" in refused(Judgement, {**base, "preference": 2}).message
    assert "none of a, model_a" in refused(Judgement, {**base, "winner": "c"}).message
    assert "none of a, model_a" in refused(Judgement, {**base, "winner": []}).message
    assert "judgement.preference: missing" in refused(Judgement, base).message
    assert "judgement.model_b: missing" in refused(Judgement, {"model_a": "x", "preference": 1}).message


def test_texts():
    assert read(Text, {"text": "t\u2028"}).text == "t\u2028"
    assert refused(Text, {"text": 1}).message == "text.text: expected a string, got an integer"
    assert "--map text=content" in str(refused(Text, {"content": "x"}).hint)


# -- real files --------------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")


@needs_data
@pytest.mark.parametrize(
    ("name", "kind", "count", "names"),
    [
        ("gsm8k_train.jsonl", Demonstration, 7473, ()),
        ("gsm8k_test.jsonl", Prompt, 1319, ()),
        ("seed_tasks.jsonl", Demonstration, 175, ("prompt=instruction", "completion=instances.0.output")),
        ("seed_instructions.jsonl", Demonstration, 175, ()),
        ("user_instructions_train.jsonl", Demonstration, 167, ()),
        ("identity_conversations.jsonl", Demonstration, 500, ()),
        ("identity_conversations.jsonl", Prompt, 500, ()),
        ("mt_bench_prompts.jsonl", Prompt, 80, ("prompt=turns.0",)),
        ("hh_harmless_pairs_train.jsonl", Pair, 1564, ()),
        ("hh_harmless_train.orig.jsonl.gz", Pair, 1564, ()),
        ("rankings_gsm8k_train.jsonl", Ranking, 870, ()),
        ("rankings_oasst_train.jsonl", Ranking, 134, ()),
        ("rankings_vicuna80_train.jsonl", Sample, 144, ()),
        ("judgments_vicuna80_train.jsonl", Judgement, 624, ()),
    ],
)
def test_real_files(name: str, kind: type, count: int, names: tuple[str, ...]):
    records = list(read_records([SHARED / name], kind, ReadConfig(map=names)))
    assert len(records) == count


@needs_data
def test_the_prompt_inside_real_pairs_is_the_one_their_makers_cut():
    """hh_harmless_pairs holds the same records as the original file, split by other code than ours."""
    split = read_records([SHARED / "hh_harmless_pairs_train.jsonl"], Pair, ReadConfig())
    whole = read_records([SHARED / "hh_harmless_train.orig.jsonl.gz"], Pair, ReadConfig())
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}

    def text(messages: Any) -> str:
        return "".join(names[m.role] + m.content for m in messages)

    same = 0
    for a, b in zip(split, whole, strict=True):
        assert b.prompt + b.chosen == text(a.prompt) + text(a.chosen)
        assert b.prompt + b.rejected == text(a.prompt) + text(a.rejected)
        same += b.prompt == text(a.prompt) + "\n\nAssistant:"
    assert same == 1564


@needs_data
def test_original_lines_come_back_unchanged():
    with gzip.open(SHARED / "hh_harmless_train.orig.jsonl.gz") as file:
        lines = file.read().splitlines()
    for line, pair in zip(
        lines, read_records([SHARED / "hh_harmless_train.orig.jsonl.gz"], Pair, ReadConfig()), strict=True
    ):
        assert json.loads(encode(pair.fields)) == json.loads(line)


# -- anything at all ---------------------------------------------------------------------------------------

FIELDS = [
    "prompt",
    "messages",
    "conversations",
    "completion",
    "completions",
    "response",
    "responses",
    "text",
    "score",
]
FIELDS += [
    "ranking",
    "ranks",
    "chosen",
    "rejected",
    "group",
    "margin",
    "id",
    "model_a",
    "model_b",
    "preference",
    "winner",
]
PARTS = ["role", "content", "from", "value", "text", "score", "messages"]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(-2, 2),
    st.sampled_from(["", "user", "assistant", "human", "x", "a"]),
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(PARTS), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5),
    st.sampled_from([Text, Prompt, Demonstration, Sample, Ranking, Pair, Judgement]),
)
def test_whatever_comes_is_read_or_refused_in_words(record: dict[str, Any], kind: type):
    problem = None
    try:
        found = read(kind, record)
    except DataError as error:
        problem = error
    if problem:
        assert problem.where == "<records>:1"
        return
    assert json.loads(encode(found.fields))
    if kind is Sample:
        json.loads(encode(found.with_scores([1.0] * len(found.completions))))
    if kind is Ranking:
        every = [(a, b) for a in range(len(found.texts)) for b in range(len(found.texts))]
        pairs = found.pairs(every, "g", margin=True)
        texts = [c.turns for c in found.completions]
        assert [read(Pair, json.loads(p)).chosen for p in b"".join(pairs).splitlines()] == [
            texts[a] for a, _ in every
        ]
