"""The columns of `models`, derived from the header of a GGUF file."""

import json
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
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
    r"(?<![A-Z0-9])"
    r"(I?Q[1-9]_(?:[01]|K(?:_X?[SML])?|X{0,2}S|M|NL)"
    r"|IQ[1-9]_(?:BN|K(?:SS?|L|T)?)"  # this and the next: ik_llama.cpp
    r"|Q[1-9]_[0K]_R[48]|IQ[1-9]_(?:K[ST]?|BN|S|XS|XXS|M)_R[48]"
    r"|I2_S|TL[12]"  # BitNet
    r"|TQ[12]_0|MXFP4|NVFP4|BF16|F16|F32)"
    r"(?![A-Z0-9_])"
)
_UNQUANTIZED = frozenset({"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"})
_SUBSTITUTES = frozenset({"Q4_0", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"})
"""What llama-quantize uses for tensors whose rows do not fit the blocks of the wanted type."""
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
        architectures: the language models that this version knows.
    """

    file_types: Mapping[int, str]
    tensor_types: Mapping[int, str]
    block_sizes: Mapping[int, tuple[int, int]]
    architectures: AbstractSet[str]


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
    reason = _reason_of_other_kind(header, file_name, gguf)
    kind: Kind = "other" if reason else "part" if _is_part(header) else "model"
    return Facts(kind, reason, _columns(header, file_name, gguf))


def _reason_of_other_kind(header: Header, file_name: str, gguf: Format) -> str:
    """Return what the file is if it is neither a model nor a part of one, else an empty text."""
    accompanies = _reason_of_companion(header, file_name)
    if accompanies or _is_part(header):
        return accompanies
    if header.tensor_count == 0:
        return "a vocabulary without a model"
    architecture = header.values.get(ARCHITECTURE)
    if architecture is None:
        return "tensors without the name of an architecture"
    # Models for speech, images and video are GGUF files too. A language model has a vocabulary and a context;
    # one that states neither is one only if its architecture is known.
    says_language = TOKENS in header.array_lengths or f"{architecture}{SIZES['ctx_size']}" in header.values
    if not says_language and architecture not in gguf.architectures:
        return f"a model of architecture {printable_key(str(architecture))}, which is not a language model"
    return ""


def _reason_of_companion(header: Header, file_name: str) -> str:
    """Return what the file is if it accompanies a model, else an empty text."""
    kind, architecture = header.values.get(FILE_KIND), header.values.get(ARCHITECTURE)
    if kind in _OTHER_KINDS:
        return _OTHER_KINDS[str(kind)]
    if architecture in _OTHER_ARCHITECTURES:
        return _OTHER_ARCHITECTURES[str(architecture)]
    if ADAPTER in header.values:
        return _OTHER_KINDS["adapter"]
    if file_name.lower().startswith("mmproj"):
        return _OTHER_KINDS["mmproj"]
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
    """Return the quantization: by file type, if the tensors agree; else of most weights, else by file name.

    Numbers of file types are given out by every fork of llama.cpp for itself: 40 is Q1_0 in one and I2_S in
    another. Therefore one that no tensor bears out is not believed.
    """
    elements = header.elements_by_type
    stated = gguf.file_types.get(file_type) if file_type is not None else None
    if stated and _is_borne_out(stated, {gguf.tensor_types.get(kind) for kind in elements}):
        return stated
    commonest = max(elements, key=lambda kind: elements[kind], default=None)
    of_weights = gguf.tensor_types.get(commonest) if commonest is not None else None
    if of_weights is not None and of_weights not in _UNQUANTIZED:
        return of_weights
    in_name = _QUANTIZATION_IN_NAME.findall(file_name.upper())
    if in_name:
        return str(in_name[-1])
    return of_weights and (stated or of_weights)


def _is_borne_out(file_type: str, tensor_types: AbstractSet[str | None]) -> bool:
    """Return whether tensors of some types may be in a file of that type; None is an unknown type.

    A mixture such as Q4_K_M contains tensors of other widths; at least one has the width of its name, or is a
    substitute for that.
    """
    quantized = tensor_types - _UNQUANTIZED
    if not tensor_types or file_type in _UNQUANTIZED:
        return not quantized
    width = re.search(r"\d", file_type)
    same_width = {name for name in quantized if name and width and width[0] in name.partition("_")[0]}
    return bool(same_width) or (bool(quantized) and quantized <= _SUBSTITUTES)
