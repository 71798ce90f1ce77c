"""Records: the checked objects that every command reads and writes. `docs/formats.md` describes them.

`read_records(inputs, Pair, reading)` reads one kind. Every record keeps its `row`, which knows the file and
line it came from, and `fields`: all of the original, as it was written, for whoever passes it on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from rlhfkit.config import ReadConfig
from rlhfkit.data import splice
from rlhfkit.data.jsonl import Reader, Record, Row, Source
from rlhfkit.data.pairs import prompt_chosen_rejected
from rlhfkit.data.shapes import (
    Completion,
    Message,
    Turns,
    bad,
    check_id,
    completion_value,
    conversation,
    is_blank,
    many_completions,
    missing,
    number,
    prompt_field,
    single_completion,
    text_field,
)
from rlhfkit.data.tiers import Tiers, agree, all_scores, grouped, tiers_field


class _OfRow(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What every record has. (Fields only; see the kinds below.)"""

    row: Row

    @property
    def id(self) -> str | int | None:
        """What the record calls itself, decoded at every call."""
        value: str | int | None = self.row.value("id")
        return value

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return self.row.where

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """All fields of the original record, as they were written."""
        return self.row.fields


class Text(_OfRow, frozen=True, gc=False, kw_only=True):
    """A document."""

    text: str


class Prompt(_OfRow, frozen=True, gc=False, kw_only=True):
    """Something to complete."""

    prompt: Turns


class Demonstration(_OfRow, frozen=True, gc=False, kw_only=True):
    """What to imitate: `prompt` and `completion`, or `messages`, or `text`; the others are None."""

    prompt: Turns | None = None
    completion: Turns | None = None
    messages: list[Message] | None = None
    text: str | None = None


class Sample(_OfRow, frozen=True, gc=False, kw_only=True):
    """A prompt with one completion (`single`) or several."""

    prompt: Turns
    completions: list[Completion]
    single: bool

    def with_scores(self, scores: Sequence[float]) -> Record:
        """The record with one score beside each completion, everything else unchanged."""
        assert len(scores) == len(self.completions)
        assert all(map(math.isfinite, scores))
        fields = self.row.fields
        if self.single:
            return {**fields, "score": float(scores[0])}
        values = self.row.value("completions")
        return {**fields, "completions": splice.with_scores(fields["completions"], values, scores)}

    def with_ranking(self, tiers: Tiers) -> Record:
        """The record with this `ranking`.

        `ranks` go, and scores that say something else are kept as `previous_score`: a record whose sources
        disagree is bad data.
        """
        assert not self.single
        fields: Record = {name: raw for name, raw in self.row.fields.items() if name != "ranks"}
        scores = all_scores(self.completions)
        if scores and not agree(tiers, grouped(scores, best_first=-1)):
            raw = self.row.fields["completions"]
            fields["completions"] = splice.with_renamed(raw, "score", "previous_score")
        fields["ranking"] = tiers
        return fields


class Ranking(_OfRow, frozen=True, gc=False, kw_only=True):
    """A prompt, at least two completions, and tiers of their indices, best first.

    Texts stay undecoded until they are asked for, which many rankings never are.
    """

    tiers: Tiers
    texts: list[bytes]  # of each completion the JSON of its text or messages, metadata left out
    decoded: list[Completion] | None

    @property
    def prompt(self) -> Turns:
        """The prompt, decoded at every call."""
        return prompt_field(self.row, "ranking")

    @property
    def completions(self) -> list[Completion]:
        """The completions, decoded at every call."""
        return self.decoded or [Completion(_decode(raw)) for raw in self.texts]

    @property
    def unranked(self) -> int:
        """How many completions the ranking leaves out."""
        return len(self.texts) - sum(map(len, self.tiers))

    def pairs(self, indices: Sequence[tuple[int, int]], group: str, *, margin: bool = False) -> list[bytes]:
        """The JSON lines of the pairs of these (chosen, rejected) indices, in pieces to be joined.

        The other fields of the ranking pass through, except those that a pair replaces. With `margin`, the
        difference of the two scores is added where both are known.
        """
        fields, texts = self.row.fields, self.texts
        start, between = b'{"prompt":%b,"chosen":' % fields["prompt"], b',"rejected":'
        end = b',"group":%b' % _encode(group)
        for name, raw in fields.items():
            if name not in _NOT_PASSED_TO_PAIRS:
                end += b",%b:%b" % (_encode(name), raw)
        pieces: list[bytes] = []
        if not margin or self.decoded is None:
            end += b"}\n"
            end_and_start = end + start
            for a, b in indices:
                pieces += end_and_start, texts[a], between, texts[b]
            if pieces:
                pieces[0] = start
                pieces.append(end)
            return pieces
        for a, b in indices:
            better, worse = self.decoded[a].score, self.decoded[b].score
            lead = None if better is None or worse is None else better - worse
            if lead is not None and not math.isfinite(lead):
                raise bad(self.row, "ranking.completions", f"scores too far apart: {better} and {worse}")
            extra = b"" if lead is None else b',"margin":%b' % _encode(lead)
            pieces += start, texts[a], between, texts[b], end, extra, b"}\n"
        return pieces


