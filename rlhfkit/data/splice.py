"""New records out of the JSON of old ones, without encoding again what did not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


class _TextOf(msgspec.Struct, gc=False):
    text: Raw


_decode_texts = msgspec.json.Decoder(list[_TextOf]).decode


def texts_of(completions: Raw, values: Sequence[Any]) -> list[Raw]:
    """The text (or messages) of each completion, without metadata. `values` are the same decoded."""
    if all(type(value) is dict and type(value.get("text")) is str for value in values):
        return [item.text for item in _decode_texts(completions)]
    return [
        _decode_object(raw)["text" if type(value.get("text")) is str else "messages"]
        if type(value) is dict
        else raw
        for raw, value in zip(_decode_items(completions), values, strict=True)
    ]


def with_scores(completions: Raw, values: Sequence[Any], scores: Sequence[float]) -> list[object]:
    """Each completion as an object with its score; a string becomes `{"text", "score"}`."""
    scored: list[object] = []
    for raw, value, score in zip(_decode_items(completions), values, scores, strict=True):
        if type(value) is dict and "score" not in value:
            scored.append(Raw(b'%b,"score":%b}' % (bytes(raw)[:-1], _encode(float(score)))))
        elif type(value) is dict:
            scored.append({**_decode_object(raw), "score": float(score)})
        else:
            scored.append({"text" if type(value) is str else "messages": raw, "score": float(score)})
    return scored


def with_renamed(completions: Raw, old: str, new: str) -> list[object]:
    """Each completion (an object) with its field `old` called `new`."""
    return [
        {(new if name == old else name): value for name, value in _decode_object(raw).items()}
        for raw in _decode_items(completions)
    ]
