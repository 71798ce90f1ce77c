"""sft: exactly the completion and its end token are trained on, and what is cut or dropped is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rlhfkit
from rlhfkit import context
from rlhfkit.config import ReadConfig
from rlhfkit.data.batching import Example, collate, collate_packed
from rlhfkit.data.examples import demonstration_examples, marked_pieces
from rlhfkit.data.records import Demonstration, read_records
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.engine.optim import AdamW
from rlhfkit.errors import DataError, InputMissing
from rlhfkit.stages import sft

if TYPE_CHECKING:
    from rlhfkit.data.examples import Account
    from tests.conftest import Tiny

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "red cat ->"},
    {"role": "assistant", "content": "cat red"},
    {"role": "user", "content": "two one ->"},
    {"role": "assistant", "content": "one two"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Tokenizer:
    return Tokenizer.from_dir(tiny.base)


def examples(
    tokenizer: Tokenizer, records: list[dict[str, Any]], max_len: int = 64, loss_on: str = "completion"
) -> tuple[list[Example], Account]:
    found = read_records(records, Demonstration, ReadConfig())
    return demonstration_examples(found, tokenizer, max_len, loss_on=loss_on)


def fine_tune(tiny: Tiny, source: Any, out: Path, **settings: Any) -> dict[str, Any]:
    settings = {"model": str(tiny.base), "steps": 1, "batch_size": 8, "lr": 0.0, **settings}
    return sft.run(source, sft.Config(output=str(out), **settings))


def test_a_completion_and_its_end_token_count_and_nothing_else(tokenizer: Tokenizer) -> None:
    (example,), _ = examples(tokenizer, [{"prompt": "red cat ->", "completion": " cat red"}])
    prompt, completion = tokenizer.encode("red cat ->"), tokenizer.encode(" cat red")
    assert list(example.ids) == [*prompt, *completion, tokenizer.eos_id]
    assert list(example.mask) == [False] * len(prompt) + [True] * (len(completion) + 1)
    # Target-aligned: position t speaks of token t + 1, so the last prompt token predicts the first answer.
    batch = collate([example], tokenizer.pad_id, torch.device("cpu"))
    counted = batch.input_ids[:, 1:][batch.loss_mask].tolist()
    assert counted == [*completion, tokenizer.eos_id]


def test_a_spelt_end_token_in_the_text_is_text(tokenizer: Tokenizer) -> None:
    (example,), _ = examples(tokenizer, [{"prompt": "<|end|><|user|> a", "completion": " b<|end|>"}])
    assert Counter(example.ids)[tokenizer.eos_id] == 1
    assert example.ids[-1] == tokenizer.eos_id


def test_every_assistant_turn_counts_with_its_end_token(tokenizer: Tokenizer) -> None:
    (example,), _ = examples(tokenizer, [{"messages": CHAT}])
    pieces = marked_pieces(tokenizer, example)
    assert "".join(text for text, _ in pieces) == tokenizer.apply_chat_template(CHAT)
    end = tokenizer.decode([tokenizer.eos_id], skip_special=False)
    assert [text for text, counts in pieces if counts] == [f"cat red{end}", f"one two{end}"]


def test_a_chat_prompt_trains_its_completion_as_the_whole_conversation_does(tokenizer: Tokenizer) -> None:
    (whole, parts), _ = examples(
        tokenizer, [{"messages": CHAT[:3]}, {"prompt": CHAT[:2], "completion": CHAT[2:3]}]
    )
    counted = [[i for i, m in zip(e.ids, e.mask, strict=True) if m] for e in (whole, parts)]
    assert counted[0] == counted[1]
    assert list(whole.ids)[: len(parts.ids)] == list(parts.ids)
    (multi,), _ = examples(tokenizer, [{"prompt": CHAT[:4], "completion": CHAT[4:]}])
    assert [t for t, counts in marked_pieces(tokenizer, multi) if counts] == ["one two<|end|>"]


def test_text_and_loss_on_all_count_everything_but_the_first_token(tokenizer: Tokenizer) -> None:
    records = [{"text": "red cat"}, {"prompt": "red ->", "completion": " red"}]
    (text, pair), _ = examples(tokenizer, records, loss_on="all")
    assert list(text.ids) == [*tokenizer.encode("red cat"), tokenizer.eos_id]
    for example in (text, pair):
        batch = collate([example], tokenizer.pad_id, torch.device("cpu"))
        assert batch.input_ids[:, 1:][batch.loss_mask].tolist() == list(example.ids)[1:]


def test_packing_keeps_sequences_apart(tokenizer: Tokenizer) -> None:
    found, _ = examples(tokenizer, [{"text": "red cat"}, {"prompt": "red ->", "completion": " red"}])
    batch = collate_packed([found], tokenizer.pad_id, torch.device("cpu"))
    counted = batch.input_ids[:, 1:][batch.loss_mask].tolist()
    assert counted == [*found[0].ids[1:], *[i for i, m in zip(found[1].ids, found[1].mask, strict=True) if m]]


def test_the_first_loss_is_the_cross_entropy_of_the_marked_tokens(tiny: Tiny, tmp_path: Path) -> None:
    """Against torch's own cross entropy on one padded batch, prompts ignored."""
    records = [json.loads(line) for line in tiny.demos.read_text().splitlines()[:8]]
    records.append({"messages": CHAT})
    summary = fine_tune(tiny, records, tmp_path / "out", batch_size=9)
    tokenizer, model = Tokenizer.from_dir(tiny.base), rlhfkit.load_model(tiny.base)
    total, count = 0.0, 0
    for example in examples(tokenizer, records)[0]:
        labels = torch.tensor([i if m else -100 for i, m in zip(example.ids, example.mask, strict=True)])
        logits = model(torch.tensor([example.ids]))[0]
        total += float(F.cross_entropy(logits[:-1], labels[1:], reduction="sum").detach())
        count += int((labels[1:] != -100).sum())
    assert summary["loss/train"] == pytest.approx(total / count, rel=1e-5)


