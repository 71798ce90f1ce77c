"""What a decoder looks like: sizes and the switches that tell one family from another.

Shape letters: B batch, S tokens in a row, V vocabulary, D hidden, H heads, K kv-heads, E head dim,
F inner width of the feed-forward layer, R rotated part of a head (R <= E).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al., 2021) and the ways to stretch them; see `rlhfkit.models.rope`."""

    theta: float = 10_000.0
    #: part of each head that is rotated; 1.0 = all of it
    partial: float = 1.0
    scaling: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    #: the numbers of the scaling, by their names in config.json
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one decoder. Build a fresh one with `llama_config`."""

    family: str = "llama"
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_hidden_size: int
    max_seq_len: int
    tie_embeddings: bool = False

    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated_ffn: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False

    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    #: Gemma: the stored weight is the distance from one
    norm_plus_one: bool = False
    #: Gemma 2 and 3: also a norm behind attention and behind the feed-forward layer
    post_norms: bool = False
    #: Qwen3, Gemma 3: queries and keys are normed per head before they are rotated
    qk_norm: bool = False
    #: GPT-NeoX: attention and feed-forward layer read the same input
    parallel_residual: bool = False

    #: None: learned positions (GPT-2)
    rope: Rope | None = field(default_factory=Rope)
    #: Gemma 3: sliding layers rotate by other frequencies
    sliding_rope: Rope | None = None
    sliding_window: int | None = None
    #: one entry a layer, True = sees only the last `sliding_window` positions, itself included
    sliding_layers: tuple[bool, ...] = ()
    #: factor on the attention scores; None = head_dim ** -0.5
    attention_scale: float | None = None
    #: GPT-2's scale_attn_by_inverse_layer_idx
    attention_scale_by_layer: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0

    #: the model's own word on its padding; a reward model reads the score before it
    pad_token_id: int | None = None
    #: rlhfkit's own: what a centred reward model adds to every score
    score_offset: float = 0.0
    #: config.json as it was read, so that saving keeps what we do not know
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def slides(self, layer: int) -> bool:
        """Does this layer see only a window?"""
        return self.sliding_window is not None and self.sliding_layers[layer]


def llama_config(
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_seq_len: int,
    num_kv_heads: int | None = None,
    ffn_hidden_size: int | None = None,
    tie_embeddings: bool = False,
    rope_theta: float = 10_000.0,
    norm_eps: float = 1e-5,
) -> ModelConfig:
    """A fresh Llama-style shape. The feed-forward width defaults to 8/3 D, rounded up to 64."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=hidden_size // num_heads,
        ffn_hidden_size=ffn_hidden_size or -(-hidden_size * 8 // 3 // 64) * 64,
        max_seq_len=max_seq_len,
        tie_embeddings=tie_embeddings,
        rope=Rope(theta=rope_theta),
        norm_eps=norm_eps,
    )
