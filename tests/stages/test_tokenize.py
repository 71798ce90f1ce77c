"""tokenize: text in, shards out, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.data import encoding
from rlhfkit.data.shards import open_shard
from rlhfkit.data.tokenizer import Tokenizer, train_tokenizer
from rlhfkit.errors import CannotCreate, DataError, InputMissing
from rlhfkit.files import sha256_file
from rlhfkit.stages.tokenize import Config, run
from tests.data.families import TEXT, write_family

PARAGRAPHS = ["First one.\nStill the first.", "Second: <|end|> is text.", "Été 你好 😀", "last"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT], 400).save(directory)
    return directory


def settings(tokenizer: Path, output: Path, **others: object) -> Config:
    return Config(tokenizer=str(tokenizer), output=str(output), **others)  # type: ignore[arg-type]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def texts_of(tokenizer: Path, *shards: Path) -> list[str]:
    """The documents of shards as text; checks that each ends with EOS and has no other special token."""
    loaded = Tokenizer.from_dir(tokenizer)
    out = []
    for shard in map(open_shard, shards):
        assert shard.tokenizer_digest == loaded.digest
        for number in range(len(shard.doc_offsets) - 1):
            *ids, end = shard.document(number).tolist()
            assert end == loaded.eos_id
            out.append(loaded.decode(ids))
            assert loaded.encode(out[-1]) == ids
    return out


def test_json_lines(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    summary = run([jsonl(tmp_path / "a.jsonl", PARAGRAPHS)], settings(tokenizer, out))
    assert texts_of(tokenizer, out) == PARAGRAPHS
    assert summary["output"] == str(out)
    assert summary["documents"] == 4
    assert summary["bytes"] == sum(len(p.encode()) for p in PARAGRAPHS)
    assert summary["tokens"] == len(open_shard(out).tokens)
    assert summary["tokenizer"] == Tokenizer.from_dir(tokenizer).digest
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "x.safetensors"]


def test_plain_text_whole_and_split(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(PARAGRAPHS))
    run([source], settings(tokenizer, tmp_path / "x"))
    assert texts_of(tokenizer, tmp_path / "x") == ["\n\n".join(PARAGRAPHS)]
    run([source, source], settings(tokenizer, tmp_path / "y", split="blank-line", limit=5))
    assert texts_of(tokenizer, tmp_path / "y") == [*PARAGRAPHS, PARAGRAPHS[0]]


def test_records_of_a_python_caller(tokenizer: Path, tmp_path: Path) -> None:
    run([{"text": p} for p in PARAGRAPHS], settings(tokenizer, tmp_path / "x"))
    assert texts_of(tokenizer, tmp_path / "x") == PARAGRAPHS


def test_documents_start_as_the_family_starts_them(tmp_path: Path) -> None:
    family = write_family("llama2", tmp_path / "llama2")
    run([{"text": "The fox"}, {"text": "A dog"}], settings(family, tmp_path / "x"))
    loaded = Tokenizer.from_dir(family)
    shard = open_shard(tmp_path / "x")
    assert shard.document(1).tolist() == [loaded.bos_id, *loaded.encode("A dog"), loaded.eos_id]


def test_several_shards(tokenizer: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", PARAGRAPHS * 5)
    out = tmp_path / "out"
    summary = run([source], settings(tokenizer, out, shard_tokens=60))
    shards = sorted(out.glob("shard-*.safetensors"))
    assert summary["shards"] == len(shards) > 3
    assert shards[0].name == "shard-00000.safetensors"
    assert texts_of(tokenizer, *shards) == PARAGRAPHS * 5
    description = json.loads((out / "run.json").read_text())
    assert description["outputs"] == {p.name: sha256_file(p) for p in shards}
    assert description["inputs"] == {str(source): sha256_file(source)}
    assert description["settings"]["shard_tokens"] == 60
    with pytest.raises(CannotCreate):
        run([source], settings(tokenizer, out, shard_tokens=60))
    run([source], settings(tokenizer, out, shard_tokens=10**6, force=True))
    assert sorted(os.listdir(out)) == ["run.json", "shard-00000.safetensors"]


def test_workers_do_not_change_the_bytes(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "JOB", 100)
    source = jsonl(tmp_path / "a.jsonl", PARAGRAPHS * 20)
    for workers in (1, 2):
        run([source], settings(tokenizer, tmp_path / f"{workers}", workers=workers))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_existing_output_is_refused_before_anything_is_read(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.write_text("old")
    with pytest.raises(CannotCreate):
        run([tmp_path / "missing.txt"], settings(tokenizer, out))
    assert out.read_text() == "old"
    run([jsonl(tmp_path / "a.jsonl", PARAGRAPHS)], settings(tokenizer, out, force=True))
    assert texts_of(tokenizer, out) == PARAGRAPHS
    with pytest.raises(CannotCreate):
        run([], settings(tokenizer, tmp_path / "no" / "where"))


@pytest.mark.parametrize("others", [{}, {"shard_tokens": 9}])
def test_nothing_is_left_of_a_bad_input(tokenizer: Path, tmp_path: Path, others: dict[str, int]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text":"a"}\n{"txt":"b"}\n{"text":"c"}\n')
    out = tmp_path / "x"
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        run([source], settings(tokenizer, out, **others))
    with pytest.raises(InputMissing):
        run([tmp_path / "none"], settings(tokenizer, out, **others))
    assert os.listdir(tmp_path) == ["a.jsonl"]
    summary = run(
        [source], settings(tokenizer, out, on_bad_line="skip", rejects=str(tmp_path / "bad"), **others)
    )
    assert summary["documents"] == 2
    assert (tmp_path / "bad").exists()


@pytest.mark.parametrize("others", [{}, {"shard_tokens": 9}, {"dry_run": True}])
def test_an_empty_input_writes_nothing(tokenizer: Path, tmp_path: Path, others: dict[str, object]) -> None:
    source = tmp_path / "a.txt"
    source.write_text("")
    summary = run([source], settings(tokenizer, tmp_path / "x", **others))
    assert (summary["output"], summary["tokens"], summary["documents"]) == (None, 0, 0)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_dry_run_checks_everything_and_writes_nothing(tokenizer: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", PARAGRAPHS)
    summary = run([source], settings(tokenizer, tmp_path / "x", dry_run=True))
    assert summary["documents"] == 4
    assert summary["dry_run"] is True
    source.write_text('{"text":"a"}\n{"txt":"b"}\n')
    with pytest.raises(DataError):
        run([source], settings(tokenizer, tmp_path / "x", dry_run=True))
    assert os.listdir(tmp_path) == ["a.jsonl"]


def rlhfkit(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rlhfkit", *map(str, arguments)]


def test_a_pipe_and_its_summary(tokenizer: Path, tmp_path: Path) -> None:
    command = rlhfkit("tokenize", "--tokenizer", tokenizer, "-o", tmp_path / "x")
    done = subprocess.run(command, input=b'{"text":"hello"}\n', capture_output=True, check=True)
    assert json.loads(done.stdout)["documents"] == 1
    assert texts_of(tokenizer, tmp_path / "x") == ["hello"]


def test_a_signal_leaves_nothing(tokenizer: Path, tmp_path: Path) -> None:
    command = rlhfkit("tokenize", "--tokenizer", tokenizer, "-o", tmp_path / "x", "--workers", "2", "-q")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    for _ in range(8):  # enough that the workers are started
        process.stdin.write(b"some words\n" * 100_000)
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tokenizer: Path, tmp_path: Path) -> None:
    import resource

    words = (TEXT * 20).encode()
    command = rlhfkit("tokenize", "--tokenizer", tokenizer, "-o", tmp_path / "x", "--workers", "1", "-q")
    peaks = []
    for megabytes in (8, 128):
        process = subprocess.Popen(
            [*command, "--force"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)),
        )
        assert process.stdin is not None
        for _ in range(megabytes * 2**20 // len(words)):
            process.stdin.write(words)
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < peaks[0] + 30_000  # KiB
