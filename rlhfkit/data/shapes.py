"""The shapes that prompts, completions and conversations may have, and their checks.

A prompt is a string or a list of messages. A completion is a string, a list of messages, or an object with
`text` (or `messages`) and any metadata. A message is `{"role", "content"}`, or ShareGPT's
`{"from", "value"}`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rlhfkit.data.jsonl import Row
from rlhfkit.data.strict import kind_of
from rlhfkit.errors import DataError

_STRINGS = frozenset({str})
ROLES = frozenset({"system", "user", "assistant", "tool"})
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}


class Message(msgspec.Struct, frozen=True, gc=False):
    """One turn of a conversation. `role` is system, user, assistant or tool."""

    role: str
    content: str


#: A text, or turns of a conversation.
Turns = str | list[Message]


class Completion(msgspec.Struct, frozen=True, gc=False):
    """One answer. `text` is what a reader sees: of messages, the assistant's words."""

    text: str
    messages: list[Message] | None = None
    score: float | None = None
    data: dict[str, Any] | None = None  # the object it came from, with its metadata

    @property
    def turns(self) -> Turns:
        """The messages if it has them, else the text."""
        return self.text if self.messages is None else self.messages


def bad(row: Row, path: str, problem: str, hint: str | None = None) -> DataError:
    """A DataError about a field: `demos.jsonl:17: demonstration.completion: missing`."""
    return DataError(f"{path}: {problem}", where=row.where, hint=hint)


def missing(row: Row, path: str) -> DataError:
    """A DataError for a field that is not there; says which are."""
    has = ", ".join(sorted(row.fields)[:10]) or "nothing"
    name = path.rpartition(".")[2]
    return bad(row, path, f"missing (has: {has})", f"rename fields with --map {name}={_likely(row, name)}")


#: Names under which other files keep a field.
_OTHER_NAMES = {
    "prompt": ("question", "instruction", "query", "input", "user", "problem", "text"),
    "completion": ("answer", "output", "response", "solution", "target", "assistant", "text"),
    "completions": ("answers", "outputs", "samples", "candidates"),
    "chosen": ("preferred", "winner", "better", "response_j"),
    "rejected": ("dispreferred", "loser", "worse", "response_k"),
    "text": ("content", "document", "body"),
}


def _likely(row: Row, name: str) -> str:
    return next((old for old in _OTHER_NAMES.get(name, ()) if old in row.fields), "OLD")


def check_id(row: Row, kind: str) -> None:
    """An `id` is a string or an integer, since 9007199254740993.0 would not survive as a float."""
    if "id" in row.parts:
        value = row.parts["id"]
        if value is not None and type(value) is not int:
            raise bad(row, f"{kind}.id", f"expected a string or an integer, got {kind_of(value)}")


