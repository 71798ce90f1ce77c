"""The part of `rank` where people decide: samples to items, decisions to ranking records."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhfkit.context import note
from rlhfkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source
    from rlhfkit.data.records import Sample
    from rlhfkit.data.shapes import Turns
    from rlhfkit.stages.rank import Config
    from rlhfkit.ui.journal import Journal
    from rlhfkit.ui.ranking_session import Item, Session


@dataclass(frozen=True)
class _Task:
    sample: Sample
    item: Item


def rank_by_people(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Let somebody rank (or, with `finish`, nobody); yield the records once they are finished."""
    from rlhfkit.ui.journal import Journal
    from rlhfkit.ui.ranking_session import Session

    path = _journal_path(config)
    if config.finish and not os.path.exists(path):
        raise UsageError(f"no decisions are kept in {path}", where="--finish")
    tasks = _tasks(inputs, config)
    if not tasks:
        return
    items = [task.item for task in tasks]
    journal = Journal(path)
    try:
        rater = config.rater
        if not config.finish:
            rater = rater or _login_name()
            session = Session(items, journal, rater, overlap=config.overlap, seed=config.seed)
            _ask(session, config)
        yield from _records(tasks, journal, rater)
    finally:
        journal.close()


def _journal_path(config: Config) -> str:
    if config.journal is not None:
        if config.output is not None and os.path.realpath(config.journal) == os.path.realpath(config.output):
            raise UsageError("the journal and the output are two files", where="--journal")
        return config.journal
    if config.output in (None, "-"):
        raise UsageError(
            "decisions need a file that outlives a crash",
            where="--journal",
            hint="-o FILE keeps them in FILE.journal; or name one with --journal",
        )
    return f"{config.output}.journal"


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, no such variable: a container
        return "rater"


def _ask(session: Session, config: Config) -> None:
    """Show items until all are decided or the person ends it."""
    count = session.count()
    if not count.left:
        note(f"{session.rater} has nothing left to rank: {count}")
        return
    try:
        if config.web:
            from rlhfkit.ui.web.page import rank_on_page

            rank_on_page(session, port=config.port, browser=config.browser)
        else:
            from rlhfkit.ui.tty import rank_on_terminal

            rank_on_terminal(session)
    except BaseException:
        session.release()
        note(f"{session.count()}; kept in {session.journal.path}: the same command continues")
        raise
    session.release()
    note(str(session.count()))


# -- samples to items --------------------------------------------------------------------------------------


def _tasks(inputs: Source, config: Config) -> list[_Task]:
    """All that can be ranked by a person. Raises DataError for a record with too many completions or one."""
    from rlhfkit.data.records import Sample, read_records
    from rlhfkit.ui.ranking_session import FEWEST, MOST, Item

    tasks: list[_Task] = []
    alike = skipped = 0
    seen: dict[str, int] = {}
    for sample in read_records(inputs, Sample, config):
        turns = [_shown(completion.turns) for completion in sample.completions]
        different = len(set(turns))
        if len(turns) < FEWEST or different > MOST:
            if config.on_bad_line == "stop":
                raise DataError(
                    f"sample.completions: {different} cannot be ranked by a person, who sees 2 to {MOST}",
                    where=sample.where,
                    hint="--on-bad-line skip leaves such records out",
                )
            skipped += 1
        elif different < FEWEST:
            alike += 1
        else:
            key = _key(sample)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:  # the same record again is another item
                key += f"-{seen[key]}"
            tasks.append(_Task(sample, Item(key, _shown(sample.prompt), tuple(turns))))
    if alike:
        note(f"left out {alike} records whose completions are all the same text")
    if skipped:
        note(f"skipped {skipped} records with one completion or more than {MOST}")
    return tasks


def _shown(turns: Turns) -> tuple[tuple[str, str], ...]:
    if isinstance(turns, str):
        return (("", turns),)
    return tuple((message.role, message.content) for message in turns)


def _key(sample: Sample) -> str:
    """What makes it this item: id, prompt and completions, and nothing beside them."""
    turns = [_shown(completion.turns) for completion in sample.completions]
    text = repr((sample.id, _shown(sample.prompt), turns))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# -- decisions to records ----------------------------------------------------------------------------------


def _records(tasks: Sequence[_Task], journal: Journal, rater: str | None) -> Iterator[list[Record]]:
    from rlhfkit.ui.ranking_session import decisions

    found = decisions(journal, [task.item for task in tasks], rater)
    if journal.torn:
        note(f"passed over {journal.torn} torn lines of {journal.path}")
    for task in tasks:
        batch = [_record(task.sample, line) for line in found[task.item.key] if line["ranking"] is not None]
        if batch:
            yield batch


def _record(sample: Sample, line: dict[str, Any]) -> Record:
    record = sample.with_ranking(line["ranking"])
    for name in ("rater", "seconds", "shown_order", "flags"):
        record[name] = line[name]
    for name in ("ratings", "note"):
        if line[name]:
            record[name] = line[name]
    record["ranked_at"] = line["time"]
    return record
