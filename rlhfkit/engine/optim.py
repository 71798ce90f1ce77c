"""AdamW with float32 master weights, gradient clipping, learning-rate schedules and weight averages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rlhfkit.errors import RlhfkitError

#: InstructGPT, appendix C: beta2 of 0.95 adapts faster than Adam's 0.999, which matters in short runs.
BETAS = (0.9, 0.95)


class AdamW:
    """AdamW (Loshchilov & Hutter, 2019) over a module's trainable parameters.

    The module comes in float32. With `dtype` bfloat16 it computes in that from here on, while its float32
    weights, which the optimizer keeps, are what is optimised: gradients are accumulated in float32 and the
    module is refreshed after every step. Matrices decay, vectors (norms, biases) do not.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = dict(self.live)
        if dtype != torch.float32:
            self.masters = {name: p.detach().float().requires_grad_() for name, p in self.live.items()}
            module.to(dtype)
        decay = [p for p in self.masters.values() if p.ndim >= 2]
        rest = [p for p in self.masters.values() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.inner = torch.optim.AdamW([g for g in groups if g["params"]], betas=BETAS, eps=eps, fused=True)

    def collect(self) -> None:
        """Move the gradients of a low-precision backward pass into the float32 masters."""
        for name, live in self.live.items():
            master = self.masters[name]
            if master is live or live.grad is None:
                continue
            if master.grad is None:
                master.grad = live.grad.float()
            else:
                master.grad += live.grad
            live.grad = None

    def gradients(self) -> Iterator[Tensor]:
        """The accumulated gradients; a parameter that took no part gets zeros, so that ranks agree."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            yield master.grad

    def step(self, lr: float) -> None:
        """Apply the gradients with this learning rate and clear them."""
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.zero_grad()
        with torch.no_grad():
            for name, live in self.live.items():
                if self.masters[name] is not live:
                    live.copy_(self.masters[name])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for name, master in self.masters.items():
            master.grad = None
            self.live[name].grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs, flat: masters and both moments."""
        out = {f"weight/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            state = self.inner.state.get(master)
            if state:
                out[f"exp_avg/{name}"] = state["exp_avg"]
                out[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
                out[f"step/{name}"] = state["step"].reshape(1)
        return out

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave, bit for bit."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"weight/{name}"])
                self.live[name].copy_(master)
                if f"exp_avg/{name}" not in tensors:
                    continue
                self.inner.state[master] = {
                    "step": tensors[f"step/{name}"].reshape(()).clone(),
                    "exp_avg": tensors[f"exp_avg/{name}"].clone(),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone(),
                }


def clip_gradients(gradients: list[Tensor], max_norm: float) -> float:
    """Scale gradients in place so that their global norm is at most `max_norm` (0: only measure it).

    Raises RlhfkitError when the norm is not finite: the caller has not stepped yet, so the weights stay good.
    """
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients])
    )
    value = float(norm)
    if not math.isfinite(value):
        raise RlhfkitError(
            "the gradient is not finite; the weights were not changed",
            hint="lower --lr, set --grad-clip 1.0, or try --dtype float32",
        )
    if max_norm > 0 and value > max_norm:
        torch._foreach_mul_(gradients, max_norm / (value + 1e-6))
    return value


def learning_rate(step: int, total: int, *, peak: float, schedule: str, warmup: float) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`.

    Warm-up is linear from 10% of the peak; cosine ends at exactly 10% of the peak on the last step
    (InstructGPT, appendix C); linear falls towards 0, which it would reach one step after the last.
    """
    warmup_steps = round(warmup * total) if 0 < warmup < 1 else round(warmup)
    if step < warmup_steps:
        return peak * (0.1 + 0.9 * step / warmup_steps)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (total - step) / max(1, total - warmup_steps)
    progress = (step - warmup_steps) / max(1, total - 1 - warmup_steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


class WeightAverage:
    """Exponential moving average of an optimizer's float32 weights (InstructGPT, appendix C.4: 0.992)."""

    def __init__(self, optimizer: AdamW, decay: float) -> None:
        self.optimizer = optimizer
        self.decay = decay
        self.weights = {name: master.detach().clone() for name, master in optimizer.masters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(
            list(self.weights.values()), list(self.optimizer.masters.values()), 1 - self.decay
        )

    def tensors(self) -> dict[str, Tensor]:
        """The averages, for a checkpoint."""
        return dict(self.weights)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])
