"""The header of a GGUF file: keys and tensor shapes, without the vocabulary and the tensors.

A streaming walk: arrays are stepped over, one block is in memory at a time, and every count in the file is
held against a bound before it is believed. Reads what llama.cpp loads: versions 2 and 3, either byte order.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, Literal

from collector.errors import NotGguf, ParseError

MAX_HEADER_BYTES = 256 * 2**20
"""The longest real headers, of models with 262,144 tokens, have 16 MB."""

MAX_KEYS = 16_384
MAX_KEY_BYTES = 512
MAX_TEXT_BYTES = 1_024
MAX_ARRAY_NUMBERS = 16_384
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 4
MAX_TENSOR_TYPE = 255

NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's value types that are numbers, as `struct` writes them."""

STRING, ARRAY = 8, 9
ALIGNMENT_KEY = "general.alignment"

_BLOCK_BYTES = 65_536
_LENGTH_BYTES = 8

ByteOrder = Literal["<", ">"]
Number = int | float
Value = Number | str | tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: its type's number, its elements, its offset from the start of the data."""

    type: int
    elements: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What was wanted of a header.

    Args:
        version: of the format.
        tensor_count: how many tensors the file holds.
        values: the wanted keys that hold a number, a text, or an array of numbers.
        array_lengths: elements of every wanted array, those of texts included.
        elements_by_type: how many weights are stored in which type of tensor.
        last_tensor: the one that ends last; None without tensors.
        data_start: bytes before the first tensor's data.
    """

    version: int
    tensor_count: int
    values: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    elements_by_type: Mapping[int, int]
    last_tensor: Tensor | None
    data_start: int


def parse_header(stream: BinaryIO, size: int, wanted: tuple[str, ...]) -> Header:
    """Walk over the header of a GGUF file.

    Args:
        stream: the file from its first byte; must be able to seek.
        size: bytes in the file.
        wanted: ends of the keys to be kept.

    Raises:
        NotGguf: the file is of another format.
        ParseError: the file is cut off, or its header is not one that llama.cpp loads.
        OSError: the stream cannot be read.
    """
    walk = _Walk(stream, size)
    version = _read_version(walk)
    tensor_count, key_count = walk.number("Q"), walk.number("Q")
    _hold(tensor_count <= MAX_TENSORS, f"says it holds {tensor_count:,} tensors")
    _hold(key_count <= MAX_KEYS, f"says it holds {key_count:,} keys")
    values, array_lengths = _read_pairs(walk, key_count, (*wanted, ALIGNMENT_KEY))
    elements_by_type, last_tensor = _read_tensors(walk, tensor_count)
    alignment = _alignment(values)
    data_start = (walk.position + alignment - 1) // alignment * alignment
    return Header(version, tensor_count, values, array_lengths, elements_by_type, last_tensor, data_start)


class _Walk:
    """Goes through a stream, one block in memory at a time."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._block = b""
        self._block_end = 0  # its place in the file
        self._at = 0  # the place in the block
        self.order: ByteOrder = "<"

    @property
    def position(self) -> int:
        return self._block_end - len(self._block) + self._at

    def take(self, count: int) -> bytes:
        self._have(count)
        start, self._at = self._at, self._at + count
        return self._block[start : self._at]

    def unpack(self, layout: str) -> tuple[Number, ...]:
        packed = _struct(self.order + layout)
        return packed.unpack(self.take(packed.size))

    def number(self, layout: str) -> int:
        return int(self.unpack(layout)[0])

    def skip(self, count: int) -> None:
        if self._at + count <= len(self._block):
            self._at += count
            return
        target = self.position + count
        self._allow(target)
        self._block_end = self._stream.seek(target)
        self._block, self._at = b"", 0

    def skip_texts(self, count: int) -> None:
        """Step over the elements of an array of texts. The vocabulary passes here: keep it tight."""
        length_at = _struct(self.order + "Q").unpack_from
        while count:
            self._have(_LENGTH_BYTES)
            block, at, last = self._block, self._at, len(self._block) - _LENGTH_BYTES
            while count and at <= last:
                at += _LENGTH_BYTES + length_at(block, at)[0]
                count -= 1
            self.skip(at - self._at)

    def _have(self, count: int) -> None:
        """Make that many bytes stand in the block."""
        rest = len(self._block) - self._at
        if rest >= count:
            return
        self._allow(self.position + count)
        fresh = self._stream.read(max(_BLOCK_BYTES, count - rest))
        self._block, self._at = self._block[self._at :] + fresh, 0
        self._block_end += len(fresh)
        _hold(len(self._block) >= count, self._cut_off())

    def _allow(self, position: int) -> None:
        _hold(position <= self._size, self._cut_off())
        _hold(position <= MAX_HEADER_BYTES, f"has a header of more than {MAX_HEADER_BYTES:,} bytes")

    def _cut_off(self) -> str:
        return f"ends after {self._size:,} bytes, in the middle of its header: copy or download it again"


@cache
def _struct(layout: str) -> struct.Struct:
    return struct.Struct(layout)


