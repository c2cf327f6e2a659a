"""Reading safetensors without mapping the file, into the tensors themselves.

If a mapped file were cut while it is read, the system would end the program; and the format's own reader of bytes holds
the file twice. The layout is that of https://github.com/huggingface/safetensors: the length of a header as a 64-bit
little-endian integer, the header as JSON with type, shape and place of each tensor, and the tensors without gaps.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_MOST_HEADER = 100_000_000  # bytes, the limit of the format
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; the memory is that of the tensors.

    Raises:
        ValueError: if it is truncated or damaged, or has a type that torch does not have; the message is the reason.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        header, rest = _header(file)
        places = _places(header, rest)
        tensors = {}
        for name, dtype, shape in places:
            tensor = torch.empty(shape, dtype=dtype)
            if tensor.numel():
                buffer = tensor.reshape(-1).view(torch.uint8).numpy()
                if file.readinto(buffer.data) != buffer.nbytes:
                    raise ValueError(f"the file ends in {name[:100]}")
            tensors[name] = tensor
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The strings in a file's header; errors as in `read`."""
    with open(path, "rb") as file:
        found = _entries(_header(file)[0]).get("__metadata__")
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _header(file: BinaryIO) -> tuple[bytes, int]:
    """The header, and the number of bytes after it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MOST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    return file.read(length), size - 8 - length


def _entries(header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError("its header is no JSON") from error
    if not isinstance(entries, dict):
        raise ValueError("its header is not a table of tensors")
    return entries


def _places(header: bytes, size: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Name, dtype and shape of the tensors in their order in the file, which they fill without gaps."""
    entries = _entries(header)
    entries.pop("__metadata__", None)
    found = sorted(_place(name, entry) for name, entry in entries.items())
    end = 0
    for begin, after, name, _, _ in found:
        if begin != end:
            raise ValueError(f"{name[:100]} does not begin where the tensor before it ends")
        end = after
    if end != size:
        raise ValueError(f"{size} bytes of tensors, expected {end}")
    return [(name, _DTYPES[kind], shape) for _, _, name, kind, shape in found]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return table


def _place(name: str, entry: Any) -> tuple[int, int, str, str, list[int]]:
    """Begin, end, name, type and shape of a tensor."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name[:100]} has no type, shape and place") from None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError(f"{name[:100]} has no valid shape and place")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{name[:100]} has the type {str(kind)[:100]}, which is not supported")
    if end - begin != math.prod(shape) * _DTYPES[kind].itemsize:
        raise ValueError(f"{name[:100]} has {end - begin} bytes, which do not fit its shape {shape} of {kind}")
    return begin, end, name, kind, shape
