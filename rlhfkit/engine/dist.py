"""The only module that knows of more than one process.

`torchrun --nproc-per-node N -m rlhfkit TRAINER ...` starts the same command N times. Every process holds
a full replica, takes every N-th sequence of each global batch, and gradients are summed: losses are sums
divided by the weight of the *global* batch, so N processes take the step that one would take.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from rlhfkit.errors import UsageError
from rlhfkit.models.processor import fast_bfloat16

#: A rank that dies is noticed by its peers after this long at the latest.
TIMEOUT = timedelta(minutes=30)
#: Models of this hidden size and more compute in bfloat16 on a CPU that is fast at it. Measured on an AMD
#: EPYC with AVX512-BF16, four layers, one thread: training 1.8, sampling 1.4 times as fast as in float32.
WIDE = 256


@dataclass(frozen=True)
class Dist:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_env(cls, device: torch.device) -> Dist:
        """Join the process group that torchrun's environment describes; alone without one."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        import torch.distributed as td

        if not td.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            td.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        return cls(td.get_rank(), world_size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The indices of a global batch of `count` items that this process takes."""
        return range(self.rank, count, self.world_size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.world_size > 1:
            import torch.distributed as td

            values = values.clone()
            td.all_reduce(values)
        return values

    def max_int(self, value: int) -> int:
        """The largest of all processes' integers; a way to agree on a flag."""
        if self.world_size == 1:
            return value
        import torch.distributed as td

        tensor = torch.tensor([value], dtype=torch.int64, device=self._device())
        td.all_reduce(tensor, op=td.ReduceOp.MAX)
        return int(tensor.item())

    def sum_dict(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum a dictionary of figures, the same keys everywhere, in float64."""
        if self.world_size == 1 or not sums:
            return sums
        names = sorted(sums)
        total = self.sum(torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self._device()))
        return dict(zip(names, total.tolist(), strict=True))

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that any process has, sorted: one without a share of a batch has measured nothing."""
        own = "\n".join(sorted(names))
        if self.world_size == 1:
            return own.split("\n")
        parts = self.gather([float(byte) for byte in own.encode()])
        return sorted({name for part in parts for name in bytes(map(int, part)).decode().split("\n") if name})

    def max_dict(self, maxima: dict[str, float]) -> dict[str, float]:
        """The largest of every figure over all processes, the same keys everywhere."""
        if self.world_size == 1 or not maxima:
            return maxima
        import torch.distributed as td

        names = sorted(maxima)
        values = torch.tensor([maxima[n] for n in names], dtype=torch.float64, device=self._device())
        td.all_reduce(values, op=td.ReduceOp.MAX)
        return dict(zip(names, values.tolist(), strict=True))

    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Sum gradients in place over all processes, in buckets of about 32 MiB."""
        if self.world_size == 1:
            return
        import torch.distributed as td
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        def flush(bucket: list[Tensor]) -> None:
            flat = _flatten_dense_tensors(bucket)  # type: ignore[no-untyped-call]
            td.all_reduce(flat)
            parts = _unflatten_dense_tensors(flat, bucket)  # type: ignore[no-untyped-call]
            for grad, total in zip(bucket, parts, strict=True):
                grad.copy_(total)

        bucket: list[Tensor] = []
        size = 0
        for grad in gradients:
            bucket.append(grad)
            size += grad.numel() * grad.element_size()
            if size > 32 * 2**20:
                flush(bucket)
                bucket, size = [], 0
        if bucket:
            flush(bucket)

    def gather(self, item: list[float]) -> list[list[float]]:
        """Every process's list of numbers, in rank order (lists may differ in length)."""
        if self.world_size == 1:
            return [item]
        import torch.distributed as td

        length = self.max_int(len(item))
        padded = torch.full((length + 1,), float("nan"), dtype=torch.float64, device=self._device())
        padded[0] = len(item)
        padded[1 : 1 + len(item)] = torch.tensor(item, dtype=torch.float64)
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        td.all_gather(parts, padded)
        return [part[1 : 1 + int(part[0])].tolist() for part in parts]

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.world_size > 1:
            import torch.distributed as td

            td.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            import torch.distributed as td

            if td.is_initialized():
                td.destroy_process_group()

    @staticmethod
    def _device() -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and _backend() == "nccl" else "cpu")


def _backend() -> str:
    import torch.distributed as td

    return str(td.get_backend())


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> a device; asking for a GPU where none is raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", where="--device cuda", hint="use --device cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device, hidden_size: int) -> torch.dtype:
    """`auto` is bfloat16 where that is faster for a model of this width, else float32.

    That is on a GPU that has it, and on a CPU with instructions for its products from WIDE on. Narrower
    models train in seconds anyway and keep the exact arithmetic.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = hidden_size >= WIDE and fast_bfloat16()
        name = "bfloat16" if fast else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
