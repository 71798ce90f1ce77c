"""`inspect` says what things are and finds what is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.errors import BadRecords, DataError, InputMissing
from rlhfkit.stages import inspect
from rlhfkit.stages.inspect import Config
from tests.conftest import Tiny


def look(*paths: Path) -> tuple[list[dict[str, Any]], DataError | None]:
    """(the JSON objects, what was raised after them)."""
    told = []
    try:
        texts = inspect.run([str(path) for path in paths], Config(json=True))
        told.extend(map(json.loads, texts))
    except DataError as error:
        return told, error
    return told, None


def good(path: Path) -> dict[str, Any]:
    (told,), error = look(path)
    assert error is None
    assert told["ok"] is True
    assert told["problems"] == []
    return told


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Callable[[Path], Path]:
    def copy(source: Path) -> Path:
        target = tmp_path / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    return copy


def test_a_language_model_with_its_run(tiny: Tiny):
    told = good(tiny.sft)
    config = json.loads((tiny.sft / "config.json").read_text())
    assert told["kind"] == "language model"
    assert told["architecture"] == "LlamaForCausalLM"
    assert (told["layers"], told["hidden_size"], told["heads"], told["kv_heads"]) == (2, 32, 4, 2)
    assert told["vocab_size"] == config["vocab_size"] == told["tokenizer_vocab_size"]
    assert told["chat_template"] is True
    assert told["made_by"] == "sft"
    assert (
        told["digests"].split(" files")[0].split(" of ")[0]
        == told["digests"].split(" files")[0].split(" of ")[1]
    )
    assert told["weights"] == {"model.safetensors": (tiny.sft / "model.safetensors").stat().st_size}


def test_the_number_of_parameters_is_transformers_own(tiny: Tiny):
    transformers = pytest.importorskip("transformers")
    for directory, kind in (
        (tiny.sft, "AutoModelForCausalLM"),
        (tiny.rm, "AutoModelForSequenceClassification"),
    ):
        oracle = getattr(transformers, kind).from_pretrained(directory)
        assert good(directory)["parameters"] == oracle.num_parameters()


def test_a_reward_model_and_a_model_without_a_run(tiny: Tiny):
    assert good(tiny.rm)["kind"] == "reward model"
    told = good(tiny.base)
    assert told["kind"] == "language model"
    assert "made_by" not in told


def test_a_file_of_a_directory_stands_for_it(tiny: Tiny):
    assert good(tiny.sft / "run.json")["kind"] == "language model"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "metrics.jsonl"])
def test_a_flipped_bit_is_found_by_its_digest(tiny: Tiny, copied: Callable[[Path], Path], name: str):
    directory = copied(tiny.sft)
    flip(directory / name, (directory / name).stat().st_size // 2)
    (told,), error = look(directory)
    assert told["ok"] is False
    assert any(p["where"].endswith(name) and "digest mismatch" in p["error"] for p in told["problems"])
    assert error is not None
    assert error.exit_code == 65


def test_every_problem_is_told(tiny: Tiny, copied: Callable[[Path], Path]):
    directory = copied(tiny.sft)
    (directory / "metrics.jsonl").unlink()
    flip(directory / "model.safetensors", -3)
    (told,), error = look(directory)
    assert isinstance(error, BadRecords)
    assert len(told["problems"]) == 2


def test_shapes_against_the_configuration(tiny: Tiny, copied: Callable[[Path], Path]):
    directory = copied(tiny.base)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 17}))
    (told,), error = look(directory)
    assert "shape" in str(error)
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    (told,), error = look(directory)
    assert any("the model has room for 100" in problem["error"] for problem in told["problems"])


def test_numbers_that_are_not_finite(tiny: Tiny, copied: Callable[[Path], Path]):
    directory = copied(tiny.base)
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # a NaN, little-endian float32
    path.write_bytes(data)
    _, error = look(directory)
    assert "finite" in str(error)


def test_a_tokenizer(tiny: Tiny, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.base / name, tmp_path / name)
    told = good(tmp_path)
    assert told["kind"] == "tokenizer"
    assert told["end_tokens"] == ["<|end|>"]
    (tmp_path / "tokenizer.json").write_text("{}")
    assert look(tmp_path)[1] is not None


def test_token_shards(tiny: Tiny, copied: Callable[[Path], Path], tmp_path: Path):
    told = good(tiny.shard)
    assert (told["kind"], told["documents"], told["dtype"]) == ("token shard", 120, "uint16")
    shard = copied(tiny.shard)
    shutil.copy(shard, tmp_path / "second.safetensors")
    both = good(tmp_path)
    assert both["kind"] == "2 token shards"
    assert both["tokens"] == 2 * told["tokens"]
    flip(shard, -1)
    (told,), error = look(shard)
    assert told["kind"] == "token shard"
    assert error is not None


def test_an_unfinished_run_and_its_checkpoints(tmp_path: Path):
    import torch

    from rlhfkit.engine.checkpoint import write_checkpoint

    parent = tmp_path / "run" / "checkpoints"
    parent.mkdir(parents=True)
    (parent / "run.json").write_text('{"command": "sft", "settings": {}, "data": {}}')
    for step in (5, 10):
        write_checkpoint(parent, step, {"model": {"w": torch.ones(3)}}, {"position": 1})
    told = good(tmp_path / "run")
    assert told["kind"] == "unfinished run"
    assert told["unfinished_run_of"] == "sft"
    assert told["checkpoints"] == ["step-5", "step-10"]
    assert good(parent / "step-10")["step"] == 10
    flip(parent / "step-10" / "model.safetensors", -1)
    for path in (tmp_path / "run", parent / "step-10"):
        _, error = look(path)
        assert "damaged" in str(error)


def test_records(tiny: Tiny, tmp_path: Path):
    told = good(tiny.rankings)
    assert (told["kind"], told["kinds"]) == ("JSONL file", {"ranking": 120})
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": \n')
    _, error = look(bad)
    assert "bad.jsonl:2" in str(error)
    bad.write_text('{"prompt": 5}\n' * 30)
    (told,), error = look(bad)
    assert isinstance(error, BadRecords)
    assert len(error.errors) + error.more == len(told["problems"]) + told["more_problems"] == 30


def test_plain_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("é\nb\n", encoding="utf-8")
    told = good(path)
    assert (told["kind"], told["bytes"], told["characters"], told["lines"]) == ("text", 5, 4, 2)
    path.write_bytes(b"abc\xff\n")
    assert "UTF-8" in str(look(path)[1])


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "x.gguf", "y.pkl"])
def test_formats_that_can_run_code_are_not_opened(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="not opened"):
        list(inspect.run([str(tmp_path / name)], Config()))


def test_json_and_what_is_no_file(tmp_path: Path):
    (tmp_path / "summary.json").write_text('{"models": {}, "baseline": "a"}')
    assert good(tmp_path / "summary.json")["fields"] == ["models", "baseline"]
    (tmp_path / "summary.json").write_text("{")
    assert "not JSON" in str(look(tmp_path / "summary.json")[1])
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="neither a file nor"):
        list(inspect.run([str(tmp_path / "pipe.jsonl")], Config()))


def test_what_is_missing_or_nothing_known(tmp_path: Path):
    with pytest.raises(InputMissing):
        list(inspect.run([str(tmp_path / "nothing")], Config()))
    (tmp_path / "readme").write_text("hi")
    with pytest.raises(DataError, match="it holds readme"):
        list(inspect.run([str(tmp_path)], Config()))


def test_plain_words_and_exit_status(tiny: Tiny, copied: Callable[[Path], Path]):
    def command(*paths: Path) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "rlhfkit", "inspect", *map(str, paths)]
        return subprocess.run(
            arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )

    done = command(tiny.rm, tiny.shard)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tiny.rm}: reward model\n" in done.stdout
    assert "parameters" in done.stdout
    assert done.stdout.count("in order") == 2
    broken = copied(tiny.rm)
    flip(broken / "model.safetensors", -1)
    done = command(broken)
    assert done.returncode == 65
    assert "BAD" in done.stdout
    assert "digest mismatch" in done.stderr
