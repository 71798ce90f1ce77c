"""pretrain: what a window holds, what the loss is, going on from a model, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rlhfkit
from rlhfkit.data.shards import write_shard
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.errors import DataError, RlhfkitError, UsageError
from rlhfkit.stages import pretrain

if TYPE_CHECKING:
    from tests.conftest import Tiny

SHAPE: dict[str, Any] = {"layers": 1, "hidden": 16, "heads": 2, "context": 16}


def train(tiny: Tiny, out: Path, shards: list[Path] | None = None, **settings: Any) -> dict[str, Any]:
    start = {} if "model" in settings else {"tokenizer": str(tiny.base), **SHAPE}
    settings = {"steps": 2, "batch_size": 4, **start, **settings}
    files = [str(s) for s in shards or [tiny.shard]]
    return pretrain.run(files, pretrain.Config(output=str(out), **settings))


def shard_of(tiny: Tiny, path: Path, documents: list[list[int]]) -> Path:
    tokenizer = Tokenizer.from_dir(tiny.base)
    arrays = [np.asarray(d, dtype=np.uint16) for d in documents]
    write_shard(path, arrays, tokenizer_digest=tokenizer.digest, vocab_size=tokenizer.vocab_size)
    return path


def test_loss_is_the_cross_entropy_of_every_window(tiny: Tiny, tmp_path: Path) -> None:
    """The evaluation reads the stream in windows end to end; against torch on windows cut here."""
    tokens = np.random.default_rng(0).integers(5, 200, 16 * 6 + 1).tolist()
    shard = shard_of(tiny, tmp_path / "s.safetensors", [tokens[:40], tokens[40:]])
    settings: dict[str, Any] = {"model": str(tiny.base), "max_seq_len": 16, "lr": 0.0}
    summary = train(tiny, tmp_path / "out", [shard], eval=str(shard), **settings)
    model = rlhfkit.load_model(tiny.base)
    rows = [torch.tensor(tokens[start : start + 17]) for start in range(0, 96, 16)]
    losses = [F.cross_entropy(model(row[None, :-1])[0], row[1:]).item() for row in rows]
    assert summary["eval/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert summary["tokens"] == 2 * 4 * 16


def test_an_epoch_reads_nearly_every_token_once(tiny: Tiny, tmp_path: Path) -> None:
    """Windows of one epoch do not overlap, and only the shift at the ends is left out."""
    from rlhfkit.data.windows import WindowOrder, Windows, open_shards

    shard = shard_of(tiny, tmp_path / "s.safetensors", [list(range(5, 205))])
    order = WindowOrder(Windows(open_shards([shard], Tokenizer.from_dir(tiny.base).digest), 16), seed=3)
    count = len(order.windows)
    assert count == (200 - 1) // 16 - 1
    for epoch in range(3):
        targets = [t for i in range(count) for t in order[epoch * count + i][1:].tolist()]
        assert len(set(targets)) == len(targets) == count * 16
        assert sorted(targets) == list(range(min(targets), max(targets) + 1))


def test_it_learns_what_repeats_and_evaluates_apart(tiny: Tiny, tmp_path: Path) -> None:
    shard = shard_of(tiny, tmp_path / "s.safetensors", [[7, 8, 9] * 40] * 4)
    other = shard_of(tiny, tmp_path / "o.safetensors", [[9, 7, 8] * 20])
    summary = train(tiny, tmp_path / "out", [shard], steps=60, lr=2e-2, batch_size=8, eval=str(other))
    assert summary["loss/train"] < 0.1
    assert summary["eval/loss"] < 0.5
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    vocabulary = Tokenizer.from_dir(tiny.base).vocab_size
    assert first["loss/train"] == pytest.approx(math.log(vocabulary), abs=0.2)


def test_going_on_from_a_model_keeps_its_shape(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    train(tiny, tmp_path / "b", model=str(tmp_path / "a"), lr=0.0)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    configs = [(tmp_path / name / "config.json").read_bytes() for name in "ab"]
    assert configs[0] == configs[1]


def test_shape_and_seed_are_those_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    shape = {
        "layers": 3,
        "hidden": 24,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 40,
        "context": 32,
        "tie_embeddings": True,
    }
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny, tmp_path / name, seed=seed, lr=0.0, **shape)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    expected = {
        "num_hidden_layers": 3,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
    }
    assert {k: config[k] for k in expected} == expected
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_dry_run_counts_and_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    facts = train(tiny, tmp_path / "out", dry_run=True, epochs=2.0, steps=None)
    tokens = len(load_file(tiny.shard)["tokens"])
    assert facts["windows"] == (tokens - 1) // 16 - 1
    assert facts["tokens_per_step"] == 64
    assert facts["steps"] == math.ceil(2 * facts["windows"] / 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "error", "where"),
    [
        ({"hidden": 15}, UsageError, "--hidden"),
        ({"hidden": 6}, UsageError, "--hidden"),
        ({"heads": 4, "kv_heads": 3}, UsageError, "--kv-heads"),
        ({"tokenizer": None}, UsageError, "pretrain"),
    ],
)
def test_impossible_shapes(
    tiny: Tiny, tmp_path: Path, settings: Any, error: type[RlhfkitError], where: str
) -> None:
    with pytest.raises(error) as caught:
        train(tiny, tmp_path / "out", **settings)
    assert caught.value.where == where
    assert not (tmp_path / "out").exists()


def test_shards_that_do_not_fit(tiny: Tiny, tmp_path: Path) -> None:
    """Another tokenizer's shard, and one with less than a window (rows 53 and 56 of the bad inputs)."""
    foreign = tmp_path / "foreign.safetensors"
    write_shard(foreign, [np.arange(60, dtype=np.uint16)], tokenizer_digest="0" * 64, vocab_size=300)
    with pytest.raises(DataError, match="tokenizer") as caught:
        train(tiny, tmp_path / "out", [foreign])
    assert str(foreign) in (caught.value.where or "")
    small = shard_of(tiny, tmp_path / "small.safetensors", [[5, 6, 7]])
    with pytest.raises(DataError, match="17 needed, 3 found"):
        train(tiny, tmp_path / "out", [small])
    assert not (tmp_path / "out").exists()
