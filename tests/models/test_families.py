"""Every family against transformers: logits, scores, padding, caching, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB, make, same_files, saved, transformers

from rlhfkit.models.loading import load_causal, load_model, load_scalar, save_model
from rlhfkit.models.safetensors_io import read_header


@pytest.fixture
def pair(case: str, tmp_path: Path):
    theirs = make(case)
    return theirs, load_causal(saved(theirs, tmp_path / "model"))


@torch.no_grad()
def test_logits_equal_transformers(pair, ids):
    theirs, ours = pair
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(pair, ids):
    _, ours = pair
    lengths = (24, 13, 5)
    alone = [ours(ids[row : row + 1, :length]) for row, length in enumerate(lengths)]
    right, left = torch.zeros(3, 24, dtype=torch.long), torch.zeros(3, 24, dtype=torch.long)
    for row, length in enumerate(lengths):
        right[row, :length] = ids[row, :length]
        left[row, 24 - length :] = ids[row, :length]
    right_logits, left_logits = ours(right, right != 0), ours(left, left != 0)
    unmasked = ours(right)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(right_logits[row, :length], alone[row][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left_logits[row, 24 - length :], alone[row][0], atol=1e-5, rtol=1e-5)
        if ours.config.rope is None or ours.config.rope.scaling != "dynamic":
            torch.testing.assert_close(unmasked[row, :length], alone[row][0], atol=1e-5, rtol=1e-5)
    assert left_logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 4, 1)])
def test_cached_equals_uncached(pair, ids, lengths):
    _, ours = pair
    if ours.config.rope and ours.config.rope.scaling == "dynamic":
        ids = ids[
            :, :16
        ]  # beyond the trained length, keys in a cache keep the frequencies they were read with
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    cache = ours.new_cache(3, ids.shape[1])
    states = ours.hidden(ids[:, :9] * mask, attention_mask=mask, cache=cache)
    for row, length in enumerate(lengths):
        expected = ours.hidden(ids[row : row + 1, :length])
        torch.testing.assert_close(states[row, :length], expected[0], atol=1e-5, rtol=1e-5)
    for step in range(ids.shape[1] - 9):
        tokens = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
        state = ours.hidden(tokens, cache=cache)
        for row, length in enumerate(lengths):
            expected = ours.hidden(ids[row : row + 1, : length + step + 1])[0, -1]
            torch.testing.assert_close(state[row, 0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_tokens_equal_transformers(pair, ids):
    theirs, ours = pair
    prompt = ids[:1, :5]
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache = ours.new_cache(1, 25)
    state = ours.hidden(prompt, cache=cache)
    produced = []
    for _ in range(20):
        token = ours.head(state[:, -1]).argmax(dim=-1, keepdim=True)
        produced.append(int(token))
        state = ours.hidden(token, cache=cache)
    assert produced == expected[0, 5:].tolist()


@torch.no_grad()
def test_packed_documents_equal_documents_alone(pair, ids):
    _, ours = pair
    lengths = (10, 3, 11)
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    row = ids[:1]
    packed = ours.hidden(row, segment_ids=segments, position_ids=positions)
    start = 0
    for length in lengths:
        alone = ours.hidden(row[:, start : start + length])
        torch.testing.assert_close(packed[:, start : start + length], alone, atol=1e-5, rtol=1e-5)
        start += length
    torch.testing.assert_close(ours.hidden(row, segment_ids=segments), packed, atol=0, rtol=0)
    # Without the mask the second document sees the first: the check above can fail.
    unmasked = ours.hidden(row, position_ids=positions)
    assert (unmasked[:, 10:] - packed[:, 10:]).abs().max() > 1e-3


@torch.no_grad()
def test_later_tokens_change_nothing_before_them(pair, ids):
    _, ours = pair
    changed = ids.clone()
    changed[:, 17] = (changed[:, 17] + 1) % VOCAB
    before, after = ours(ids), ours(changed)
    assert torch.equal(before[:, :17], after[:, :17])
    assert not torch.equal(before[:, 17:], after[:, 17:])


@torch.no_grad()
def test_scores_equal_transformers_whatever_the_padding(case, ids, tmp_path):
    theirs = make(case, scalar=True)
    ours = load_scalar(saved(theirs, tmp_path / "model"))
    lengths = (24, 13, 5)
    expected = []
    for row, length in enumerate(lengths):
        one = ids[row : row + 1, :length]
        expected.append(theirs(one).logits[0, 0])
        torch.testing.assert_close(ours(one)[0], expected[-1], atol=1e-5, rtol=1e-5)
    for side in ("left", "right"):
        batch = torch.zeros(3, 24, dtype=torch.long)
        for row, length in enumerate(lengths):
            batch[row, slice(24 - length, 24) if side == "left" else slice(length)] = ids[row, :length]
        mask = batch != 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = theirs(batch, attention_mask=mask.long(), position_ids=positions).logits[:, 0]
        if "dynamic" not in case:  # transformers scales all rows by the longest
            torch.testing.assert_close(ours(batch, mask), given, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(batch, mask), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scalar", [False, True])
def test_loading_and_saving_changes_no_byte(case, scalar, tmp_path):
    source = saved(make(case, scalar=scalar), tmp_path / "source")
    (tmp_path / "copy").mkdir()
    save_model(load_model(source), tmp_path / "copy")
    same_files(source, tmp_path / "copy")


@torch.no_grad()
def test_reward_model_from_a_language_model_opens_in_transformers(case, ids, tmp_path):
    ours = load_scalar(saved(make(case), tmp_path / "lm"), init_head=3)
    (tmp_path / "rm").mkdir()
    save_model(ours, tmp_path / "rm", pad_token_id=0, eos_token_id=2)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert theirs.config.num_labels == 1
    assert theirs.config.pad_token_id == 0
    assert read_header(tmp_path / "rm" / "model.safetensors")["score.weight"].shape == (1, 24)
    torch.testing.assert_close(ours(ids), theirs(ids).logits[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_scalar(tmp_path / "rm")(ids), ours(ids), atol=0, rtol=0)
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
