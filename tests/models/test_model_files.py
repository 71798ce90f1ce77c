"""Directories in and out: dtypes, shards, ties, old spellings, fresh models."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, VOCAB, make, same_files, saved, transformers

from rlhfkit.errors import DataError
from rlhfkit.models.config import llama_config
from rlhfkit.models.loading import (
    config_of,
    init_model,
    kind_of,
    load_causal,
    load_model,
    load_scalar,
    save_model,
)

CONFIG = llama_config(vocab_size=VOCAB, hidden_size=24, num_layers=2, num_heads=4, max_seq_len=32)


def resaved(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    save_model(load_model(source), target, **options)
    return target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_stays_one(dtype, tmp_path, ids):
    source = saved(make("llama").to(dtype), tmp_path / "source")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    same_files(source, resaved(source, tmp_path / "copy"))
    ours = load_causal(source, dtype=dtype)
    assert ours.dtype == dtype
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(load_causal(source)(ids), expected, atol=1e-4, rtol=0)
        assert (ours(ids) - expected).abs().max() < 0.1 * expected.abs().max()


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    source = saved(make("gpt-neox"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    mixed = {name: t if "norm" in name else t.bfloat16() for name, t in tensors.items()}
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    written = load_file(resaved(source, tmp_path / "copy") / "model.safetensors")
    assert {name: t.dtype for name, t in written.items()} == {name: t.dtype for name, t in mixed.items()}
    assert all(torch.equal(written[name], mixed[name]) for name in mixed)


def test_another_dtype_on_request(tmp_path):
    source = saved(make("llama"), tmp_path / "source")
    target = resaved(source, tmp_path / "copy", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(target).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_shards_stay_as_they_were(name, tmp_path, ids):
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    same_files(tmp_path / "source", resaved(tmp_path / "source", tmp_path / "copy"))
    with torch.no_grad():
        logits = load_causal(tmp_path / "source")(ids)
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=0)


def test_large_models_are_split_and_open_everywhere(tmp_path, ids):
    model = init_model(CONFIG, 1)
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model", shard_bytes=15_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    assert all(os.path.getsize(tmp_path / "model" / file) < 17_000 for file in files)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(load_causal(tmp_path / "model")(ids), model(ids), atol=0, rtol=0)
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("tie", [False, True])
def test_a_fresh_model_is_a_llama_for_transformers(tie, tmp_path, ids):
    config = llama_config(
        vocab_size=VOCAB,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        max_seq_len=32,
        tie_embeddings=tie,
        rope_theta=777.0,
    )
    model = init_model(config, 1, dtype=torch.bfloat16)
    (tmp_path / "m").mkdir()
    save_model(model, tmp_path / "m", bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.bfloat16
    assert theirs.generation_config.eos_token_id == [2, 3]
    assert theirs.config.pad_token_id == 0
    assert config_of(tmp_path / "m") == config.__class__(**{**vars(config), "pad_token_id": 0})
    with torch.no_grad():
        expected = load_causal(tmp_path / "m")(ids)
        torch.testing.assert_close(theirs.float()(ids).logits, expected, atol=1e-4, rtol=0)
    mode = stat.S_IMODE((tmp_path / "m" / "model.safetensors").stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask


def test_the_same_seed_gives_the_same_weights():
    one, two, other = init_model(CONFIG, 7), init_model(CONFIG, 7), init_model(CONFIG, 8)
    for (name, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, two, other)), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c), name
    assert one.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert one.layers[0].ffn.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.1)


def test_a_model_that_knows_nothing_loses_ln_v(ids):
    model = init_model(CONFIG, 1)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-4)


def test_full_tensors_can_be_given_apart(tmp_path):
    model = init_model(CONFIG, 1, dtype=torch.bfloat16)
    masters = {name: p.detach().float() + 1e-4 for name, p in model.named_parameters()}
    (tmp_path / "m").mkdir()
    save_model(model, tmp_path / "m", state=masters, dtype=torch.float32)
    again = load_causal(tmp_path / "m")
    assert all(torch.equal(p, masters[name]) for name, p in again.named_parameters())


def test_kinds_are_not_mixed_up(tmp_path):
    language = saved(make("llama"), tmp_path / "lm")
    reward = saved(make("llama", scalar=True), tmp_path / "rm")
    assert (kind_of(language), kind_of(reward)) == ("causal", "scalar")
    with pytest.raises(DataError, match=r"a reward model \(LlamaForSequenceClassification\)"):
        load_causal(reward)
    with pytest.raises(DataError, match=r"a language model \(LlamaForCausalLM\)"):
        load_scalar(language)


def test_a_fresh_head_reads_eos_even_where_the_config_calls_it_padding(tmp_path, ids):
    source = saved(make("llama"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"pad_token_id": 2, "eos_token_id": 2}
    (source / "config.json").write_text(json.dumps(config))
    model = load_scalar(source, init_head=5)
    ids[:, -1] = 2
    with torch.no_grad():
        scores, every = model(ids), model.token_scores(ids)
        torch.testing.assert_close(scores, every[:, -1], atol=1e-6, rtol=0)
        (tmp_path / "rm").mkdir()
        save_model(model, tmp_path / "rm", pad_token_id=0)
        torch.testing.assert_close(load_scalar(tmp_path / "rm")(ids), scores, atol=0, rtol=0)
    again = load_scalar(source, init_head=5)
    assert torch.equal(again.score.weight, model.score.weight)


def test_the_fresh_head_has_the_published_spread(tmp_path):
    config = llama_config(vocab_size=8, hidden_size=1024, num_layers=1, num_heads=4, max_seq_len=8)
    (tmp_path / "m").mkdir()
    save_model(init_model(config, 0), tmp_path / "m")
    head = load_scalar(tmp_path / "m", init_head=1).score.weight
    assert head.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)


def test_a_tied_head_that_is_stored_too(tmp_path, ids):
    source = saved(make("llama-tied"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    model = load_causal(source)
    assert model.lm_head is None
    written = load_file(resaved(source, tmp_path / "copy") / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_a_head_that_differs_is_not_tied(tmp_path, ids):
    source = saved(make("llama-tied"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        torch.testing.assert_close(load_causal(source)(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    same = load_file(resaved(source, tmp_path / "copy") / "model.safetensors")
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_bare_gpt2_with_the_constants_of_old_checkpoints(tmp_path, ids):
    theirs = make("gpt2")
    source = saved(theirs.transformer, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    assert "wte.weight" in tensors
    full = tensors | {
        f"h.{layer}.attn.{name}": value
        for layer in range(3)
        for name, value in (("bias", torch.ones(1, 1, 64, 64).tril()), ("masked_bias", torch.tensor(-1e4)))
    }
    save_file(full, source / "model.safetensors", metadata={"format": "pt"})
    model = load_causal(source)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    written = load_file(resaved(source, tmp_path / "copy") / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


#: what config.json looked like before transformers 5: case, entries to take away, entries to add
OLD = {
    "llama-linear": {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama-dynamic": {"rope_theta": 10_000.0, "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    "llama-llama3": {
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen2-yarn": {
        "rope_theta": 10_000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.3,
        },
    },
    "qwen2-windows": {"rope_theta": 10_000.0, "layer_types": None},
    "gpt-neox": {"rotary_pct": 0.25, "rotary_emb_base": 10_000},
    "gemma2": {"rope_theta": 10_000.0, "layer_types": None, "hidden_act": "gelu_pytorch_tanh"},
    "gemma3-unusual": {
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


@pytest.mark.parametrize("name", OLD)
def test_config_spellings_of_transformers_4(name, tmp_path, ids):
    theirs = make(name)
    source = saved(theirs, tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | OLD[name] | {"torch_dtype": "float32"}
    del config["rope_parameters"], config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    again = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        logits = load_causal(source)(ids)
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(logits, again(ids).logits, atol=1e-4, rtol=0)
    same_files(source, resaved(source, tmp_path / "copy"))


def test_gemma3_sliding_pattern(tmp_path):
    settings = CASES["gemma3"][1] | {"num_hidden_layers": 7, "architectures": ["Gemma3ForCausalLM"]}
    entries = settings | {"model_type": "gemma3_text", "sliding_window_pattern": 3, "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    expected = transformers.AutoConfig.from_pretrained(tmp_path).layer_types
    slides = config_of(tmp_path).sliding_layers
    assert ["sliding_attention" if one else "full_attention" for one in slides] == expected
