"""The columns of `models` that are derived from a header."""

import io
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFType, Keys

from collector.errors import ParseError
from collector.models.header_process import FORMAT, read_facts
from collector.parsers import model_facts as facts_module
from collector.parsers.gguf_header import parse_header
from collector.parsers.model_facts import SIZES, WANTED_KEYS, Facts, Format, model_facts
from tests.support.gguf_files import (
    STRING,
    number_pair,
    pair,
    raw_header,
    real_vocabularies,
    tensor_info,
    text,
    write_model,
    write_shards,
)

SIZE_KEYS = {
    "llama.context_length": 131072,
    "llama.embedding_length": 4096,
    "llama.block_count": 32,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 128256,
    "general.file_type": 15,
}


def facts_of(content: bytes, name: str = "m.gguf", gguf_format: Format = FORMAT) -> Facts:
    header = parse_header(io.BytesIO(content), len(content), WANTED_KEYS)
    return model_facts(header, name, len(content), gguf_format)


def test_every_documented_column_is_read_from_the_header(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", numbers=SIZE_KEYS)
    facts = read_facts(str(tmp_path / "m.gguf"))
    assert facts.kind == "model"
    assert json.loads(str(facts.columns["params"])) == {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    }
    assert {name: value for name, value in facts.columns.items() if name != "params"} == {
        "type": "llama",
        "ctx_size": 131072,
        "embedding_size": 4096,
        "block_count": 32,
        "head_count": 32,
        "head_count_kv": 8,
        "ffn_dim": 14336,
        "file_type": 15,
        "quantization": "Q4_K_M",
    }


def test_a_key_that_is_absent_gives_no_value(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "gpt2", numbers={"llama.context_length": 4096})
    columns = dict(read_facts(str(tmp_path / "m.gguf")).columns)
    assert (columns.pop("type"), columns.pop("quantization")) == ("gpt2", "F32")
    assert columns == dict.fromkeys((*SIZES, "file_type", "params"))


@pytest.mark.parametrize("big_endian", [False, True])
def test_of_one_size_for_each_layer_the_greatest_is_used(tmp_path: Path, *, big_endian: bool) -> None:
    keys = {"llama.attention.head_count_kv": [0, 8, 2], "llama.feed_forward_length": [7168, 14336]}
    write_model(tmp_path / "m.gguf", numbers=keys, big_endian=big_endian)
    columns = read_facts(str(tmp_path / "m.gguf")).columns
    assert (columns["head_count_kv"], columns["ffn_dim"]) == (8, 14336)


FILE_TYPES = [kind for kind in gguf.LlamaFileType if kind is not gguf.LlamaFileType.GUESSED]


@pytest.mark.parametrize("kind", FILE_TYPES, ids=lambda kind: kind.name)
def test_every_file_type_has_its_quantization(kind: gguf.LlamaFileType) -> None:
    columns = facts_of(raw_header([number_pair("general.file_type", int(kind))])).columns
    assert columns["file_type"] == int(kind)
    assert str(columns["quantization"]) in kind.name
    assert "MOSTLY" not in str(columns["quantization"])


def test_quantizations_have_their_usual_names() -> None:
    names = {kind: FORMAT.file_types[kind] for kind in (0, 1, 7, 15, 19, 30, 38)}
    assert names == {0: "F32", 1: "F16", 7: "Q8_0", 15: "Q4_K_M", 19: "IQ2_XXS", 30: "IQ4_XS", 38: "MXFP4"}


def tensors(*types_and_widths: tuple[int, int]) -> bytes:
    return b"".join(
        tensor_info(f"t{i}", (width,), kind, 0) for i, (kind, width) in enumerate(types_and_widths)
    )


@pytest.mark.parametrize(
    "file_type", [[], [number_pair("general.file_type", 999)]], ids=["absent", "unknown"]
)
def test_without_a_known_file_type_the_quantization_is_that_of_most_weights(file_type: list[bytes]) -> None:
    header = raw_header(file_type, tensors=tensors((0, 256), (14, 512), (12, 25600)), tensor_count=3)
    assert facts_of(header + bytes(65536)).columns["quantization"] == "Q4_K"


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Qwen3-8B-Q2_0.gguf", "Q2_0"),
        ("model.q5_k_s.gguf", "Q5_K_S"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Llama-3-UD-IQ2_XXS.gguf", "IQ2_XXS"),
        ("bf16-of-f16.gguf", "F16"),
        ("Q4_model.gguf", None),
        ("plain.gguf", None),
    ],
)
def test_with_tensors_of_an_unknown_type_the_quantization_is_that_in_the_name(
    name: str, quantization: str | None
) -> None:
    header = raw_header([number_pair("general.file_type", 999)], tensors=tensors((200, 256)), tensor_count=1)
    assert facts_of(header + bytes(64), name).columns["quantization"] == quantization


@pytest.mark.parametrize("big_endian", [False, True])
def test_the_vocabulary_is_counted_if_the_header_does_not_state_its_size(
    tmp_path: Path, *, big_endian: bool
) -> None:
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama", endianess=order)
    writer.add_token_list(["a", "b", "c"])
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    facts = read_facts(str(tmp_path / "v.gguf"))
    assert json.loads(str(facts.columns["params"])) == {"vocab_size": 3}
    assert (facts.kind, facts.reason) == ("other", "a vocabulary without a model")