def _hold(condition: bool, fault: str) -> None:  # noqa: FBT001 - reads like assert
    if not condition:
        raise ParseError(fault)


def _read_version(walk: _Walk) -> int:
    magic = walk.take(4)
    _hold(magic != bytes(4), "starts with zeros: its first part was never written")
    if magic != b"GGUF":
        hint = ": it is a pointer of Git LFS, fetch it with git lfs pull" if magic == b"vers" else ""
        raise NotGguf(f"is no GGUF file{hint}")
    raw = walk.take(4)
    version = int.from_bytes(raw, "little")
    if version & 0xFFFF == 0:  # a small number in the other byte order
        walk.order = ">"
        version = int.from_bytes(raw, "big")
    _hold(version != 1, "is of GGUF version 1, which llama.cpp loads no more: convert the model again")
    _hold(version in (2, 3), f"is of GGUF version {version}, which is not known here")
    return version


def _read_pairs(walk: _Walk, count: int, wanted: tuple[str, ...]) -> tuple[dict[str, Value], dict[str, int]]:
    """Values and lengths of arrays, of the wanted keys."""
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    seen: set[bytes] = set()
    for _ in range(count):
        raw_key = _read_text(walk, MAX_KEY_BYTES, "a key")
        key = raw_key.decode(errors="backslashreplace")
        _hold(raw_key not in seen, f"holds the key {shown(key)} twice")
        seen.add(raw_key)
        value_type = walk.number("I")
        if not key.endswith(wanted):
            _skip_value(walk, key, value_type)
        elif value_type == ARRAY:
            lengths[key], numbers = _read_array(walk, key)
            if numbers is not None:
                values[key] = numbers
        else:
            values[key] = _read_value(walk, key, value_type)
    return values, lengths


def _read_value(walk: _Walk, key: str, value_type: int) -> Value:
    if value_type != STRING:
        return walk.unpack(_number_format(key, value_type))[0]
    try:
        return _read_text(walk, MAX_TEXT_BYTES, shown(key)).decode()
    except UnicodeDecodeError as error:
        raise ParseError(f"{shown(key)} is not UTF-8") from error


def _read_text(walk: _Walk, bound: int, what: str) -> bytes:
    length = walk.number("Q")
    _hold(length <= bound, f"{what} is {length:,} bytes long")
    return walk.take(length)


def _read_array(walk: _Walk, key: str) -> tuple[int, tuple[Number, ...] | None]:
    """The length, and the elements where they are numbers."""
    element_type, count = walk.number("I"), walk.number("Q")
    if element_type == STRING:
        walk.skip_texts(count)
        return count, None
    layout = _number_format(key, element_type)
    _hold(count <= MAX_ARRAY_NUMBERS, f"{shown(key)} holds {count:,} numbers")
    return count, walk.unpack(f"{count}{layout}")


def _skip_value(walk: _Walk, key: str, value_type: int) -> None:
    if value_type == STRING:
        walk.skip_texts(1)
    elif value_type == ARRAY:
        element_type, count = walk.number("I"), walk.number("Q")
        if element_type == STRING:
            walk.skip_texts(count)
        else:
            walk.skip(count * struct.calcsize("=" + _number_format(key, element_type)))
    else:
        walk.skip(struct.calcsize("=" + _number_format(key, value_type)))


def _number_format(key: str, value_type: int) -> str:
    _hold(value_type != ARRAY, f"{shown(key)} is an array of arrays")
    _hold(value_type in NUMBER_FORMATS, f"{shown(key)} is of type {value_type}, which is not known here")
    return NUMBER_FORMATS[value_type]


def _read_tensors(walk: _Walk, count: int) -> tuple[dict[int, int], Tensor | None]:
    """How many weights are of which type, and the tensor with the greatest offset."""
    elements_by_type: dict[int, int] = {}
    last: Tensor | None = None
    for _ in range(count):
        walk.skip_texts(1)  # its name
        dimensions = walk.number("I")
        _hold(dimensions <= MAX_DIMENSIONS, f"holds a tensor of {dimensions:,} dimensions")
        *shape, tensor_type, offset = map(int, walk.unpack(f"{dimensions}QIQ"))
        _hold(tensor_type <= MAX_TENSOR_TYPE, f"holds a tensor of type {tensor_type}")
        tensor = Tensor(tensor_type, math.prod(shape), offset)
        elements_by_type[tensor_type] = elements_by_type.get(tensor_type, 0) + tensor.elements
        if last is None or (offset, tensor.elements) > (last.offset, last.elements):
            last = tensor
    return elements_by_type, last


def _alignment(values: Mapping[str, Value]) -> int:
    alignment = values.get(ALIGNMENT_KEY, 32)
    _hold(
        isinstance(alignment, int) and 0 < alignment < 2**32 and alignment & (alignment - 1) == 0,
        f"{ALIGNMENT_KEY} is {alignment!r:.40}, not a power of two",
    )
    assert isinstance(alignment, int)
    return alignment


def shown(text: str) -> str:
    """A text from outside, short and printable."""
    return re.sub(r"[^ -~]", "?", text[:80])
