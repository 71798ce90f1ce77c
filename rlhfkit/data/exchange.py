"""Rankings as Label Studio and Argilla write and read them.

Label Studio: tasks with `data` (a prompt and a list of items) and `annotations` by a Ranker, as its JSON
export has them. Argilla: records with `fields` and `responses` to a RankingQuestion whose values are names
of fields, as `Dataset.records.to_json` writes them (version 2) or with a list of `responses` (version 1).
An export is a JSON list, or one object a line.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import msgspec

from rlhfkit import context
from rlhfkit.data.jsonl import Record, Source
from rlhfkit.data.shapes import Completion, Turns
from rlhfkit.data.sources import check_inputs, display_name, open_input
from rlhfkit.errors import DataError

Format = Literal["label-studio", "argilla"]
Json = dict[str, Any]
Tiers = list[list[int]]

#: Fields that hold the prompt, most likely first.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "text")


def imported(inputs: Source, form: Format) -> Iterator[Record]:
    """Ranking records of an export, one for every rater of every task; cancelled and empty ones are left out.

    Raises DataError, which names the file and the task.
    """
    convert = _from_label_studio if form == "label-studio" else _from_argilla
    left_out = 0
    for where, task in _tasks(inputs):
        records = list(convert(task, where))
        left_out += not records
        yield from records
    if left_out:
        context.note(f"{left_out} tasks without a ranking made no records")


def exported(
    record: Json, prompt: Turns, completions: Sequence[Completion], tiers: Tiers, form: Format
) -> Record:
    """A ranking (or, without tiers, a sample still to be ranked) as a task of the other program."""
    texts = [completion.text for completion in completions]
    words = prompt if isinstance(prompt, str) else "\n\n".join(f"{m.role}: {m.content}" for m in prompt)
    convert = _to_label_studio if form == "label-studio" else _to_argilla
    return convert(record, words, texts, tiers)


# -- reading exports ---------------------------------------------------------------------------------------


def _tasks(inputs: Source) -> Iterator[tuple[str, Json]]:
    """(where, task) of all inputs."""
    names: list[Any] = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if any(isinstance(name, Mapping) for name in names):
        yield from ((f"<records>: task {n}", dict(task)) for n, task in enumerate(names, 1))
        return
    check_inputs(map(os.fspath, names))
    for name in names:
        where = display_name(os.fspath(name))
        for number, task in enumerate(_read(os.fspath(name), where), 1):
            identity = task.get("id", number) if isinstance(task, dict) else number
            if not isinstance(task, dict):
                raise DataError("expected a task, an object", where=f"{where}: task {number}")
            yield f"{where}: task {identity}", task


def _read(name: str, where: str) -> list[Any]:
    pieces = []
    with open_input(name) as read:
        while piece := read():
            pieces.append(piece)
    text = b"".join(pieces).strip()
    try:
        if text.startswith(b"["):
            return list(msgspec.json.decode(text))
        return [msgspec.json.decode(line) for line in text.split(b"\n") if line.strip()]
    except (msgspec.DecodeError, RecursionError) as error:
        hint = "an export is a JSON list, or one object a line"
        raise DataError(f"not JSON: {error}", where=where, hint=hint) from None


def _from_label_studio(task: Json, where: str) -> Iterator[Record]:
    data = task.get("data")
    if not isinstance(data, dict):
        raise DataError("task.data: missing", where=where, hint="export as JSON, not as JSON-MIN or CSV")
    found = [value for value in data.values() if _are_items(value)]
    if len(found) != 1:
        raise DataError("task.data: expected one list of items with an id", where=where)
    places = {str(item["id"]): place for place, item in enumerate(found[0])}
    if len(places) < len(found[0]):
        raise DataError("task.data: two items have one id", where=where)
    base = _base(task, data, [_item_text(item, where) for item in found[0]], where)
    for annotation in _dicts(task.get("annotations", task.get("completions", []))):
        results = [r["value"] for r in _dicts(annotation.get("result")) if r.get("type") == "ranker"]
        if annotation.get("was_cancelled") or not results:
            continue
        value = results[-1].get("ranker") if isinstance(results[-1], dict) else None
        tiers = [[_known(places, i, where) for i in tier] for tier in _label_studio_tiers(value, where)]
        record = {**base, "ranking": tiers}
        rater = annotation.get("completed_by", data.get("rater"))
        rater = rater.get("email", rater.get("id")) if isinstance(rater, dict) else rater
        if rater is not None:
            record["rater"] = str(rater)
        if isinstance(seconds := annotation.get("lead_time"), int | float):
            record["seconds"] = seconds
        yield record


def _are_items(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "id" in v for v in value)


def _item_text(item: Json, where: str) -> str:
    text = next((item[name] for name in ("body", "html", "title") if item.get(name)), "")
    if not isinstance(text, str):
        raise DataError("task.data: the body of an item is no string", where=where)
    return text


def _label_studio_tiers(value: object, where: str) -> list[list[Any]]:
    """Tiers of ids: of an order, of the one bucket of an order, or of buckets with the numbers of tiers."""
    if isinstance(value, dict):
        buckets = {name: ids for name, ids in value.items() if name != "_"}  # "_": not placed
        if len(buckets) > 1:
            if not all(name.isdecimal() for name in buckets):
                hint = "name the buckets 1, 2, 3, best first"
                raise DataError(f"buckets {', '.join(buckets)} have no order", where=where, hint=hint)
            return [list(buckets[name]) for name in sorted(buckets, key=int) if buckets[name]]
        value = next(iter(buckets.values()), [])
    if not isinstance(value, list):
        raise DataError("value.ranker: expected a list of ids", where=where)
    return [[identity] for identity in value]


def _from_argilla(task: Json, where: str) -> Iterator[Record]:
    fields = task.get("fields")
    if not isinstance(fields, dict):
        raise DataError("record.fields: missing", where=where, hint="export with to_json, not flattened")
    for rater, value in _argilla_responses(task):
        ranks = [(v["value"], v["rank"]) if isinstance(v, dict) else (v, n) for n, v in enumerate(value, 1)]
        names = [name for name in fields if name in {name for name, _ in ranks}]
        places = {name: place for place, name in enumerate(names)}
        by_rank: dict[int, list[int]] = {}
        for name, rank in ranks:
            by_rank.setdefault(rank, []).append(_known(places, name, where))
        rest = {name: text for name, text in fields.items() if name not in places}
        base = _base(task, rest, [str(fields[name]) for name in names], where)
        yield {**base, "ranking": [by_rank[rank] for rank in sorted(by_rank)], "rater": rater}


def _argilla_responses(task: Json) -> Iterator[tuple[str, list[Any]]]:
    """(rater, value) of all submitted responses to ranking questions."""
    responses, metadata = task.get("responses") or {}, task.get("metadata") or {}
    if isinstance(responses, dict):  # version 2: by question
        given = [
            (answer, answer.get("value")) for answers in responses.values() for answer in _dicts(answers)
        ]
    else:  # version 1: by user
        given = [
            (response, answer.get("value"))
            for response in _dicts(responses)
            for answer in _dicts(list((response.get("values") or {}).values()))
        ]
    for response, value in given:
        if response.get("status", "submitted") == "submitted" and _is_ranking(value):
            user, name = str(response.get("user_id")), metadata.get("rater")
            yield (name if isinstance(name, str) and _user_id(name) == user else user), value


def _is_ranking(value: object) -> TypeGuard[list[Any]]:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(
            isinstance(v, str) or (isinstance(v, dict) and type(v.get("rank")) is int and "value" in v)
            for v in value
        )
    )


def _base(task: Json, data: Json, texts: list[str], where: str) -> Record:
    """The fields that all rankings of a task share."""
    strings = [name for name, value in data.items() if isinstance(value, str) and name != "rater"]
    name = next((name for name in _PROMPTS if name in strings), strings[0] if len(strings) == 1 else None)
    if name is None:
        raise DataError(f"no prompt among {', '.join(strings) or 'no texts'}", where=where)
    record: Record = {"prompt": data[name], "completions": texts}
    identity = task.get("id")
    return {"id": identity, **record} if isinstance(identity, str | int) else record


def _known(places: Mapping[str, int], name: object, where: str) -> int:
    if str(name) not in places:
        raise DataError(f"{name!r} was ranked but is not among {', '.join(places)}", where=where)
    return places[str(name)]


def _dicts(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, Iterable) else []


# -- writing tasks -----------------------------------------------------------------------------------------


def _to_label_studio(record: Json, prompt: str, texts: Sequence[str], tiers: Tiers) -> Record:
    items = [{"id": str(place), "title": str(place + 1), "body": text} for place, text in enumerate(texts)]
    data: Json = {"prompt": prompt, "items": items}
    task: Record = {"data": data}
    if tiers:
        ids = [[str(place) for place in tier] for tier in tiers]
        tied = any(len(tier) > 1 for tier in tiers)
        value = {str(n): tier for n, tier in enumerate(ids, 1)} if tied else [i for tier in ids for i in tier]
        result = {"from_name": "ranking", "to_name": "items", "type": "ranker", "value": {"ranker": value}}
        annotation: Json = {"result": [result], "was_cancelled": False}
        if isinstance(record.get("seconds"), int | float):
            annotation["lead_time"] = record["seconds"]
        if isinstance(record.get("rater"), str):
            data["rater"] = record["rater"]
        task["annotations"] = [annotation]
    return {"id": record["id"], **task} if type(record.get("id")) is int else task


def _to_argilla(record: Json, prompt: str, texts: Sequence[str], tiers: Tiers) -> Record:
    names = [f"completion-{place + 1}" for place in range(len(texts))]
    task: Record = {"fields": {"prompt": prompt, **dict(zip(names, texts, strict=True))}, "metadata": {}}
    if tiers:
        value: list[Any] = [names[place] for tier in tiers for place in tier]
        if len(tiers) < len(value):
            value = [{"value": names[p], "rank": rank} for rank, tier in enumerate(tiers, 1) for p in tier]
        rater = record["rater"] if isinstance(record.get("rater"), str) else "rlhfkit"
        task["metadata"] = {"rater": rater}
        task["responses"] = {"ranking": [{"value": value, "user_id": _user_id(rater)}]}
    return {"id": str(record["id"]), **task} if record.get("id") is not None else task


def _user_id(rater: str) -> str:
    """Argilla knows users by UUID: the rater's own, or one made of the name."""
    try:
        return str(uuid.UUID(rater))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, rater))
