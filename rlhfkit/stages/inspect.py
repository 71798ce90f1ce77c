"""Say what a file or directory is, and check it.

PATH may be a model, a run (finished or not), a checkpoint, a tokenizer, a token shard or a directory of
them, a JSONL file or plain text. Checked are, as far as each has them: SHA-256 digests, the shapes of all
tensors against the configuration, numbers that are not finite, token ids, every record and its kind.
Nothing is executed and nothing is written.

What is bad is told on standard error with exit status 65, after what could be found out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfkit.config import CommonConfig, Inputs, option
from rlhfkit.errors import BadRecords, DataError, InputMissing, RlhfkitError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Source

INPUTS = Inputs("PATH", "What to look at.", kind="path", required=True, stdin=False)
OUTPUT = "text"
EXAMPLES = (
    "rlhfkit inspect sft",
    "rlhfkit inspect rankings.jsonl",
    "rlhfkit inspect --json rm | jq .parameters",
)

#: Files that stand for the directory they are in.
_OF_DIRECTORY = {"config.json", "run.json", "tokenizer.json", "state.json"}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".distcp", ".gguf", ".npz")


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Settings of `inspect`."""

    json: bool = option(False, help="Print one JSON object a path instead of text.")


@dataclass
class Report:
    """What a path is, what there is to know about it, and what is wrong with it."""

    kind: str
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)
    #: further problems that nobody worded
    more: int = 0

    def check(self, what: Callable[[], None]) -> None:
        """Run a check; what it raises is a problem of the report, and others still run."""
        try:
            what()
        except BadRecords as bad:
            self.problems += bad.errors
            self.more += bad.more
        except RlhfkitError as error:
            self.problems.append(DataError(error.message, where=error.where, hint=error.hint))


def run(inputs: Source, config: Config) -> Iterator[str]:
    """Yield the description of each path; after the last, raise what is wrong."""
    problems: list[DataError] = []
    more = 0
    for name in inputs:
        assert isinstance(name, str | Path)
        report = inspect(Path(name))
        problems += report.problems
        more += report.more
        yield _as_json(str(name), report) if config.json else _as_text(str(name), report)
    if len(problems) == 1 and not more:
        raise problems[0]
    if problems:
        raise BadRecords(problems[:10], more=len(problems[10:]) + more)


def inspect(path: Path) -> Report:
    """Describe and check one path. Raises InputMissing (66) when it is not there."""
    if not path.exists():
        raise InputMissing("no such file or directory", where=str(path))
    if path.name in _OF_DIRECTORY and path.is_file():
        path = path.parent
    return _directory(path) if path.is_dir() else _file(path)


# -- directories -------------------------------------------------------------------------------------------


def _directory(path: Path) -> Report:
    unfinished = (path / "checkpoints").is_dir()
    if (path / "config.json").exists():
        report = _model(path)
    elif (path / "state.json").exists():
        report = _checkpoint(path)
    elif (path / "tokenizer.json").exists():
        report = Report("tokenizer")
        report.check(lambda: _tokenizer(path, report))
    elif unfinished:
        report = Report("unfinished run")
    elif shards := sorted(path.glob("*.safetensors")):
        report = _shards(shards)
    elif (path / "run.json").exists():
        report = Report("run")
    else:
        raise DataError(
            f"no model, run, checkpoint, tokenizer or token shards (it holds {_names(path)})", where=str(path)
        )
    if unfinished:
        report.check(lambda: _unfinished_run(path, report))
    if (path / "run.json").exists():
        report.check(lambda: _finished_run(path, report))
    return report


def _model(path: Path) -> Report:
    from rlhfkit.models.loading import load_model, open_directory

    report = Report("model")

    def configuration() -> None:
        opened = open_directory(path)
        config = opened.config
        report.kind = "reward model" if opened.kind == "scalar" else "language model"
        report.facts |= {
            "architecture": (config.raw.get("architectures") or [config.family])[0],
            "layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "context": config.max_seq_len,
            "vocab_size": config.vocab_size,
        }

    def weights() -> None:
        # On the meta device every header, shape and number is checked and no memory is taken.
        model = load_model(path, device="meta", verify=False)
        assert model.layout is not None
        dtypes = {str(dtype).removeprefix("torch.") for dtype in model.layout.dtypes.values()}
        files = sorted(path.glob("*.safetensors"))
        report.facts |= {
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": ", ".join(sorted(dtypes)),
            "weights": {file.name: file.stat().st_size for file in files},
        }

    report.check(configuration)
    if not report.problems:
        report.check(weights)
    report.check(lambda: _tokenizer(path, report))
    return report


def _tokenizer(path: Path, report: Report) -> None:
    from rlhfkit.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(path)
    report.facts |= {
        "tokenizer_vocab_size": tokenizer.vocab_size,
        "tokenizer_digest": tokenizer.digest,
        "end_tokens": [tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids],
        "pad_token": tokenizer.pad_token,
        "chat_template": tokenizer.has_chat_template,
    }
    room = report.facts.get("vocab_size")
    if isinstance(room, int) and tokenizer.vocab_size > room:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model has room for {room}", where=str(path)
        )


