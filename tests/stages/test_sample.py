"""`sample`: completions belong to their prompts, whatever else is in the batch."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from rlhfkit import context
from rlhfkit.data.jsonl import encode
from rlhfkit.data.tokenizer import Tokenizer, prompt_ids
from rlhfkit.engine.draw import Sampling, row_seed
from rlhfkit.engine.generate import generate
from rlhfkit.errors import DataError, InputMissing, UsageError
from rlhfkit.models.loading import load_causal
from rlhfkit.scorers import Scorable, ScorerConfig, open_scorer
from rlhfkit.stages import sample
from rlhfkit.stages.sample import Config
from tests.conftest import Tiny

PROMPTS = [
    {"prompt": "red cat ->"},
    {"id": 7, "prompt": "two one sun moon ->", "extra": {"deep": [1, 2.50]}, "name": "é\u2028"},
    {"prompt": "dog ->"},
    {"prompt": "moon green bird ->"},
    {"prompt": ""},
]


class Ears(context.Reporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)

    warn = note


def sampled(tiny: Tiny, records: object, **settings: object) -> list[dict]:
    config = Config(**{"model": str(tiny.sft), "max_new_tokens": 12, "quiet": True, **settings})
    return [json.loads(encode(record)) for batch in sample.run(records, config) for record in batch]


def test_one_completion_stands_beside_the_fields_that_came(tiny: Tiny) -> None:
    out = sampled(tiny, PROMPTS)
    for record, given in zip(out, PROMPTS, strict=True):
        assert {name: record[name] for name in given} == given
        assert list(record) == [*given, "completion", "finish_reason", "num_tokens", "logprob", "model"]
        assert record["model"] == "sft"
        assert record["finish_reason"] in ("stop", "length")
        assert (record["num_tokens"] == 12) or record["finish_reason"] == "stop"
        assert record["logprob"] < 0
        assert "<|" not in record["completion"], "the end token is no text"
    assert {record["finish_reason"] for record in out} >= {"stop"}


def test_several_completions_are_objects_and_the_first_ones_stay_the_same(tiny: Tiny) -> None:
    one, three, five = (sampled(tiny, PROMPTS, n=n) for n in (1, 3, 5))
    for a, b, c in zip(one, three, five, strict=True):
        assert list(b["completions"][0]) == ["text", "finish_reason", "num_tokens", "logprob"]
        assert (len(b["completions"]), len(c["completions"])) == (3, 5)
        assert c["completions"][:3] == b["completions"]
        assert b["completions"][0]["text"] == a["completion"]
        assert "completion" not in b
    assert len({c["text"] for record in five for c in record["completions"]}) > 10


def test_batch_size_order_and_company_change_no_byte(tiny: Tiny) -> None:
    whole = sampled(tiny, PROMPTS, n=3)
    for size in (1, 2, 64):
        assert sampled(tiny, PROMPTS, n=3, batch_size=size) == whole
    assert sampled(tiny, PROMPTS[::-1], n=3)[::-1] == whole
    assert [sampled(tiny, [record], n=3)[0] for record in PROMPTS] == whole
    assert sampled(tiny, PROMPTS, n=3, seed=2) != whole


def test_a_repeated_prompt_is_answered_alike(tiny: Tiny) -> None:
    first, second = sampled(tiny, [PROMPTS[0], PROMPTS[0]])
    assert first == second


def test_logprob_is_that_of_the_completion_with_its_end(tiny: Tiny) -> None:
    out = [r for r in sampled(tiny, PROMPTS * 1, n=8) for r in [r]]
    items, logprobs = [], []
    tokenizer = Tokenizer.from_dir(tiny.sft)
    for record in out:
        for c in record["completions"]:
            again = len(tokenizer.encode_continuation(c["text"])) + 1
            if c["finish_reason"] == "stop" and again == c["num_tokens"]:
                items.append(Scorable(len(items), record["prompt"], c["text"]))
                logprobs.append(c["logprob"])
    assert len(items) > 10
    with open_scorer(f"lm:{tiny.sft}", ScorerConfig()) as scorer:
        assert scorer.score(items) == pytest.approx(logprobs, abs=1e-4)


def test_greedy_is_temperature_0_and_ignores_the_seed(tiny: Tiny) -> None:
    greedy = sampled(tiny, PROMPTS, greedy=True)
    assert sampled(tiny, PROMPTS, temperature=0.0, seed=5) == greedy
    assert sampled(tiny, PROMPTS, top_k=1)[0]["completion"] == greedy[0]["completion"]


def test_text_ends_before_the_first_stop_text(tiny: Tiny) -> None:
    free = sampled(tiny, PROMPTS, n=6)
    cut = sampled(tiny, PROMPTS, n=6, stop=("o", "re", "never"))
    hits = 0
    for a, b in zip(free, cut, strict=True):
        for long, short in zip(a["completions"], b["completions"], strict=True):
            places = [long["text"].find(stop) for stop in ("o", "re") if stop in long["text"]]
            assert short["text"] == long["text"][: min(places, default=None)]
            if places:
                hits += 1
                assert short["finish_reason"] == "stop"
                assert short["num_tokens"] <= long["num_tokens"]
                assert short["logprob"] >= long["logprob"]
            else:
                assert short == long
    assert hits > 10


def test_stop_reads_a_lone_backslash_n_as_a_line_end() -> None:
    assert sample._unescaped("\\n") == "\n"
    assert sample._unescaped("\\n\\n") == "\n\n"
    assert sample._unescaped("\\neq") == "\\neq"
    assert sample._unescaped("\n") == "\n"


def test_prepended_text_is_read_and_not_written(tiny: Tiny, tmp_path: Path) -> None:
    prefix = "cat dog -> cat dog\nsun red -> red sun\n"
    (tmp_path / "few.txt").write_text(prefix)
    out = sampled(tiny, PROMPTS[:3], prepend=str(tmp_path / "few.txt"))
    joined = sampled(tiny, [{"prompt": prefix + r["prompt"]} for r in PROMPTS[:3]])
    assert [r["prompt"] for r in out] == [r["prompt"] for r in PROMPTS[:3]]
    assert [r["completion"] for r in out] == [r["completion"] for r in joined]
    with pytest.raises(InputMissing, match="no-such"):
        sampled(tiny, PROMPTS, prepend=str(tmp_path / "no-such.txt"))
    with pytest.raises(DataError, match="conversation"):
        sampled(tiny, [CHAT], prepend=str(tmp_path / "few.txt"))


CHAT = {"prompt": [{"role": "user", "content": "red cat"}]}


def test_a_conversation_is_continued_behind_its_generation_prompt(tiny: Tiny) -> None:
    (out,) = sampled(tiny, [CHAT], n=2)
    tokenizer = Tokenizer.from_dir(tiny.sft)
    ids = tokenizer.encode_chat(CHAT["prompt"], add_generation_prompt=True)
    model = load_causal(tiny.sft)
    settings = Sampling(max_new_tokens=12, eos_ids=tokenizer.eos_ids)
    want = generate(model, [ids, ids], [row_seed(1337, ids, k) for k in (0, 1)], settings)
    assert [c["num_tokens"] for c in out["completions"]] == [len(g.ids) for g in want]
    assert [c["text"] for c in out["completions"]] == [tokenizer.decode(g.ids) for g in want]
    assert out["prompt"] == CHAT["prompt"]
    (other,) = sampled(tiny, [{"messages": CHAT["prompt"]}], n=2)
    assert other == out


def test_what_an_earlier_run_left_is_replaced(tiny: Tiny) -> None:
    old = {
        "prompt": "dog ->",
        "completions": ["a", "b"],
        "ranking": [[0], [1]],
        "score": 1,
        "logprob": -1,
        "model": "old",
        "kept": 1,
    }
    (out,) = sampled(tiny, [old], name="new")
    (fresh,) = sampled(tiny, [{"prompt": "dog ->", "kept": 1}], name="new")
    assert out == fresh
    assert out["model"] == "new"


LONG = {"prompt": "red " * 80}


def test_a_prompt_without_room_stops_the_run_after_those_before_it(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [PROMPTS[0], PROMPTS[2], LONG, PROMPTS[3]]))
    batches = sample.run([str(path)], Config(model=str(tiny.sft), max_new_tokens=12))
    assert [json.loads(encode(r))["prompt"] for r in next(batches)] == ["red cat ->", "dog ->"]
    with pytest.raises(DataError, match="exceed the model's context of 64") as caught:
        next(batches)
    assert caught.value.where == f"{path}:3"
    assert "--truncate-prompts" in str(caught.value.hint)


def test_such_prompts_can_be_skipped_or_cut_and_are_counted(tiny: Tiny) -> None:
    ears = Ears()
    with context.surroundings(ears, context.Invocation()):
        out = sampled(tiny, [PROMPTS[0], LONG, PROMPTS[2]], on_bad_line="skip")
        assert [r["prompt"] for r in out] == ["red cat ->", "dog ->"]
        assert any("skipped 1 of 3 prompts" in line for line in ears.heard)
        out = sampled(tiny, [PROMPTS[0], LONG], truncate_prompts=True)
        assert any("cut the beginning of 1 of 2 prompts to 52 tokens" in line for line in ears.heard)
    assert out[1]["prompt"] == LONG["prompt"]
    ids = prompt_ids(Tokenizer.from_dir(tiny.sft), LONG["prompt"])[-52:]
    tokenizer = Tokenizer.from_dir(tiny.sft)
    (want,) = generate(
        load_causal(tiny.sft),
        [ids],
        [row_seed(1337, ids, 0)],
        Sampling(max_new_tokens=12, eos_ids=tokenizer.eos_ids),
    )
    assert out[1]["completion"] == tokenizer.decode(want.ids)


def test_settings_that_cannot_work_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="no room for a prompt"):
        sampled(tiny, PROMPTS, max_new_tokens=64)
    with pytest.raises(UsageError, match="at once"):
        sampled(tiny, PROMPTS, stop=("",))
    with pytest.raises(DataError):
        sampled(tiny, PROMPTS, model=str(tiny.rm))


def test_it_reads_one_batch_at_a_time(tiny: Tiny) -> None:
    taken = 0

    def source() -> Iterator[Mapping[str, object]]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield {"prompt": f"red {number} ->"}

    batches = sample.run(source(), Config(model=str(tiny.sft), max_new_tokens=2, batch_size=3))
    assert len(next(batches)) == 3
    assert taken <= 4
    assert len(next(batches)) == 3
    assert taken <= 7
    batches.close()


def test_a_dry_run_checks_all_and_gives_nothing(tiny: Tiny) -> None:
    ears = Ears()
    with context.surroundings(ears, context.Invocation()):
        assert sampled(tiny, PROMPTS, dry_run=True, n=4) == []
        assert any("prompts: 5" in line for line in ears.heard)
        with pytest.raises(DataError, match="exceed"):
            sampled(tiny, [*PROMPTS, LONG], dry_run=True)


def test_empty_and_compressed_input(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n\n")
    assert sampled(tiny, [str(tmp_path / "none.jsonl")]) == []
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt":"dog ->"}\r\n'))
    assert sampled(tiny, [str(path)]) == sampled(tiny, [{"prompt": "dog ->"}])


def test_bfloat16_is_as_reproducible(tiny: Tiny) -> None:
    whole = sampled(tiny, PROMPTS, n=3, dtype="bfloat16")
    assert [sampled(tiny, [r], n=3, dtype="bfloat16")[0] for r in PROMPTS] == whole
    assert torch.get_default_dtype() == torch.float32