def number(row: Row, path: str, value: object) -> float:
    """A number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(row, path, f"expected a number, got {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        raise bad(row, path, "an integer too large for a float") from None


def text_field(row: Row, path: str, value: object) -> str:
    """A string."""
    if type(value) is str:
        return value
    raise bad(row, path, f"expected a string, got {kind_of(value)}")


# -- conversations -----------------------------------------------------------------------------------------


def messages_field(row: Row, path: str, value: object) -> list[Message]:
    """A list of at least one message with a known role and a string as content."""
    if type(value) is not list:
        raise bad(row, path, f"expected a list of messages, got {kind_of(value)}")
    if not value:
        raise bad(row, path, "an empty list of messages")
    return [_message(row, path, index, item) for index, item in enumerate(value)]


def _message(row: Row, path: str, index: int, item: object) -> Message:
    if type(item) is dict:
        role, content = item.get("role"), item.get("content")
        if "role" not in item and type(item.get("from")) is str:
            role, content = _SHAREGPT_ROLES.get(item["from"]), item.get("value")
        if type(role) is str and role in ROLES and type(content) is str:
            return Message(role, content)
    raise _message_error(row, f"{path}[{index}]", item)


def _message_error(row: Row, path: str, item: object) -> DataError:
    if not isinstance(item, dict):
        return bad(row, path, f"expected a message, got {kind_of(item)}")
    sharegpt = "role" not in item and "from" in item
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    for key in (role_key, content_key):
        if key not in item:
            return bad(row, f"{path}.{key}", f"missing (has: {', '.join(sorted(item)[:10]) or 'nothing'})")
    known = _SHAREGPT_ROLES if sharegpt else ROLES
    if not isinstance(item[role_key], str) or item[role_key] not in known:
        return bad(
            row, f"{path}.{role_key}", f"unknown role {item[role_key]!r} (known: {', '.join(sorted(known))})"
        )
    return bad(row, f"{path}.{content_key}", f"expected a string, got {kind_of(item[content_key])}")


def conversation(row: Row, path: str, value: object) -> list[Message]:
    """Messages that begin with the user, after at most one system message."""
    messages = messages_field(row, path, value)
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise bad(row, f"{path}[{index}]", "a system message after the first place")
    first = 1 if messages[0].role == "system" else 0
    if not any(message.role == "user" for message in messages):
        raise bad(row, path, "no user message")
    if messages[first].role != "user":
        raise bad(row, f"{path}[{first}]", f"the first turn is the {messages[first].role}'s, not the user's")
    return messages


# -- prompts and completions -------------------------------------------------------------------------------


def prompt_field(row: Row, kind: str) -> Turns:
    """The `prompt` of a record: a string or a conversation, which may be called `messages`."""
    if "prompt" not in row.fields:
        _alias(row, "prompt", "messages", "conversations")
    value = row.value("prompt")
    if type(value) is str:
        return value
    path = f"{kind}.prompt"
    if type(value) is list:
        return conversation(row, path, value)
    if "prompt" not in row.fields:
        raise missing(row, path)
    raise bad(row, path, f"expected a string or a list of messages, got {kind_of(value)}")


def completion_value(row: Row, path: str, value: object) -> Completion:
    """One completion of any shape."""
    if type(value) is str:
        return Completion(value)
    if type(value) is dict:
        score = value.get("score")
        if score is not None:
            score = number(row, f"{path}.score", score)
        text = value.get("text")
        if type(text) is str:
            return Completion(text, None, score, value)
        if text is None and "messages" in value:
            messages = answer(row, f"{path}.messages", value["messages"])
            return Completion(spoken(messages), messages, score, value)
        if "text" not in value:
            raise bad(row, f"{path}.text", f"missing (has: {', '.join(sorted(value)[:10]) or 'nothing'})")
        raise bad(row, f"{path}.text", f"expected a string, got {kind_of(text)}")
    if type(value) is list:
        messages = answer(row, path, value)
        return Completion(spoken(messages), messages)
    raise bad(row, path, f"expected a string, messages or an object with text, got {kind_of(value)}")


def answer(row: Row, path: str, value: object) -> list[Message]:
    """Messages that complete a conversation: at least one of them is the assistant's, none the system's."""
    messages = messages_field(row, path, value)
    if not any(message.role == "assistant" for message in messages):
        raise bad(row, path, "no assistant message")
    for index, message in enumerate(messages):
        if message.role == "system":
            raise bad(row, f"{path}[{index}]", "a system message in a completion")
    return messages


def spoken(messages: list[Message]) -> str:
    """The assistant's words of a completion."""
    return "\n\n".join(message.content for message in messages if message.role == "assistant")


def single_completion(row: Row, kind: str) -> Completion:
    """The `completion` of a record; `response` may stand for it."""
    if "completion" not in row.fields:
        _alias(row, "completion", "response")
        if "completion" not in row.fields:
            raise missing(row, f"{kind}.completion")
    return completion_value(row, f"{kind}.completion", row.value("completion"))


def many_completions(row: Row, kind: str) -> list[Completion]:
    """The `completions` of a record; `responses` may stand for it."""
    if "completions" not in row.fields:
        _alias(row, "completions", "responses")
    value = row.value("completions")
    path = f"{kind}.completions"
    if type(value) is not list:
        if "completions" not in row.fields:
            raise missing(row, path)
        raise bad(row, path, f"expected a list, got {kind_of(value)}")
    if not value:
        raise bad(row, path, "an empty list")
    if _STRINGS.issuperset(map(type, value)):
        return list(map(Completion, value))
    return [
        # The usual object without the cost of naming its path.
        Completion(item["text"], None, None, item)
        if type(item) is dict and type(item.get("text")) is str and item.get("score") is None
        else completion_value(row, f"{path}[{index}]", item)
        for index, item in enumerate(value)
    ]


def _alias(row: Row, name: str, *others: str) -> None:
    for other in others:
        if other in row.fields:
            row.rename(name, other)
            return


def is_blank(turns: Turns) -> bool:
    """Whether there is nothing but white space (in the assistant's words)."""
    return not (turns if isinstance(turns, str) else spoken(turns)).strip()
