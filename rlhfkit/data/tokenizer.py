"""Text to token ids and back, chats included.

One rule stands above convenience: what users and models write is text. A prompt that spells `<|end|>` is
encoded as those characters; the token `<|end|>` comes only from code or from a chat template. Where no
text spells such a token, ids equal those of transformers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec

from rlhfkit.data import tokenizer_files as tf
from rlhfkit.data.chat import DEFAULT_TEMPLATE, ChatTemplate
from rlhfkit.data.coder import Coder, guarded
from rlhfkit.data.marks import Kind, Marker, Marks, Piece
from rlhfkit.data.tokenizer_checks import byte_level, check
from rlhfkit.data.turns import Turns, turn_markers
from rlhfkit.errors import DataError, UsageError


class MessageLike(Protocol):
    """What a message object offers, such as `rlhfkit.data.records.Message`."""

    @property
    def role(self) -> str:
        """Who speaks: system, user or assistant."""

    @property
    def content(self) -> str:
        """What is said."""


AnyMessage = MessageLike | Mapping[str, Any]

#: Special tokens of a tokenizer that rlhfkit trains, in order of their ids 0, 1, ...
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
#: Tokens that models without a PAD have in reserve, best first.
_SPARE_PADS = re.compile(
    r"<pad>|\[PAD\]|<\|pad\|>|<\|padding\|>|<\|finetune_right_pad_id\|>|<\|PAD_TOKEN\|>"
    r"|<\|reserved_special_token_0\|>|<unused0>|<SPECIAL_20>"
)


class Tokenizer:
    """A tokenizer.json with its special tokens and its chat template. See `Tokenizer.from_dir`."""

    def __init__(self, files: tf.TokenizerFiles) -> None:
        check(files.parsed, files.where(tf.TOKENIZER))
        self.path = files.path
        self.json, self.parsed = files.files[tf.TOKENIZER], files.parsed
        self.digest = hashlib.sha256(self.json).hexdigest()
        self._files = files
        added = {t.content: t for t in files.parsed.added_tokens}
        self._vocab = {**files.parsed.model.ids(), **{t.content: t.id for t in added.values()}}
        self.vocab_size = max(self._vocab.values()) + 1
        self._named = files.named_tokens()
        declared = files.special_tokens() & self._vocab.keys()
        missing = sorted(declared - added.keys())
        flagged = {name for name, token in added.items() if token.special}
        self._special = flagged | declared
        #: special tokens that the library's own switch keeps out of text
        self._switched = flagged | set(missing)
        self._ordinary = [name for name in added if name not in self._special]
        self.coder = Coder(self.json, self.parsed, missing, files.where(tf.TOKENIZER))
        self.prefix_ids, self.suffix_ids = self.coder.prefix_ids, self.coder.suffix_ids

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load the tokenizer of a model or tokenizer directory.

        Raises InputMissing (66) when there is none, DataError (65) when it is broken or dangerous.
        """
        return cls(tf.read_files(path))

    # -- special ids ---------------------------------------------------------------------------------------

    @cached_property
    def eos_id(self) -> int:
        """The token that ends a document and an answer. Raises DataError if the tokenizer has none."""
        name = self._named.get("eos_token")
        if name in self._vocab:
            return self._vocab[name]
        for declared in self._generation_eos():
            return declared
        raise DataError(
            "has no end-of-text token",
            where=self._files.where(tf.CONFIG),
            hint='name one there: "eos_token": "<|endoftext|>"',
        )

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: `eos_id`, those of generation_config.json, the template's own."""
        ids = [self.eos_id, *self._generation_eos()]
        if self._turns is not None and self._turns.end_token is not None:
            ids.append(self._vocab[self._turns.end_token])
        return tuple(dict.fromkeys(ids))

    @property
    def bos_id(self) -> int | None:
        """The token that starts a text, if the tokenizer names one."""
        return self._vocab.get(self._named.get("bos_token", ""))

    @cached_property
    def pad_id(self) -> int:
        """A token to fill up rows with; never the end of an answer if that can be avoided.

        The tokenizer's own PAD unless that is also its EOS; else a reserved token; else a byte that UTF-8
        cannot contain; else the unknown token. Masks decide what counts, whatever this is.
        """
        return self._vocab[self.pad_token]

    @cached_property
    def pad_token(self) -> str:
        """The spelling of `pad_id`."""
        ends = {self.eos_id, *self._generation_eos()}
        own = self._named.get("pad_token")
        spare = [name for name in self._vocab if _SPARE_PADS.fullmatch(name)]
        # Bytes 0xFF do not occur in UTF-8, so these two are never the encoding of a text.
        never = ["\u00ff"] if byte_level(self.parsed) else ["<0xFF>"]
        for name in (own, *spare, *never, self._named.get("unk_token")):
            if name in self._vocab and self._vocab[name] not in ends:
                return name
        return next(name for name, i in self._vocab.items() if i == self.eos_id)

    def _generation_eos(self) -> list[int]:
        for name in ("generation_config.json", "config.json"):
            ids = self._files.json(name).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            ids = [i for i in ids if type(i) is int and 0 <= i < self.vocab_size]
            if ids:
                return ids
        return []

    # -- text ----------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of plain text; special tokens spelt in it stay text.

        `add_special` adds what the tokenizer itself puts around a text (BOS for the Llama family).
        """
        ids = self._ids(self._text_pieces(text, middle=False))
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        if self._text_can_turn_special or not self.coder.complete:
            return [self.encode(text) for text in texts]
        return self.coder.encode_batch(texts)

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of plain text that follows other text: no space is put before it."""
        return self._ids(self._text_pieces(text, middle=True))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; `skip_special` leaves special tokens out."""
        assert all(0 <= i < self._id_limit for i in ids), "token id outside the vocabulary"
        return self.coder.decode(ids, skip_special=skip_special)

    def decode_continuation(self, ids: Sequence[int]) -> str:
        """Text of ids that follow other text: some tokenizers take a space off the start of a text."""
        return self.decode([*self._anchor, *ids])[1:]

    @cached_property
    def _anchor(self) -> list[int]:
        return self.encode("a")

    # -- chats ---------------------------------------------------------------------------------------------

    def apply_chat_template(self, messages: Sequence[AnyMessage], add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it. Raises DataError if there is no template."""
        return self._need_turns().template.render(
            _plain(messages), add_generation_prompt=add_generation_prompt
        )

    def encode_chat(self, messages: Sequence[AnyMessage], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a conversation; the template alone decides about BOS and EOS."""
        marks, marked = self._mark(messages)
        text = self._need_turns().template.render(marked, add_generation_prompt=add_generation_prompt)
        return self._ids(marks.split(text))

    def encode_chat_masked(
        self, messages: Sequence[AnyMessage], *, first: int = 0
    ) -> tuple[list[int], list[bool]]:
        """(ids, mask): True on what the assistant writes in message `first` and later, end tokens included.

        The template's `{% generation %}` blocks say what that is; without them, what a turn adds to the
        conversation before it and its generation prompt. Raises DataError when neither tells.
        """
        turns = self._need_turns()
        marks, marked = self._mark(messages)
        text, spans = turns.assistant_spans(marked, marks, first)
        ids: list[int] = []
        mask: list[bool] = []
        remaining = iter([*spans, (len(text) + 1, len(text) + 1)])
        start, end = next(remaining)
        for piece in marks.split(text):
            for token, (a, b) in zip(*self.coder.piece(piece, self._control_ids), strict=True):
                while a >= end:
                    start, end = next(remaining)
                ids.append(token)
                mask.append(b > start)
        if turns.end_token is None and mask and mask[-1]:
            ids.append(self.eos_id)
            mask.append(True)
        return ids, mask

    def answer_ids(self, prompt: Sequence[AnyMessage], answer: Sequence[AnyMessage]) -> list[int]:
        """Token ids of the messages that follow a prompt's generation prompt, the end token last."""
        marks, marked = self._mark([*prompt, *answer])
        rest, ended = self._need_turns().answer(marked[: len(prompt)], marked[len(prompt) :], marks)
        ids = self._ids(marks.split(rest, middle=True))
        return ids if ended else [*ids, self.eos_id]

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be encoded."""
        return self._template is not None

    @cached_property
    def _template(self) -> ChatTemplate | None:
        text = self._files.template_text()
        return ChatTemplate(text, self._named, where=str(self.path)) if text is not None else None

    @cached_property
    def _turns(self) -> Turns | None:
        return Turns(self._template, self._control) if self._template is not None else None

    def _need_turns(self) -> Turns:
        if self._turns is None:
            raise DataError(
                "the tokenizer has no chat template, so messages cannot be encoded",
                where=self._files.where(tf.CONFIG),
                hint='give prompts as strings, or add "chat_template" there',
            )
        return self._turns

    def _mark(self, messages: Sequence[AnyMessage]) -> tuple[Marks, list[dict[str, Any]]]:
        plain = _plain(messages)
        marks = self._marker.marks(plain)
        return marks, marks.mark(plain)

    # -- saving --------------------------------------------------------------------------------------------

    def save(
        self, directory: str | os.PathLike[str], *, max_length: int | None = None, with_pad: bool = False
    ) -> None:
        """Write the tokenizer's files into an existing directory, as they were loaded.

        `max_length` sets `model_max_length`; `with_pad` names `pad_token`, so that transformers pads as
        rlhfkit does (a reward model's score is read at the last token that is not PAD).
        """
        files = dict(self._files.files)
        changes: dict[str, object] = {}
        if max_length is not None:
            changes["model_max_length"] = max_length
        if with_pad:
            changes["pad_token"] = self.pad_token
        if changes:
            config = {**self._files.json(tf.CONFIG), **changes}
            files[tf.CONFIG] = msgspec.json.format(msgspec.json.encode(config), indent=2)
        for name in (tf.TOKENIZER, *tf.COMPANIONS):
            if name in files:
                Path(directory, name).write_bytes(files[name])

    # -- inside --------------------------------------------------------------------------------------------

    @cached_property
    def _control(self) -> list[str]:
        """Tokens that text must not turn into: special ones, and those the template writes around turns.

        Some families (DeepSeek) do not call the latter special.
        """
        template = self._template
        if template is None:
            return sorted(self._special)
        spelt = [name for name in self._ordinary if not name.isspace() and name in template.text]
        return sorted([*self._special, *(turn_markers(template, spelt) if spelt else ())])

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._vocab[name] for name in self._control)

    @cached_property
    def _marker(self) -> Marker:
        return Marker(self._control)

    @cached_property
    def _text_can_turn_special(self) -> bool:
        """Whether text that spells a special token needs care beyond the library's own switch."""
        model = self.parsed.model
        if model.type != "BPE" or model.ignore_merges or not self._switched.issuperset(self._control):
            return True
        return any(self._vocab[t] in self.coder.encode(t, special=False)[0] for t in self._control)

    @property
    def encoded_apart(self) -> list[str]:
        """Added tokens whose spelling in a text takes more than the split into words and the model."""
        return [*self._ordinary, *(self._control if self._text_can_turn_special else ())]

    def _text_pieces(self, text: str, *, middle: bool) -> list[Piece]:
        if self._text_can_turn_special and self._marker.spelt(text):
            return self._marker.split(text, middle=middle)
        return [Piece(text, 0, Kind.TEXT, middle)]

    def _ids(self, pieces: Iterable[Piece]) -> list[int]:
        return [i for piece in pieces for i in self.coder.piece(piece, self._control_ids)[0]]

    @cached_property
    def _id_limit(self) -> int:
        """Ids below this may come out of the model; those beyond the tokenizer's own decode to nothing."""
        declared = self._files.json("config.json").get("vocab_size")
        return max(self.vocab_size, declared if isinstance(declared, int) else 0)


# -- prompts and completions ------------------------------------------------------------------------------


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[AnyMessage]) -> list[int]:
    """Token ids that an answer follows: a string as it is (BOS before it where the family has one), or a
    conversation with its generation prompt. An empty string is the end of the document before."""
    if not isinstance(prompt, str):
        return tokenizer.encode_chat(prompt, add_generation_prompt=True)
    return [*tokenizer.prefix_ids, *tokenizer.encode(prompt)] or [tokenizer.eos_id]


def completion_ids(
    tokenizer: Tokenizer,
    completion: str | Sequence[AnyMessage],
    *,
    chat: bool = False,
    prompt: Sequence[AnyMessage] | None = None,
) -> list[int]:
    """Token ids of an answer, its end included.

    After a string prompt: the text and EOS. After a conversation (`chat`, or messages as completion): what
    the template adds to the generation prompt, the end of turn last. `prompt` is that conversation; without
    it a stand-in is used, which gives the same ids unless the template looks back.
    """
    if isinstance(completion, str):
        if not chat and prompt is None:
            return [*tokenizer.encode_continuation(completion), tokenizer.eos_id]
        completion = [{"role": "assistant", "content": completion}]
    return tokenizer.answer_ids(prompt or [{"role": "user", "content": "Hello"}], completion)


# -- training ---------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with GPT-2's split on texts; the same texts give the same bytes.

    A little text may give fewer tokens than asked. Raises UsageError if `vocab_size` has no room for the
    bytes and the special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    guarded(lambda: backend.train_from_iterator(iter(texts), trainer), "training the tokenizer")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in (PAD, END)],
        "chat_template": DEFAULT_TEMPLATE,
    }
    files = {
        tf.TOKENIZER: backend.to_str(pretty=True).encode(),
        tf.CONFIG: msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n",
    }
    return Tokenizer(tf.TokenizerFiles.of(files))


def check_vocab_size(vocab_size: int) -> None:
    """Raise UsageError if `vocab_size` has no room for the bytes and the special tokens."""
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UsageError(
            f"{vocab_size} tokens are too few: bytes and special tokens take {least}", where="--vocab-size"
        )


def _plain(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Messages as dicts of plain values, without fields that are None (as transformers does)."""
    dicts = [m if isinstance(m, Mapping) else {"role": m.role, "content": m.content} for m in messages]
    return [{key: value for key, value in m.items() if value is not None} for m in dicts]
