"""How each family spells its settings: config.json entries to fields of `ModelConfig`.

Every function takes the entries and gives keyword arguments; what is wrong is noted in the `Fields`, so that
one message tells it all. Defaults are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhfkit.models.config import Rope
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
#: more would take seconds to lay out
MAX_LAYERS = 1000
ROPE_SCALINGS = {name: name for name in ("default", "linear", "dynamic", "llama3", "yarn")}


def _sizes(fields: Fields, *, head_dim: int | None = None) -> dict[str, Any]:
    """What the families since Llama spell alike; `head_dim` is the family's own default."""
    hidden, heads = fields.size("hidden_size", high=2**20), fields.size("num_attention_heads", high=2**16)
    kv_heads = fields.size("num_key_value_heads", default=heads, high=2**16)
    if heads % kv_heads:
        fields.problems.append(
            f"num_attention_heads: {heads} is not a multiple of num_key_value_heads, {kv_heads}"
        )
    if hidden % heads and not fields.has("head_dim"):
        fields.problems.append(f"hidden_size: {hidden} is not a multiple of num_attention_heads, {heads}")
    each = fields.size("head_dim", default=head_dim or max(hidden // heads, 1), high=2**16)
    if each % 2:
        fields.problems.append(f"head_dim: {each} is odd; rotary positions need an even one")
    return {
        "vocab_size": fields.size("vocab_size", high=2**24),
        "hidden_size": hidden,
        "num_layers": fields.size("num_hidden_layers", high=MAX_LAYERS),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": each,
        "ffn_hidden_size": fields.size("intermediate_size", high=2**22),
        "max_seq_len": fields.size("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
    }


def _checked_rope(
    fields: Fields, entries: Mapping[str, Any], theta: float, partial: float | None = None
) -> Rope:
    """Rotary settings from `entries` (rope_parameters or the older rope_scaling), checked.

    `partial` is the default of a family that rotates only a share of each head.
    """
    settings = dict(entries)
    if fields.has("original_max_position_embeddings"):
        settings["original_max_position_embeddings"] = fields.raw["original_max_position_embeddings"]
    settings.setdefault("original_max_position_embeddings", fields.raw.get("max_position_embeddings"))
    inner = Fields(settings)
    scaling = inner.choice("rope_type" if inner.has("rope_type") else "type", "default", ROPE_SCALINGS)
    if scaling in ("linear", "dynamic", "llama3") or (scaling == "yarn" and inner.has("factor")):
        inner.number("factor", None)
    if scaling in ("llama3", "yarn"):
        inner.size("original_max_position_embeddings")
    if scaling == "llama3":
        low, high = inner.number("low_freq_factor", None), inner.number("high_freq_factor", None)
        if low >= high:
            inner.problems.append(f"low_freq_factor: {low} is not below high_freq_factor, {high}")
    if scaling == "yarn":
        for name in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            inner.number_or_none(name, None)
    rope = Rope(
        theta=inner.number("rope_theta", theta),
        partial=1.0 if partial is None else inner.number("partial_rotary_factor", partial),
        scaling=scaling,  # type: ignore[arg-type]
        settings={} if scaling == "default" else settings,
    )
    if rope.theta <= 1 or rope.partial > 1:
        inner.problems.append("rope_theta must be above 1, the rotated share at most 1")
    fields.problems += [f"rope: {problem}" for problem in inner.problems]
    return rope


def _rope(fields: Fields) -> dict[str, Any]:
    """One kind of rotary positions for all layers; rope_scaling wins where both are given."""
    entries = fields.table("rope_scaling") or fields.table("rope_parameters")
    return {"rope": _checked_rope(fields, entries, fields.number("rope_theta", 10_000.0))}


def _activation(fields: Fields, name: str, default: str) -> dict[str, Any]:
    return {"activation": fields.choice(name, default, ACTIVATIONS)}


def _windows(fields: Fields, layers: int, pattern: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers slide: by layer_types, else by the family's `pattern` of the layer's index."""
    types = fields.raw.get("layer_types")
    if types is None:
        return tuple(pattern(layer) for layer in range(layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        fields.problems.append(f"layer_types: must list {layers} times one of {', '.join(known)}")
        return (False,) * layers
    return tuple(kind == "sliding_attention" for kind in types)


def _window(fields: Fields, default: int) -> int | None:
    """The window's width; null means none."""
    if "sliding_window" in fields.raw and not fields.has("sliding_window"):
        return None
    return fields.size("sliding_window", default=default)


def read_llama(fields: Fields) -> dict[str, Any]:
    """Llama 1 to 3 and what was built like them."""
    bias = fields.flag("attention_bias", False)
    return (
        _sizes(fields)
        | _rope(fields)
        | _activation(fields, "hidden_act", "silu")
        | {"qkv_bias": bias, "out_bias": bias, "ffn_bias": fields.flag("mlp_bias", False)}
    )


def read_mistral(fields: Fields) -> dict[str, Any]:
    """Llama with a window on every layer."""
    sizes = _sizes(fields)
    window = {"sliding_window": _window(fields, 4096), "sliding_layers": (True,) * sizes["num_layers"]}
    return sizes | _rope(fields) | _activation(fields, "hidden_act", "silu") | window


def _qwen(fields: Fields, sizes: dict[str, Any]) -> dict[str, Any]:
    """What Qwen2 and Qwen3 share: windows, if at all, from layer max_window_layers on."""
    first = fields.size("max_window_layers", default=28, low=0)
    window = _window(fields, 4096) if fields.flag("use_sliding_window", False) else None
    return (
        sizes
        | _rope(fields)
        | _activation(fields, "hidden_act", "silu")
        | {
            "sliding_window": window,
            "sliding_layers": _windows(fields, sizes["num_layers"], lambda layer: layer >= first),
        }
    )


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """Llama with biases on q, k and v."""
    return _qwen(fields, _sizes(fields)) | {"qkv_bias": True}


def read_qwen3(fields: Fields) -> dict[str, Any]:
    """Llama with normed queries and keys."""
    bias = fields.flag("attention_bias", False)
    own = {"qk_norm": True, "qkv_bias": bias, "out_bias": bias}
    return _qwen(fields, _sizes(fields, head_dim=128)) | own


def read_gpt2(fields: Fields) -> dict[str, Any]:
    """LayerNorm, learned positions, a plain feed-forward layer."""
    hidden, heads = fields.size("n_embd", high=2**20), fields.size("n_head", high=2**16)
    if hidden % heads:
        fields.problems.append(f"n_embd: {hidden} is not a multiple of n_head, {heads}")
    head_dim = max(hidden // heads, 1)
    return _activation(fields, "activation_function", "gelu_new") | {
        "vocab_size": fields.size("vocab_size", high=2**24),
        "hidden_size": hidden,
        "num_layers": fields.size("n_layer", high=MAX_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim,
        "ffn_hidden_size": fields.size("n_inner", default=4 * hidden, high=2**22),
        "max_seq_len": fields.size("n_positions"),
        "norm": "layer",
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
        "gated_ffn": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "rope": None,
        "attention_scale": head_dim**-0.5 if fields.flag("scale_attn_weights", True) else 1.0,
        "attention_scale_by_layer": fields.flag("scale_attn_by_inverse_layer_idx", False),
    }


def read_gpt_neox(fields: Fields) -> dict[str, Any]:
    """LayerNorm, parallel residual, a share of each head rotated."""
    sizes = _sizes(fields)
    theta, partial = fields.number("rotary_emb_base", 10_000.0), fields.number("rotary_pct", 0.25)
    entries = fields.table("rope_scaling") or fields.table("rope_parameters")
    bias = fields.flag("attention_bias", True)
    return (
        sizes
        | _activation(fields, "hidden_act", "gelu")
        | {
            "num_kv_heads": sizes["num_heads"],
            "head_dim": sizes["hidden_size"] // sizes["num_heads"],
            "norm": "layer",
            "norm_eps": fields.number("layer_norm_eps", 1e-5),
            "gated_ffn": False,
            "qkv_bias": bias,
            "out_bias": bias,
            "ffn_bias": True,
            "parallel_residual": fields.flag("use_parallel_residual", True),
            "rope": _checked_rope(fields, entries, theta, partial),
        }
    )


def _gemma(fields: Fields) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    sizes = _sizes(fields, head_dim=256)
    bias = fields.flag("attention_bias", False)
    return (
        sizes
        | _activation(fields, "hidden_activation", "gelu_pytorch_tanh")
        | {
            "tie_embeddings": fields.flag("tie_word_embeddings", True),
            "norm_plus_one": True,
            "post_norms": True,
            "qkv_bias": bias,
            "out_bias": bias,
            "attention_scale": fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
            "embedding_scale": sizes["hidden_size"] ** 0.5,
            "sliding_window": _window(fields, 4096),
        }
    )


def read_gemma2(fields: Fields) -> dict[str, Any]:
    """Soft caps; every other layer slides."""
    shared = _gemma(fields)
    return (
        shared
        | _rope(fields)
        | {
            "sliding_layers": _windows(fields, shared["num_layers"], lambda layer: layer % 2 == 0),
            "attention_softcap": fields.number_or_none("attn_logit_softcapping", 50.0),
            "logit_softcap": fields.number_or_none("final_logit_softcapping", 30.0),
        }
    )


def read_gemma3(fields: Fields) -> dict[str, Any]:
    """Five sliding layers to a full one. transformers never applies its attn_logit_softcapping; nor do we."""
    shared = _gemma(fields)
    period = fields.size("sliding_window_pattern", default=6)
    both = Fields(fields.table("rope_parameters"))
    full, local = both.table("full_attention"), both.table("sliding_attention")
    fields.problems += [f"rope_parameters.{problem}" for problem in both.problems]
    full = {**full, **fields.table("rope_scaling")}
    return shared | {
        "sliding_layers": _windows(fields, shared["num_layers"], lambda layer: (layer + 1) % period != 0),
        "logit_softcap": fields.number_or_none("final_logit_softcapping", None),
        "qk_norm": True,
        "rope": _checked_rope(fields, full, fields.number("rope_theta", 1_000_000.0)),
        "sliding_rope": _checked_rope(fields, local, fields.number("rope_local_base_freq", 10_000.0)),
    }