@pytest.mark.parametrize(
    ("architecture", "texts", "name"),
    [
        ("clip", {}, "vision.gguf"),
        ("llama", {"general.type": "mmproj"}, "vision.gguf"),
        ("llama", {}, "mmproj-model-f16.gguf"),
        ("llama", {"general.type": "adapter"}, "style.gguf"),
        ("llama", {"adapter.type": "lora"}, "style.gguf"),
        ("llama", {"general.type": "imatrix"}, "data.gguf"),
        ("controlvector", {}, "happy.gguf"),
    ],
)
def test_a_file_that_accompanies_a_model_is_not_a_model(
    tmp_path: Path, architecture: str, texts: dict[str, str], name: str
) -> None:
    write_model(tmp_path / name, architecture, texts=texts)
    facts = read_facts(str(tmp_path / name))
    assert facts.kind == "other"
    assert facts.reason


def test_a_part_of_a_model_without_tensors_is_still_a_part(tmp_path: Path) -> None:
    (first,) = write_shards(tmp_path, "big", 3, [1])
    assert read_facts(str(first)).kind == "part"
    write_model(first, numbers={"split.count": 3}, tensors={})
    assert read_facts(str(first)).kind == "part"


@pytest.mark.parametrize("missing", [1, 31, 32])
def test_a_file_shorter_than_its_tensors_is_rejected(tmp_path: Path, missing: int) -> None:
    write_model(tmp_path / "m.gguf", tensors={"t": np.zeros(8, np.float32)})
    content = (tmp_path / "m.gguf").read_bytes()
    assert facts_of(content).kind == "model"
    with pytest.raises(ParseError, match="copy or download it again"):
        facts_of(content[:-missing])


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([number_pair("a.context_length", -5)], "a.context_length is -5, not a size"),
        ([pair("a.context_length", 10, b"\xff" * 8)], "a.context_length is 18446744073709551615, not a size"),
        ([pair("a.context_length", 6, b"\0\0\x80\x45")], "a.context_length is 4096.0, not a size"),
        ([pair("a.block_count", STRING, text("many"))], "a.block_count is 'many', not a size"),
        ([pair("a.block_count", 7, b"\1")], "a.block_count is True, not a size"),
        ([pair("general.architecture", 4, bytes(4))], "general.architecture is 0, not a name"),
        (
            [pair("general.architecture", STRING, text("a\0"))],
            r"general.architecture is 'a\\x00', not a name",
        ),
    ],
)
def test_an_impossible_value_is_rejected(pairs: list[bytes], reason: str) -> None:
    architecture = [] if "architecture" in reason else [pair("general.architecture", STRING, text("a"))]
    with pytest.raises(ParseError, match=reason):
        facts_of(raw_header([*architecture, *pairs]))


def test_the_keys_are_those_of_gguf() -> None:
    def key(template: str) -> str:
        return template.format(arch="")

    assert {
        "ctx_size": key(Keys.LLM.CONTEXT_LENGTH),
        "embedding_size": key(Keys.LLM.EMBEDDING_LENGTH),
        "block_count": key(Keys.LLM.BLOCK_COUNT),
        "head_count": key(Keys.Attention.HEAD_COUNT),
        "head_count_kv": key(Keys.Attention.HEAD_COUNT_KV),
        "ffn_dim": key(Keys.LLM.FEED_FORWARD_LENGTH),
    } == SIZES
    assert {
        Keys.General.ARCHITECTURE,
        Keys.General.TYPE,
        Keys.General.FILE_TYPE,
        Keys.Adapter.TYPE,
        Keys.Split.LLM_KV_SPLIT_COUNT,
        Keys.Tokenizer.LIST,
        key(Keys.LLM.VOCAB_SIZE),
    } == set(WANTED_KEYS) - set(SIZES.values())
    assert set(facts_module._OTHER_KINDS) == {GGUFType.MMPROJ, GGUFType.ADAPTER, GGUFType.IMATRIX}


def expected_columns(path: Path) -> dict[str, Any]:
    """Return the columns as `GGUFReader` reads them."""
    fields = gguf.GGUFReader(path).fields

    def value(key: str) -> Any:
        if key not in fields:
            return None
        contents = fields[key].contents()
        return max(contents) if isinstance(contents, list) else contents

    architecture = value("general.architecture")
    columns = {column: value(f"{architecture}{suffix}") for column, suffix in SIZES.items()}
    vocabulary_size = value(f"{architecture}.vocab_size")
    if vocabulary_size is None and "tokenizer.ggml.tokens" in fields:
        vocabulary_size = len(fields["tokenizer.ggml.tokens"].data)
    params = {
        "vocab_size": vocabulary_size,
        "hidden_size": columns["embedding_size"],
        "intermediate_size": columns["ffn_dim"],
        "num_attention_heads": columns["head_count"],
        "num_hidden_layers": columns["block_count"],
    }
    return columns | {
        "type": architecture,
        "file_type": value("general.file_type"),
        "params": {name: number for name, number in params.items() if number is not None},
    }


def assert_equal_to_gguf(path: Path) -> None:
    columns = dict(read_facts(str(path)).columns)
    columns["params"] = json.loads(str(columns["params"]))
    del columns["quantization"]
    assert columns == expected_columns(path), path.name


def test_the_columns_of_a_whole_model_are_those_of_gguf(tiny_model: Path) -> None:
    assert_equal_to_gguf(tiny_model)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_columns_of_every_real_vocabulary_are_those_of_gguf(pytestconfig: pytest.Config) -> None:
    for path in real_vocabularies(pytestconfig.cache.mkdir("gguf-vocabularies")):
        assert_equal_to_gguf(path)
