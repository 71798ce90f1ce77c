"""A world of a few words, and the models that a pipeline of tiny stages makes of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "one", "two", "three", "sun", "moon", "star"]


@dataclass(frozen=True)
class Tiny:
    """Files and directories of the tiny world; read only."""

    root: Path
    demos: Path
    prompts: Path
    rankings: Path
    shard: Path
    base: Path
    sft: Path
    rm: Path


def answer(prompt: str) -> str:
    return " " + " ".join(sorted(prompt.removesuffix(" ->").split()))


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import numpy as np
    import torch

    from rlhfkit.data.shards import write_shard
    from rlhfkit.data.tokenizer import train_tokenizer
    from rlhfkit.engine.saving import write_model
    from rlhfkit.models.config import llama_config
    from rlhfkit.models.loading import init_model
    from rlhfkit.stages import sft, train_rm

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    prompts = [" ".join(rng.sample(WORDS, rng.randint(2, 4))) + " ->" for _ in range(120)]
    texts = [p + answer(p) for p in prompts]
    tokenizer = train_tokenizer(texts, 320)
    documents = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
    shard = root / "corpus.safetensors"
    write_shard(
        shard,
        [np.asarray(d, dtype=np.uint16) for d in documents],
        tokenizer_digest=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
    )
    model = init_model(
        llama_config(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            max_seq_len=64,
        ),
        seed=0,
    )
    base = root / "base"
    base.mkdir()
    write_model(model, base, tokenizer, dict(model.named_parameters()))
    demos = write_jsonl(root / "demos.jsonl", [{"prompt": p, "completion": answer(p)} for p in prompts])
    records = [
        {"prompt": p, "completions": [answer(p), " " + p, " red", " two two"], "ranking": [[0], [1, 3], [2]]}
        for p in prompts
    ]
    rankings = write_jsonl(root / "rankings.jsonl", records)
    common = {"batch_size": 32, "lr": 5e-3, "quiet": True}
    sft.run([str(demos)], sft.Config(model=str(base), output=str(root / "sft"), steps=40, **common))
    train_rm.run(
        [str(rankings)], train_rm.Config(model=str(root / "sft"), output=str(root / "rm"), steps=10, **common)
    )
    return Tiny(
        root=root,
        demos=demos,
        prompts=write_jsonl(root / "prompts.jsonl", [{"prompt": p} for p in prompts]),
        rankings=rankings,
        shard=shard,
        base=base,
        sft=root / "sft",
        rm=root / "rm",
    )
