"""New records out of the JSON of old ones, without encoding again what did not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _TextOf(msgspec.Struct):
    text: msgspec.Raw


_decode_texts = msgspec.json.Decoder(list[_TextOf]).decode


def completion_raws(completions: msgspec.Raw, values: Sequence[Any]) -> list[msgspec.Raw]:
    """The text (or messages) of each completion as JSON. `values` are the same completions decoded."""
    if all(type(value) is dict and type(value.get("text")) is str for value in values):
        return [item.text for item in _decode_texts(completions)]
    raws = _decode_items(completions)
    for index, value in enumerate(values):
        if type(value) is dict:
            raws[index] = _decode_object(raws[index])[
                "text" if type(value.get("text")) is str else "messages"
            ]
    return raws


def scored_completions(
    completions: msgspec.Raw, values: Sequence[Any], scores: Sequence[float]
) -> list[object]:
    """Each completion as an object with its score; a string becomes `{"text", "score"}`."""
    scored: list[object] = []
    for raw, value, score in zip(_decode_items(completions), values, scores, strict=True):
        if type(value) is dict and "score" not in value:
            scored.append(msgspec.Raw(b'%b,"score":%b}' % (bytes(raw)[:-1], _encode(float(score)))))
        elif type(value) is dict:
            scored.append({**_decode_object(raw), "score": float(score)})
        else:
            scored.append({"text" if type(value) is str else "messages": raw, "score": float(score)})
    return scored
