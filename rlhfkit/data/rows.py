"""One object of the input, and reading its fields under other names."""

from __future__ import annotations

from typing import Any

import msgspec

from rlhfkit.data.strict import Fields, Parts
from rlhfkit.errors import UsageError

#: A new name and the path of the old one.
Rename = tuple[str, tuple[str, ...]]

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_STRING: Any = object()


class Row(msgspec.Struct, gc=False):
    """One object of the input."""

    source: str
    line: int
    raw: bytes  # the line as read
    fields: Fields  # the fields as they are written, in order
    parts: Parts  # what is known of those that are not strings; see rlhfkit.data.strict

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source}:{self.line}"

    @property
    def values(self) -> dict[str, Any]:
        """All fields decoded, anew at every call."""
        return {name: self.value(name) for name in self.fields}

    def value(self, name: str) -> Any:
        """One field decoded; None where there is none."""
        if name not in self.fields:
            return None
        part = self.parts.get(name, _STRING)
        if part is _STRING:
            return _decode(self.fields[name])
        if type(part) is list and part and type(part[0]) is bytes:
            return list(map(_decode, part))
        return part

    def rename(self, new: str, old: str) -> None:
        """Read the field `old` under the name `new`."""
        self.fields[new] = self.fields.pop(old)
        self.parts.pop(new, None)
        if old in self.parts:
            self.parts[new] = self.parts.pop(old)

    def replace(self, name: str, raw: msgspec.Raw) -> None:
        """Put other JSON into a field."""
        self.fields[name] = raw
        self.parts.pop(name, None)
        value = _decode(raw)
        if type(value) is not str:
            self.parts[name] = value

    def map(self, new: str, path: tuple[str, ...]) -> bool:
        """Read what stands at `path`, the name of a field and of fields inside it, under the name `new`.

        Returns whether anything stands there.
        """
        old = ".".join(path)
        if old in self.fields:
            if old != new:
                self.rename(new, old)
            return True
        found = _at(self.fields, path)
        if found is not None:
            self.replace(new, found)
        return found is not None


def parse_map(setting: str) -> Rename:
    """NEW=OLD as a new name and a path. Raises UsageError."""
    new, equals, old = setting.partition("=")
    if not new or not equals or not old:
        raise UsageError(
            f"{setting!r} is not NEW=OLD", where="--map", hint="for example --map completion=answer"
        )
    return new, tuple(old.split("."))


def _at(fields: Fields, path: tuple[str, ...]) -> msgspec.Raw | None:
    """The JSON at a path of field names and list indices, None where there is none."""
    found = fields.get(path[0])
    for part in path[1:]:
        if found is None:
            return None
        first = bytes(found)[:1]
        if first == b"{":
            found = _decode_fields(found).get(part)
        elif first == b"[" and part.isdigit():
            items = _decode_items(found)
            found = items[int(part)] if int(part) < len(items) else None
        else:
            found = None
    return found
