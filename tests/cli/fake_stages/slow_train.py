"""Count steps as a trainer does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfkit import context
from rlhfkit.config import Inputs, TrainConfig, option
from rlhfkit.errors import Interrupted

INPUTS = Inputs("ROWS", "Files of records.")
OUTPUT = "summary"
EXAMPLES = ("rlhfkit slow-train rows.jsonl -o run", "rlhfkit slow-train rows.jsonl -o run --steps 3")


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Settings of `slow-train`."""

    step_seconds: float = option(0.0, minimum=0, help="Duration of a step.")
    load_seconds: float = option(0.0, minimum=0, help="Duration of loading.")


def run(inputs: Any, config: Config) -> dict[str, object]:
    """Count to --steps, saving when asked to stop."""
    out = Path(config.output)
    out.mkdir(exist_ok=True)
    (out / "loading").touch()
    time.sleep(config.load_seconds)
    progress = context.reporter().progress("slow-train", config.steps, "step")
    for step in range(config.steps or 1):
        (out / "started").touch()
        end = time.monotonic() + config.step_seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
        progress.update(step + 1, {"loss": 1 / (step + 1)})
        if signum := context.stop_requested():
            (out / "saved").write_text(str(step + 1))
            raise Interrupted(signum, f"stopped by signal {signum} after step {step + 1}")
    progress.close()
    return {"output": config.output, "steps": config.steps, "inputs": list(inputs)}
