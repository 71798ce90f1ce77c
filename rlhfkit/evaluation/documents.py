"""Small files of figures: metrics, one JSON object a line, or one JSON document."""

from __future__ import annotations

from typing import Any

import msgspec

from rlhfkit.context import note
from rlhfkit.data.sources import UTF8_BOM, display_name, open_input
from rlhfkit.errors import DataError

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def read_objects(name: str) -> list[dict[str, Any]]:
    """All objects of a file ("-": standard input, `.gz` too): of its lines, or its one document's.

    The last line of a run that is being written, or was killed, may be half there; it is left out. Raises
    InputMissing, InputOutputError, DataError naming the line.
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
            objects.append(_decode_object(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if number == len(lines) and objects:
                note(f"{where}:{number}: the last line is not complete; left out")
                break
            raise DataError(f"not a JSON object: {error}", where=f"{where}:{number}") from None
    return objects
