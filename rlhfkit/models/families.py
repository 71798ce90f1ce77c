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

from rlhfkit.models.config import ModelConfig, Rope
from rlhfkit.models.fields import Fields

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
ROPE_SCALINGS = {name: name for name in ("default", "linear", "dynamic", "llama3", "yarn")}


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
    modules: Mapping[str, str | tuple[str, str, str]]
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

LLAMA_MODULES: dict[str, str | tuple[str, str, str]] = {
    "embed": "embed_tokens",
    "attn_norm": "layers.{i}.input_layernorm",
    "attn.qkv": tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),  # type: ignore[dict-item]
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
GEMMA_MODULES = LLAMA_MODULES | {
    "attn_post_norm": "layers.{i}.post_attention_layernorm",
    "ffn_norm": "layers.{i}.pre_feedforward_layernorm",
    "ffn_post_norm": "layers.{i}.post_feedforward_layernorm",
}
GPT2_MODULES: dict[str, str | tuple[str, str, str]] = {
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
NEOX_MODULES: dict[str, str | tuple[str, str, str]] = {
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


def _sizes(fields: Fields) -> dict[str, Any]:
    """What the families since Llama spell alike."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        fields.problems.append(
            f"num_attention_heads: {heads} is not a multiple of num_key_value_heads, {kv_heads}"
        )
    if not fields.has("head_dim") and hidden % heads:
        fields.problems.append(f"hidden_size: {hidden} is not a multiple of num_attention_heads, {heads}")
    head_dim = fields.size("head_dim", default=max(hidden // heads, 1))
    if head_dim % 2:
        fields.problems.append(f"head_dim: {head_dim} is odd; rotary positions need an even one")
    return {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": fields.size("num_hidden_layers", high=10_000),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn_hidden_size": fields.size("intermediate_size"),
        "max_seq_len": fields.size("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.choice("hidden_act", "silu", ACTIVATIONS),
    }


def read_rope(fields: Fields, entries: Mapping[str, Any], theta: float, partial: float = 1.0) -> Rope:
    """Rotary settings from `entries` (rope_parameters or the older rope_scaling), checked."""
    inner = Fields(entries)
    name = "rope_type" if inner.has("rope_type") else "type"
    scaling = inner.choice(name, "default", ROPE_SCALINGS)
    trained = fields.raw.get("original_max_position_embeddings")
    settings = dict(entries)
    if scaling != "default" and (scaling != "yarn" or inner.has("factor")):
        settings["factor"] = inner.number("factor", None)
    if scaling in ("llama3", "yarn"):
        if trained is not None:
            settings["original_max_position_embeddings"] = trained
        settings.setdefault("original_max_position_embeddings", fields.raw.get("max_position_embeddings"))
        Fields(settings).size("original_max_position_embeddings")
    if scaling == "llama3":
        low, high = inner.number("low_freq_factor", None), inner.number("high_freq_factor", None)
        if low >= high:
            inner.problems.append(f"low_freq_factor: {low} is not below high_freq_factor, {high}")
    for optional in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        inner.number_or_none(optional, None)
    rope = Rope(
        theta=inner.number("rope_theta", theta),
        partial=inner.number("partial_rotary_factor", partial),
        scaling=scaling,  # type: ignore[arg-type]
        settings=settings,
    )
    fields.problems += [f"rope: {problem}" for problem in inner.problems]
    return rope


def _rope(fields: Fields) -> Rope:
    """One kind of rotary positions for all layers; rope_scaling wins where both are given."""
    entries = fields.table("rope_scaling") or fields.table("rope_parameters")
    return read_rope(fields, entries, fields.number("rope_theta", 10_000.0))


def _read_llama(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return _sizes(fields) | {
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
        "rope": _rope(fields),
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": fields.flag("mlp_bias", False),
    }


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            "LlamaForSequenceClassification",
            "LlamaModel",
            "model.",
            LLAMA_MODULES,
            _read_llama,
        ),
    )
}
