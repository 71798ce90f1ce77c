"""Documents to token ids in bulk, on several cores, in order and with bounded memory.

The work is done by helper processes (a thread pool would wait for Python's lock) that get lists of parts
over a pipe and answer with the bytes of the ids. None is started for a short input.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import IO

import msgspec
import numpy as np

from rlhfkit.data.fast import fast_encoder
from rlhfkit.data.helper import helper_command
from rlhfkit.data.shards import token_dtype
from rlhfkit.data.texts import Part
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.errors import DataError, RlhfkitError

#: Characters in one job.
JOB = 2**20
#: Jobs that repay the start of the helpers (about 0.3 s).
_WORTH_A_POOL = 4
#: Characters that repay the start of the fast encoder (0.05 s), and of tiktoken as a part of it (0.2 s).
_SOME, _MUCH = 2**17, _WORTH_A_POOL * JOB


class Job(msgspec.Struct, frozen=True):
    """Parts of documents to encode."""

    parts: list[Part]


class Encoded(msgspec.Struct, frozen=True):
    """What became of a job: ids as bytes, and after how many of them documents end."""

    tokens: bytes
    ends: list[int]
    num_bytes: int  # UTF-8 bytes of the text
    error: str | None = None


class DocumentEncoder:
    """Encodes the parts of documents; each document gets what its family puts before a text, and EOS."""

    def __init__(self, tokenizer: Tokenizer, *, size: int = _MUCH) -> None:
        """`size` is how many characters will come, at least."""
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._start = self._bytes(tokenizer.prefix_ids)
        self._end = self._bytes([tokenizer.eos_id])
        self._fast = fast_encoder(tokenizer, self._dtype, much=size >= _MUCH) if size >= _SOME else None

    def encode(self, job: Job) -> Encoded:
        """Ids of all parts, end to end."""
        chunks: list[bytes] = []
        ends: list[int] = []
        size = num_bytes = 0
        for (text, first, last), ids in zip(job.parts, self._ids(job.parts), strict=True):
            if first:
                chunks.append(self._start)
            chunks.append(ids)
            size += len(self._start) * first + len(ids)
            num_bytes += len(text) if text.isascii() else len(text.encode())
            if last:
                chunks.append(self._end)
                size += len(self._end)
                ends.append(size // self._dtype.itemsize)
        return Encoded(b"".join(chunks), ends, num_bytes)

    def _ids(self, parts: list[Part]) -> Iterable[bytes]:
        if self._fast is not None:
            return self._fast.encode([part.text for part in parts])
        starts = iter(self._tokenizer.encode_batch([part.text for part in parts if part.first]))
        return (
            self._bytes(next(starts) if part.first else self._tokenizer.encode_continuation(part.text))
            for part in parts
        )

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self._dtype).tobytes()


def encode_documents(
    tokenizer: Tokenizer, parts: Iterable[Part], *, workers: int
) -> Generator[Encoded, None, None]:
    """Encode documents in order, a long input in `workers` processes."""
    jobs = _jobs(parts)
    head = list(islice(jobs, _WORTH_A_POOL))
    if workers == 1 or len(head) < _WORTH_A_POOL:
        size = sum(len(part.text) for job in head for part in job.parts)
        yield from map(DocumentEncoder(tokenizer, size=size).encode, chain(head, jobs))
        return
    with _Pool(tokenizer, workers) as pool:
        yield from pool.map(chain(head, jobs))


def _jobs(parts: Iterable[Part]) -> Iterator[Job]:
    held: list[Part] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part.text)
        if size >= JOB:
            yield Job(held)
            held, size = [], 0
    if held:
        yield Job(held)


# -- helper processes -------------------------------------------------------------------------------------


class _Pool:
    """Worker processes, each with a thread that talks to it; jobs go round in turn."""

    def __init__(self, tokenizer: Tokenizer, workers: int) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        command = helper_command("rlhfkit.data.encoding", str(tokenizer.path), tokenizer.digest)
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,  # Ctrl-C is for us; a worker ends with its pipe
            )
            for _ in range(workers)
        ]
        self._threads = [ThreadPoolExecutor(1) for _ in range(workers)]

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process, thread in zip(self._processes, self._threads, strict=True):
            thread.shutdown(cancel_futures=True)
            process.communicate()

    def map(self, jobs: Iterable[Job]) -> Iterator[Encoded]:
        """The jobs' answers in order; at most two jobs a worker are under way."""
        pending: deque[Future[Encoded]] = deque()
        for number, job in enumerate(jobs):
            worker = number % len(self._processes)
            pending.append(self._threads[worker].submit(_ask, self._processes[worker], job))
            if len(pending) >= 2 * len(self._processes):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _ask(process: subprocess.Popen[bytes], job: Job) -> Encoded:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, msgspec.msgpack.encode(job))
        answer = _receive(process.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise RlhfkitError(f"a tokenizer process died (exit status {process.wait()})")
    encoded = msgspec.msgpack.decode(answer, type=Encoded)
    if encoded.error is not None:
        raise DataError(encoded.error)
    return encoded


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<Q", head)
    data = pipe.read(size)
    return data if len(data) == size else None


def serve(path: str, digest: str) -> None:
    """A worker's main loop: jobs on standard input, answers on standard output."""
    encoder: DocumentEncoder | None = None
    while (request := _receive(sys.stdin.buffer)) is not None:
        try:
            if encoder is None:
                tokenizer = Tokenizer.from_dir(path)
                if tokenizer.digest != digest:
                    raise DataError("changed while it was being used", where=path)
                encoder = DocumentEncoder(tokenizer)
            answer = encoder.encode(msgspec.msgpack.decode(request, type=Job))
        except RlhfkitError as e:
            answer = Encoded(b"", [], 0, error=str(e))
        _send(sys.stdout.buffer, msgspec.msgpack.encode(answer))
