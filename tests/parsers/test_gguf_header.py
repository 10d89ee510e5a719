"""The header parser against that of `gguf`, and against damaged and hostile files."""

import io
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.errors import NotGguf, ParseError
from collector.parsers import gguf_header
from collector.parsers.gguf_header import NUMBER_FORMATS, Header, parse_header
from collector.parsers.model_facts import WANTED_KEYS
from tests.support.gguf_files import (
    ARRAY,
    INT32,
    STRING,
    array,
    finish,
    number_pair,
    pair,
    raw_header,
    tensor_info,
    text,
    write_model,
    write_tiny_llama,
)

EVERYTHING = ("",)


def parse(content: bytes, key_suffixes: tuple[str, ...] = EVERYTHING) -> Header:
    return parse_header(io.BytesIO(content), len(content), key_suffixes)


def parse_file(path: Path, key_suffixes: tuple[str, ...] = EVERYTHING) -> Header:
    with path.open("rb", buffering=0) as file:
        return parse_header(file, path.stat().st_size, key_suffixes)


def read_by_gguf(reader: gguf.GGUFReader, keys: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return values and lengths of arrays, of the keys with these suffixes, as `GGUFReader` reads them."""
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or not key.endswith(keys):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            lengths[key] = len(field.data)
            if field.types[-1] != gguf.GGUFValueType.STRING:
                values[key] = tuple(field.contents())
        else:
            values[key] = field.contents()
    return values, lengths


def assert_equal_to_gguf(path: Path, keys: tuple[str, ...] = EVERYTHING) -> None:
    header = parse_file(path, keys)
    reader = gguf.GGUFReader(path)
    values, lengths = read_by_gguf(reader, (*keys, "general.alignment"))
    assert header.values == values
    assert header.array_lengths == lengths
    assert header.tensor_count == len(reader.tensors)
    assert header.version == reader.fields["GGUF.version"].contents()
    assert header.data_start == reader.data_offset
    elements: dict[int, int] = {}
    for tensor in reader.tensors:
        elements[int(tensor.tensor_type)] = elements.get(int(tensor.tensor_type), 0) + tensor.n_elements
    assert header.elements_by_type == elements


def write_every_value_type(path: Path, endianess: gguf.GGUFEndian, alignment: int = 32) -> None:
    writer = gguf.GGUFWriter(path, "every", endianess=endianess)
    writer.add_custom_alignment(alignment)
    writer.add_uint8("u8", 2**8 - 1)
    writer.add_int8("i8", -(2**7))
    writer.add_uint16("u16", 2**16 - 1)
    writer.add_int16("i16", -(2**15))
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_float32("f32", 0.1)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", val=True)
    writer.add_bool("no", val=False)
    writer.add_string("text", "▁é")
    writer.add_string("empty", "")
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("booleans", [True, False])
    writer.add_array("texts", ["", "a", "▁é"])
    for number, dimensions in enumerate([(7,), (3, 5), (2, 3, 4), (2, 2, 2, 2)]):
        writer.add_tensor(f"tensor.{number}", np.zeros(dimensions, np.float16 if number % 2 else np.float32))
    finish(writer)


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_every_value_type_is_parsed_as_gguf_parses_it(
    tmp_path: Path, endianess: gguf.GGUFEndian, alignment: int
) -> None:
    write_every_value_type(tmp_path / "every.gguf", endianess, alignment)
    assert_equal_to_gguf(tmp_path / "every.gguf")


def test_version_2_is_parsed_like_version_3(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    write_every_value_type(path, gguf.GGUFEndian.LITTLE)
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", 2)
    path.write_bytes(content)
    assert_equal_to_gguf(path)


def test_a_whole_model_is_parsed_as_gguf_parses_it(tiny_model: Path) -> None:
    assert_equal_to_gguf(tiny_model, WANTED_KEYS)


def test_the_numeric_value_types_are_those_of_gguf() -> None:
    sizes = {
        int(kind): np.dtype(number).itemsize for kind, number in gguf.GGUFReader.gguf_scalar_to_np.items()
    }
    assert {kind: struct.calcsize("=" + layout) for kind, layout in NUMBER_FORMATS.items()} == sizes
    assert (gguf_header.STRING, gguf_header.ARRAY) == (gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY)


def test_a_header_that_ends_at_any_byte_is_reported_as_cut_off(tmp_path: Path) -> None:
    write_every_value_type(tmp_path / "whole.gguf", gguf.GGUFEndian.LITTLE)
    content = (tmp_path / "whole.gguf").read_bytes()
    end_of_header = content.index(b"tensor.3") + len("tensor.3") + 4 + 4 * 8 + 4 + 8
    for length in range(end_of_header):
        with pytest.raises(ParseError, match=f"ends after {length:,} bytes"):
            parse(content[:length])
    assert parse(content[:end_of_header]).tensor_count == 4


def test_a_block_may_end_anywhere_in_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [b"x" * (number % 23) for number in range(200)]
    content = raw_header(
        [pair("tokens", ARRAY, array(STRING, 200, b"".join(map(text, tokens)))), number_pair("after", 7)]
    )
    for block_bytes in range(1, 64):
        monkeypatch.setattr(gguf_header, "_BLOCK_BYTES", block_bytes)
        assert parse(content).values == {"after": 7}
        assert parse(content, ("after",)).values == {"after": 7}


HUGE = 2**63
HOSTILE = {
    "no length": (b"GGUF", "ends after 4 bytes"),
    "zeros": (bytes(100), "was never written"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "convert the model again"),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "version 0"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
    "a million keys": (raw_header([number_pair(f"k{i}", i) for i in range(1000)], pair_count=10**6), "1,000,000 keys"),
    "a negative number of keys": (raw_header(pair_count=2**64 - 1), "keys"),
    "2^63 tensors": (raw_header(tensor_count=HUGE), "tensors"),
    "a key of 2^63 bytes": (raw_header([struct.pack("<Q", HUGE)]), "a key is 9,223,372,036,854,775,808 bytes long"),
    "a text of 2^63 bytes": (raw_header([pair("t", STRING, struct.pack("<Q", HUGE))]), "t is 9,223,372"),
    "a text of 2^64 - 1 bytes": (raw_header([pair("t", STRING, struct.pack("<Q", 2**64 - 1))]), "t is 18,446"),
    "2^63 texts": (raw_header([pair("t", ARRAY, array(STRING, HUGE))]), "in the middle of its header"),
    "2^63 numbers": (raw_header([pair("t", ARRAY, array(INT32, HUGE))]), "t contains 9,223,372"),
    "texts of 2^63 bytes": (
        raw_header([pair("t", ARRAY, array(STRING, 2, struct.pack("<QQ", HUGE, HUGE)))]),
        "in the middle of its header",
    ),
    "an array of arrays": (raw_header([pair("t", ARRAY, array(ARRAY, 1, array(INT32, 0)))]), "t is an array of arrays"),
    "an unknown type": (raw_header([pair("t", 13, bytes(8))]), "t is of type 13"),
    "elements of an unknown type": (raw_header([pair("t", ARRAY, array(77, 1))]), "t is of type 77"),
    "a key twice": (raw_header([number_pair("a.b", 1), number_pair("a.b", 2)]), "the key a.b twice"),
    "a text that is not UTF-8": (raw_header([pair("t", STRING, text(b"\xff"))]), "t is not UTF-8"),
    "an alignment of 0": (raw_header([number_pair("general.alignment", 0)]), "not a power of two"),
    "an alignment of 48": (raw_header([number_pair("general.alignment", 48)]), "not a power of two"),
    "a negative alignment": (raw_header([number_pair("general.alignment", -32)]), "not a power of two"),
    "an alignment of text": (raw_header([pair("general.alignment", STRING, text("x"))]), "not a power of two"),
    "2^32 - 1 dimensions": (
        raw_header(tensors=text("t") + struct.pack("<I", 2**32 - 1), tensor_count=1),
        "4,294,967,295 dimensions",
    ),
    "a tensor of no type": (raw_header(tensors=tensor_info("t", (1,), 2**32 - 1, 0), tensor_count=1), "a tensor of type"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_rejected_with_a_reason(name: str) -> None:
    content, reason = HOSTILE[name]
    with pytest.raises(ParseError, match=reason):
        parse(content)


@pytest.mark.parametrize("value_type", [STRING, ARRAY])
def test_a_key_that_is_not_selected_is_checked_against_the_same_limits(value_type: int) -> None:
    payload = struct.pack("<Q", HUGE) if value_type == STRING else array(INT32, 2**62)
    with pytest.raises(ParseError, match="in the middle of its header"):
        parse(raw_header([pair("t", value_type, payload)]), ("wanted",))


def test_a_file_of_another_format_differs_from_one_half_written() -> None:
    with pytest.raises(NotGguf, match="not a GGUF file"):
        parse(b"<html>not found</html>")
    with pytest.raises(NotGguf, match="git lfs pull"):
        parse(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ParseError) as half_written:
        parse(b"GGU")
    assert not isinstance(half_written.value, NotGguf)


def test_a_key_that_is_not_utf8_does_not_affect_the_others() -> None:
    header = parse(
        raw_header([number_pair(b"\xff\xfe", 1), number_pair("a.context_length", 2)]), (".context_length",)
    )
    assert header.values == {"a.context_length": 2}


def test_an_error_shows_a_key_without_control_characters() -> None:
    with pytest.raises(ParseError, match=r"^contains the key a\?\?\[31m twice$"):
        parse(raw_header([number_pair("a\n\x1b[31m", 1)] * 2))


def test_an_endless_header_is_rejected_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 100_000)
    endless = raw_header([pair("t", ARRAY, array(STRING, 2**40))]) + bytes(200_000)
    with pytest.raises(ParseError, match="more than 100,000 bytes"):
        parse(endless)


def test_the_last_tensor_is_that_with_the_greatest_offset() -> None:
    infos = tensor_info("b", (4, 2), 0, 64) + tensor_info("a", (8,), 0, 0)
    header = parse(raw_header(tensors=infos, tensor_count=2))
    assert header.last_tensor == gguf_header.Tensor(type=0, elements=8, offset=64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_model(path, numbers={"llama.context_length": 8192, "llama.attention.head_count_kv": [8, 0, 8]})
    return path.read_bytes()


@given(position=st.integers(min_value=0, max_value=400), garbage=st.binary(min_size=1, max_size=12))
@example(position=8, garbage=b"\xff" * 8)
@example(position=16, garbage=b"\xff" * 8)
def test_a_damaged_header_gives_a_header_or_a_reason(whole: bytes, position: int, garbage: bytes) -> None:
    content = whole[:position] + garbage + whole[position + len(garbage) :]
    try:
        assert parse(content).version in (2, 3)
    except ParseError as error:
        assert str(error)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_give_a_header_or_a_reason(content: bytes) -> None:
    try:
        assert parse(b"GGUF\x03\0\0\0" + content).version == 3
    except ParseError as error:
        assert str(error)


def test_the_model_for_tests_with_real_servers_is_small(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf")
    assert (tmp_path / "tiny.gguf").stat().st_size < 500_000
