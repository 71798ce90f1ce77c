"""From records to token sequences with masks, and the account of what was cut or dropped on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlhfkit.data.batching import Example
from rlhfkit.data.records import Demonstration, Prompt, Sample
from rlhfkit.data.shapes import Message
from rlhfkit.data.tokenizer import Tokenizer, completion_ids, prompt_ids
from rlhfkit.errors import DataError


@dataclass
class Account:
    """How many sequences were used as they are, cut, or dropped, and why."""

    records: int = 0
    conversations: int = 0
    truncated: int = 0
    left_out: int = 0  # completions that did not fit
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count one dropped record."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def facts(self) -> dict[str, object]:
        """The account as plain data."""
        return {
            "records": self.records,
            "conversations": self.conversations,
            "truncated": self.truncated,
            "dropped": dict(self.dropped),
        }

    def lines(self) -> list[str]:
        """What is worth telling a person: nothing when all records were used whole."""
        out = [
            f"{count} of {self.records} records dropped: {reason}" for reason, count in self.dropped.items()
        ]
        if self.truncated:
            out.append(f"{self.truncated} of {self.records} records cut to fit --max-seq-len")
        if self.left_out:
            out.append(f"{self.left_out} completions left out: with their prompts they exceed --max-seq-len")
        return out


class Ids:
    """Refuses one id for two prompts: whoever looks something up by it could not tell them apart."""

    def __init__(self) -> None:
        self._seen: dict[str | int, tuple[str, int]] = {}  # where it stood first, and the prompt's hash

    def check(self, record: Prompt | Demonstration) -> None:
        """Raises DataError for an id that stood beside another prompt before."""
        if record.id is None or record.prompt is None:
            return
        prompt = hash(record.prompt if isinstance(record.prompt, str) else tuple(record.prompt))
        where, first = self._seen.setdefault(record.id, (record.where, prompt))
        if first != prompt:
            raise DataError(
                f"id {record.id!r} stands beside another prompt at {where}",
                where=record.where,
                hint="give every prompt an id of its own, or none",
            )


def demonstration_examples(
    records: Iterable[Demonstration], tokenizer: Tokenizer, max_len: int, *, loss_on: str
) -> tuple[list[Example], Account]:
    """Sequences for fine-tuning; `loss_on` "completion" trains answers (end tokens included), "all" all.

    A sequence longer than `max_len` loses its end. Raises DataError when nothing is left to train on.
    """
    account = Account()
    examples = []
    known = Ids()
    for record in records:
        account.records += 1
        account.conversations += record.messages is not None or isinstance(record.prompt, list)
        known.check(record)
        with _located(record.where):
            ids, mask = _demonstration(record, tokenizer)
        if loss_on == "all":
            mask = [True] * len(ids)
        if len(ids) > max_len:
            account.truncated += 1
            ids, mask = ids[:max_len], mask[:max_len]
        if not any(mask[1:]):
            account.drop("no token to train on")
            continue
        examples.append(Example(ids, mask))
    if account.records and not examples:
        raise DataError(
            f"none of the {account.records} records has a token to train on within {max_len} tokens",
            hint="raise --max-seq-len, or look at --dry-run",
        )
    return examples, account


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Give errors that do not know their record, such as a chat template's, its file and line."""
    try:
        yield
    except DataError as error:
        if error.where is None:
            error.where = where
        raise


def _demonstration(record: Demonstration, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    if record.messages is not None:
        return tokenizer.encode_chat_masked(record.messages)
    if record.text is not None:
        ids = [*tokenizer.encode(record.text, add_special=True)]
        if ids[-1:] != [tokenizer.eos_id]:
            ids.append(tokenizer.eos_id)
        return ids, [True] * len(ids)
    assert record.prompt is not None
    assert record.completion is not None
    before, after = answer_ids(tokenizer, record.prompt, record.completion)
    return before + after, [False] * len(before) + [True] * len(after)


def answer_ids(
    tokenizer: Tokenizer, prompt: str | list[Message], answer: str | list[Message]
) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids with the end token) of one answer to a prompt."""
    chat = None if isinstance(prompt, str) else prompt
    return prompt_ids(tokenizer, prompt), completion_ids(tokenizer, answer, prompt=chat)


def answer_sequences(
    records: Iterable[Demonstration | Sample], tokenizer: Tokenizer, max_len: int
) -> tuple[list[list[int]], Account]:
    """Every answer with its prompt, as a reward model reads it: those over `max_len` tokens are left out.

    Raises DataError when nothing is left.
    """
    account = Account()
    sequences: list[list[int]] = []
    for record in records:
        account.records += 1
        with _located(record.where):
            if isinstance(record, Sample):
                pairs = (answer_ids(tokenizer, record.prompt, c.turns) for c in record.completions)
                found = [before + after for before, after in pairs]
            else:
                found = [_demonstration(record, tokenizer)[0]]
        fitting = [ids for ids in found if len(ids) <= max_len]
        account.left_out += len(found) - len(fitting)
        sequences += fitting
    if account.records and not sequences:
        raise DataError(
            f"none of the {account.records} records has an answer that fits {max_len} tokens",
            hint="raise --max-seq-len",
        )
    return sequences, account


@dataclass(frozen=True)
class PromptSet:
    """Prompts, their token ids, and what scorers know them by, side by side."""

    records: Sequence[Prompt]
    sequences: Sequence[list[int]]
    ids: Sequence[str | int]  # the record's own, else its number in the input


def prompt_sequences(
    records: Iterable[Prompt], tokenizer: Tokenizer, max_len: int
) -> tuple[PromptSet, Account]:
    """Prompts that leave room to answer: those over `max_len` tokens are dropped and counted."""
    account = Account()
    kept: list[Prompt] = []
    sequences: list[list[int]] = []
    names: list[str | int] = []
    known = Ids()
    for record in records:
        account.records += 1
        known.check(record)
        with _located(record.where):
            ids = prompt_ids(tokenizer, record.prompt)
        if len(ids) > max_len:
            account.drop(f"prompt over {max_len} tokens")
        else:
            kept.append(record)
            sequences.append(ids)
            names.append(account.records - 1 if record.id is None else record.id)
    if account.records and not kept:
        raise DataError(
            f"none of the {account.records} prompts fits {max_len} tokens",
            hint="lower --max-new-tokens, or use a model with a longer context",
        )
    return PromptSet(kept, sequences, names), account


def marked_pieces(tokenizer: Tokenizer, example: Example) -> list[tuple[str, bool]]:
    """A sequence as decoded pieces with whether they count in the loss."""
    pieces: list[tuple[str, bool]] = []
    run: list[int] = []
    state = False
    for token, counts in zip(example.ids, example.mask, strict=True):
        if counts != state and run:
            pieces.append((tokenizer.decode(run, skip_special=False), state))
            run = []
        state = counts
        run.append(token)
    return [*pieces, (tokenizer.decode(run, skip_special=False), state)]


def longest(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest sequence, 0 without any."""
    return max((len(s) for s in sequences), default=0)
