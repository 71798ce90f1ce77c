"""rm:DIR: a reward model, read at the last token of prompt and completion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.engine.preferences import score_sequences
from rlhfkit.models.loading import load_scalar
from rlhfkit.scorers import Scorable, Scorer, ScorerConfig
from rlhfkit.scorers.encoding import place, require_finite, sequences


class RewardModelScorer(Scorer):
    """Scores of a reward model, equal to those of transformers' AutoModelForSequenceClassification.

    Completions are right-padded, in batches of similar length and at most `batch_tokens` tokens.
    """

    def __init__(self, directory: Path, config: ScorerConfig) -> None:
        self.name = f"rm:{directory}"
        device, dtype = place(config)
        self.tokenizer = Tokenizer.from_dir(directory)
        self.model = load_scalar(directory, dtype=dtype, device=device)
        self._tokens = config.batch_tokens

    def score(self, items: Sequence[Scorable]) -> list[float]:
        """The model's output for each item."""
        pairs = sequences(self.tokenizer, items, self.model.config.max_seq_len)
        scores = self.score_ids([before + after for before, after in pairs])
        require_finite(items, scores)
        return scores

    def score_ids(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Scores of token sequences, prompt and completion in one, which end where they are to be read."""
        return score_sequences(
            self.model, ids, tokens=self._tokens, pad_id=self.tokenizer.pad_id, device=self.model.device
        )