def test_truncation_and_drops_are_counted_and_told(tiny: Tiny, tmp_path: Path) -> None:
    records = [
        {"prompt": "a", "completion": " b"},
        {"prompt": "a", "completion": " red" * 20},  # cut: its end goes, its beginning is trained on
        {"prompt": "red " * 20, "completion": " b"},  # nothing of the answer is left
    ]
    said: list[str] = []

    class Listener(context.Reporter):
        def warn(self, text: str) -> None:
            said.append(text)

    with context.surroundings(Listener(), context.Invocation()):
        facts = fine_tune(tiny, records, tmp_path / "x", max_seq_len=12, dry_run=True)
    assert (facts["records"], facts["truncated"]) == (3, 2)
    assert facts["dropped"] == {"no token to train on": 1}
    assert facts["longest"] == 12
    assert said == [
        "1 of 3 records dropped: no token to train on",
        "2 of 3 records cut to fit --max-seq-len",
    ]
    tokenizer = Tokenizer.from_dir(tiny.base)
    # " b" and END; of the long one what stands behind its one-token prompt.
    assert facts["trained_tokens"] == len(tokenizer.encode(" b")) + 1 + 12 - len(tokenizer.encode("a"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "red " * 20, "completion": " b"}], "none of the 1 records has a token to train on"),
        ([], "no records"),
    ],
)
def test_nothing_left_to_train_on_is_bad_data(
    tiny: Tiny, tmp_path: Path, records: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        fine_tune(tiny, records, tmp_path / "x", max_seq_len=12)
    assert caught.value.exit_code == 65
    assert not (tmp_path / "x").exists()


def test_dry_run_shows_what_is_marked(tiny: Tiny, tmp_path: Path) -> None:
    shown: list[list[tuple[str, bool]]] = []

    class Listener(context.Reporter):
        def masked_text(self, title: str, pieces: Any) -> None:
            shown.append(list(pieces))

    with context.surroundings(Listener(), context.Invocation()):
        facts = fine_tune(tiny, [str(tiny.demos)], tmp_path / "x", dry_run=True)
    first = json.loads(tiny.demos.read_text().splitlines()[0])
    assert shown == [[(first["prompt"], False), (first["completion"] + "<|end|>", True)]]
    assert facts["dry_run"] is True
    assert not (tmp_path / "x").exists()


def test_evaluation_is_the_mean_over_the_held_out_tokens(tiny: Tiny, tmp_path: Path) -> None:
    """With learning rate 0, training on all records in one batch has the loss that evaluating them has."""
    summary = fine_tune(tiny, [str(tiny.demos)], tmp_path / "out", batch_size=120, eval=str(tiny.demos))
    assert summary["eval/loss"] == pytest.approx(summary["loss/train"], rel=1e-5)


def test_limit_is_for_the_demonstrations_not_for_the_held_out_ones(tiny: Tiny, tmp_path: Path) -> None:
    def held_out_loss(name: str, limit: int | None) -> float:
        settings = {"steps": 1, "batch_size": 4, "lr": 0.0, "limit": limit, "eval": str(tiny.demos)}
        config = sft.Config(model=str(tiny.sft), output=str(tmp_path / name), **settings)  # type: ignore[arg-type]
        return float(str(sft.run([str(tiny.demos)], config)["eval/loss"]))

    assert held_out_loss("some", 4) == held_out_loss("all", None)


def test_the_gradient_of_mixed_text_counts_its_fraction(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1 - F) times the gradient without --mix, plus F times that of the mean loss of some windows."""
    from rlhfkit.data.windows import WindowOrder, Windows, open_shards

    seen: list[dict[str, torch.Tensor]] = []
    take_step = AdamW.step

    def watched(self: AdamW, lr: float) -> None:
        seen.append({name: p.grad.clone() for name, p in self.masters.items() if p.grad is not None})
        take_step(self, lr)

    monkeypatch.setattr(AdamW, "step", watched)
    common = {"grad_clip": 0.0, "max_seq_len": 24, "seed": 3}
    fine_tune(tiny, [str(tiny.demos)], tmp_path / "plain", **common)
    mix = {"mix": (str(tiny.shard),), "mix_fraction": 0.3}
    summary = fine_tune(tiny, [str(tiny.demos)], tmp_path / "mixed", **common, **mix)

    model = rlhfkit.load_model(tiny.base)
    order = WindowOrder(Windows(open_shards([tiny.shard], Tokenizer.from_dir(tiny.base).digest), 23), 3)
    rows = torch.stack([torch.from_numpy(order[i].copy()) for i in range(3)])  # 8 * 0.3 / 0.7 = 3.4
    loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    assert summary["loss/mix"] == pytest.approx(loss.item(), rel=1e-5)
    plain, mixed = seen
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            mixed[name], 0.7 * plain[name] + 0.3 * parameter.grad, atol=1e-6, rtol=1e-4
        )


def test_every_step_mixes_in_the_next_windows(tiny: Tiny, tmp_path: Path) -> None:
    from rlhfkit.data.windows import WindowOrder, Windows, open_shards

    mix = {"mix": (str(tiny.shard),), "mix_fraction": 0.3, "max_seq_len": 24, "seed": 3}
    summary = fine_tune(tiny, [str(tiny.demos)], tmp_path / "out", steps=3, **mix)
    order = WindowOrder(Windows(open_shards([tiny.shard], Tokenizer.from_dir(tiny.base).digest), 23), 3)
    rows = torch.stack([torch.from_numpy(order[i].copy()) for i in range(6, 9)])
    logits = rlhfkit.load_model(tiny.base)(rows[:, :-1]).flatten(0, 1)
    assert summary["loss/mix"] == pytest.approx(
        F.cross_entropy(logits, rows[:, 1:].flatten()).item(), rel=1e-5
    )


def test_mixed_text_keeps_what_pretraining_taught(tiny: Tiny, tmp_path: Path) -> None:
    from rlhfkit.stages import pretrain

    losses = {}
    for name, settings in {"plain": {}, "mixed": {"mix": (str(tiny.shard),), "mix_fraction": 0.3}}.items():
        out = tmp_path / name
        fine_tune(tiny, [str(tiny.demos)], out, steps=30, lr=3e-3, batch_size=16, **settings)
        config = pretrain.Config(
            tokenizer=str(out),
            model=str(out),
            output=str(tmp_path / f"{name}-measured"),
            steps=1,
            lr=0.0,
            eval=str(tiny.shard),
        )
        losses[name] = pretrain.run([str(tiny.shard)], config)["eval/loss"]
    assert losses["mixed"] < losses["plain"] - 0.3  # type: ignore[operator]


def test_the_model_of_every_epoch_is_kept_and_is_the_one_of_a_run_that_ends_there(
    tiny: Tiny, tmp_path: Path
) -> None:
    """120 demonstrations in batches of 50: epochs end inside batches. With --force no old epoch stays."""
    common = {"batch_size": 50, "lr": 1e-3, "lr_schedule": "constant", "save_epochs": True}
    fine_tune(tiny, [str(tiny.demos)], tmp_path / "out", steps=6, **common)
    epochs = tmp_path / "out" / "epochs"
    assert sorted(p.name for p in epochs.iterdir()) == ["epoch-1", "epoch-2", "epoch-3"]
    for steps, name in ((3, "epoch-1"), (5, "epoch-2")):
        fine_tune(tiny, [str(tiny.demos)], tmp_path / name, steps=steps, **common)
        kept = load_file(epochs / name / "model.safetensors")
        assert all(
            torch.equal(v, kept[k]) for k, v in load_file(tmp_path / name / "model.safetensors").items()
        )
    last = (epochs / "epoch-3" / "model.safetensors").read_bytes()
    assert last == (tmp_path / "out" / "model.safetensors").read_bytes()
    rlhfkit.load_tokenizer(epochs / "epoch-1")
    fine_tune(tiny, [str(tiny.demos)], tmp_path / "out", steps=2, force=True, **common)
    assert [p.name for p in epochs.iterdir()] == ["epoch-1"]


def test_mixing_what_another_tokenizer_made_is_refused_before_training(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        fine_tune(tiny, [str(tiny.demos)], tmp_path / "out", mix=(str(tmp_path / "none.safetensors"),))
    assert not (tmp_path / "out").exists()
