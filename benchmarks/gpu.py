"""Everything that matters on one CUDA device, in one command of under 8 minutes.

    python -m benchmarks.gpu --output benchmarks/gpu.md   # needs a CUDA device; the page takes it in
    python -m benchmarks.gpu --tiny                       # the same code on tiny shapes, on whatever there is

Method. *Matrix rate*: square bfloat16 products of 8192, two operations a multiply-add; it is what 100% means
for compute, so utilisation is against what this card does, not what its data sheet says. *Bandwidth*: a copy
of 4 GiB on the device, read and write counted. *Pretraining* and the other trainers run as commands, with
their logs; model FLOPs a token are 6 x the parameters of matrices, the output layer included, plus
6 x layers x width x context for causal attention. *Decoding* is `engine.generate` without an end; the time of
a step is the difference between many and few new tokens, so that reading the prompt does not count. Its
limit is the larger of two: the bytes of the weights and of the keys and values over the bandwidth, and the
FLOPs over the matrix rate. *PPO* tells its phases itself (`time/...` of its metrics). Profiles are of whole
steps by torch.profiler, operators by their own time on the device.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import data, ours
from benchmarks.page import number, table
from rlhfkit.engine.draw import Sampling
from rlhfkit.engine.generate import generate
from rlhfkit.models.config import ModelConfig, llama_config
from rlhfkit.models.loading import init_model

Line = list[object]


class Enough(Exception):
    """The counter has seen all steps that it was to see."""


class Steps:
    """Stands where the pacer does: lets `warm` steps pass, measures `count`, profiles one, ends the run."""

    def __init__(self, count: int, warm: int = 3, profiler: Any = None) -> None:
        self.count, self.warm, self.profiler = count, warm, profiler
        self.done = 0
        self.units = self.seconds = 0.0
        self.figures: Counter[str] = Counter()

    def tick(self, units: float, **figures: float) -> None:
        """One step has ended."""
        synchronize()
        self.done += 1
        if self.done > self.warm + self.count:
            self.profiler.stop()
            raise Enough
        if self.done > self.warm:
            self.units += units
            self.figures.update(figures)
        if self.done == self.warm:
            self.start = time.perf_counter()
        if self.done == self.warm + self.count:
            self.seconds = time.perf_counter() - self.start
            if self.profiler is None:
                raise Enough
            self.profiler.start()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a square bfloat16 product."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ b, 20)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of a copy, both directions counted."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), 10)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that take part in matrix products, the output layer included."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    ffn = 3 * config.hidden_size * config.ffn_hidden_size
    return config.num_layers * (attention + ffn) + config.vocab_size * config.hidden_size


class Benchmark:
    """The device, its limits, the shapes, and the lines found so far."""

    def __init__(self, work: Path, *, tiny: bool) -> None:
        self.work, self.tiny = work, tiny
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rate = matrix_rate(self.device, 256 if tiny else 8192)
        self.copies = bandwidth(self.device, 2**20 if tiny else 2**32)
        self.big = llama_config(
            vocab_size=512 if tiny else 32_768,
            hidden_size=64 if tiny else 2048,
            num_layers=2 if tiny else 18,
            num_heads=4 if tiny else 16,
            max_seq_len=64 if tiny else 2048,
        )
        small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "ffn_hidden_size": 64}
        large = {"hidden_size": 1024, "num_layers": 16, "num_heads": 16, "ffn_hidden_size": 2816}
        data.fill(work, None, small if tiny else large)
        words = data.plain_tokenizer(work / "tokenizer-big", self.big.vocab_size)
        data.write_tokens(work, "big", words, 20_000 if tiny else 4_000_000)
        self.lines: list[Line] = []
        self.parts: list[str] = []

    def add(self, work: str, rate: float, unit: str, share: float | None, goal: str = "") -> None:
        """A line of the table, with the peak memory since the last one."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else float("nan")
        shown = "" if share is None else f"{share:.1%}"
        self.lines.append([work, f"{number(rate)} {unit}/s", shown, goal, f"{peak:.1f}"])
        print(*self.lines[-1], sep="  ", file=sys.stderr, flush=True)
        self.release()

    def release(self) -> None:
        """Give memory back and forget the peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def stage(self, run: Callable[..., None], steps: Steps, **settings: Any) -> Steps:
        """Run one of rlhfkit's sides until its steps are counted; drop what it wrote."""
        with suppress(Enough):
            run(steps, self.work, **settings)
        for path in self.work.glob("ours-*"):
            shutil.rmtree(path)
        return steps

    # -- rows ------------------------------------------------------------------------------------------------

    def pretraining(self) -> None:
        """Optimizer steps of 16 windows, eager and compiled."""
        config, batch = self.big, 2 if self.tiny else 16
        width = config.max_seq_len
        per_token = 6 * matrix_parameters(config) + 6 * config.num_layers * config.hidden_size * width
        shape = {
            "shape": "big",
            "batch": batch,
            "context": width,
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "ffn": config.ffn_hidden_size,
            "save_every": ours.MANY,
        }
        profiler = self.profiler()
        for compiled in (False, True):
            steps = Steps(10, profiler=profiler if compiled else None)
            found = self.stage(ours.pretrain, steps, compile=compiled, **shape)
            rate = found.units / found.seconds
            name = f"pretraining, 1B class, {batch} x {width}{', compiled' if compiled else ''}"
            self.add(name, rate, "tokens", rate * per_token / self.rate, "45%" if compiled else "")
        self.profile("a compiled pretraining step", profiler)

    def decoding(self) -> None:
        """New tokens a second after the prompt, against the larger of both limits."""
        config = self.big
        model = init_model(config, 0).to(self.device, torch.bfloat16)
        prompt, few, many = (16, 4, 16) if self.tiny else (64, 16, 144)
        weights = matrix_parameters(config)
        for rows in (1, 16, 64, 256):
            rng = np.random.default_rng(rows)
            prompts = [rng.integers(0, config.vocab_size, prompt).tolist() for _ in range(rows)]

            def run(new: int) -> None:
                generate(model, prompts, list(range(rows)), Sampling(max_new_tokens=new))  # noqa: B023

            step = (seconds(lambda: run(many), 3) - seconds(lambda: run(few), 3)) / (many - few)
            keys = prompt + (few + many) / 2
            cache = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * rows * keys
            attention = 4 * config.num_layers * config.hidden_size * keys
            moved, computed = 2 * weights + cache, rows * (2 * weights + attention)
            limit = max(moved / self.copies, computed / self.rate)
            goal = {1: "70%", 256: "50%"}.get(rows, "")
            self.add(f"decoding, 1B class, batch {rows}", rows / step, "tokens", limit / step, goal)
            if rows in (1, 256):
                profiler = self.profiler()
                profiler.start()
                run(few)
                profiler.stop()
                self.profile(f"sampling, batch {rows}, {few} new tokens", profiler)

    def others(self) -> None:
        """Fine-tuning, reward models and sampling of the 250M class."""
        rows, new = (8, 16) if self.tiny else (64, 128)
        demos = {"batch": 64, "length": 512}
        runs: list[tuple[str, str, Callable[..., None], int, dict[str, Any]]] = [
            ("fine-tuning, 64 records", "real tokens", ours.sft, 8, demos),
            ("fine-tuning, packed", "real tokens", ours.sft, 8, {**demos, "packing": True}),
            (
                "reward model, 64 pairs",
                "pairs",
                ours.reward_model,
                6,
                {"records": "pairs.jsonl", "batch": 64, "pairs": 1, "length": 512},
            ),
            (
                "reward model, 16 rankings of five",
                "pairs",
                ours.reward_model,
                6,
                {"records": "rankings.jsonl", "batch": 16, "pairs": 10, "length": 512},
            ),
            (f"sample, batch {rows}", "tokens", ours.sample, 4, {"rows": rows, "new": new}),
            ("sample, n = 8", "tokens", ours.sample, 4, {"rows": rows, "n": 8, "new": new}),
            ("sampling, mixed lengths", "tokens", ours.sample_mixed, 3, {"requests": 2 * rows, "new": new}),
        ]
        for name, unit, run, count, settings in runs:
            found = self.stage(run, Steps(2 if self.tiny else count), **settings)
            self.add(f"{name}, 250M class", found.units / found.seconds, unit, None)

    def ppo(self) -> None:
        """Iterations of the real trainer with a reward model of the policy's shape, by phase."""
        prompts, new = (16, 16) if self.tiny else (512, 256)
        settings = {"prompts": prompts, "max_new_tokens": new, "save_every": ours.MANY}
        profiler = self.profiler()
        found = self.stage(ours.ppo, Steps(1 if self.tiny else 2, 1, profiler), **settings)
        name = f"PPO, {prompts} x {new} new tokens, 250M class"
        self.add(name, found.units / found.seconds, "episodes", None)
        whole = sum(found.figures.values())
        lines: list[Line] = []
        for name, spent in found.figures.items():
            lines.append([name, f"{spent:.2f}", f"{spent / whole:.0%}", "40%" if name == "rollout" else ""])
        heads = ["phase of the PPO iterations", "seconds", "share", "at most"]
        self.parts.append(table(heads, lines))
        self.profile("a PPO iteration", profiler)

    # -- profiles --------------------------------------------------------------------------------------------

    def profiler(self) -> Any:
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        return profile(activities=kinds)

    def profile(self, name: str, profiler: Any) -> None:
        """The operators that took most of the device's time."""
        kind = "device" if self.device.type == "cuda" else "cpu"
        found = {e.key: (getattr(e, f"self_{kind}_time_total"), e.count) for e in profiler.key_averages()}
        whole = sum(spent for spent, _ in found.values()) or 1
        top = sorted(found.items(), key=lambda item: -item[1][0])[:12]
        lines: list[Line] = [
            [f"`{key[:70]}`", f"{spent / 1000:.1f}", f"{spent / whole:.1%}", calls]
            for key, (spent, calls) in top
        ]
        heads = [f"operator, {name}", "ms", "share", "calls"]
        self.parts.append(table(heads, lines))
        self.release()

    def page(self) -> str:
        """All that was found, as Markdown."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        limits = f"{self.rate / 1e12:.4g} TFLOP/s (bfloat16), bandwidth {self.copies / 1e12:.3g} TB/s"
        return "\n".join(
            [
                f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, "
                f"`python -m benchmarks.gpu`. Matrix rate {limits}.\n",
                table(["work", "rate", "of the limit", "goal", "peak GiB"], self.lines),
                *self.parts,
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script without a GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the tables here")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("no CUDA device; --tiny tries the script without one")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        benchmark = Benchmark(Path(work), tiny=options.tiny)
        for row in (benchmark.pretraining, benchmark.decoding, benchmark.ppo, benchmark.others):
            try:
                row()
            except Exception as error:  # a row that fails must not cost the others
                print(f"{row.__name__} failed: {type(error).__name__}: {error}", file=sys.stderr)
                benchmark.parts.append(f"{row.__name__} failed: {type(error).__name__}: {error}\n")
                benchmark.release()
        text = benchmark.page() + f"\nTook {time.perf_counter() - start:.0f} s.\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
