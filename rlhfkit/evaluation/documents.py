"""Small files of figures: metrics, one JSON object a line, or one JSON document."""

from __future__ import annotations

from typing import Any

import msgspec

from rlhfkit.context import note
from rlhfkit.data.sources import UTF8_BOM, display_name, open_input
from rlhfkit.data.strict import Malformed, parse
from rlhfkit.errors import DataError


def read_objects(name: str) -> list[dict[str, Any]]:
    """All objects of a file ("-": standard input, `.gz` too): of its lines, or its one document's.

    The last line of a run that is being written, or was killed, may be half there; it is left out. Raises
    InputMissing, InputOutputError, DataError with line and column.
    """
    pieces = []
    with open_input(name) as read:
        while piece := read():
            pieces.append(piece)
    text = b"".join(pieces).removeprefix(UTF8_BOM)
    try:
        whole = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _of_lines(text, display_name(name))
    if isinstance(whole, dict):
        return [whole]
    raise DataError("expected an object", where=display_name(name))


def _of_lines(text: bytes, where: str) -> list[dict[str, Any]]:
    objects = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            objects.append(parse(line)[0])
        except Malformed as problem:
            if number == len(lines) and objects:
                note(f"{where}:{number}: the last line is not complete; left out")
                break
            place = f"{where}:{number}" + (f":{problem.column}" if problem.column is not None else "")
            raise DataError(problem.message, where=place, hint=problem.hint) from None
    return objects
