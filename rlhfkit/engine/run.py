"""The directory of a training run: its lock, its checkpoints, its logs and its finished model.

While a run is under way its directory holds `checkpoints/` (with `run.json`, the settings it was started
with), and its logs. A finished run has the model's files and, written last, a `run.json` of its own. So
a directory with `checkpoints/` is unfinished and one with `run.json` holds a complete model; during
`--force` over a finished run both are true until the new model replaces the old one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhfkit import __version__, context
from rlhfkit.config import TrainConfig, options
from rlhfkit.engine import checkpoint
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.metrics import Log, finite
from rlhfkit.errors import CannotCreate, DataError, Interrupted
from rlhfkit.files import DirectoryLock, fsync_directory, sha256_file, write_json

RUN = "run.json"
CHECKPOINTS = "checkpoints"
#: Without --save-every a checkpoint is written this often, in seconds.
SAVE_INTERVAL = 60.0


@dataclass(frozen=True)
class Snapshot:
    """What a trainer puts into a checkpoint: tensors by group, and JSON values."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, object]


class Run:
    """One run in its output directory. Only the main process writes; the others look on."""

    def __init__(
        self, path: Path, command: str, config: TrainConfig, identity: dict[str, object], dist: Dist
    ) -> None:
        self.path = path
        self.command = command
        self.config = config
        self.identity = identity
        self.dist = dist
        self.resumed_from: Path | None = None
        self.step = 0
        self.state: dict[str, Any] = {}
        self._logs: dict[str, Log] = {}
        self._lock: DirectoryLock | None = None
        self._last_save = time.monotonic()
        self._started = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints stand while the run is under way."""
        return self.path / CHECKPOINTS

    # -- start -----------------------------------------------------------------------------------------

    @classmethod
    def open(cls, command: str, config: TrainConfig, dist: Dist, *, data: Mapping[str, object]) -> Run:
        """Lock the output directory, and find out whether to start, to continue or to refuse.

        `data` are digests of everything the result depends on beside the settings (models, records). An
        unfinished run of the same settings and data is continued; anything else that is in the way needs
        --force. Raises CannotCreate (73), Locked (75), or DataError (65) when the data have changed.
        """
        settings = {
            name: value for name, value in asdict(config).items() if options(type(config))[name].shapes_result
        }
        # Through JSON, so that what was read back compares equal (tuples become lists).
        identity = json.loads(json.dumps({"command": command, "settings": settings, "data": dict(data)}))
        run = cls(Path(config.output), command, config, identity, dist)
        try:
            if dist.is_main:
                run._claim()
            dist.barrier()
            run._find_checkpoint()
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the logs and let go of the directory; what stands in it stays."""
        for log in self._logs.values():
            log.close()
        if self._lock is not None:
            self._lock.release()

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreate(error.strerror or str(error), where=str(self.path)) from error
        self._lock = DirectoryLock(self.path)
        self._lock.acquire()
        marker = self.checkpoints / RUN
        if not self._continues(marker):
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            try:
                self.checkpoints.mkdir()
            except OSError as error:
                raise CannotCreate(error.strerror or str(error), where=str(self.checkpoints)) from error
            write_json(marker, self.identity)
        checkpoint.sweep(self.checkpoints)

    def _continues(self, marker: Path) -> bool:
        """Whether an unfinished run of the same identity stands here; refuse what is in the way."""
        force, where = self.config.force, str(self.path)
        finished = self.path / RUN
        if marker.is_file():
            before = _read_json(marker)
            if finished.is_file() and _read_json(finished).get("identity") == before:
                # Killed between writing run.json and clearing up: the run is finished.
                shutil.rmtree(self.checkpoints, ignore_errors=True)
            elif before == self.identity and self.config.resume:
                return True
            elif not force:
                self._refuse_unfinished(before)
        if finished.is_file() and not force:
            raise CannotCreate(
                "holds a finished run", where=where, hint="give another -o, or --force to replace it"
            )
        if not force and not marker.is_file() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise CannotCreate(
                "exists and is not empty", where=where, hint="give another -o, or --force to use it"
            )
        return False

    def _refuse_unfinished(self, before: Mapping[str, Any]) -> None:
        where = str(self.path)
        hint = "run the same command to continue it, or --force to start anew"
        if before == self.identity:
            raise CannotCreate("holds an unfinished run and --no-resume was given", where=where, hint=hint)
        if before.get("command") != self.command:
            raise CannotCreate(f"holds an unfinished run of {before.get('command')}", where=where, hint=hint)
        changed = _differences(before.get("settings", {}), self.identity["settings"])  # type: ignore[arg-type]
        if changed:
            raise CannotCreate(
                f"holds an unfinished run of other settings: {changed}", where=where, hint=hint
            )
        changed = _differences(before.get("data", {}), self.identity["data"])  # type: ignore[arg-type]
        raise DataError(
            f"the data changed since this run was started: {changed}", where=where, hint="--force starts anew"
        )

    def _find_checkpoint(self) -> None:
        found = checkpoint.checkpoints(self.checkpoints)
        if not found:
            return
        self.resumed_from = found[-1]
        self.step, self.state = checkpoint.read_checkpoint(found[-1])
        context.note(f"continuing {self.path} from step {self.step}")

    def load(self, group: str, device: torch.device) -> dict[str, Tensor]:
        """A group of tensors of the checkpoint that this run continues from."""
        assert self.resumed_from is not None
        return checkpoint.load_tensors(self.resumed_from, group, device)

    # -- while running ---------------------------------------------------------------------------------

    def log(self, name: str, record: Mapping[str, object]) -> None:
        """Append a record to `NAME.jsonl` in the run's directory."""
        if not self.dist.is_main:
            return
        if name not in self._logs:
            lengths = self.state.get("logs", {})
            self._logs[name] = Log(self.path / f"{name}.jsonl", length=lengths.get(name, 0))
        self._logs[name].write(record)

    def start_logs(self, *names: str) -> None:
        """Open (and cut back) the logs that this run will write, so that none keeps stale lines."""
        for name in names:
            if self.dist.is_main and name not in self._logs:
                lengths = self.state.get("logs", {})
                self._logs[name] = Log(self.path / f"{name}.jsonl", length=lengths.get(name, 0))

    def save_due(self, step: int, total: int) -> bool:
        """Whether a checkpoint should follow this step (all processes agree)."""
        every = self.config.save_every
        if step >= total:
            return False
        if every is not None:
            return step % every == 0
        return bool(self.dist.max_int(int(time.monotonic() - self._last_save > SAVE_INTERVAL)))

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint of this step and drop old ones."""
        if self.dist.is_main:
            logs = {name: log.position() for name, log in self._logs.items()}
            state = {**snapshot.state, "logs": logs}
            checkpoint.write_checkpoint(self.checkpoints, step, snapshot.tensors, state)
            checkpoint.prune(self.checkpoints, self.config.keep)
        self._last_save = time.monotonic()

    def stop_if_asked(self, step: int, snapshot: Callable[[], Snapshot]) -> None:
        """After SIGINT or SIGTERM: save this step and raise Interrupted."""
        signum = self.dist.max_int(context.stop_requested() or 0)
        if signum:
            self.save(step, snapshot())
            raise Interrupted(
                signum, f"stopped by signal {signum} after step {step}; the same command continues"
            )

    def keep_model(self, name: str, write: Callable[[Path], None]) -> None:
        """Put a model of this moment into the directory `name`, whole or not at all; `write` as in `finish`.

        One that stands there already is of the same step of this run and stays.
        """
        target = self.path / name
        if not self.dist.is_main or target.exists():
            return
        aside = self.checkpoints / "kept"  # what a kill leaves here goes with the checkpoints
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(aside)
        self._flush(aside)
        target.parent.mkdir(exist_ok=True)
        os.rename(aside, target)
        fsync_directory(target.parent)

    # -- end -------------------------------------------------------------------------------------------

    def finish(self, write: Callable[[Path], None], summary: Mapping[str, object]) -> dict[str, object]:
        """Put the finished model into the run's directory, `run.json` last; returns the summary.

        `write` puts the model's files into the directory that it is given.
        """
        result = finite({"output": str(self.path), "steps": self.step, **summary})
        if self.dist.is_main:
            aside = self.checkpoints / "final"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            write(aside)
            for log in self._logs.values():
                log.position()
            produced = {
                str(p.relative_to(aside)): sha256_file(p) for p in sorted(aside.rglob("*")) if p.is_file()
            }
            logs = {f"{name}.jsonl": sha256_file(self.path / f"{name}.jsonl") for name in self._logs}
            self._flush(aside)
            document = self._describe(produced | logs, result)
            self._replace(aside, produced)
            # Only the marker is left to clear up once run.json stands: a kill in between costs nothing.
            for path in checkpoint.checkpoints(self.checkpoints):
                shutil.rmtree(path, ignore_errors=True)
            write_json(self.path / RUN, document)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.dist.barrier()
        return result

    def _flush(self, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            else:
                fsync_directory(path)

    def _replace(self, aside: Path, produced: Mapping[str, str]) -> None:
        """Move the new files up. From the removal of an old run.json to the writing of the new one the
        directory counts as unfinished, and the checkpoints still stand.
        """
        old = self.path / RUN
        if old.is_file():
            stale = set(_read_json(old).get("outputs", {})) - set(produced)
            old.unlink()
            for name in stale:
                if not name.endswith(".jsonl"):
                    (self.path / name).unlink(missing_ok=True)
        for name in produced:
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, target)
        fsync_directory(self.path)

    def _describe(self, outputs: Mapping[str, str], result: Mapping[str, object]) -> dict[str, object]:
        invocation = context.invocation()
        return {
            "command": self.command,
            "argv": list(invocation.argv),
            "settings": json.loads(json.dumps(asdict(self.config))),
            "sources": dict(invocation.sources),
            "identity": self.identity,
            "versions": {
                "rlhfkit": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "processes": self.dist.world_size,
            },
            "seeds": {"seed": self.config.seed},
            "inputs": self.identity["data"],
            "outputs": dict(outputs),
            "summary": dict(result),
        }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("not a readable run description", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`lr was 0.1, is now 0.2; ...` for up to three keys."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = [f"{key} was {before.get(key)}, is now {now.get(key)}" for key in keys[:3]]
    return "; ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