_NOT_PASSED_TO_PAIRS = frozenset(
    {"prompt", "completions", "ranking", "ranks", "chosen", "rejected", "group", "margin"}
)


class Pair(_OfRow, frozen=True, gc=False, kw_only=True):
    """A preference. Pairs of one ranking share their `group`."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    group: str | None = None
    margin: float | None = None


class Judgement(_OfRow, frozen=True, gc=False, kw_only=True):
    """A verdict on two models' answers. `preference` is 1 for a, 0 for b, 0.5 for a tie, or between."""

    model_a: str
    model_b: str
    preference: float
    prompt: Turns | None = None
    completion_a: Turns | None = None
    completion_b: Turns | None = None
    order: str | None = None
    judge: str | None = None


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
R = TypeVar("R", bound=_OfRow)
RecordReader = Reader


def read_records(inputs: Source, kind: type[R], reading: ReadConfig) -> Reader[R]:
    """Records of one kind from JSONL files, standard input ("-") or a Python caller's own objects.

    Raises UsageError and InputMissing (66) at once, and while iterating DataError (65), which names file,
    line and field.
    """
    remarks: Counter[str] = Counter()
    return Reader(inputs, reading, converter(kind, reading, remarks), remarks)


def converter(
    kind: type[R], reading: ReadConfig | None = None, remarks: Counter[str] | None = None
) -> Callable[[Row], R]:
    """A function that makes a checked record of a row; what is odd but not bad it counts in `remarks`."""
    convert, name = _CONVERTERS[kind], kind.__name__.lower()
    how, counts = reading or ReadConfig(), Counter() if remarks is None else remarks

    def checked(row: Row) -> R:
        record: R = convert(row, how, counts)
        if "id" in row.parts:
            check_id(row, name)
        return record

    return checked


def read_preferences(inputs: Source, reading: ReadConfig) -> Reader[Pair | Ranking]:
    """Pairs and rankings, also mixed: a record with `chosen` is a pair. Raises like `read_records`."""
    remarks: Counter[str] = Counter()

    pair, ranking = converter(Pair, reading, remarks), converter(Ranking, reading, remarks)

    def convert(row: Row) -> Pair | Ranking:
        return pair(row) if "chosen" in row.fields else ranking(row)

    return Reader(inputs, reading, convert, remarks)


def read_answers(inputs: Source, reading: ReadConfig) -> Reader[Demonstration | Sample]:
    """Demonstrations and samples, also mixed: a record with `completions` is a sample."""
    remarks: Counter[str] = Counter()
    demonstration, sample = converter(Demonstration, reading, remarks), converter(Sample, reading, remarks)

    def convert(row: Row) -> Demonstration | Sample:
        several = "completions" in row.fields or "responses" in row.fields
        return sample(row) if several else demonstration(row)

    return Reader(inputs, reading, convert, remarks)


# -- from rows ---------------------------------------------------------------------------------------------


def _text(row: Row, _: ReadConfig, __: Counter[str]) -> Text:
    if "text" not in row.fields:
        raise missing(row, "text.text")
    return Text(row=row, text=text_field(row, "text.text", row.value("text")))


def _prompt(row: Row, _: ReadConfig, remarks: Counter[str]) -> Prompt:
    named = "prompt" in row.fields
    prompt = prompt_field(row, "prompt")
    if not named:
        prompt = _without_answer(row, prompt)
    if is_blank(prompt) if isinstance(prompt, str) else False:
        remarks["empty prompts"] += 1
    return Prompt(row=row, prompt=prompt)


def _without_answer(row: Row, prompt: Turns) -> Turns:
    """Of a whole conversation in `messages`, the part that is to be answered."""
    if not isinstance(prompt, list):
        raise bad(row, "prompt.messages", "expected a list of messages, got a string")
    end = len(prompt)
    while prompt[end - 1].role != "user" and prompt[end - 1].role != "tool":
        end -= 1
    if end < len(prompt):
        prompt = prompt[:end]
        row.replace("prompt", msgspec.Raw(msgspec.json.encode(prompt)))
    return prompt


