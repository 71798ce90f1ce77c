"""Turn text into token shards for pretraining.

Reads text, whole files or the `text` field of JSON lines; writes a safetensors file with `tokens` (16 bits
each if the vocabulary allows) and `doc_offsets`. Every document ends with the tokenizer's end token. Text
that spells a special token stays text.

With --shard-tokens, DIR/shard-00000.safetensors and so on: a shard ends with the document that reaches the
number. Several processes encode; the order is kept and memory does not grow with the input.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfkit.config import MODEL, RUN, option
from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.data.config import TEXT_INPUTS, TextConfig

if TYPE_CHECKING:
    from rlhfkit.data.encoding import Encoded
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.tokenizer import Tokenizer

INPUTS = TEXT_INPUTS
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit tokenize corpus.txt --tokenizer tok -o corpus.safetensors",
    "rlhfkit tokenize pile/*.jsonl.gz --tokenizer tok --shard-tokens 100000000 -o shards",
    "rlhfkit tokenize poems.txt --split blank-line --tokenizer tok -o poems.safetensors",
)

#: Tokens that --dry-run shows of the first document.
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Settings of `tokenize`."""

    tokenizer: str = option(
        group=MODEL, metavar="DIR", help="Directory of the tokenizer, or of a model that has one."
    )
    output: str = option(
        short="-o",
        group=OUTPUT_GROUP,
        metavar="FILE",
        shapes_result=False,
        help="Shard to write; with --shard-tokens, directory of shards.",
    )
    force: bool = option(False, group=OUTPUT_GROUP, shapes_result=False, help="Replace an existing output.")
    shard_tokens: int | None = option(
        None, group=OUTPUT_GROUP, minimum=1, metavar="N", help="Write several shards of about N tokens each."
    )
    workers: int | None = option(
        None,
        group=RUN,
        minimum=1,
        metavar="N",
        shapes_result=False,
        help="Encoding processes (default: one a core).",
    )


def run(inputs: Source, config: Config) -> dict[str, object]:
    """Encode and write; returns the summary (output, tokens, documents, bytes, seconds, tokenizer, ...)."""
    from rlhfkit import context
    from rlhfkit.data.manifest import show_settings
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.files import check_output_file
    from rlhfkit.models.hub import resolve

    start = time.monotonic()
    tokenizer = Tokenizer.from_dir(resolve(config.tokenizer))
    if config.shard_tokens is None and not config.dry_run:
        check_output_file(config.output, force=config.force)
    facts: dict[str, object] = {}
    with closing(_Counted(inputs, config, tokenizer)) as encoded:
        first = next(encoded, None)
        if first is None:
            context.note("no text in the input, nothing written")
        elif config.dry_run:
            show_settings(config)
            _show(first, tokenizer)
            for _ in encoded:
                pass
        elif config.shard_tokens is None:
            _write_file(chain([first], encoded), config, tokenizer)
        else:
            facts = _write_directory(chain([first], encoded), config, tokenizer, inputs)
    return {
        "output": config.output if first is not None and not config.dry_run else None,
        **facts,
        "tokens": encoded.tokens,
        "documents": encoded.documents,
        "bytes": encoded.bytes,
        "seconds": round(time.monotonic() - start, 3),
        "tokenizer": tokenizer.digest,
        **({"dry_run": True} if config.dry_run else {}),
    }


class _Counted:
    """The encoded documents of the inputs, counted as they pass."""

    def __init__(self, inputs: Source, config: Config, tokenizer: Tokenizer) -> None:
        from rlhfkit.context import reporter
        from rlhfkit.data.encoding import encode_documents
        from rlhfkit.data.shards import token_dtype
        from rlhfkit.data.texts import read_documents

        parts = read_documents(inputs, config, field=config.field, form=config.format, split=config.split)
        workers = config.workers or len(os.sched_getaffinity(0))
        self._source = encode_documents(tokenizer, parts, workers=workers)
        self._width = token_dtype(tokenizer.vocab_size).itemsize
        self._progress = reporter().progress("tokenize", None, "documents")
        self.tokens = self.documents = self.bytes = 0

    def __iter__(self) -> Iterator[Encoded]:
        return self

    def __next__(self) -> Encoded:
        encoded = next(self._source)
        self.tokens += len(encoded.tokens) // self._width
        self.documents += len(encoded.ends)
        self.bytes += encoded.num_bytes
        self._progress.update(self.documents, {"tokens": self.tokens})
        return encoded

    def close(self) -> None:
        """End the workers and the progress display."""
        self._source.close()
        self._progress.close()


def _show(encoded: Encoded, tokenizer: Tokenizer) -> None:
    """The beginning of the first document, token by token."""
    import numpy as np

    from rlhfkit.context import reporter
    from rlhfkit.data.shards import token_dtype

    ids = np.frombuffer(encoded.tokens, token_dtype(tokenizer.vocab_size))
    ids = ids[: encoded.ends[0] if encoded.ends else len(ids)][:_SHOWN].tolist()
    pieces = [(tokenizer.decode([token], skip_special=False), n % 2 == 1) for n, token in enumerate(ids)]
    reporter().masked_text("the first document (every other token marked)", pieces)


def _write_file(source: Iterator[Encoded], config: Config, tokenizer: Tokenizer) -> None:
    from rlhfkit.data.shards import ShardWriter

    path = Path(config.output)
    with ShardWriter(
        path.parent, tokenizer_digest=tokenizer.digest, vocab_size=tokenizer.vocab_size
    ) as writer:
        for encoded in source:
            writer.add(encoded.tokens, encoded.ends)
        writer.finish(path, force=config.force)


def _write_directory(
    source: Iterator[Encoded], config: Config, tokenizer: Tokenizer, inputs: Source
) -> dict[str, object]:
    """Write shards and, last, run.json; returns what the summary says about them."""
    from rlhfkit.data.manifest import write_manifest
    from rlhfkit.data.shards import write_shards
    from rlhfkit.files import atomic_directory

    assert config.shard_tokens is not None
    with atomic_directory(config.output, force=config.force) as directory:
        pieces = ((encoded.tokens, encoded.ends) for encoded in source)
        number = write_shards(
            directory,
            pieces,
            config.shard_tokens,
            tokenizer_digest=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
        )
        write_manifest(directory, "tokenize", config, inputs, {"shards": number})
    return {"shards": number}
