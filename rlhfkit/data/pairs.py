"""Preference pairs as TRL reads them: with a `prompt`, or with the prompt inside `chosen` and `rejected`."""

from __future__ import annotations

from rlhfkit.data.jsonl import Row
from rlhfkit.data.shapes import (
    Message,
    Turns,
    bad,
    completion_value,
    conversation,
    messages_field,
    missing,
    prompt_field,
)
from rlhfkit.errors import DataError

#: Ends the prompt in texts of the form "\n\nHuman: ...\n\nAssistant: ...".
_ASSISTANT = "\n\nAssistant:"


def prompt_chosen_rejected(row: Row) -> tuple[Turns, Turns, Turns]:
    """The three parts of a pair.

    Without `prompt`, or with a string beside conversations, `chosen` and `rejected` hold the whole
    conversation and what they share is the prompt: their common messages, or of strings the common text up
    to its last "\\n\\nAssistant:", or else the common text.
    """
    for name in ("chosen", "rejected"):
        if name not in row.fields:
            raise missing(row, f"pair.{name}")
    chosen, rejected = row.value("chosen"), row.value("rejected")
    whole = type(chosen) is list and type(rejected) is list
    if "prompt" in row.fields and (not whole or type(row.value("prompt")) is not str):
        prompt = prompt_field(row, "pair")
        return prompt, _answer(row, "chosen"), _answer(row, "rejected")
    if whole:
        return _split_messages(row)
    if type(chosen) is str and type(rejected) is str:
        return _split_texts(row, chosen, rejected)
    raise missing(row, "pair.prompt")


def _answer(row: Row, name: str) -> Turns:
    return completion_value(row, f"pair.{name}", row.value(name)).turns


def _split_messages(row: Row) -> tuple[Turns, Turns, Turns]:
    chosen = messages_field(row, "pair.chosen", row.value("chosen"))
    rejected = messages_field(row, "pair.rejected", row.value("rejected"))
    common = 0
    # At least one message must be left to each side.
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        common += 1
    if common == 0:
        if type(text := row.value("prompt")) is str:
            return [Message("user", text)], _answer(row, "chosen"), _answer(row, "rejected")
        raise _nothing_shared(row)
    prompt = conversation(row, "pair.chosen", row.value("chosen")[:common])
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if not any(message.role == "assistant" for message in messages[common:]):
            raise bad(row, f"pair.{name}", "no assistant message after what both share")
    return prompt, chosen[common:], rejected[common:]


def _split_texts(row: Row, chosen: str, rejected: str) -> tuple[Turns, Turns, Turns]:
    shorter = min(len(chosen), len(rejected))
    common = chosen[: next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)]
    end = common.rfind(_ASSISTANT)
    if end >= 0:
        end += len(_ASSISTANT)
    else:
        end = len(common)
        if common.endswith(" ") and end > 1:  # a space belongs to the word after it
            end -= 1
        if end in {len(chosen), len(rejected)} and chosen != rejected:
            raise bad(row, "pair.prompt", "missing, and one of chosen and rejected begins the other")
    if end == 0:
        raise _nothing_shared(row)
    return chosen[:end], chosen[end:], rejected[end:]


def _nothing_shared(row: Row) -> DataError:
    hint = "give a prompt, or whole conversations that begin alike"
    return bad(row, "pair.prompt", "missing, and chosen and rejected share no beginning", hint)
