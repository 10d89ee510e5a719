"""The header of a GGUF file: keys and tensor shapes, without the vocabulary and the tensors.

Reads what llama.cpp loads: versions 2 and 3, either byte order. Arrays are skipped, one block of the file is
in memory at a time, and every count in the file is checked against a limit before it is used: a damaged or
hostile file costs no more memory than a good one.
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
"""Limit of a header. The longest real ones, of models with 262,144 tokens, have 16 MB."""

MAX_KEYS = 262_144
MAX_KEY_BYTES = 512
MAX_STRING_BYTES = 1_024
MAX_ARRAY_NUMBERS = 16_384
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 16
MAX_TENSOR_TYPE = 65_535

NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Format characters of `struct` by GGUF's numeric value types."""

STRING, ARRAY = 8, 9
ALIGNMENT_KEY = "general.alignment"

_BLOCK_BYTES = 65_536
_LENGTH_BYTES = 8

ByteOrder = Literal["<", ">"]
Number = int | float
Value = Number | str | tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Args:
        type: number of its type.
        elements: how many weights it has.
        offset: bytes from the start of the data to its first one.
    """

    type: int
    elements: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The selected keys of a header, and what its tensors are.

    Args:
        version: of the format.
        tensor_count: how many tensors the file contains.
        values: the selected keys whose value is a number, a string, or an array of numbers.
        array_lengths: the number of elements of every selected array, also of strings.
        elements_by_type: the number of weights, by type of tensor.
        last_tensor: the one with the greatest offset; None without tensors.
        data_start: bytes before the data of the first tensor.
    """

    version: int
    tensor_count: int
    values: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    elements_by_type: Mapping[int, int]
    last_tensor: Tensor | None
    data_start: int


def parse_header(stream: BinaryIO, size: int, key_suffixes: tuple[str, ...]) -> Header:
    """Parse the header of a GGUF file.

    Args:
        stream: the file, at its first byte; must be able to seek.
        size: bytes in the file.
        key_suffixes: keys that end with one of these are selected.

    Raises:
        NotGguf: the file is of another format.
        ParseError: the file is cut off, or its header is not one that llama.cpp loads.
        OSError: the stream cannot be read.
    """
    reader = _Reader(stream, size)
    version = _read_version(reader)
    tensor_count, key_count = reader.read_number("Q"), reader.read_number("Q")
    if tensor_count > MAX_TENSORS:
        raise ParseError(f"claims to contain {tensor_count:,} tensors")
    if key_count > MAX_KEYS:
        raise ParseError(f"claims to contain {key_count:,} keys")
    values, array_lengths = _read_pairs(reader, key_count, (*key_suffixes, ALIGNMENT_KEY))
    elements_by_type, last_tensor = _read_tensors(reader, tensor_count)
    alignment = values.get(ALIGNMENT_KEY, 32)
    if not isinstance(alignment, int) or not 0 < alignment < 2**32 or alignment & (alignment - 1):
        raise ParseError(f"{ALIGNMENT_KEY} is {alignment!r:.40}, not a power of two")
    data_start = (reader.position + alignment - 1) // alignment * alignment
    return Header(version, tensor_count, values, array_lengths, elements_by_type, last_tensor, data_start)


