"""Settings: one frozen dataclass per command, one `option` per flag.

The field is the only place where a setting is named, typed, defaulted and described. The command line,
`--config` files, environment variables, the reference, man pages and shell completions derive from it.

Types a field may have: bool, int, float, str, Literal[...], any of them with `| None`, and
tuple[str, ...] (a repeatable flag). A bool with default False is `--name`; with default True it is
`--name/--no-name`. A field without default is required.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar


@dataclass(frozen=True)
class Option:
    """What the command line needs to know of a field beyond its name, type and default."""

    help: str
    group: str = "Options"
    short: str | None = None  # "-m"
    names: tuple[str, ...] = ()  # further long spellings, "--seq-len"
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # exclusive lower bound
    negative: str | None = None  # the "off" spelling of a bool, "--no-x"
    #: False: cannot change results, so it is left out of the settings that must agree on resume
    shapes_result: bool = True


def option(default: Any = MISSING, *, help: str, **about: Any) -> Any:
    """A dataclass field that is also a flag. See `Option` for the keywords."""
    metadata = {"option": Option(help=help, **about)}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config_class: type) -> dict[str, Option]:
    """The options of a settings class by field name, in order of definition."""
    return {f.name: f.metadata["option"] for f in fields(config_class) if "option" in f.metadata}


@dataclass(frozen=True)
class Inputs:
    """The positional arguments of a command."""

    metavar: str  # "PROMPTS"
    help: str
    kind: str = "records"  # record kind, "text", "shards", "metrics" or "path"
    required: bool = False  # at least one must be named; else standard input is read when none is
    stdin: bool = True  # whether "-" and standard input make sense
    single: bool = False


INPUT = "Input"
OUTPUT = "Output"
MODEL = "Model"
TRAINING = "Training"
RUN = "Run"
GENERAL = "General"


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Flags of every command."""

    quiet: bool = option(
        False,
        short="-q",
        group=GENERAL,
        shapes_result=False,
        help="Say nothing but errors on standard error.",
    )
    debug: bool = option(False, group=GENERAL, shapes_result=False, help="Show the traceback of an error.")


@dataclass(frozen=True, kw_only=True)
class ReadConfig(CommonConfig):
    """How records are read; shared by every command that reads JSONL."""

    map: tuple[str, ...] = option(
        (),
        group=INPUT,
        metavar="NEW=OLD",
        help="Read field OLD under the name NEW (dotted paths allowed; repeatable).",
    )
    on_bad_line: Literal["stop", "skip"] = option(
        "stop", group=INPUT, help="What to do with a bad record: stop at the first, or skip and count."
    )
    rejects: str | None = option(
        None,
        group=INPUT,
        metavar="FILE",
        shapes_result=False,
        help="With --on-bad-line skip: keep the skipped lines and the reason here.",
    )
    limit: int | None = option(None, group=INPUT, minimum=0, metavar="N", help="Stop after N records.")
    max_line_bytes: int = option(
        64 * 2**20, group=INPUT, minimum=1, metavar="BYTES", help="Refuse a line longer than this."
    )


Reading = TypeVar("Reading", bound=ReadConfig)


def for_further_inputs(reading: Reading) -> Reading:
    """How a command reads its further files, such as held-out records: without --limit and --rejects."""
    return replace(reading, limit=None, rejects=None)


@dataclass(frozen=True, kw_only=True)
class RankingReadConfig(ReadConfig):
    """How rankings are read."""

    rank_order: Literal["order", "ranks"] | None = option(
        None,
        group=INPUT,
        help="What a flat `ranking: [2,0,1]` means: an order (best first) or the rank of each completion.",
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(ReadConfig):
    """Flags of commands that write records."""

    output: str | None = option(
        None,
        short="-o",
        group=OUTPUT,
        metavar="FILE",
        shapes_result=False,
        help="Write here, whole or not at all (default: standard output).",
    )
    force: bool = option(False, group=OUTPUT, shapes_result=False, help="Replace an existing output.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Flags of every trainer. Sizes are global: they mean the same on one process and on many."""

    output: str = option(
        short="-o",
        group=OUTPUT,
        metavar="DIR",
        shapes_result=False,
        help="Directory of the run and of the finished model.",
    )
    force: bool = option(
        False,
        group=OUTPUT,
        shapes_result=False,
        help="Replace a finished or different run in the output directory.",
    )
    steps: int | None = option(
        None,
        group=TRAINING,
        minimum=1,
        metavar="N",
        help="Optimizer steps (iterations for ppo); overrides --epochs.",
    )
    epochs: float = option(1.0, group=TRAINING, above=0, metavar="N", help="Passes over the data.")
    batch_size: int = option(
        32,
        group=TRAINING,
        minimum=1,
        metavar="N",
        help="Sequences in one optimizer step, over all processes.",
    )
    micro_batch_size: int | None = option(
        None,
        group=TRAINING,
        minimum=1,
        metavar="N",
        help="Sequences in one forward pass (default: as many as fit a token budget).",
    )
    lr: float = option(1e-5, group=TRAINING, minimum=0, metavar="RATE", help="Peak learning rate.")
    lr_schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine",
        group=TRAINING,
        help="After the warm-up: cosine to 10% of the peak, linear to 0, or constant.",
    )
    warmup: float = option(
        0.0,
        group=TRAINING,
        minimum=0,
        metavar="STEPS",
        help="Warm-up from 10% of the peak, in steps (below 1: a fraction of all steps).",
    )
    weight_decay: float = option(0.0, group=TRAINING, minimum=0, help="AdamW weight decay of matrices.")
    grad_clip: float = option(
        1.0, group=TRAINING, minimum=0, metavar="NORM", help="Clip the global gradient norm (0: off)."
    )
    max_seq_len: int | None = option(
        None,
        group=TRAINING,
        minimum=2,
        metavar="TOKENS",
        help="Longest sequence (default: the model's context).",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        group=RUN,
        help="Compute precision (auto: bfloat16 where it is faster); master weights stay float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", group=RUN, help="Where to run.")
    compile: bool = option(
        False, group=RUN, negative="--no-compile", help="Compile the model's blocks with torch.compile."
    )
    seed: int = option(1337, group=RUN, minimum=0, maximum=2**63 - 1, help="Seed of everything random.")
    save_every: int | None = option(
        None,
        group=RUN,
        minimum=1,
        metavar="STEPS",
        shapes_result=False,
        help="Steps between checkpoints (default: about one a minute).",
    )
    keep: int = option(
        2, group=RUN, minimum=2, metavar="N", shapes_result=False, help="Checkpoints kept while running."
    )
    resume: bool = option(
        True,
        group=RUN,
        negative="--no-resume",
        shapes_result=False,
        help="Continue an unfinished run of the same settings.",
    )
    eval: str | None = option(None, group=RUN, metavar="FILE", help="Held-out records to evaluate on.")
    eval_every: int | None = option(
        None,
        group=RUN,
        minimum=1,
        metavar="STEPS",
        help="Steps between evaluations (default: at the end only).",
    )
    log_every: int = option(
        10,
        group=RUN,
        minimum=1,
        metavar="STEPS",
        shapes_result=False,
        help="Steps between lines of metrics.jsonl.",
    )
    dry_run: bool = option(
        False, group=RUN, shapes_result=False, help="Check everything, say what would happen, write nothing."
    )
