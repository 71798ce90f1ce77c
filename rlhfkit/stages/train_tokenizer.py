"""Train a tokenizer: byte-level BPE, special tokens and a chat template.

Reads text, whole files or the `text` field of JSON lines; writes a directory with `tokenizer.json` and
`tokenizer_config.json`, which transformers.AutoTokenizer opens unchanged. Every text can be encoded, since
all 256 bytes are tokens; `<|pad|>`, `<|end|>` and the role tokens come first. The same texts give the same
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import option
from rlhfkit.data.config import TEXT_INPUTS, TextConfig

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.texts import Part
    from rlhfkit.data.tokenizer import Tokenizer

INPUTS = TEXT_INPUTS
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit train-tokenizer corpus.txt --vocab-size 8192 -o tok",
    "zcat corpus.jsonl.gz | rlhfkit train-tokenizer --vocab-size 32768 -o tok",
)


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Settings of `train-tokenizer`."""

    vocab_size: int = option(
        group=OUTPUT_GROUP, minimum=1, metavar="N", help="Tokens, the bytes and special tokens included."
    )
    output: str = option(
        short="-o", group=OUTPUT_GROUP, metavar="DIR", shapes_result=False, help="Directory of the tokenizer."
    )
    force: bool = option(
        False, group=OUTPUT_GROUP, shapes_result=False, help="Replace an existing output directory."
    )


def run(inputs: Source, config: Config) -> dict[str, object]:
    """Train and write; returns the summary (output, vocab_size, documents, bytes, seconds, tokenizer)."""
    from rlhfkit.data.manifest import show_settings, write_manifest
    from rlhfkit.data.texts import read_documents
    from rlhfkit.data.tokenizer import check_vocab_size
    from rlhfkit.files import atomic_directory

    check_vocab_size(config.vocab_size)
    start = time.monotonic()
    counts = {"documents": 0, "bytes": 0}
    parts = read_documents(inputs, config, field=config.field, form=config.format, split=config.split)
    texts = _counted(parts, counts)

    def summary(**results: object) -> dict[str, object]:
        return {**results, **counts, "seconds": round(time.monotonic() - start, 3)}

    with closing(texts):
        if config.dry_run:
            show_settings(config)
            for _ in texts:
                pass
            return summary(output=None, dry_run=True)
        with atomic_directory(config.output, force=config.force) as directory:
            tokenizer = _train(texts, config, counts)
            tokenizer.save(directory)
            result = summary(
                output=config.output, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.digest
            )
            write_manifest(directory, "train-tokenizer", config, inputs, result)
    return result


def _train(texts: Iterator[str], config: Config, counts: Mapping[str, int]) -> Tokenizer:
    from rlhfkit.context import note
    from rlhfkit.data.tokenizer import train_tokenizer
    from rlhfkit.errors import DataError

    tokenizer = train_tokenizer(texts, config.vocab_size)
    if not counts["documents"]:
        raise DataError("no text to learn from", hint="the input is empty")
    if tokenizer.vocab_size < config.vocab_size:
        note(
            f"the text gives {tokenizer.vocab_size} tokens, not {config.vocab_size}: "
            "no further pair of tokens occurs in it"
        )
    return tokenizer


def _counted(parts: Iterable[Part], counts: dict[str, int]) -> Generator[str, None, None]:
    """The texts of parts, counted as they pass."""
    from rlhfkit.context import reporter

    progress = reporter().progress("train-tokenizer", None, "documents")
    try:
        for part in parts:
            counts["documents"] += part.last
            counts["bytes"] += len(part.text.encode())
            progress.update(counts["documents"])
            yield part.text
    finally:
        progress.close()
