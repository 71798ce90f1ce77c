"""Write a small research repository: a Makefile over the commands, generated data, a gold scorer.

`make` in the new directory runs the whole method on it: pretraining a small and a ten times bigger model,
fine-tuning, sampling, ranking by simulated labellers, a reward model, PPO, and a comparison of all models on
held-out prompts. Its README says where your own data go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import RUN, CommonConfig, Inputs, option

INPUTS = Inputs("DIR", "The directory to write.", kind="path", required=True, stdin=False, single=True)
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit init my-project && make -C my-project -j2",
    "rlhfkit init another --seed 2 --scale 0.1",
)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Settings of `init`."""

    seed: int = option(1, group=RUN, minimum=0, help="Seed of the generated data, and of the runs on it.")
    scale: float = option(
        1.0, group=RUN, above=0, maximum=10, metavar="FACTOR", help="Generate this share of the usual data."
    )
    force: bool = option(
        False, group=OUTPUT_GROUP, shapes_result=False, help="Replace an existing directory."
    )


def run(inputs: Sequence[str], config: Config) -> dict[str, object]:
    """Write the repository; returns what was written."""
    import shlex
    import shutil
    import time
    from pathlib import Path

    from rlhfkit import context
    from rlhfkit.files import atomic_directory
    from rlhfkit.world import people

    start = time.monotonic()
    world = Path(people.__file__).parent
    with atomic_directory(inputs[0], force=config.force) as directory:
        for file in sorted(path for path in (world / "files").iterdir() if path.is_file()):
            # (pip leaves a __pycache__ there)
            name = ".gitignore" if file.name == "gitignore" else file.name
            shutil.copyfile(file, directory / name)
        shutil.copyfile(world / "gold.py", directory / "gold.py")
        makefile = directory / "Makefile"
        makefile.write_text(makefile.read_text().replace("SEED ?= 1\n", f"SEED ?= {config.seed}\n"))
        counts = people.write_data(directory / "data", seed=config.seed, scale=config.scale)
    where = shlex.quote(str(inputs[0]))
    context.note(f"wrote {inputs[0]}; run `make -C {where} -j2`, about ten minutes on two cores")
    return {
        "output": inputs[0],
        "seed": config.seed,
        "records": counts,
        "seconds": round(time.monotonic() - start, 3),
    }
