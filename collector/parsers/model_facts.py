"""What the header of a GGUF file says of a model, as columns of `models`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collector.errors import ParseError
from collector.parsers.gguf_header import Header, shown

ARCHITECTURE = "general.architecture"
FILE_KIND = "general.type"
FILE_TYPE = "general.file_type"
ADAPTER = "adapter.type"
PART_COUNT = "split.count"
TOKENS = "tokenizer.ggml.tokens"
VOCABULARY_SIZE = ".vocab_size"
SIZES = {
    "ctx_size": ".context_length",
    "embedding_size": ".embedding_length",
    "block_count": ".block_count",
    "head_count": ".attention.head_count",
    "head_count_kv": ".attention.head_count_kv",
    "ffn_dim": ".feed_forward_length",
}
"""Columns, and the keys that they come from, behind the architecture's name."""

WANTED_KEYS = (
    *(ARCHITECTURE, FILE_KIND, FILE_TYPE, ADAPTER, PART_COUNT, TOKENS, VOCABULARY_SIZE),
    *SIZES.values(),
)

_PARAMS = {
    "hidden_size": "embedding_size",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "head_count",
    "num_hidden_layers": "block_count",
}
_OTHER_KINDS = {
    "mmproj": "a projector for images or sound",
    "adapter": "an adapter (LoRA)",
    "imatrix": "an importance matrix",
}
_OTHER_ARCHITECTURES = {"clip": _OTHER_KINDS["mmproj"], "controlvector": "a control vector"}
_QUANTIZATION_IN_NAME = re.compile(
    r"(?<![A-Z0-9])(I?Q[1-9]_(?:[01]|K(?:_X?[SML])?|X{0,2}S|M|NL)|TQ[12]_0|MXFP4|NVFP4|BF16|F16|F32)(?![A-Z0-9_])"
)
_GREATEST_INTEGER = 2**63 - 1

Column = int | str | None
Kind = Literal["model", "part", "other"]


@dataclass(frozen=True, slots=True)
class Format:
    """Names and sizes that the GGUF format gives to numbers.

    Args:
        file_types: `general.file_type` to quantization.
        tensor_types: type of a tensor to its name.
        block_sizes: type of a tensor to the elements and bytes of one block.
    """

    file_types: Mapping[int, str]
    tensor_types: Mapping[int, str]
    block_sizes: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file is.

    Args:
        kind: a model, one part of a model in several files, or something else.
        reason: what it is, if something else.
        columns: of `models`; None where the header does not say. Of several parts only the first says all.
    """

    kind: Kind
    reason: str
    columns: Mapping[str, Column]


def model_facts(header: Header, file_name: str, size: int, gguf: Format) -> Facts:
    """Describe a file.

    Args:
        header: its header, with `WANTED_KEYS`.
        file_name: its name, which may tell what the header does not.
        size: its bytes.
        gguf: names and sizes.

    Raises:
        ParseError: the file is shorter than its tensors, or a value of its header makes no sense.
    """
    _refuse_missing_data(header, size, gguf)
    reason = _other(header, file_name)
    kind: Kind = "other" if reason else "part" if _is_part(header) else "model"
    return Facts(kind, reason, _columns(header, file_name, gguf))


def _other(header: Header, file_name: str) -> str:
    kind, architecture = header.values.get(FILE_KIND), header.values.get(ARCHITECTURE)
    if kind in _OTHER_KINDS:
        return _OTHER_KINDS[str(kind)]
    if architecture in _OTHER_ARCHITECTURES:
        return _OTHER_ARCHITECTURES[str(architecture)]
    if ADAPTER in header.values:
        return _OTHER_KINDS["adapter"]
    if file_name.lower().startswith("mmproj"):
        return _OTHER_KINDS["mmproj"]
    if header.tensor_count == 0 and not _is_part(header):
        return "a vocabulary without a model"
    return ""


def _is_part(header: Header) -> bool:
    count = header.values.get(PART_COUNT)
    return isinstance(count, int) and count > 1


def _refuse_missing_data(header: Header, size: int, gguf: Format) -> None:
    if header.last_tensor is None:
        return
    last = header.last_tensor
    elements, block_bytes = gguf.block_sizes.get(last.type, (1, 0))  # of a new type at least the offset
    end = header.data_start + last.offset + last.elements // elements * block_bytes
    if end > size:
        raise ParseError(f"ends after {size:,} bytes, its tensors after {end:,}: copy or download it again")


def _columns(header: Header, file_name: str, gguf: Format) -> dict[str, Column]:
    architecture = header.values.get(ARCHITECTURE)
    if architecture is not None and not (isinstance(architecture, str) and architecture.isprintable()):
        raise ParseError(f"{ARCHITECTURE} is {architecture!r:.40}, not a name")
    prefix = architecture or ""
    sizes = {column: _size(header, prefix + key) for column, key in SIZES.items()}
    vocabulary_size = _size(header, prefix + VOCABULARY_SIZE)
    if vocabulary_size is None:
        vocabulary_size = header.array_lengths.get(TOKENS)
    file_type = _size(header, FILE_TYPE)
    return {
        "type": architecture,
        **sizes,
        "file_type": file_type,
        "quantization": _quantization(header, file_type, file_name, gguf),
        "params": _params(vocabulary_size, sizes),
    }


def _size(header: Header, key: str) -> int | None:
    """A whole number; of an array, which has one for each layer, the greatest: some layers have none."""
    value = header.values.get(key, ())
    numbers = value if isinstance(value, tuple) else (value,)
    return max((_whole(key, number) for number in numbers), default=None)


def _whole(key: str, number: object) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _GREATEST_INTEGER:
        return number
    raise ParseError(f"{shown(key)} is {number!r:.40}, not a size")


def _quantization(header: Header, file_type: int | None, file_name: str, gguf: Format) -> str | None:
    if file_type is not None and file_type in gguf.file_types:
        return gguf.file_types[file_type]
    if elements := header.elements_by_type:
        commonest = max(elements, key=lambda tensor_type: elements[tensor_type])
        if commonest in gguf.tensor_types:
            return gguf.tensor_types[commonest]
    in_name = _QUANTIZATION_IN_NAME.findall(file_name.upper())
    return in_name[-1] if in_name else None


def _params(vocabulary_size: int | None, sizes: Mapping[str, int | None]) -> str | None:
    params = {"vocab_size": vocabulary_size} | {name: sizes[column] for name, column in _PARAMS.items()}
    known = {name: value for name, value in params.items() if value is not None}
    return json.dumps(known) if known else None
