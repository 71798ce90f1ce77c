"""Position t of every per-token tensor speaks of token t + 1, from the record to the loss."""

import pytest
import torch

from rlhfkit.data.batching import Example, collate
from rlhfkit.engine.lm import batch_logprobs
from rlhfkit.models.config import llama_config
from rlhfkit.models.loading import init_model

CONFIG = llama_config(vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=16)


def test_position_t_speaks_of_the_next_token() -> None:
    model = init_model(CONFIG, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    examples = [
        Example([5, 6, 7, 8, 2], [False, False, True, True, True]),
        Example([9, 4, 2], [False, True, True]),
    ]
    batch = collate(examples, 0, torch.device("cpu"))
    with torch.no_grad():
        logprobs = batch_logprobs(model, batch)
    assert logprobs.shape == (2, 4)
    for row, example in enumerate(examples):
        for place, counts in enumerate(example.mask):
            if place == 0:
                continue
            want = 0.0
            if counts:  # each prefix on its own: no shift, no padding, no mask
                with torch.no_grad():
                    last = model(torch.tensor([example.ids[:place]]))[0, -1].double()
                want = last.log_softmax(-1)[example.ids[place]].item()
            assert logprobs[row, place - 1].item() == pytest.approx(want, abs=1e-5)