def _demonstration(row: Row, _: ReadConfig, __: Counter[str]) -> Demonstration:
    fields = row.fields
    if "conversations" in fields and "messages" not in fields:
        row.rename("messages", "conversations")
    if "prompt" not in fields and "messages" in fields:
        path = "demonstration.messages"
        messages = conversation(row, path, row.value("messages"))
        if is_blank(messages):
            raise bad(row, path, "no words of the assistant to learn from")
        return Demonstration(row=row, messages=messages)
    if "prompt" not in fields and "completion" not in fields and "text" in fields:
        text = text_field(row, "demonstration.text", row.value("text"))
        if not text.strip():
            raise bad(row, "demonstration.text", "blank")
        return Demonstration(row=row, text=text)
    prompt = prompt_field(row, "demonstration")
    completion = single_completion(row, "demonstration").turns
    if is_blank(completion):
        raise bad(row, "demonstration.completion", "blank", "--on-bad-line skip drops such records")
    return Demonstration(row=row, prompt=prompt, completion=completion)


def _sample(row: Row, _: ReadConfig, __: Counter[str]) -> Sample:
    prompt = prompt_field(row, "sample")
    if "completions" in row.fields or "responses" in row.fields:
        completions = many_completions(row, "sample")
        return Sample(row=row, prompt=prompt, completions=completions, single=False)
    completion = single_completion(row, "sample")
    if (score := row.value("score")) is not None:
        score = number(row, "sample.score", score)
        completion = Completion(completion.text, completion.messages, score, completion.data)
    return Sample(row=row, prompt=prompt, completions=[completion], single=True)


def _ranking(row: Row, reading: ReadConfig, __: Counter[str]) -> Ranking:
    fields, parts = row.fields, row.parts
    if "completions" not in fields and "responses" in fields:
        row.rename("completions", "responses")
    decoded: list[Completion] | None = None
    texts = parts.get("completions")
    if not texts or type(texts) is not list or type(texts[0]) is not bytes:
        decoded = many_completions(row, "ranking")
        texts = list(map(bytes, splice.texts_of(fields["completions"], row.value("completions"))))
    if "prompt" not in fields or "prompt" in parts:
        prompt_field(row, "ranking")
    if len(texts) < 2:
        raise bad(row, "ranking.completions", "one completion cannot be ranked")
    tiers = tiers_field(row, "ranking", len(texts), decoded, getattr(reading, "rank_order", None))
    return Ranking(row=row, tiers=tiers, texts=texts, decoded=decoded)


def _pair(row: Row, _: ReadConfig, __: Counter[str]) -> Pair:
    prompt, chosen, rejected = prompt_chosen_rejected(row)
    group, margin = row.value("group"), row.value("margin")
    if group is not None and type(group) is not str and type(group) is not int:
        raise bad(row, "pair.group", "expected a string or an integer")
    return Pair(
        row=row,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        group=None if group is None else str(group),
        margin=None if margin is None else number(row, "pair.margin", margin),
    )


_WINNERS = {"a": 1.0, "model_a": 1.0, "b": 0.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}


def _judgement(row: Row, _: ReadConfig, __: Counter[str]) -> Judgement:
    for name in ("model_a", "model_b"):
        if name not in row.fields:
            raise missing(row, f"judgement.{name}")
    optional = {
        name: completion_value(row, f"judgement.{name}", value).turns
        for name in ("completion_a", "completion_b")
        if (value := row.value(name)) is not None
    }
    return Judgement(
        row=row,
        model_a=text_field(row, "judgement.model_a", row.value("model_a")),
        model_b=text_field(row, "judgement.model_b", row.value("model_b")),
        preference=_preference(row),
        prompt=prompt_field(row, "judgement") if row.value("prompt") is not None else None,
        order=None if (order := row.value("order")) is None else str(order),
        judge=None if (judge := row.value("judge")) is None else str(judge),
        **optional,
    )


def _preference(row: Row) -> float:
    path = "judgement.preference"
    if row.value("preference") is None:
        winner = row.value("winner")
        if winner is None:
            raise missing(row, path)
        if type(winner) is not str or winner not in _WINNERS:
            raise bad(row, "judgement.winner", f"{winner!r} is none of {', '.join(_WINNERS)}")
        return _WINNERS[winner]
    value = number(row, path, row.value("preference"))
    if not 0 <= value <= 1:
        raise bad(row, path, f"{value} is outside 0..1")
    return value


_CONVERTERS: dict[type, Any] = {
    Text: _text,
    Prompt: _prompt,
    Demonstration: _demonstration,
    Sample: _sample,
    Ranking: _ranking,
    Pair: _pair,
    Judgement: _judgement,
}
