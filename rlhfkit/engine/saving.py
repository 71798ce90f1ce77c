"""Writing a trained model with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.saving import save_model
from rlhfkit.models.transformer import Transformer


def write_model(
    model: Transformer | ScalarModel,
    path: Path,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    *,
    chat: bool = False,
) -> None:
    """Put model and tokenizer files into a directory; `weights` are the (float32) weights to write.

    A model that was loaded keeps what its configuration said of special tokens. A fresh one takes them from
    the tokenizer, and a reward model always says what PAD is: transformers finds the end of an answer by it.
    `chat` says that the model has learnt to end turns: every end token is then named in its configuration,
    so that other programs stop there, too.
    """
    scalar = isinstance(model, ScalarModel)
    if model.layout is None:
        save_model(
            model,
            path,
            state=weights,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_ids if len(tokenizer.eos_ids) > 1 else tokenizer.eos_id,
        )
        tokenizer.save(path, max_length=model.config.max_seq_len, with_pad=scalar)
    else:
        save_model(
            model,
            path,
            state=weights,
            pad_token_id=tokenizer.pad_id if scalar else None,
            eos_token_id=tokenizer.eos_ids if chat and len(tokenizer.eos_ids) > 1 else None,
        )
        tokenizer.save(path, with_pad=scalar)
