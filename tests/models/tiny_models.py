"""Tiny random checkpoints of every family, made by transformers: the oracle for all of `models`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

VOCAB = 89
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA = SMALL | {"head_dim": 8, "query_pre_attn_scalar": 10, "sliding_window": 7}

#: name -> (model type, settings): every family, plain and with unusual settings
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "llama-tied": ("llama", SMALL | {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "llama-biases": ("llama", SMALL | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-head-dim": ("llama", SMALL | {"head_dim": 10, "num_key_value_heads": 4, "hidden_act": "gelu"}),
    "llama-linear": (
        "llama",
        SMALL | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 777.0}},
    ),
    "llama-dynamic": (
        "llama",
        SMALL
        | {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10_000.0},
        },
    ),
    "llama-llama3": ("llama", SMALL | {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", SMALL | {"rope_parameters": YARN}),
    "llama-yarn-settings": (
        "llama",
        SMALL
        | {
            "rope_parameters": YARN
            | {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False}
        },
    ),
    "mistral": ("mistral", SMALL | {"sliding_window": 5, "head_dim": 10}),
    "mistral-no-window": ("mistral", SMALL | {"sliding_window": None}),
    "qwen2": ("qwen2", SMALL),
    "qwen2-windows": (
        "qwen2",
        SMALL | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2-yarn": (
        "qwen2",
        SMALL | {"rope_parameters": YARN | {"attention_factor": 1.3}, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", SMALL | {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "qwen3-biases": (
        "qwen3",
        SMALL
        | {
            "head_dim": 6,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-unusual": (
        "gpt2",
        GPT2
        | {
            "n_inner": 50,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-3,
            "scale_attn_by_inverse_layer_idx": True,
            "scale_attn_weights": False,
            "reorder_and_upcast_attn": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt-neox": ("gpt_neox", NEOX),
    "gpt-neox-serial": (
        "gpt_neox",
        NEOX
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.7,
            },
        },
    ),
    "gemma2": ("gemma2", GEMMA),
    "gemma2-caps": (
        "gemma2",
        GEMMA
        | {
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2-no-caps": ("gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": (
        "gemma3_text",
        GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3-unusual": (
        "gemma3_text",
        GEMMA
        | {
            "final_logit_softcapping": 3.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def make(name: str, *, scalar: bool = False) -> Any:
    """The transformers model of a case, its weights large enough that every part matters."""
    model_type, settings = CASES[name]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    if scalar:
        config.num_labels = 1
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(noise + (parameter if parameter.dim() == 1 else 0.0))
    return model.eval()


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def same_files(one: Path, two: Path) -> None:
    """Two directories hold the same bytes."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
