"""Safetensors files, read with distrust: the header is checked before any number is believed.

The library accepts a tensor named twice, and takes seconds over hundreds of thousands of tiny tensors, so the
header is parsed here. Data are copied from a memory map straight into their place, and the pages behind are
given back at once: peak memory is the destination's, and nothing stays mapped.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhfkit.errors import DataError
from rlhfkit.models.directory import open_regular, unique_keys

MAX_HEADER = 25_000_000
MAX_TENSORS = 100_000
#: bytes copied before the pages behind are given back
CHUNK = 16 << 20

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: kinds that are sized and then refused by name, rather than called unknown
OTHER_SIZES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
OTHER_SIZES |= {"F8_E5M2": 1, "F8_E4M3": 1}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    #: from the start of the file
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype; only kinds in DTYPES have one."""
        return DTYPES[self.kind]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name. Raises DataError for anything that does not add up."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise DataError(f"not a safetensors file: {size} bytes", where=str(path))
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise DataError(
                f"not a safetensors file: a header of {length} bytes in a file of {size}", where=str(path)
            )
        text = file.read(length)
    # Counted before it is parsed, which takes seconds where there are hundreds of thousands: one object a
    # tensor, one for the metadata and one around all.
    if text.count(b"{") > MAX_TENSORS + 2:
        raise DataError(f"more than {MAX_TENSORS} tensors", where=str(path))
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"bad safetensors header: {str(error)[:200]}", where=str(path)) from None
    if not isinstance(header, dict):
        raise DataError("bad safetensors header: not an object", where=str(path))
    header.pop("__metadata__", None)
    infos = {name: _info(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_cover(path, infos, 8 + length, size)
    return infos


def _info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    def bad(what: str) -> DataError:
        return DataError(f"bad safetensors header: tensor {name!r}: {what}", where=str(path))

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise bad("dtype, shape or data_offsets missing")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or (kind not in DTYPES and kind not in OTHER_SIZES):
        raise bad(f"unknown dtype {kind!r}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise bad("bad shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise bad("bad data_offsets")
    itemsize = DTYPES[kind].itemsize if kind in DTYPES else OTHER_SIZES[kind]
    need = itemsize
    for n in shape:
        need *= n
    if offsets[1] - offsets[0] != need:
        raise bad(f"{offsets[1] - offsets[0]} bytes for shape {shape} of {kind}, which needs {need}")
    return TensorInfo(path, name, kind, tuple(shape), data + offsets[0], data + offsets[1])


def _check_cover(path: Path, infos: dict[str, TensorInfo], data: int, size: int) -> None:
    """The tensors fill the file from the header to its end, without holes or overlaps."""
    at = data
    for info in sorted(infos.values(), key=lambda info: (info.start, info.stop)):
        if info.start != at:
            what = "overlaps another" if info.start < at else "leaves a hole before it"
            raise DataError(f"bad safetensors header: tensor {info.name!r} {what}", where=str(path))
        at = info.stop
    if at > size:
        raise DataError(f"truncated: has {size} bytes, needs {at}", where=str(path))
    if at < size:
        raise DataError(f"{size - at} bytes too many behind the last tensor", where=str(path))


class Reader:
    """Copies tensors of one file into their places."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            # A private map: torch takes only writable buffers without a warning; nothing writes to it.
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def copy(self, info: TensorInfo, target: Tensor) -> int:
        """Fill `target`, whose shape may split the tensor's first axis; how many numbers are not finite."""
        bad = 0
        width = info.dtype.itemsize * max(target[0].numel(), 1) if target.dim() else info.dtype.itemsize
        rows = target.shape[0] if target.dim() else 1
        flat = target if target.dim() else target[None]
        step = max(CHUNK // width, 1)
        for first in range(0, rows, step):
            part = flat[first : first + step]
            start, stop = info.start + first * width, info.start + (first + part.shape[0]) * width
            source = torch.frombuffer(self.map, dtype=info.dtype, count=part.numel(), offset=start).view(
                part.shape
            )
            bad += _count_bad(source)
            part.copy_(source)
            del source
            self._give_back(start, stop)
        return bad

    def same(self, info: TensorInfo, other: Reader, other_info: TensorInfo) -> bool:
        """Do two tensors of equal shape and dtype hold the same bytes?"""
        for done in range(0, info.stop - info.start, CHUNK):
            stop = min(done + CHUNK, info.stop - info.start)
            mine = self.map[info.start + done : info.start + stop]
            if mine != other.map[other_info.start + done : other_info.start + stop]:
                return False
        return True

    def _give_back(self, start: int, stop: int) -> None:
        page = mmap.PAGESIZE
        first, last = start // page * page, stop // page * page
        if last > first:
            self.map.madvise(mmap.MADV_DONTNEED, first, last - first)


def _count_bad(source: Tensor) -> int:
    """How many numbers are NaN or infinite; one quick pass for the usual answer, none."""
    if source.numel() == 0:
        return 0
    low, high = torch.aminmax(source)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return 0
    return int((~torch.isfinite(source)).sum())
