"""Where the scores of a reward model have their zero, and their unit.

A ranking loss sees differences only, so a trained model's scores may have any mean. PPO's do not bear
that: the constant that an answer without end is paid, and the first values, are meant on a known scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhfkit.engine.preferences import score_sequences
from rlhfkit.errors import DataError
from rlhfkit.models.heads import ScalarModel

#: A spread of scores below this is rounding.
LEAST_SPREAD = 1e-6


@torch.no_grad()
def recenter(
    model: ScalarModel,
    sequences: Sequence[Sequence[int]],  # answers with their prompts
    *,
    scale: bool,
    tokens: int,
    pad_id: int,
    device: torch.device,
    master: Tensor | None = None,  # (1, D) float32 copy of the head's weight, if that is what will be saved
) -> dict[str, float]:
    """Set the model's offset, and with `scale` the gain of its head, by its scores of some answers.

    Their mean becomes 0 (Ouyang et al. 2022, section 3.5; Stiennon et al. 2020: on demonstrations), and with
    `scale` their biased variance 1 (Ziegler et al. 2019, `train_reward.py`: on samples of the reference
    policy, so that a KL coefficient always means the same). The gain goes into the weight; an offset that
    stood before is forgotten. Returns `score_offset` and `score_gain`. Raises DataError when all scores are
    equal and should be scaled.
    """
    model.score_offset = 0.0
    scores = np.array(score_sequences(model, sequences, tokens=tokens, pad_id=pad_id, device=device))
    gain = 1.0
    if scale:
        spread = float(scores.std())
        if spread < LEAST_SPREAD:
            raise DataError(
                f"all {len(scores)} scores are {scores.mean():.6g}, so they cannot be scaled to variance 1",
                where="--center-on",
                hint="give more, and more various, answers",
            )
        gain = 1 / spread
        for weight in {id(w): w for w in (model.score.weight, master) if w is not None}.values():
            weight.mul_(gain)
    model.score_offset = -float(scores.mean()) * gain
    return {"score_offset": model.score_offset, "score_gain": gain}
