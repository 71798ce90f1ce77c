"""What both sides read: `python -m benchmarks.data WORK MEGABYTES [DATA]` fills a work directory.

With a DATA directory the records are GSM8K problems (`gsm8k_train.jsonl`), harmless pairs of Anthropic's hh
(`hh_harmless_pairs_train.jsonl`) and five solutions a problem (`rankings_gsm8k_train.jsonl`); without it
they are made-up words of about the same lengths.

    tokenizer-a (65 words), tokenizer-b (byte-level BPE of 8,192), a.safetensors and a.npy, b likewise:
                       uniformly random tokens
    policy, reward     shape a with a context of 512 and tokenizer-b, random weights
    demos, pairs, rankings (10 pairs each), ranking-pairs (the same as pairs), prompts (64 tokens)  .jsonl
    text.jsonl         MEGABYTES for tokenizing
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rlhfkit.data.shards import ShardWriter, token_dtype
from rlhfkit.data.tokenizer import Tokenizer, train_tokenizer
from rlhfkit.engine.saving import write_model
from rlhfkit.models.config import llama_config
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.loading import init_model

LENGTH = 512
PROMPT = 64
#: GSM8K's and hh's numbers of words: median, and the spread of their logarithm.
QUESTION, ANSWER, TURNS, REPLY = (44, 0.4), (52, 0.5), (60, 0.8), (40, 0.8)
Record = dict[str, Any]


#: Shape a, for everything but pretraining.
POLICY = {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "ffn_hidden_size": 1024}


def main() -> None:
    work = Path(sys.argv[1])
    fill(work, Path(sys.argv[3]) if len(sys.argv) > 3 else None, POLICY)
    tokenizers = {"a": plain_tokenizer(work / "tokenizer-a", 65), "b": Tokenizer.from_dir(work / "policy")}
    tokenizers["b"].save(made(work / "tokenizer-b"))
    for shape, tokens in (("a", 2_000_000), ("b", 4_000_000)):
        write_tokens(work, shape, tokenizers[shape], tokens)
    write_text(work / "text.jsonl", 1e6 * float(sys.argv[2]))


def fill(work: Path, source: Path | None, shape: Mapping[str, int], context: int = LENGTH) -> None:
    """Write the models (of this shape) and the records."""
    problems = read(source / "gsm8k_train.jsonl") if source else list(made_up(4000, QUESTION, ANSWER))
    demos = [{"prompt": r["prompt"] + "\n", "completion": r["response"]} for r in problems]
    tokenizer = train_tokenizer((d["prompt"] + d["completion"] for d in demos), 8192)
    write_models(work, tokenizer, shape, context)
    measure = Measure(tokenizer)
    write(work / "demos.jsonl", (d for d in demos if measure(d["prompt"] + d["completion"]) < LENGTH))
    write(work / "pairs.jsonl", map(measure.cut, pairs(source)))
    ranked = [r for r in rankings(source) if max(measure(r["prompt"] + c) for c in r["completions"]) < LENGTH]
    write(work / "rankings.jsonl", ranked)
    write(work / "ranking-pairs.jsonl", (pair for r in ranked for pair in all_pairs(r)))
    write(work / "prompts.jsonl", prompts(tokenizer, (d["prompt"] for d in demos)))


def made(directory: Path) -> Path:
    """A new directory."""
    directory.mkdir()
    return directory


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def write(path: Path, found: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")


def words(rng: random.Random, about: tuple[int, float]) -> str:
    """Made-up text of a log-normal number of words."""
    known = vocabulary()
    count = min(300, max(2, round(about[0] * rng.lognormvariate(0, about[1]))))
    return " ".join(known[min(int(rng.paretovariate(0.4)), len(known)) - 1] for _ in range(count))


@cache
def vocabulary() -> list[str]:
    """Seven thousand made-up words."""
    rng, letters = random.Random(0), "etaoinshrdlucmfwypvbgkjqxz"
    return ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(7000)]


def made_up(count: int, prompt: tuple[int, float], response: tuple[int, float]) -> Iterator[Record]:
    rng = random.Random(count)
    for _ in range(count):
        yield {"prompt": words(rng, prompt), "response": words(rng, response)}


def pairs(source: Path | None) -> Iterator[Record]:
    """Prompts as text with two different, non-empty answers."""
    if source is None:
        rng = random.Random(1)
        for record in made_up(1500, TURNS, REPLY):
            yield {"prompt": record["prompt"], "chosen": record["response"], "rejected": words(rng, REPLY)}
        return
    names = {"user": "Human", "assistant": "Assistant"}
    for record in read(source / "hh_harmless_pairs_train.jsonl"):
        turns = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in record["prompt"])
        chosen, rejected = (" " + record[name][0]["content"] for name in ("chosen", "rejected"))
        if chosen.strip() and rejected.strip() and chosen != rejected:
            yield {"prompt": turns + "\n\nAssistant:", "chosen": chosen, "rejected": rejected}


def rankings(source: Path | None) -> Iterator[Record]:
    """Five different completions in a strict order (ties of the data are broken by position)."""
    if source is None:
        rng = random.Random(2)
        for record in made_up(500, QUESTION, ANSWER):
            texts = [record["response"], *(words(rng, ANSWER) for _ in range(4))]
            yield {
                "prompt": record["prompt"] + "\n",
                "completions": texts,
                "ranking": [[i] for i in range(5)],
            }
        return
    for record in read(source / "rankings_gsm8k_train.jsonl"):
        texts = [r["text"] for r in record["responses"]]
        if len(set(texts)) == 5 and all(texts):
            order = [[i] for tier in record["ranking"] for i in tier]
            yield {"prompt": record["prompt"] + "\n", "completions": texts, "ranking": order}


def all_pairs(ranking: Record) -> Iterator[Record]:
    """The ten pairs of a ranking."""
    texts = ranking["completions"]
    for (better,), (worse,) in itertools.combinations(ranking["ranking"], 2):
        yield {"prompt": ranking["prompt"], "chosen": texts[better], "rejected": texts[worse]}


class Measure:
    """Lengths in tokens, and pairs cut to fit."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def cut(self, pair: Record) -> Record:
        """The pair without the beginning of its prompt (and, if need be, the ends of its answers)."""
        answers = [self.tokenizer.encode(pair[name])[: LENGTH // 2] for name in ("chosen", "rejected")]
        room = LENGTH - 8 - max(map(len, answers))
        ids = self.tokenizer.encode(pair["prompt"])
        chosen, rejected = map(self.tokenizer.decode, answers)
        prompt = pair["prompt"] if len(ids) <= room else self.tokenizer.decode(ids[-room:])
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prompts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Record]:
    """The first 64 tokens of texts that have them, as text that reads back as 64 tokens."""
    for text in texts:
        ids = tokenizer.encode(text)[:PROMPT]
        start = tokenizer.decode(ids)
        if len(ids) == PROMPT and tokenizer.encode(start) == ids:
            yield {"prompt": start}


def plain_tokenizer(folder: Path, size: int) -> Tokenizer:
    """A tokenizer of `size` made-up words, the end of a text included: the models' vocabulary follows it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    names = ["<|endoftext|>", *(f"w{i}" for i in range(1, size))]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(names[:1])
    backend.save(str(made(folder) / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_dir(folder)


def write_tokens(work: Path, shape: str, tokenizer: Tokenizer, count: int) -> None:
    """Uniformly random ids, as a shard and as an array."""
    size = tokenizer.vocab_size
    ids = np.random.default_rng(1337).integers(0, size, count).astype(token_dtype(size))
    np.save(work / f"{shape}.npy", ids)
    with ShardWriter(work, tokenizer_digest=tokenizer.digest, vocab_size=size) as writer:
        writer.add(ids.tobytes(), [count])
        writer.finish(work / f"{shape}.safetensors")


def write_models(work: Path, tokenizer: Tokenizer, shape: Mapping[str, int], context: int) -> None:
    """A causal model and a reward model on the same random trunk."""
    import torch

    config = llama_config(vocab_size=tokenizer.vocab_size, max_seq_len=context, **shape)
    policy, reward = init_model(config, 1337), ScalarModel(config)
    reward.backbone.load_state_dict(policy.state_dict(), strict=False)
    torch.manual_seed(1337)
    torch.nn.init.normal_(reward.score.weight, std=(config.hidden_size + 1) ** -0.5)
    for name, model in (("policy", policy), ("reward", reward)):
        write_model(model, made(work / name), tokenizer, dict(model.named_parameters()))


def write_text(path: Path, size: float) -> None:
    """Text records of Python's own library: real words, each file once, no downloads."""
    with open(path, "w", encoding="utf-8") as file:
        written = 0
        for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            if "site-packages" not in source.parts:
                text = source.read_text(encoding="utf-8", errors="replace")
                written += file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if written > size:
                return


if __name__ == "__main__":
    main()