class _Reader:
    """A stream that is read with one block in memory at a time.

    Args:
        stream: see `parse_header`.
        size: see `parse_header`.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._block = b""
        self._block_end = 0  # position in the file
        self._offset = 0  # position in the block
        self.order: ByteOrder = "<"

    @property
    def position(self) -> int:
        """Position in the file of the next byte."""
        return self._block_end - len(self._block) + self._offset

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        self._fill(count)
        start, self._offset = self._offset, self._offset + count
        return self._block[start : self._offset]

    def unpack(self, layout: str) -> tuple[Number, ...]:
        """Return the next numbers, of a layout of `struct`."""
        packed = _struct(self.order + layout)
        return packed.unpack(self.read(packed.size))

    def read_number(self, layout: str) -> int:
        """Return the next number, an integer."""
        return int(self.unpack(layout)[0])

    def skip(self, count: int) -> None:
        """Move the position forward; seek instead of reading if it is then behind the block."""
        if self._offset + count <= len(self._block):
            self._offset += count
            return
        target = self.position + count
        self._check_position(target)
        self._block_end = self._stream.seek(target)
        self._block, self._offset = b"", 0

    def skip_strings(self, count: int) -> None:
        """Skip strings, each of which is its length followed by its bytes.

        This is the hot loop of the parser: a vocabulary has up to 262,144 strings. The inner loop uses only
        local variables. It ends when the next length is not completely in the block; the string before it
        may end behind the block.
        """
        unpack_length = _struct(self.order + "Q").unpack_from
        while count:
            self._fill(_LENGTH_BYTES)
            block, offset, last = self._block, self._offset, len(self._block) - _LENGTH_BYTES
            while count and offset <= last:
                offset += _LENGTH_BYTES + unpack_length(block, offset)[0]
                count -= 1
            self.skip(offset - self._offset)

    def _fill(self, count: int) -> None:
        """Read from the stream until the block contains that many more bytes."""
        rest = len(self._block) - self._offset
        if rest >= count:
            return
        self._check_position(self.position + count)
        fresh = self._stream.read(max(_BLOCK_BYTES, count - rest))
        self._block, self._offset = self._block[self._offset :] + fresh, 0
        self._block_end += len(fresh)
        if len(self._block) < count:
            raise self._cut_off()

    def _check_position(self, position: int) -> None:
        """Raise an error for a position behind the end of the file, or behind the limit of a header."""
        if position > self._size:
            raise self._cut_off()
        if position > MAX_HEADER_BYTES:
            raise ParseError(f"has a header of more than {MAX_HEADER_BYTES:,} bytes")

    def _cut_off(self) -> ParseError:
        """Return the error for a file that ends too early."""
        return ParseError(
            f"ends after {self._size:,} bytes, in the middle of its header: copy or download it again"
        )


@cache
def _struct(layout: str) -> struct.Struct:
    """Return the compiled layout."""
    return struct.Struct(layout)


def _read_version(reader: _Reader) -> int:
    """Return the version of the format, and set the byte order of the reader."""
    magic = reader.read(4)
    if magic == bytes(4):
        raise ParseError("starts with zeros: its first part was never written")
    if magic != b"GGUF":
        hint = ": it is a pointer of Git LFS, fetch it with git lfs pull" if magic == b"vers" else ""
        raise NotGguf(f"is not a GGUF file{hint}")
    raw = reader.read(4)
    version = int.from_bytes(raw, "little")
    if version & 0xFFFF == 0:  # a small number in the other byte order
        reader.order = ">"
        version = int.from_bytes(raw, "big")
    if version == 1:
        raise ParseError("is of GGUF version 1, which llama.cpp no longer loads: convert the model again")
    if version not in (2, 3):
        raise ParseError(f"is of GGUF version {version}, which is not supported")
    return version


def _read_pairs(
    reader: _Reader, pair_count: int, key_suffixes: tuple[str, ...]
) -> tuple[dict[str, Value], dict[str, int]]:
    """Return the values, and the lengths of arrays, of the selected keys."""
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    seen: set[bytes] = set()
    for _ in range(pair_count):
        raw_key = _read_string(reader, MAX_KEY_BYTES, "a key")
        key = raw_key.decode(errors="backslashreplace")
        if raw_key in seen:
            raise ParseError(f"contains the key {printable_key(key)} twice")
        seen.add(raw_key)
        value_type = reader.read_number("I")
        is_selected = key.endswith(key_suffixes)
        if value_type == ARRAY:
            count, numbers = _read_array(reader, key, is_selected=is_selected)
            if is_selected:
                lengths[key] = count
            if numbers is not None:
                values[key] = numbers
        elif value_type == STRING and not is_selected:
            reader.skip_strings(1)
        elif value_type == STRING:
            try:
                values[key] = _read_string(reader, MAX_STRING_BYTES, printable_key(key)).decode()
            except UnicodeDecodeError as error:
                raise ParseError(f"{printable_key(key)} is not UTF-8") from error
        elif is_selected:
            values[key] = reader.unpack(_number_format(key, value_type))[0]
        else:
            reader.skip(struct.calcsize("=" + _number_format(key, value_type)))
    return values, lengths


def _read_array(reader: _Reader, key: str, *, is_selected: bool) -> tuple[int, tuple[Number, ...] | None]:
    """Return the length of an array, and its elements if they are numbers and the key is selected."""
    element_type, count = reader.read_number("I"), reader.read_number("Q")
    if element_type == STRING:
        reader.skip_strings(count)
        return count, None
    layout = _number_format(key, element_type)
    if not is_selected:
        reader.skip(count * struct.calcsize("=" + layout))
        return count, None
    if count > MAX_ARRAY_NUMBERS:
        raise ParseError(f"{printable_key(key)} contains {count:,} numbers")
    return count, reader.unpack(f"{count}{layout}")


def _read_string(reader: _Reader, limit: int, what: str) -> bytes:
    """Return a string; `what` names it in the error for one longer than the limit."""
    length = reader.read_number("Q")
    if length > limit:
        raise ParseError(f"{what} is {length:,} bytes long")
    return reader.read(length)


def _number_format(key: str, value_type: int) -> str:
    """Return the format character of `struct` for a type of number; other types are an error."""
    if value_type == ARRAY:
        raise ParseError(f"{printable_key(key)} is an array of arrays")
    if value_type not in NUMBER_FORMATS:
        raise ParseError(f"{printable_key(key)} is of type {value_type}, which is not supported")
    return NUMBER_FORMATS[value_type]


def _read_tensors(reader: _Reader, count: int) -> tuple[dict[int, int], Tensor | None]:
    """Return the number of weights by type, and the tensor with the greatest offset."""
    elements_by_type: dict[int, int] = {}
    last: Tensor | None = None
    for _ in range(count):
        reader.skip_strings(1)  # its name
        dimensions = reader.read_number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ParseError(f"contains a tensor of {dimensions:,} dimensions")
        *shape, tensor_type, offset = map(int, reader.unpack(f"{dimensions}QIQ"))
        if tensor_type > MAX_TENSOR_TYPE:
            raise ParseError(f"contains a tensor of type {tensor_type}")
        tensor = Tensor(tensor_type, math.prod(shape), offset)
        elements_by_type[tensor_type] = elements_by_type.get(tensor_type, 0) + tensor.elements
        if last is None or (offset, tensor.elements) > (last.offset, last.elements):
            last = tensor
    return elements_by_type, last


def printable_key(key: str) -> str:
    """Return a key for a message: short, in ASCII, without control characters."""
    return re.sub(r"[^ -~]", "?", key[:80])
