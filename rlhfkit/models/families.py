"""The model families: what tells them apart, as tables over the one decoder.

A family is a row of `FAMILIES`: its names in config.json, the names of its weights, and a function that reads
its settings. Names of weights are translated by `pieces`: each of our parameters is made of one or more
tensors of the file, and `Piece.view` gives the part of our parameter that such a tensor fills. Loading copies
into that view and saving copies out of it, so one table serves both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhfkit.models import settings
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.fields import Fields

Modules = Mapping[str, str | tuple[str, str, str]]


@dataclass(frozen=True)
class Family:
    """One family of models."""

    model_type: str
    #: architecture names in config.json: language model, classifier, bare decoder
    causal: str
    scalar: str
    base: str
    #: what stands before the names of the decoder's weights
    prefix: str
    #: our module -> theirs, "{i}" for the layer; three names where q, k and v are kept apart
    modules: Modules
    #: config.json -> fields of ModelConfig, problems noted in the Fields
    read: Callable[[Fields], dict[str, Any]]
    #: our modules whose matrices the file keeps transposed (GPT-2's Conv1D)
    transposed: tuple[str, ...] = ()
    #: q, k and v lie together head by head (GPT-NeoX)
    qkv_by_head: bool = False
    #: constants that old checkpoints carry as if they were weights
    constants: str = r"\.rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Piece:
    """A tensor of the file and the part of our parameter that it fills."""

    name: str
    shape: tuple[int, ...]
    #: our parameter -> the part, in the file's order; may have the first axis of `shape` split
    view: Callable[[Tensor], Tensor]


def pieces(
    family: Family, config: ModelConfig, name: str, shape: tuple[int, ...], prefix: str
) -> list[Piece]:
    """The file's tensors that make up our parameter `name` of `shape`."""
    path, _, kind = name.rpartition(".")
    match = re.match(r"layers\.(\d+)\.(.+)", path)
    module, layer = (match[2], match[1]) if match else (path, "")
    theirs = family.modules[module]
    if isinstance(theirs, tuple):
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = zip(theirs, (0, q, q + kv), (q, kv, kv), strict=True)
        return [
            Piece(f"{prefix}{stem.format(i=layer)}.{kind}", (size, *shape[1:]), _rows(start, size))
            for stem, start, size in parts
        ]
    before = "" if module in HEADS else prefix
    full = f"{before}{theirs.format(i=layer)}.{kind}"
    if module == "attn.qkv" and family.qkv_by_head:
        split = (3, config.num_heads, config.head_dim, *shape[1:])
        return [Piece(full, shape, lambda parameter: parameter.view(split).transpose(0, 1))]
    if kind == "weight" and module in family.transposed:
        return [Piece(full, shape[::-1], lambda parameter: parameter.t())]
    return [Piece(full, shape, lambda parameter: parameter)]


def _rows(start: int, size: int) -> Callable[[Tensor], Tensor]:
    return lambda parameter: parameter.narrow(0, start, size)


HEADS = ("lm_head", "score")

LLAMA_MODULES: Modules = {
    "embed": "embed_tokens",
    "attn_norm": "layers.{i}.input_layernorm",
    "attn.qkv": (
        "layers.{i}.self_attn.q_proj",
        "layers.{i}.self_attn.k_proj",
        "layers.{i}.self_attn.v_proj",
    ),
    "attn.out": "layers.{i}.self_attn.o_proj",
    "attn.q_norm": "layers.{i}.self_attn.q_norm",
    "attn.k_norm": "layers.{i}.self_attn.k_norm",
    "ffn_norm": "layers.{i}.post_attention_layernorm",
    "ffn.gate": "layers.{i}.mlp.gate_proj",
    "ffn.up": "layers.{i}.mlp.up_proj",
    "ffn.down": "layers.{i}.mlp.down_proj",
    "norm": "norm",
    "lm_head": "lm_head",
    "score": "score",
}
GEMMA_MODULES: Modules = {
    **LLAMA_MODULES,
    "attn_post_norm": "layers.{i}.post_attention_layernorm",
    "ffn_norm": "layers.{i}.pre_feedforward_layernorm",
    "ffn_post_norm": "layers.{i}.post_feedforward_layernorm",
}
GPT2_MODULES: Modules = {
    "embed": "wte",
    "positions": "wpe",
    "attn_norm": "h.{i}.ln_1",
    "attn.qkv": "h.{i}.attn.c_attn",
    "attn.out": "h.{i}.attn.c_proj",
    "ffn_norm": "h.{i}.ln_2",
    "ffn.up": "h.{i}.mlp.c_fc",
    "ffn.down": "h.{i}.mlp.c_proj",
    "norm": "ln_f",
    "lm_head": "lm_head",
    "score": "score",
}
NEOX_MODULES: Modules = {
    "embed": "embed_in",
    "attn_norm": "layers.{i}.input_layernorm",
    "attn.qkv": "layers.{i}.attention.query_key_value",
    "attn.out": "layers.{i}.attention.dense",
    "ffn_norm": "layers.{i}.post_attention_layernorm",
    "ffn.up": "layers.{i}.mlp.dense_h_to_4h",
    "ffn.down": "layers.{i}.mlp.dense_4h_to_h",
    "norm": "final_layer_norm",
    "lm_head": "embed_out",
    "score": "score",
}


def _like_llama(
    model_type: str, stem: str, read: Callable[[Fields], dict[str, Any]], modules: Modules = LLAMA_MODULES
) -> Family:
    return Family(
        model_type=model_type,
        causal=f"{stem}ForCausalLM",
        scalar=f"{stem}ForSequenceClassification",
        base=f"{stem}Model",
        prefix="model.",
        modules=modules,
        read=read,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _like_llama("llama", "Llama", settings.read_llama),
        _like_llama("mistral", "Mistral", settings.read_mistral),
        _like_llama("qwen2", "Qwen2", settings.read_qwen2),
        _like_llama("qwen3", "Qwen3", settings.read_qwen3),
        _like_llama("gemma2", "Gemma2", settings.read_gemma2, GEMMA_MODULES),
        Family(
            model_type="gemma3_text",
            causal="Gemma3ForCausalLM",
            scalar="Gemma3TextForSequenceClassification",
            base="Gemma3TextModel",
            prefix="model.",
            modules=GEMMA_MODULES,
            read=settings.read_gemma3,
        ),
        Family(
            model_type="gpt2",
            causal="GPT2LMHeadModel",
            scalar="GPT2ForSequenceClassification",
            base="GPT2Model",
            prefix="transformer.",
            modules=GPT2_MODULES,
            read=settings.read_gpt2,
            transposed=("attn.qkv", "attn.out", "ffn.up", "ffn.down"),
            constants=r"\.attn\.(masked_)?bias$",
        ),
        Family(
            model_type="gpt_neox",
            causal="GPTNeoXForCausalLM",
            scalar="GPTNeoXForSequenceClassification",
            base="GPTNeoXModel",
            prefix="gpt_neox.",
            modules=NEOX_MODULES,
            read=settings.read_gpt_neox,
            qkv_by_head=True,
            constants=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
        ),
    )
}
