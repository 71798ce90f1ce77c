"""rlhfkit's sides: the stages as users run them, with their data loading, logs and checkpoints.

Each function runs in a process of its own (`side`) and gives its steps to the pacer through the reporter,
the place where a stage tells of every finished step. Settings that are not part of the workload stay at the
stage's defaults, so that what is measured is what a user gets.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlhfkit import context

Each = Callable[[int, Mapping[str, Any]], None]
#: More steps than any measurement takes.
MANY = 100_000


class Ticks(Protocol):
    """What a side tells of its steps: `lap.Pacer`, or the GPU benchmark's counter."""

    def tick(self, units: float, **figures: float) -> None:
        """One step has ended."""


class _Steps(context.Progress):
    def __init__(self, each: Each) -> None:
        self._each = each

    def update(self, done: int, figures: Mapping[str, object] | None = None) -> None:
        if figures is not None:
            self._each(done, figures)


class _Reporter(context.Reporter):
    def __init__(self, each: Each) -> None:
        self._each = each

    def progress(self, title: str, total: int | None, unit: str) -> context.Progress:
        return _Steps(self._each)


def run_stage(stage: Any, inputs: Any, each: Each, **settings: Any) -> None:
    """Run a trainer; `each(step, figures)` is called at the end of every step."""
    with context.surroundings(_Reporter(each), context.Invocation()):
        stage.run(inputs, stage.Config(**settings))


def pretrain(pacer: Ticks, work: Path, *, shape: str, batch: int, context: int, **settings: Any) -> None:
    """Units are tokens. `shape` names the shard and its tokenizer in the work directory."""
    from rlhfkit.stages import pretrain as stage

    run_stage(
        stage,
        [str(work / f"{shape}.safetensors")],
        lambda step, figures: pacer.tick(batch * context),
        tokenizer=str(work / f"tokenizer-{shape}"),
        output=str(work / f"ours-{shape}"),
        batch_size=batch,
        context=context,
        steps=MANY,
        **settings,
    )


def sft(pacer: Ticks, work: Path, *, batch: int, length: int, **settings: Any) -> None:
    """Units are real tokens, prompts included."""
    from rlhfkit.config import ReadConfig
    from rlhfkit.data.batching import Order, step_items
    from rlhfkit.data.examples import demonstration_examples
    from rlhfkit.data.records import Demonstration, read_records
    from rlhfkit.data.tokenizer import Tokenizer
    from rlhfkit.stages import sft as stage

    demos, model = str(work / "demos.jsonl"), str(work / "policy")
    records = read_records([demos], Demonstration, ReadConfig()).whole()
    examples, _ = demonstration_examples(records, Tokenizer.from_dir(model), length, loss_on="completion")
    lengths = [len(e.ids) for e in examples]
    seed = stage.Config(model=model, output="").seed
    order = Order(len(lengths), seed)

    def each(step: int, figures: Mapping[str, Any]) -> None:
        items = step_items(order, step - 1, batch, MANY * batch)
        pacer.tick(sum(lengths[i] for i in items))

    run_stage(
        stage,
        [demos],
        each,
        model=model,
        output=str(work / f"ours-sft-{_tag(settings)}"),
        batch_size=batch,
        max_seq_len=length,
        steps=MANY,
        **settings,
    )


def reward_model(
    pacer: Ticks, work: Path, *, records: str, batch: int, pairs: int, length: int, **settings: Any
) -> None:
    """Units are pairs; `batch` counts records, each of which holds `pairs` pairs."""
    from rlhfkit.stages import train_rm as stage

    run_stage(
        stage,
        [str(work / records)],
        lambda step, figures: pacer.tick(batch * pairs),
        model=str(work / "policy"),
        output=str(work / f"ours-rm-{records}"),
        batch_size=batch,
        max_seq_len=length,
        steps=MANY,
        **settings,
    )


def ppo(pacer: Ticks, work: Path, *, prompts: int, **settings: Any) -> None:
    """Units are episodes; the figures are the seconds of each phase."""
    from rlhfkit.stages import ppo as stage

    def each(step: int, figures: Mapping[str, Any]) -> None:
        phases = {k.removeprefix("time/"): float(v) for k, v in figures.items() if k.startswith("time/")}
        pacer.tick(prompts, **phases)

    run_stage(
        stage,
        [str(work / "prompts.jsonl")],
        each,
        model=str(work / "policy"),
        reward=str(work / "reward"),
        output=str(work / f"ours-ppo-{_tag(settings)}"),
        batch_size=prompts,
        steps=MANY,
        **settings,
    )


def sample(pacer: Ticks, work: Path, *, rows: int, n: int = 1, new: int, **settings: Any) -> None:
    """Units are new tokens; a step is one batch of the stage, from prompts' text to records."""
    from rlhfkit.stages import sample as stage

    config = stage.Config(
        model=str(work / "policy"), batch_size=rows // n, n=n, max_new_tokens=new, temperature=1.0, **settings
    )
    for batch in stage.run(_endless(work / "prompts.jsonl"), config):
        drawn = [c for record in batch for c in record.get("completions", [record])]
        pacer.tick(sum(c["num_tokens"] for c in drawn))


def sample_mixed(pacer: Ticks, work: Path, *, requests: int, new: int) -> None:
    """As `sample`, of requests that end after 1 to `new` tokens, each length as likely as any other.

    A completion's first tokens, which are random, decide how long it will be.
    """
    from rlhfkit.data.tokenizer import Tokenizer, prompt_ids
    from rlhfkit.engine.dist import resolve_device, resolve_dtype
    from rlhfkit.engine.draw import Sampling
    from rlhfkit.engine.generate import generate
    from rlhfkit.models.loading import load_causal

    device = resolve_device("auto")
    model = load_causal(str(work / "policy"), dtype=resolve_dtype("auto", device), device=device)
    tokenizer = Tokenizer.from_dir(work / "policy")
    prompts = (prompt_ids(tokenizer, str(record["prompt"])) for record in _endless(work / "prompts.jsonl"))

    def ends(ids: list[int]) -> bool:
        digest = hashlib.sha256(ids[0].to_bytes(4, "little")).digest()
        return len(ids) >= 1 + int.from_bytes(digest[:4], "little") % new

    for lap in itertools.count():
        outputs = generate(
            model,
            list(itertools.islice(prompts, requests)),
            [lap * requests + row for row in range(requests)],
            Sampling(max_new_tokens=new),
            stop=ends,
        )
        pacer.tick(sum(len(o.ids) for o in outputs))


def _endless(path: Path) -> Iterator[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return itertools.cycle(records)


def _tag(settings: Mapping[str, Any]) -> str:
    return "-".join(f"{k}.{v}" for k, v in settings.items()) or "default"
