"""Complete prompts with a language model.

Reads prompts, `{"prompt"}` or `{"messages"}`, and adds `completion` with `finish_reason`, `num_tokens` and
`logprob`; with -n K > 1 `completions`, a list of K objects with `text` and the same three. `model` names the
model. Other fields pass through; what an earlier sampling or scoring left in a record is replaced.

A completion depends on the model, the prompt, the settings and --seed: not on the batch it is made in, the
order of the prompts, or how many more -n asks for. A prompt that occurs twice is answered alike.

`logprob` is the sum over the tokens drawn (the end token too) of log softmax(logits / temperature), before
--top-k and --top-p; with --greedy the temperature counts as 1. `finish_reason` is "stop" at an end token or a
--stop string, which is cut off the text with all that follows, and "length" at --max-new-tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhfkit.config import MODEL, RUN, FilterConfig, Inputs, option
from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.context import note, reporter, warn
from rlhfkit.errors import DataError, InputMissing, UsageError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source
    from rlhfkit.data.records import Prompt
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine.draw import Sampling
    from rlhfkit.engine.generate import Generated
    from rlhfkit.models.transformer import Transformer

INPUTS = Inputs("PROMPTS", "Prompts: JSONL files, `-` or nothing for standard input.", kind="prompt")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit sample prompts.jsonl -m sft -o samples.jsonl",
    "rlhfkit sample prompts.jsonl -m sft -n 4 --max-new-tokens 64 | rlhfkit rank --by rm",
    "rlhfkit sample prompts.jsonl -m base --prepend few-shot.txt --stop '\\n' --greedy",
)

SAMPLING = "Sampling"
#: What an earlier `sample`, `score` or `rank` wrote about other completions.
STALE = frozenset(
    {
        *("completion", "completions", "response", "responses"),
        *("finish_reason", "num_tokens", "logprob", "model"),
        *("score", "scores", "ranking", "ranks", "rater"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig):
    """Settings of `sample`."""

    model: str = option(short="-m", group=MODEL, metavar="DIR", help="The language model.")
    name: str | None = option(
        None, group=MODEL, help="What to call it in the field `model` (default: its directory's name)."
    )
    n: int = option(1, short="-n", group=SAMPLING, minimum=1, metavar="K", help="Completions per prompt.")
    max_new_tokens: int = option(
        128, group=SAMPLING, minimum=1, metavar="N", help="End a completion after this many tokens."
    )
    temperature: float = option(
        1.0, group=SAMPLING, minimum=0, help="Divide logits by this; 0 is the same as --greedy."
    )
    top_p: float = option(
        1.0,
        group=SAMPLING,
        above=0,
        maximum=1,
        help="Draw from the likeliest tokens up to the one that reaches this probability mass (1: all).",
    )
    top_k: int = option(
        0, group=SAMPLING, minimum=0, metavar="K", help="Draw from the K likeliest tokens (0: all)."
    )
    greedy: bool = option(False, group=SAMPLING, help="Always take the likeliest token.")
    stop: tuple[str, ...] = option(
        (),
        group=SAMPLING,
        metavar="TEXT",
        help="End a completion before this text; \\n alone is a line end, \\t a tab (repeatable).",
    )
    prepend: str | None = option(
        None,
        group=SAMPLING,
        metavar="FILE",
        help="Put this file's text before every prompt, as few-shot examples; not part of the output.",
    )
    truncate_prompts: bool = option(
        False,
        group=SAMPLING,
        help="Cut the beginning of prompts that leave no room for --max-new-tokens (default: stop).",
    )
    seed: int = option(1337, group=RUN, minimum=0, maximum=2**63 - 1, help="Seed of the draws.")
    batch_size: int = option(
        64, group=OUTPUT_GROUP, minimum=1, metavar="PROMPTS", help="Prompts completed and written together."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", group=RUN, help="Compute precision (auto: bfloat16 where it is faster, docs/training.md)."
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", group=RUN, help="Where to run.")
    dry_run: bool = option(
        False, group=RUN, shapes_result=False, help="Check everything, say what would happen, write nothing."
    )


def run(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Yield the records with their completions, a batch at a time and in order."""
    from rlhfkit.data.records import Prompt, read_records
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.engine.dist import resolve_device, resolve_dtype
    from rlhfkit.models.hub import resolve
    from rlhfkit.models.loading import config_of, load_causal

    reader = read_records(inputs, Prompt, config)
    device = resolve_device(config.device)
    tokenizer = Tokenizer.from_dir(resolve(config.model))
    about = config_of(config.model)
    prompts = _Encoder(tokenizer, config, about.max_seq_len)
    if config.dry_run:
        for batch in reader.batches(config.batch_size):
            _, error = prompts.encode(batch)
            if error is not None:
                raise error
        prompts.report()
        return
    dtype = resolve_dtype(config.dtype, device, about.hidden_size)
    model = load_causal(config.model, dtype=dtype, device=device)
    sampler = _Sampler(model, prompts.tokenizer, config)
    progress = reporter().progress("sample", None, "prompts")
    try:
        for batch in reader.batches(config.batch_size):
            encoded, error = prompts.encode(batch)
            if encoded:
                yield sampler.complete(encoded)
            if error is not None:
                raise error
            progress.update(prompts.seen, {"tokens": sampler.tokens})
    finally:
        progress.close()
    prompts.report()


