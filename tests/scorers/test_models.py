"""rm: and lm: scorers against transformers on the same directories."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rlhfkit.data.shapes import Message
from rlhfkit.data.tokenizer import Tokenizer, completion_ids, prompt_ids, train_tokenizer
from rlhfkit.errors import DataError, InputMissing, UsageError
from rlhfkit.models.config import llama_config
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.loading import init_model, load_scalar, save_model
from rlhfkit.scorers import Scorable, ScorerConfig, open_scorer
from rlhfkit.scorers.reward_model import RewardModelScorer

transformers = pytest.importorskip("transformers")
CONTEXT = 96


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny causal model and a reward model on its body, as the trainers write them."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(iter(["the quick brown fox jumps over the lazy dog, " * 20]), 300)
    config = llama_config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        max_seq_len=CONTEXT,
    )
    model = init_model(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that scores differ by more than rounding
    lm, rm = root / "lm", root / "rm"
    for directory in (lm, rm):
        directory.mkdir()
        tokenizer.save(directory, max_length=CONTEXT, with_pad=True)
    ids = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    save_model(model, lm, **ids)
    scalar = load_scalar(lm, init_head=3)
    assert isinstance(scalar, ScalarModel)
    save_model(scalar, rm, pad_token_id=tokenizer.pad_id)
    return {"lm": lm, "rm": rm}


ITEMS = [
    Scorable(1, "the quick", " brown fox"),
    Scorable(2, "the lazy dog jumps over", ""),
    Scorable(3, "", "jumps over the lazy dog, the fox"),
    Scorable(4, [Message("user", "quick?")], "the dog"),
    Scorable(
        5, [Message("system", "be brief"), Message("user", "fox?")], [Message("assistant", "over <|pad|> it")]
    ),
    Scorable(6, "the", " dog" * 10),
]


def token_ids(directory: Path) -> list[tuple[list[int], list[int]]]:
    tokenizer = Tokenizer.from_dir(directory)
    return [
        (
            prompt_ids(tokenizer, item.prompt),
            completion_ids(
                tokenizer, item.completion, prompt=None if isinstance(item.prompt, str) else item.prompt
            ),
        )
        for item in ITEMS
    ]


@pytest.mark.parametrize("batch_tokens", [1, 40, 16384])
def test_a_reward_model_scores_as_transformers_does(directories: dict[str, Path], batch_tokens: int):
    oracle = transformers.AutoModelForSequenceClassification.from_pretrained(directories["rm"]).eval()
    with torch.no_grad():
        expected = [oracle(torch.tensor([a + b])).logits.item() for a, b in token_ids(directories["rm"])]
    for spec in (str(directories["rm"]), f"rm:{directories['rm']}"):
        with open_scorer(spec, ScorerConfig(batch_tokens=batch_tokens)) as scorer:
            assert scorer.score(ITEMS) == pytest.approx(expected, abs=1e-5)
            assert scorer.score(ITEMS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
            assert scorer.score([]) == []
    assert len({round(x, 4) for x in expected}) == len(ITEMS)


def test_completions_end_with_the_end_token(directories: dict[str, Path]):
    tokenizer = Tokenizer.from_dir(directories["rm"])
    assert all(after[-1] in tokenizer.eos_ids for _, after in token_ids(directories["rm"]))
    scorer = open_scorer(f"rm:{directories['rm']}")
    assert isinstance(scorer, RewardModelScorer)
    sequences = [before + after for before, after in token_ids(directories["rm"])]
    assert scorer.score_ids(sequences) == scorer.score(ITEMS)


def test_scores_are_the_same_every_time(directories: dict[str, Path]):
    runs = []
    for _ in range(2):
        with open_scorer(f"rm:{directories['rm']}") as scorer:
            runs.append(scorer.score(ITEMS))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("per_token", [False, True])
def test_a_causal_model_scores_by_log_probability(directories: dict[str, Path], per_token: bool):
    oracle = transformers.AutoModelForCausalLM.from_pretrained(directories["lm"]).eval()
    expected = []
    for before, after in token_ids(directories["lm"]):
        with torch.no_grad():
            logits = oracle(torch.tensor([before + after])).logits[0].double()
        total = sum(
            logits[len(before) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(after)
        )
        expected.append(total / len(after) if per_token else total)
    for batch_tokens in (1, 16384):
        config = ScorerConfig(per_token=per_token, batch_tokens=batch_tokens)
        with open_scorer(f"lm:{directories['lm']}", config) as scorer:
            assert scorer.score(ITEMS) == pytest.approx(expected, rel=1e-5)
    assert all(x < 0 for x in expected)


def test_an_empty_answer_has_the_probability_of_the_end_token(directories: dict[str, Path]):
    with open_scorer(f"lm:{directories['lm']}", ScorerConfig()) as scorer:
        tokenizer = Tokenizer.from_dir(directories["lm"])
        before = prompt_ids(tokenizer, "the")
        logits = scorer.model(torch.tensor([before]))[0, -1]  # type: ignore[attr-defined]
        empty = scorer.score([Scorable(1, "the", "")])[0]
    probabilities = logits.double().softmax(-1)
    assert math.exp(empty) == pytest.approx(probabilities[tokenizer.eos_id].item(), rel=1e-4)


def test_the_other_kind_of_model_is_refused_with_a_hint(directories: dict[str, Path]):
    for spec, hint in (
        (str(directories["lm"]), f"lm:{directories['lm']}"),
        (f"rm:{directories['lm']}", f"lm:{directories['lm']}"),
        (f"lm:{directories['rm']}", f"rm:{directories['rm']}"),
    ):
        with pytest.raises(DataError) as caught:
            open_scorer(spec)
        assert hint in str(caught.value.hint)


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(InputMissing):
        open_scorer(str(tmp_path / "nothing"))
    with pytest.raises(InputMissing, match=r"config\.json"):
        open_scorer(f"rm:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="JSON"):
        open_scorer(str(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["BertForSequenceClassification"], "model_type": "bert"})
    )
    with pytest.raises((DataError, InputMissing)):
        open_scorer(str(tmp_path))
    for spec in ("gpt:4", "ftp://host/x"):
        with pytest.raises(UsageError, match="unknown scorer"):
            open_scorer(spec)


def test_what_does_not_fit_the_context_is_an_error_not_a_cut(directories: dict[str, Path]):
    with (
        open_scorer(f"rm:{directories['rm']}") as scorer,
        pytest.raises(DataError, match=r"id 'long'.*context is 96"),
    ):
        scorer.score([*ITEMS, Scorable("long", "x" * 200, "y")])


def test_bfloat16_is_near(directories: dict[str, Path]):
    with (
        open_scorer(f"rm:{directories['rm']}") as exact,
        open_scorer(f"rm:{directories['rm']}", ScorerConfig(dtype="bfloat16")) as rough,
    ):
        assert rough.score(ITEMS) == pytest.approx(exact.score(ITEMS), abs=0.2)
