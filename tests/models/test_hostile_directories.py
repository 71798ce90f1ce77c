"""Broken and hostile model directories: each is refused by one line with the right class, at once."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make, saved

from rlhfkit.errors import DataError, InputMissing, RlhfkitError
from rlhfkit.models.loading import load_causal, load_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(make("llama"), tmp_path_factory.mktemp("good") / "model")


def config(**changes: Any) -> Callable[[Path], None]:
    """Change entries of config.json; an Ellipsis takes one away."""

    def change(path: Path) -> None:
        entries = json.loads((path / "config.json").read_text()) | changes
        entries = {name: value for name, value in entries.items() if value is not ...}
        (path / "config.json").write_text(json.dumps(entries))

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def write(path: Path) -> None:
        (path / name).write_bytes(data)

    return write


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        found = load_file(path / WEIGHTS)
        change(found)
        save_file(found, path / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        data = (path / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + length])
        changed = change(entries)
        encoded = (changed if isinstance(changed, str) else json.dumps(entries)).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])

    return rewrite


def sharded(name: str) -> Callable[[Path], None]:
    """The weights behind an index that says they are in the file `name`."""

    def rewrite(path: Path) -> None:
        names = list(load_file(path / WEIGHTS))
        (path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
        (path / WEIGHTS).rename(path / "model-00001-of-00001.safetensors")

    return rewrite


def replaced(name: str, make_it: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        (path / name).unlink()
        make_it(path / name)

    return replace


def twice(entries: dict[str, Any]) -> str:
    body = json.dumps(entries)
    name = "model.norm.weight"
    return body[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}"


def only(*names: str) -> Callable[[Path], None]:
    def empty(path: Path) -> None:
        for file in path.iterdir():
            file.unlink()
        for name in names:
            if name.endswith("/"):
                (path / name).mkdir()
            else:
                (path / name).write_bytes(b"\x80\x02.")

    return empty


def also(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


def no_weights(*others: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / WEIGHTS).unlink()
        for name in others:
            (path / name).write_bytes(b"\x80\x02.")

    return change


NORM = "model.norm.weight"
EXPLODED = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(300_000)}


def spoil(found: dict[str, torch.Tensor]) -> None:
    found[NORM][3] = float("nan")
    found["model.embed_tokens.weight"][1, 2] = float("-inf")


BAD: dict[str, tuple[Callable[[Path], None], type[RlhfkitError], str]] = {
    "no directory": (shutil.rmtree, InputMissing, "no such model directory"),
    "a file": (lambda p: (shutil.rmtree(p), p.write_text("x")), InputMissing, "not a directory"),
    "empty": (only(), InputMissing, "no config.json"),
    "unfinished run": (only("checkpoints/"), InputMissing, "unfinished run"),
    "pickle alone": (only("pytorch_model.bin"), InputMissing, "no config.json"),
    "config is a pipe": (replaced("config.json", os.mkfifo), InputMissing, "not a regular file"),
    "config is a folder": (replaced("config.json", os.mkdir), InputMissing, "not a regular file"),
    "config empty": (text("config.json", ""), DataError, "not JSON"),
    "config not UTF-8": (text("config.json", b"\xff\xfe{}"), DataError, "not JSON"),
    "config a list": (text("config.json", "[]"), DataError, "must hold an object"),
    "config deep": (text("config.json", "[" * 200_000), DataError, "not JSON"),
    "config a key twice": (text("config.json", '{"a": 1, "a": 2}'), DataError, "'a' stands there twice"),
    "config long digits": (
        text("config.json", '{"hidden_size": ' + "1" * 10_000 + "}"),
        DataError,
        "not JSON",
    ),
    "config many objects": (
        text("config.json", '{"a": [' + "{}," * 2_000_000 + "{}]}"),
        DataError,
        "more than 10000 objects",
    ),
    "auto_map": (config(auto_map={"AutoModel": "evil.Model"}), DataError, "auto_map: code"),
    "attention code": (config(_attn_implementation_internal="evil/kernel"), DataError, "never run"),
    "quantised": (config(quantization_config={"bits": 4}), DataError, "quantised weights"),
    "vision": (config(vision_config={"x": 1}), DataError, "vision"),
    "experts": (config(model_type="mixtral"), DataError, "'mixtral' .a mixture of experts"),
    "experts in llama": (config(num_local_experts=8), DataError, "mixture of experts"),
    "unknown family": (config(model_type="os"), DataError, "'os' is not supported .known: llama"),
    "unknown architecture": (config(architectures=["os"]), DataError, "architectures: 'os'"),
    "many bad entries": (
        config(hidden_size=..., num_hidden_layers=-1, vocab_size="97", rms_norm_eps=-1, mlp_bias=3),
        DataError,
        "hidden_size: missing.*num_hidden_layers.*mlp_bias",
    ),
    "absurd size": (config(num_hidden_layers=1e12), DataError, "num_hidden_layers: must be a whole number"),
    "huge size": (config(hidden_size=2**40), DataError, "hidden_size: must be a whole number from 1"),
    "heads do not divide": (
        config(num_attention_heads=5, head_dim=None, num_key_value_heads=5),
        DataError,
        "not a multiple of num_attention_heads",
    ),
    "kv heads do not divide": (config(num_key_value_heads=3), DataError, "num_key_value_heads, 3"),
    "odd head": (config(head_dim=5), DataError, "head_dim: 5 is odd"),
    "unknown activation": (config(hidden_act="__import__"), DataError, "hidden_act"),
    "unknown rope": (
        config(rope_parameters={"rope_type": "longrope"}),
        DataError,
        "'longrope' is not supported",
    ),
    "rope without factor": (config(rope_parameters={"rope_type": "linear"}), DataError, "factor: missing"),
    "rope not an object": (config(rope_parameters="x"), DataError, "rope_parameters: must be an object"),
    "rope base one": (config(rope_parameters={"rope_theta": 1}), DataError, "rope_theta must be above 1"),
    "labels not an object": (
        config(architectures=["LlamaForSequenceClassification"], id2label=7),
        DataError,
        "id2label: must be an object",
    ),
    "dynamic rope of two numbers": (
        config(head_dim=2, rope_parameters={"rope_type": "dynamic", "factor": 2}),
        DataError,
        "dynamic scaling needs",
    ),
    "too many labels": (
        config(architectures=["LlamaForSequenceClassification"], id2label={"0": "a", "1": "b"}),
        DataError,
        "num_labels: a reward model has 1, this one 2",
    ),
    "no weights": (no_weights(), InputMissing, "no model.safetensors"),
    "pickled weights": (no_weights("pytorch_model.bin"), DataError, "pytorch_model.bin.*safetensors alone"),
    "gguf weights": (no_weights("model.gguf"), DataError, "model.gguf"),
    "distributed checkpoint": (no_weights("__0_0.distcp"), DataError, "distcp"),
    "weights a pipe": (replaced(WEIGHTS, os.mkfifo), InputMissing, "not a regular file"),
    "weights a folder": (replaced(WEIGHTS, os.mkdir), InputMissing, "not a regular file"),
    "weights a link out": (replaced(WEIGHTS, lambda p: p.symlink_to("/etc/passwd")), DataError, "leaves"),
    "weights a dead link": (
        replaced(WEIGHTS, lambda p: p.symlink_to("gone")),
        InputMissing,
        "cannot be read",
    ),
    "weights a loop": (replaced(WEIGHTS, lambda p: p.symlink_to(p.name)), InputMissing, "cannot be read"),
    "0 bytes": (text(WEIGHTS, b""), DataError, "0 bytes"),
    "7 bytes": (text(WEIGHTS, b"1234567"), DataError, "7 bytes"),
    "empty header": (text(WEIGHTS, bytes(8)), DataError, "bad safetensors header"),
    "header of 2^40": (text(WEIGHTS, struct.pack("<Q", 2**40) + b"{}"), DataError, "a header of"),
    "header of 2^64-1": (text(WEIGHTS, b"\xff" * 8 + b"{}"), DataError, "a header of"),
    "truncated": (
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-10]),
        DataError,
        "truncated: has",
    ),
    "one byte more": (
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes() + b"x"),
        DataError,
        "1 bytes too many",
    ),
    "a tensor twice": (header(twice), DataError, f"'{NORM}' stands there twice"),
    "many tensors": (header(lambda e: json.dumps(e | EXPLODED)), DataError, "more than 100000 tensors"),
    "negative shape": (header(lambda e: e[NORM].update(shape=[-24])), DataError, "bad shape"),
    "overflowing shape": (header(lambda e: e[NORM].update(shape=[2**47] * 9)), DataError, "needs"),
    "reversed offsets": (header(lambda e: e[NORM]["data_offsets"].reverse()), DataError, "bytes for shape"),
    "float offsets": (header(lambda e: e[NORM].update(data_offsets=[0.0, 96.0])), DataError, "data_offsets"),
    "overlap": (header(lambda e: e[NORM].update(data_offsets=[0, 96])), DataError, "overlaps|hole"),
    "unknown dtype": (header(lambda e: e[NORM].update(dtype="F7")), DataError, "unknown dtype 'F7'"),
    "not an object": (header(lambda e: "[1]"), DataError, "not an object"),
    "integers": (tensors(lambda t: t.update({NORM: t[NORM].int()})), DataError, f"{NORM} I32"),
    "missing": (tensors(lambda t: t.pop(NORM)), DataError, f"missing: {NORM}"),
    "missing all": (tensors(dict.clear), DataError, "and 20 more"),
    "extra": (tensors(lambda t: t.update({"\x1b[2Jx\n../y": torch.zeros(2)})), DataError, r"\\x1b\[2Jx\\n"),
    "misshapen": (tensors(lambda t: t.update({NORM: torch.zeros(23)})), DataError, r"\[23\] for \[24\]"),
    "not finite": (
        tensors(spoil),
        DataError,
        r"not finite.*embed_tokens.weight \(1 numbers\).*norm.weight \(1",
    ),
    "index not JSON": (also(no_weights(), text(INDEX, "{")), DataError, "not JSON"),
    "index without map": (also(no_weights(), text(INDEX, "{}")), DataError, "weight_map"),
    "index leaves": (sharded("../model.safetensors"), DataError, "is not the name of"),
    "index absolute": (sharded("/etc/passwd"), DataError, "is not the name of"),
    "shard missing": (sharded("model-00002-of-00002.safetensors"), InputMissing, "cannot be read"),
    "index lies": (
        also(
            sharded("model-00001-of-00001.safetensors"),
            text(INDEX, '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'),
        ),
        DataError,
        "tensors not in the file that weight_map names: x",
    ),
    "generation config broken": (text("generation_config.json", "{"), DataError, "not JSON"),
    "digest": (
        text("run.json", json.dumps({"outputs": {WEIGHTS: "0" * 64}})),
        DataError,
        "digest mismatch: expected sha256 0000.*actual [0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line_at_once(name, good, tmp_path):
    spoil_it, kind, words = BAD[name]
    path = tmp_path / "model"
    shutil.copytree(good, path)
    spoil_it(path)
    started = time.monotonic()
    with pytest.raises(RlhfkitError, match=f"(?s){words}") as caught:
        load_model(path)
    assert time.monotonic() - started < 5
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert "\n" not in (caught.value.hint or "")
    assert str(tmp_path) in (caught.value.where or "")
    assert len(str(caught.value)) < 2500


def test_the_unspoilt_directory_loads(good):
    load_causal(good)


def test_digest_of_a_good_run_passes(good, tmp_path):
    import hashlib

    shutil.copytree(good, tmp_path / "model")
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "model").iterdir()}
    (tmp_path / "model" / "run.json").write_text(json.dumps({"outputs": digests}))
    load_causal(tmp_path / "model")
    data = bytearray((tmp_path / "model" / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / WEIGHTS).write_bytes(data)
    with pytest.raises(DataError, match="digest mismatch"):
        load_causal(tmp_path / "model")
    load_causal(tmp_path / "model", verify=False)


def test_links_of_the_hub_cache_are_followed(good, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "f00"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(good.iterdir()):
        shutil.copy(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    load_causal(snapshot)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(good / WEIGHTS)
    with pytest.raises(DataError, match="leaves the model directory"):
        load_causal(snapshot)


def test_a_link_to_the_directory_is_fine(good, tmp_path):
    (tmp_path / "latest").symlink_to(good)
    load_causal(tmp_path / "latest")
