"""The columns of `models`, derived from the header of a GGUF file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from collector.errors import ParseError
from collector.parsers.gguf_header import Header, printable_key

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
"""Key by column, without the name of the architecture that it starts with."""

WANTED_KEYS = (
    *(ARCHITECTURE, FILE_KIND, FILE_TYPE, ADAPTER, PART_COUNT, TOKENS, VOCABULARY_SIZE),
    *SIZES.values(),
)

_PARAMS = {  # fields of `params`, and the columns with the same values
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
_MAX_INTEGER = 2**63 - 1

Column = int | str | None
Kind = Literal["model", "part", "other"]


@dataclass(frozen=True, slots=True)
class Format:
    """Names and sizes that the GGUF format assigns to numbers.

    Args:
        file_types: quantization by `general.file_type`.
        tensor_types: name by type of tensor.
        block_sizes: elements and bytes of one block, by type of tensor.
    """

    file_types: Mapping[int, str]
    tensor_types: Mapping[int, str]
    block_sizes: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file is.

    Args:
        kind: a model, one part of a model in several files, or something else.
        reason: what it is, if it is something else.
        columns: of `models`; None where the header has no value. Of several parts only the first has all.
    """

    kind: Kind
    reason: str
    columns: Mapping[str, Column]


def model_facts(header: Header, file_name: str, size: int, gguf: Format) -> Facts:
    """Return the kind of a file and the columns of `models` that its header sets.

    Args:
        header: parsed with `WANTED_KEYS`.
        file_name: used where the header does not name a kind or a quantization.
        size: bytes in the file.
        gguf: names and sizes.

    Raises:
        ParseError: the file is shorter than its tensors, or a value of its header is impossible.
    """
    if last := header.last_tensor:
        elements, block_bytes = gguf.block_sizes.get(last.type, (1, 0))  # unknown type: its offset must exist
        end = header.data_start + last.offset + last.elements // elements * block_bytes
        if end > size:  # as after an unfinished download
            raise ParseError(
                f"ends after {size:,} bytes, its tensors after {end:,}: copy or download it again"
            )
    reason = _reason_of_other_kind(header, file_name)
    kind: Kind = "other" if reason else "part" if _is_part(header) else "model"
    return Facts(kind, reason, _columns(header, file_name, gguf))


def _reason_of_other_kind(header: Header, file_name: str) -> str:
    """Return what the file is if it is neither a model nor a part of one, else an empty text."""
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
    """Return whether the file is one of several that form a model."""
    count = header.values.get(PART_COUNT)
    return isinstance(count, int) and count > 1


def _columns(header: Header, file_name: str, gguf: Format) -> dict[str, Column]:
    """Return the columns of `models`; None where the header has no value."""
    architecture = header.values.get(ARCHITECTURE)
    if architecture is not None and not (isinstance(architecture, str) and architecture.isprintable()):
        raise ParseError(f"{ARCHITECTURE} is {architecture!r:.40}, not a name")
    prefix = architecture or ""
    sizes = {column: _size(header, prefix + key) for column, key in SIZES.items()}
    vocabulary_size = _size(header, prefix + VOCABULARY_SIZE)
    if vocabulary_size is None:
        vocabulary_size = header.array_lengths.get(TOKENS)
    params = {"vocab_size": vocabulary_size} | {name: sizes[column] for name, column in _PARAMS.items()}
    known_params = {name: value for name, value in params.items() if value is not None}
    file_type = _size(header, FILE_TYPE)
    return {
        "type": architecture,
        **sizes,
        "file_type": file_type,
        "quantization": _quantization(header, file_type, file_name, gguf),
        "params": json.dumps(known_params) if known_params else None,
    }


def _size(header: Header, key: str) -> int | None:
    """Return a size; None without the key.

    Some models have an array of sizes, one for each layer. The greatest is returned: hybrid models such as
    Jamba have 0 key-value heads in some layers.
    """
    value = header.values.get(key, ())
    sizes: list[int] = []
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _MAX_INTEGER:
            raise ParseError(f"{printable_key(key)} is {number!r:.40}, not a size")
        sizes.append(number)
    return max(sizes, default=None)


def _quantization(header: Header, file_type: int | None, file_name: str, gguf: Format) -> str | None:
    """Return the quantization by file type, else that of most weights, else the one in the file's name."""
    if file_type is not None and file_type in gguf.file_types:
        return gguf.file_types[file_type]
    if elements := header.elements_by_type:
        commonest = max(elements, key=lambda tensor_type: elements[tensor_type])
        if commonest in gguf.tensor_types:
            return gguf.tensor_types[commonest]
    in_name = _QUANTIZATION_IN_NAME.findall(file_name.upper())
    return in_name[-1] if in_name else None