def _finished_run(path: Path, report: Report) -> None:
    from rlhfkit.models.directory import read_json, verify_digests

    document = read_json(path / "run.json")
    outputs = document.get("outputs")
    report.facts |= {"made_by": document.get("command"), "command_line": document.get("argv")}
    report.facts |= {name: document[name] for name in ("seeds", "versions") if name in document}
    names = list(outputs) if isinstance(outputs, dict) else []
    before = len(report.problems)
    for name in names:
        report.check(lambda name=name: verify_digests(path, {name}))  # type: ignore[misc]
    bad = len(report.problems) - before
    report.facts["digests"] = f"{len(names) - bad} of {len(names)} files as run.json says"


def _unfinished_run(path: Path, report: Report) -> None:
    from rlhfkit.engine.checkpoint import checkpoints
    from rlhfkit.models.directory import read_json

    marker = path / "checkpoints" / "run.json"
    report.facts["unfinished_run_of"] = read_json(marker).get("command")
    found = checkpoints(path / "checkpoints")
    report.facts["checkpoints"] = [checkpoint.name for checkpoint in found]
    for checkpoint in found:
        report.check(lambda checkpoint=checkpoint: _verify_checkpoint(checkpoint))  # type: ignore[misc]


def _verify_checkpoint(path: Path) -> None:
    from rlhfkit.engine.checkpoint import read_checkpoint

    read_checkpoint(path)


def _checkpoint(path: Path) -> Report:
    from rlhfkit.engine.checkpoint import read_checkpoint

    report = Report(
        "checkpoint", {"files": {file.name: file.stat().st_size for file in sorted(path.iterdir())}}
    )

    def verify() -> None:
        report.facts["step"], _ = read_checkpoint(path)

    report.check(verify)
    return report


# -- files -------------------------------------------------------------------------------------------------


def _shards(paths: list[Path]) -> Report:
    from rlhfkit.data.shards import open_shard

    report = Report("token shard" if len(paths) == 1 else f"{len(paths)} token shards")
    shards = []
    for path in paths:
        report.check(lambda path=path: shards.append(open_shard(path)))  # type: ignore[misc]
    report.facts |= {
        "documents": sum(len(shard.doc_offsets) - 1 for shard in shards),
        "tokens": sum(len(shard.tokens) for shard in shards),
        "dtype": ", ".join(sorted({shard.tokens.dtype.name for shard in shards})),
        "vocab_size": max((shard.vocab_size for shard in shards), default=0),
        "tokenizer_digest": ", ".join(sorted({shard.tokenizer_digest for shard in shards})),
    }
    if len({shard.tokenizer_digest for shard in shards}) > 1:
        report.problems.append(DataError("shards of different tokenizers", where=str(paths[0].parent)))
    return report


def _file(path: Path) -> Report:
    if path.suffix in _PICKLES:
        from rlhfkit.models.directory import CONVERT

        raise DataError(
            "a format that can run code or is not read; it was not opened", where=str(path), hint=CONVERT
        )
    if not path.is_file():
        raise DataError("neither a file nor a directory", where=str(path))
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".json":
        return _json(path)
    if path.name.removesuffix(".gz").endswith(".txt"):
        return _text(path)
    return _records(path)


def _safetensors(path: Path) -> Report:
    from rlhfkit.models.safetensors_io import read_header

    tensors = read_header(path)
    if tensors.keys() == {"tokens", "doc_offsets"}:
        return _shards([path])
    sizes = [info.stop - info.start for info in tensors.values()]
    kinds = ", ".join(sorted({info.kind for info in tensors.values()}))
    return Report("safetensors file", {"tensors": len(tensors), "bytes": sum(sizes), "dtype": kinds})


def _json(path: Path) -> Report:
    from rlhfkit.models.directory import read_json

    report = Report("JSON file")
    report.check(lambda: report.facts.update(fields=list(read_json(path))))
    return report


def _records(path: Path) -> Report:
    from rlhfkit.data.describe import describe_jsonl

    report = Report("JSONL file")

    def describe() -> None:
        facts, error = describe_jsonl(path)
        report.facts.update(facts)
        if error is not None:
            raise error

    report.check(describe)
    return report


def _text(path: Path) -> Report:
    import codecs

    from rlhfkit.data.sources import open_input

    facts = {"bytes": 0, "characters": 0, "lines": 0}
    report = Report("text", dict(facts))

    def read_all() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with open_input(str(path)) as read:
            while block := read():
                try:
                    facts["characters"] += len(decoder.decode(block))
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"not UTF-8 near byte offset {facts['bytes'] + error.start}", where=str(path)
                    ) from None
                facts["bytes"] += len(block)
                facts["lines"] += block.count(b"\n")
        report.facts.update(facts)

    report.check(read_all)
    return report


# -- output ------------------------------------------------------------------------------------------------


def _names(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def _as_json(name: str, report: Report) -> str:
    problems = [{"where": problem.where, "error": problem.message} for problem in report.problems]
    whole = {"path": name, "kind": report.kind, "ok": not problems, **report.facts, "problems": problems}
    if report.more:
        whole["more_problems"] = report.more
    return json.dumps(whole, ensure_ascii=False) + "\n"


def _as_text(name: str, report: Report) -> str:
    width = max((len(key) for key in report.facts), default=0)
    lines = [f"{name}: {report.kind}"]
    lines += [f"  {key.replace('_', ' '):{width}}  {_shown(value)}" for key, value in report.facts.items()]
    count = len(report.problems) + report.more
    lines.append(f"  BAD: {count} problem{'s' * (count > 1)}" if count else "  in order")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value) or "none"
    return "none" if value is None else str(value)
