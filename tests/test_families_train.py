"""Every family goes through sft, train-rm and ppo, and what comes out opens in transformers unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import rlhfkit
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.stages import ppo, sft, train_rm

if TYPE_CHECKING:
    from tests.conftest import Tiny

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": None, "eos_token_id": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL | {"tie_word_embeddings": True}),
    "mistral": ("mistral", SMALL | {"sliding_window": 6, "head_dim": 10}),
    "qwen2": ("qwen2", SMALL),
    "qwen3": ("qwen3", SMALL | {"head_dim": 12}),
    "gpt2": ("gpt2", GPT2),
    "gpt-neox": ("gpt_neox", NEOX),
    "gemma2": ("gemma2", SMALL | {"head_dim": 8, "sliding_window": 7}),
    "gemma3": ("gemma3_text", SMALL | {"head_dim": 8, "sliding_window": 7}),
}


def checkpoint(name: str, tokenizer: Tokenizer, directory: Path) -> Path:
    """A random model of the family, saved by transformers, with the tiny tokenizer."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=tokenizer.vocab_size, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12)[None] < torch.tensor([12, 7, 3])[:, None]
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_all_trainers(tiny: Tiny, tmp_path: Path, name: str) -> None:
    start = checkpoint(name, Tokenizer.from_dir(tiny.base), tmp_path / "start")
    common: dict[str, Any] = {"steps": 2, "batch_size": 8, "lr": 1e-3}
    tuned, judge, policy = (tmp_path / n for n in ("sft", "rm", "ppo"))
    sft.run([str(tiny.demos)], sft.Config(model=str(start), output=str(tuned), **common))
    train_rm.run([str(tiny.rankings)], train_rm.Config(model=str(tuned), output=str(judge), **common))
    settings = ppo.Config(
        model=str(tuned), reward=str(judge), output=str(policy), minibatches=2, max_new_tokens=8, **common
    )
    ppo.run([str(tiny.prompts)], settings)

    ids, mask = rows()
    architecture = json.loads((start / "config.json").read_text())["architectures"]
    for directory in (tuned, policy):
        assert json.loads((directory / "config.json").read_text())["architectures"] == architecture
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            ours = rlhfkit.load_model(directory)(ids, mask)
            expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(ours[mask], expected[mask], atol=1e-4, rtol=1e-4)
    for directory in (judge, policy / "value"):
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
        pad = theirs.config.pad_token_id
        padded = ids.masked_fill(~mask, pad)
        with torch.no_grad():
            ours = rlhfkit.load_model(directory)(padded, mask)
            expected = theirs(input_ids=padded, attention_mask=mask.long()).logits[:, 0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    first = json.loads((policy / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == 0.0
    assert first["policy/ratio_max_first"] == 1.0
