"""lm:DIR: the log-probability of a completion, its end token included, given the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlhfkit.data.batching import Example, collate, micro_batches
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.models.loading import load_causal
from rlhfkit.objectives.logprobs import token_logprobs
from rlhfkit.scorers import Scorable, Scorer, ScorerConfig
from rlhfkit.scorers.encoding import place, require_finite, sequences


class LanguageModelScorer(Scorer):
    """Log-probabilities in nats under a causal model: the sum over a completion, or the mean per token."""

    def __init__(self, directory: Path, config: ScorerConfig) -> None:
        self.name = f"lm:{directory}"
        device, dtype = place(config)
        self.tokenizer = Tokenizer.from_dir(directory)
        self.model = load_causal(directory, dtype=dtype, device=device)
        self._tokens = config.batch_tokens
        self._per_token = config.per_token

    @torch.no_grad()
    def score(self, items: Sequence[Scorable]) -> list[float]:
        """One log-probability per item."""
        examples = [
            Example(before + after, [False] * len(before) + [True] * len(after))
            for before, after in sequences(self.tokenizer, items, self.model.config.max_seq_len)
        ]
        scores = [0.0] * len(examples)
        for group in micro_batches([len(e.ids) for e in examples], rows=None, tokens=self._tokens):
            batch = collate([examples[i] for i in group], self.tokenizer.pad_id, self.model.device)
            hidden = self.model.hidden(batch.input_ids, attention_mask=batch.attention_mask)[:, :-1]
            logprobs, _ = token_logprobs(hidden, self.model.head, batch.input_ids[:, 1:], batch.loss_mask)
            sums = logprobs.double().sum(-1)  # (B,)
            if self._per_token:
                sums = sums / batch.loss_mask.sum(-1)
            for index, score in zip(group, sums.tolist(), strict=True):
                scores[index] = score
        require_finite(items, scores)
        return scores
