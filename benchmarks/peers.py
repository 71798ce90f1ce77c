"""transformers' and nanoGPT's sides, and the processor's own matrix rate. See `side` and `lap`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lap import Pacer


def matrix_rate(pacer: Pacer, work: Path, *, size: int = 1024, dtype: str = "bfloat16") -> None:
    """Units are floating-point operations of square products, two a multiply-add."""
    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    while True:
        for _ in range(20):
            a @ b
        pacer.tick(20 * 2 * size**3)


def windows(work: Path, shape: str, batch: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of a memory-mapped token stream and their targets, each (batch, context)."""
    tokens = np.load(work / f"{shape}.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    while True:
        starts = rng.integers(0, len(tokens) - context - 1, batch)
        rows = torch.from_numpy(np.stack([tokens[s : s + context + 1] for s in starts]).astype(np.int64))
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def llama(vocab: int, context: int, layers: int, hidden: int, heads: int, ffn: int) -> Any:
    """The same shape as rlhfkit's own models, random weights."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(1337)
    return transformers.AutoModelForCausalLM.from_config(config).float().train()


def loop(
    pacer: Pacer, work: Path, *, shape: str, batch: int, context: int, vocab: int, bf16: bool, **model: int
) -> None:
    """A plain training loop over a transformers model: AdamW, clipping, autocast if `bf16`."""
    network = llama(vocab, context, **model)
    adam = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for inputs, targets in windows(work, shape, batch, context):
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            logits = network(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        loss.item()
        pacer.tick(batch * context)


def nanogpt(
    pacer: Pacer,
    work: Path,
    *,
    source: str,
    shape: str,
    batch: int,
    context: int,
    vocab: int,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
) -> None:
    """A step of nanoGPT's model and optimizer, from a checkout; on a CPU its train.py computes in float32."""
    sys.path.insert(0, source)
    from model import GPT, GPTConfig

    torch.manual_seed(1337)
    network = GPT(
        GPTConfig(
            block_size=context,
            vocab_size=vocab,
            n_layer=layers,
            n_head=heads,
            n_embd=hidden,
            dropout=0.0,
            bias=False,
        )
    )
    adam = network.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    for inputs, targets in windows(work, shape, batch, context):
        _, loss = network(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        loss.item()
        pacer.tick(batch * context)


def trainer(
    pacer: Pacer, work: Path, *, shape: str, batch: int, context: int, vocab: int, bf16: bool, **model: int
) -> None:
    """transformers' Trainer on the same model and data."""
    import transformers

    rows = windows(work, shape, 1, context)

    class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            # The model shifts the labels itself.
            return ({"input_ids": ids[0], "labels": ids[0]} for ids, _ in rows)

    arguments = transformers.TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=batch,
        max_steps=100_000,
        learning_rate=1e-3,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    transformers.Trainer(
        model=llama(vocab, context, **model),
        args=arguments,
        train_dataset=Rows(),
        callbacks=[tick_callback(lambda: pacer.tick(batch * context))],
    ).train()


def tick_callback(tick: Any) -> Any:
    """A callback of transformers' Trainer that calls `tick` after every optimizer step."""
    import transformers

    class Tick(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    return Tick()


def generate(
    pacer: Pacer,
    work: Path,
    *,
    rows: int,
    new: int,
    n: int = 1,
    requests: int | None = None,
    dtype: str = "bfloat16",
) -> None:
    """transformers' generate on the prompts' ids; units are new tokens up to each row's end.

    With `requests`, that many are served `rows` at a time and end after 1 to `new` tokens, all lengths
    being as likely: a row that has ended is padded until the last of its batch ends.
    """
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(work / "policy", dtype=getattr(torch, dtype))
    network.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "policy")
    lines = (work / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = itertools.cycle([tokenizer(json.loads(line)["prompt"]).input_ids for line in lines])
    rng = torch.Generator().manual_seed(0)
    while True:
        drawn = 0
        for _ in range(0, requests or rows, rows):
            ids = torch.tensor(list(itertools.islice(prompts, rows // n)))
            lengths = (
                torch.randint(1, new + 1, (rows,), generator=rng) if requests else torch.full((rows,), new)
            )
            with torch.inference_mode():
                network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=n,
                    pad_token_id=0,
                    eos_token_id=None,
                    stopping_criteria=ending(ids.shape[1] + lengths) if requests else None,
                )
            drawn += int(lengths.sum())
        pacer.tick(drawn)


def ending(lengths: Tensor) -> Any:
    """Stopping criteria by which each row ends at its own length, prompt included."""
    import transformers

    def criterion(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return lengths <= ids.shape[1]

    return transformers.StoppingCriteriaList([criterion])