class _Encoder:
    """Prompts as token ids that leave room for an answer, and the account of those that do not."""

    def __init__(self, tokenizer: Tokenizer, config: Config, context_length: int) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.context_length, self.room = context_length, context_length - config.max_new_tokens
        if self.room < 1:
            raise UsageError(
                f"{config.max_new_tokens} tokens leave no room for a prompt: "
                f"the model's context is {context_length}",
                where="--max-new-tokens",
            )
        self.prefix = _read_text(config.prepend) if config.prepend else ""
        self.seen = self.longest = self.truncated = self.skipped = 0

    def encode(self, batch: list[Prompt]) -> tuple[list[tuple[Prompt, list[int]]], DataError | None]:
        """The prompts with their ids up to the first that cannot be used, and its error (unless skipped)."""
        encoded: list[tuple[Prompt, list[int]]] = []
        for record in batch:
            self.seen += 1
            try:
                encoded.append((record, self._fitting(record)))
            except DataError as error:
                if self.config.on_bad_line != "skip":
                    return encoded, error
                self.skipped += 1
        return encoded, None

    def _fitting(self, record: Prompt) -> list[int]:
        ids = self._ids(record)
        self.longest = max(self.longest, len(ids))
        if len(ids) <= self.room:
            return ids
        if not self.config.truncate_prompts:
            raise DataError(
                f"prompt: {len(ids)} tokens and --max-new-tokens {self.config.max_new_tokens} exceed "
                f"the model's context of {self.context_length}",
                where=record.where,
                hint="lower --max-new-tokens, or cut the beginning of such prompts with --truncate-prompts",
            )
        self.truncated += 1
        start = self.tokenizer.prefix_ids
        if ids[: len(start)] != start:
            start = []
        return [*start, *ids[len(ids) - self.room + len(start) :]][-self.room :]

    def _ids(self, record: Prompt) -> list[int]:
        from rlhfkit.data.tokenizer import prompt_ids

        if not self.prefix:
            return prompt_ids(self.tokenizer, record.prompt)
        if not isinstance(record.prompt, str):
            raise DataError("prompt: a conversation takes no --prepend", where=record.where)
        return prompt_ids(self.tokenizer, self.prefix + record.prompt)

    def report(self) -> None:
        """Say what became of the prompts."""
        if self.truncated:
            warn(f"cut the beginning of {self.truncated} of {self.seen} prompts to {self.room} tokens")
        if self.skipped:
            note(f"skipped {self.skipped} of {self.seen} prompts that cannot be used")
        if self.config.dry_run:
            note(f"prompts: {self.seen}, the longest has {self.longest} tokens of {self.room} that fit")
            note(f"completions: {self.seen - self.skipped} x {self.config.n}")


class _Sampler:
    """Completes batches of prompts."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, config: Config) -> None:
        from rlhfkit.engine.draw import Sampling

        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.name = config.name or Path(config.model).resolve().name
        self.stops = [_unescaped(stop) for stop in config.stop]
        if "" in self.stops:
            raise UsageError("an empty text would end every completion at once", where="--stop")
        #: a stop text is found within this many tokens of its end
        self.reach = max((len(stop.encode()) for stop in self.stops), default=0) + 4
        self.sampling: Sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=0.0 if config.greedy else config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            eos_ids=tokenizer.eos_ids,
        )
        self.tokens = 0

    def complete(self, prompts: list[tuple[Prompt, list[int]]]) -> list[Record]:
        """The records of these prompts."""
        from rlhfkit.engine.draw import row_seed
        from rlhfkit.engine.generate import generate

        n = self.config.n
        outputs = generate(
            self.model,
            [ids for _, ids in prompts for _ in range(n)],
            [row_seed(self.config.seed, ids, number) for _, ids in prompts for number in range(n)],
            self.sampling,
            stop=self._ends if self.stops else None,
        )
        self.tokens += sum(len(output.ids) for output in outputs)
        rest = iter(outputs)
        return [self._record(prompt, [next(rest) for _ in range(n)]) for prompt, _ in prompts]

    def _record(self, prompt: Prompt, outputs: list[Generated]) -> Record:
        kept = {name: value for name, value in prompt.fields.items() if name not in STALE}
        chat = not isinstance(prompt.prompt, str)
        texts = [self._until_stop(self._text(output.ids, chat=chat)) for output in outputs]
        about = [
            {
                "finish_reason": output.finish_reason,
                "num_tokens": len(output.ids),
                "logprob": sum(output.logprobs),
            }
            for output in outputs
        ]
        if self.config.n == 1:
            return {**kept, "completion": texts[0], **about[0], "model": self.name}
        completions = [{"text": text, **facts} for text, facts in zip(texts, about, strict=True)]
        return {**kept, "completions": completions, "model": self.name}

    def _text(self, ids: list[int], *, chat: bool) -> str:
        """What the ids say, without the end token."""
        if ids[-1:] and ids[-1] in self.sampling.eos_ids:
            ids = ids[:-1]
        if chat:
            return self.tokenizer.decode(ids)
        return self.tokenizer.decode_continuation(ids)

    def _ends(self, ids: list[int]) -> bool:
        tail = self._text(ids[-self.reach :], chat=False)
        return any(stop in tail for stop in self.stops)

    def _until_stop(self, text: str) -> str:
        return text[: min((text.find(stop) for stop in self.stops if stop in text), default=None)]


def _unescaped(stop: str) -> str:
    """`\\n` and `\\t` where they stand alone: a shell makes it hard to give the real thing."""
    if re.fullmatch(r"(\\[nt])+", stop):
        return stop.replace("\\n", "\n").replace("\\t", "\t")
    return stop


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputMissing(f"cannot be read: {(error.strerror or str(error)).lower()}", where=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", where=path) from None
