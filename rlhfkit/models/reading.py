"""config.json to `ModelConfig` and back. What is not supported is refused by name, before any weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rlhfkit.errors import DataError
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.families import FAMILIES, Family
from rlhfkit.models.fields import Fields

Kind = Literal["causal", "scalar"]

#: entries through which a config.json can bring code along
CODE = ("auto_map", "_attn_implementation_internal", "_experts_implementation_internal", "trust_remote_code")
#: entry -> what it means; refused when set
UNSUPPORTED = {
    "quantization_config": "quantised weights",
    "compression_config": "quantised weights",
    "vision_config": "a vision model",
    "audio_config": "an audio model",
    "text_config": "a multimodal model",
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "is_encoder_decoder": "an encoder-decoder",
    "add_cross_attention": "cross-attention",
    "use_bidirectional_attention": "attention in both directions",
}


def read_config(raw: Mapping[str, Any], where: str) -> tuple[ModelConfig, Kind]:
    """The decoder that a config.json describes, and whether it has a scalar head.

    Raises DataError: one that names what is not supported, or one with every bad entry.
    """
    for name in CODE:
        if raw.get(name):
            raise DataError(f"{name}: code from a model directory is never run", where=where)
    for name, meaning in UNSUPPORTED.items():
        if raw.get(name):
            raise DataError(f"{name}: {meaning} is not supported", where=where)
    family, kind = _family(raw, where)
    fields = Fields(raw)
    values = family.read(fields)
    if kind == "scalar":
        labels = raw.get("num_labels", len(fields.table("id2label")) or 2)
        if labels != 1:
            fields.problems.append(f"num_labels: a reward model has 1, this one {labels!r}")
    values["pad_token_id"] = fields.token_id("pad_token_id")
    values["score_offset"] = fields.number("score_offset", 0.0, positive=False)
    fields.finish(where)
    config = ModelConfig(family=family.model_type, raw=raw, **values)
    rope = config.rope
    if rope and rope.scaling == "dynamic" and int(config.head_dim * rope.partial) <= 2:
        raise DataError("rope: dynamic scaling needs more than 2 rotated numbers a head", where=where)
    return config, kind


def _family(raw: Mapping[str, Any], where: str) -> tuple[Family, Kind]:
    names, model_type = raw.get("architectures"), raw.get("model_type")
    name = names[0] if isinstance(names, list) and names else None
    known = ", ".join(FAMILIES)
    if model_type is None and name is not None:
        model_type = next(
            (f.model_type for f in FAMILIES.values() if name in (f.causal, f.scalar, f.base)), name
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        meaning = " (a mixture of experts)" if _experts(model_type) else ""
        raise DataError(
            f"model_type: {str(model_type)[:40]!r}{meaning} is not supported (known: {known})", where=where
        )
    family = FAMILIES[model_type]
    if name is None or name in (family.causal, family.base):
        return family, "causal"
    if name == family.scalar:
        return family, "scalar"
    raise DataError(
        f"architectures: {str(name)[:60]!r} is not supported (known: {family.causal}, {family.scalar})",
        where=where,
    )


def _experts(model_type: object) -> bool:
    return isinstance(model_type, str) and ("moe" in model_type or model_type in ("mixtral", "dbrx"))


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json of a fresh model, with names that transformers 4 and 5 both read."""
    assert config.family == "llama", "fresh models are Llama models"
    assert config.rope is not None
    return {
        "architectures": [FAMILIES["llama"].causal],
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_hidden_size,
        "max_position_embeddings": config.max_seq_len,
        "mlp_bias": config.ffn_bias,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
