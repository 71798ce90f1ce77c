"""Everything that a trainer writes opens in transformers, and says the same there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import rlhfkit
from rlhfkit.stages import ppo, pretrain, score, train_rm

if TYPE_CHECKING:
    from tests.conftest import Tiny

TEXTS = [
    "red cat ->",
    " dog two",
    "naïve 東京 \u2028 \U0001f980\r\n\t x",
    "",
    "  spaces   and\n\nlines ",
    "a" * 50,
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "red cat ->"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two ->"}],
    [
        {"role": "user", "content": " one "},
        {"role": "assistant", "content": "two\n"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": ""},
    ],
]


@pytest.fixture(scope="module")
def written(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory from each trainer, PPO's value network and a centred reward model included."""
    root = tmp_path_factory.mktemp("written")
    settings: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "context": 48}
    common: dict[str, Any] = {"steps": 2, "batch_size": 8, "lr": 1e-3}
    for name, tied in (("pretrain", False), ("tied", True)):
        config = pretrain.Config(
            tokenizer=str(tiny.base), output=str(root / name), tie_embeddings=tied, **settings, **common
        )
        pretrain.run([str(tiny.shard)], config)
    for name, value_model in (("ppo", None), ("shared", "shared")):
        ppo.run(
            [str(tiny.prompts)],
            ppo.Config(
                model=str(tiny.sft),
                reward=str(tiny.rm),
                value_model=value_model,
                output=str(root / name),
                minibatches=2,
                max_new_tokens=8,
                **common,
            ),
        )
    centred = train_rm.Config(
        model=str(tiny.sft), output=str(root / "centred"), center_on=str(tiny.demos), **common
    )
    train_rm.run([str(tiny.rankings)], centred)
    own = {name: root / name for name in ("pretrain", "tied", "ppo", "centred")}
    values = {"value": root / "ppo" / "value", "shared": root / "shared" / "value"}
    return {**own, **values, "sft": tiny.sft, "rm": tiny.rm}


CAUSAL = ["pretrain", "tied", "sft", "ppo"]
SCALAR = ["rm", "centred", "value", "shared"]


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded random rows of different lengths, and their mask."""
    lengths = [1, 7, 13, 20]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("name", CAUSAL)
def test_equal_logits(written: dict[str, Path], rows: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(written[name])
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids, mask = rows
    with torch.no_grad():
        expected = theirs.eval()(ids, attention_mask=mask).logits
        found = rlhfkit.load_model(written[name])(ids, attention_mask=mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=0)
    tokenizer = rlhfkit.load_tokenizer(written[name])
    config = theirs.generation_config
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert theirs.config.pad_token_id != theirs.config.eos_token_id


@pytest.mark.parametrize("name", SCALAR)
def test_equal_scores(written: dict[str, Path], rows: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(written[name]).eval()
    assert theirs.config.num_labels == 1
    assert theirs.score.weight.shape == (1, 32)
    assert theirs.config.pad_token_id == rlhfkit.load_tokenizer(written[name]).pad_id == 0
    ids, mask = rows
    # A centred model's shift has no place in the architecture: docs/commands/train-rm.md says so.
    shift = json.loads((written[name] / "config.json").read_text()).get("score_offset", 0.0)
    assert (shift != 0) == (name == "centred")
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits[:, 0] + shift
        ours = rlhfkit.load_model(written[name])
        torch.testing.assert_close(ours(ids, attention_mask=mask), expected, atol=1e-4, rtol=0)
        for row, real in zip(range(len(ids)), mask, strict=True):
            alone = theirs(ids[row : row + 1, real]).logits[0, 0] + shift
            torch.testing.assert_close(expected[row], alone, atol=1e-4, rtol=0)


def test_the_command_scores_as_transformers_does(tiny: Tiny) -> None:
    """Prompt and completion as text, through both tokenizers, in one padded batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny.rm).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.rm)
    completions = [" red", " cat dog two", "", " one two three sun moon"]
    records = [{"prompt": "red cat ->", "completion": c} for c in completions]
    found = [r["score"] for batch in score.run(records, score.Config(reward=str(tiny.rm))) for r in batch]
    texts = ["red cat ->" + c + tokenizer.eos_token for c in completions]
    with torch.no_grad():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", [*CAUSAL, *SCALAR])
def test_equal_ids_and_chats(written: dict[str, Path], name: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(written[name])
    ours = rlhfkit.load_tokenizer(written[name])
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids) == text
    for chat in CHATS:
        for prompt in (False, True):
            text = theirs.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
            assert ours.apply_chat_template(chat, add_generation_prompt=prompt) == text
            ids = theirs.apply_chat_template(chat, add_generation_prompt=prompt)
            assert ours.encode_chat(chat, add_generation_prompt=prompt) == ids["input_ids"]
    masked = theirs.apply_chat_template(CHATS[2], return_dict=True, return_assistant_tokens_mask=True)
    assert ours.encode_chat_masked(CHATS[2]) == (
        masked["input_ids"],
        [bool(m) for m in masked["assistant_masks"]],
    )
    assert theirs.eos_token_id == ours.eos_id
    assert theirs.pad_token_id == ours.pad_id
    assert theirs.model_max_length == (48 if name in {"pretrain", "tied"} else 64)
