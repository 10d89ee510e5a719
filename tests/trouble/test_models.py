"""Models as they lie on real disks: files of forks, downloads under way, caches, stores of other programs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from collector.database import Database
from collector.models import header_reader
from collector.models import scan as scan_models
from collector.models.header_reader import HeaderReader
from collector.models.scan import MODEL_FILES, READER_VERSION_KEY, ModelScan
from tests.models.test_scan import aged, model
from tests.support.gguf_files import STRING, number_pair, pair, raw_header, tensor_info, text, write_shards

ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
CONTEXT = number_pair("llama.context_length", 8192)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db", (MODEL_FILES,)) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def raw(path: Path, pairs: Sequence[bytes], *tensors: tuple[int, tuple[int, ...]]) -> Path:
    """Write a file of raw keys and of tensors, each a type and its dimensions."""
    infos = b"".join(tensor_info(f"t{i}", shape, kind, 0) for i, (kind, shape) in enumerate(tensors))
    path.write_bytes(raw_header(pairs, tensors=infos, tensor_count=len(tensors)) + bytes(65_536))
    return aged(path)


def row(database: Database) -> dict[str, Any]:
    (only,) = database.models.get_all()
    return only


def files(database: Database) -> dict[str, tuple[str, str]]:
    """Return verdict and reason by the name of the file."""
    rows = database.query("SELECT path, verdict, reason FROM model_files")
    return {Path(r["path"]).name: (r["verdict"], r["reason"]) for r in rows}


# Files of other programs

FILE_TYPE_40 = number_pair("general.file_type", 40)
Case = tuple[str, list[bytes], list[tuple[int, tuple[int, ...]]], str | None]
HEADERS: dict[str, Case] = {
    "a tensor type of ik_llama.cpp": ("m-IQ4_KS.gguf", [], [(144, (256,)), (0, (32,))], "IQ4_KS"),
    "its repacked types": ("m-Q4_K_R4.gguf", [], [(212, (256,))], "Q4_K_R4"),
    "type 339": ("m-IQ5_KS_R4.gguf", [], [(339, (256,))], "IQ5_KS_R4"),
    "type 339, plain name": ("m.gguf", [], [(339, (256,))], None),
    "5 dimensions": ("m.gguf", [], [(0, (2, 2, 2, 2, 2))], "F32"),
    "20,000 keys": ("m.gguf", [number_pair(f"x.{i}", i) for i in range(20_000)], [(8, (32,))], "Q8_0"),
    "BitNet": ("ggml-model-i2_s.gguf", [FILE_TYPE_40], [(36, (256,)), (0, (32,))], "I2_S"),
    "BitNet, plain name": ("model.gguf", [FILE_TYPE_40], [(36, (256,)), (0, (32,))], None),
    "a file type that another fork gave out": ("m.gguf", [FILE_TYPE_40], [(12, (256,))], "Q4_K"),
    "Q1_0 itself": ("m.gguf", [FILE_TYPE_40], [(41, (256,)), (0, (32,))], "Q1_0"),
    "a mixture": ("m.gguf", [number_pair("general.file_type", 15)], [(12, (256,)), (14, (256,))], "Q4_K_M"),
    "rows too short for K": ("m.gguf", [number_pair("general.file_type", 15)], [(6, (32,)), (8, (32,))], "Q4_K_M"),
    "F16, quantized later": ("m.gguf", [number_pair("general.file_type", 1)], [(8, (64,))], "Q8_0"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_what_is_not_known_of_a_model_is_null_and_the_rest_is_stored(
    database: Database, directory: Path, case: str
) -> None:
    name, pairs, tensors, quantization = HEADERS[case]
    raw(directory / name, [ARCHITECTURE, CONTEXT, *pairs], *tensors)
    assert ModelScan(database, [directory]).run().unreadable == 0
    assert (row(database)["type"], row(database)["ctx_size"]) == ("llama", 8192)
    assert row(database)["quantization"] == quantization


NO_LANGUAGE_MODELS = {
    "no keys": ([], "tensors without the name of an architecture"),
    "whisper": (
        [pair("general.architecture", STRING, text("whisper"))],
        "a model of architecture whisper, which is not a language model",
    ),
    "diffusion": (
        [pair("general.architecture", STRING, text("flux")), number_pair("general.file_type", 2)],
        "a model of architecture flux, which is not a language model",
    ),
}


@pytest.mark.parametrize("case", NO_LANGUAGE_MODELS)
def test_a_file_for_another_program_is_no_model(database: Database, directory: Path, case: str) -> None:
    pairs, reason = NO_LANGUAGE_MODELS[case]
    raw(directory / "m.gguf", pairs, (2, (32,)))
    ModelScan(database, [directory]).run()
    assert database.models.get_all() == []
    assert files(database) == {"m.gguf": ("other", reason)}


def test_a_language_model_of_an_architecture_to_come_is_a_model(database: Database, directory: Path) -> None:
    name = pair("general.architecture", STRING, text("llama9"))
    raw(directory / "m.gguf", [name, number_pair("llama9.context_length", 1024)], (8, (32,)))
    ModelScan(database, [directory]).run()
    assert (row(database)["type"], row(database)["ctx_size"]) == ("llama9", 1024)


# Verdicts that were wrong once


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\n    while True: pass",
        "print(json.dumps({'unreadable': 'needs memory', 'over_limit': True}), flush=True)",
    ],
    ids=["killed", "processor time", "memory"],
)
def test_a_file_that_ended_its_reader_is_tried_again(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    model(directory / "m.gguf")
    scan = ModelScan(database, [directory])
    program = f"""
import json, os, resource, signal, sys
print('{{}}', flush=True)
for line in sys.stdin:
    {end}
"""
    with monkeypatch.context() as patched:
        patched.setattr(header_reader, "_PROGRAM", program)
        assert scan.run().unreadable == 1
    assert files(database) == {}
    assert scan.run().added == 1
    assert row(database)["type"] == "llama"


def test_a_file_that_always_ends_its_reader_is_tried_less_and_less_often(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(directory / "m.gguf")
    attempts: list[int] = []
    number = -1

    def read(_self: HeaderReader, _path: str) -> header_reader.Answer:
        attempts.append(number)
        return header_reader.Answer("unreadable", "ended the process that read it", over_limit=True)

    monkeypatch.setattr(HeaderReader, "read", read)
    scan = ModelScan(database, [directory])
    with capture_logs() as events:
        while number < 19:
            number += 1
            assert scan.run().unreadable == 1
    assert attempts == [0, 1, 3, 6, 11]
    assert [e["event"] for e in events if e["log_level"] == "warning"] == [
        f"models: {directory}/m.gguf: ended the process that read it"
    ]
    model(directory / "m.gguf", numbers={"llama.context_length": 1})
    scan.run()
    assert attempts == [0, 1, 3, 6, 11, 19], "a changed file is read at once"


def test_a_newer_version_reads_what_an_older_one_did_not_understand(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(directory / "m.gguf")
    scan = ModelScan(database, [directory])
    with monkeypatch.context() as patched:
        patched.setattr(scan_models, "READER_VERSION", "an older one")
        patched.setattr(
            HeaderReader, "read", lambda _self, _path: header_reader.Answer("broken", "of type 99")
        )
        scan.run()
        assert database.meta.get(READER_VERSION_KEY) == "an older one"
    assert files(database) == {"m.gguf": ("broken", "of type 99")}
    assert scan.run().added == 1
    assert files(database) == {"m.gguf": ("model", "")}


def test_a_database_of_version_0_1_0_gets_its_broken_files_read_again(
    database: Database, directory: Path
) -> None:
    path = raw(directory / "m.gguf", [ARCHITECTURE], (339, (256,)))
    scan = ModelScan(database, [directory])
    scan.run()
    with database.transaction() as connection:
        connection.execute("DELETE FROM models")
        connection.execute("DELETE FROM metadata WHERE key = ?", (READER_VERSION_KEY,))
        connection.execute("UPDATE model_files SET verdict = 'broken', model_id = NULL")
    assert scan.run().added == 1
    assert row(database)["model_path"] == str(path)


# Downloads and caches


@pytest.mark.parametrize("ending", [".aria2", ".st"])
def test_a_preallocated_download_waits_until_it_is_whole(
    database: Database, directory: Path, ending: str
) -> None:
    path = model(directory / "m.gguf")
    control = directory / f"m.gguf{ending}"
    control.touch()
    scan = ModelScan(database, [directory])
    assert (scan.run().waiting, database.models.get_all()) == (1, [])
    control.unlink()
    assert scan.run().added == 1
    before = row(database)
    control.touch()  # the model is downloaded anew
    path.write_bytes(b"GGUF" + bytes(100_000))
    assert (scan.run().waiting, row(database)) == (1, before)


def test_two_revisions_of_a_hugging_face_cache_that_share_a_part_are_both_whole(
    database: Database, directory: Path, tmp_path: Path
) -> None:
    cache = directory / "models--org--big"
    blobs = cache / "blobs"
    blobs.mkdir(parents=True)
    first, second = write_shards(tmp_path, "big", 2, [1, 2])
    for blob, content in {
        "aa": first.read_bytes(),
        "bb": first.read_bytes() + bytes(32),
        "cc": second.read_bytes(),
    }.items():
        (blobs / blob).write_bytes(content)
        aged(blobs / blob)
    for revision, blob in (("rev1", "aa"), ("rev2", "bb")):
        snapshot = cache / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / first.name).symlink_to(f"../../blobs/{blob}")
        (snapshot / second.name).symlink_to("../../blobs/cc")
    with capture_logs() as events:
        assert ModelScan(database, [directory]).run().found == 2
    assert [event for event in events if event["log_level"] == "warning"] == []
    sizes = {Path(r["model_path"]).parent.name: r["file_size"] for r in database.models.get_all()}
    shared = (blobs / "cc").stat().st_size
    assert sizes == {
        "rev1": (blobs / "aa").stat().st_size + shared,
        "rev2": (blobs / "bb").stat().st_size + shared,
    }
    assert ModelScan(database, [directory]).run().changed == 0


def test_two_revisions_that_share_all_parts_are_one_model(
    database: Database, directory: Path, tmp_path: Path
) -> None:
    blobs = directory / "blobs"
    blobs.mkdir()
    for part in write_shards(tmp_path, "big", 2, [1, 2]):
        (blobs / part.name[4:9]).write_bytes(part.read_bytes())
        aged(blobs / part.name[4:9])
        for revision in ("rev1", "rev2"):
            (directory / revision).mkdir(exist_ok=True)
            (directory / revision / part.name).symlink_to(f"../blobs/{part.name[4:9]}")
    assert ModelScan(database, [directory]).run().found == 1
    assert row(database)["name"] == "big"


# Ollama

MODEL_LAYER = "application/vnd.ollama.image.model"


def ollama_store(directory: Path, models: dict[str, Path]) -> None:
    """Write a store that contains some files under their names."""
    (directory / "blobs").mkdir(parents=True, exist_ok=True)
    for name, file in models.items():
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        blob = directory / "blobs" / f"sha256-{digest}"
        blob.write_bytes(content)
        aged(blob)
        manifest = directory / "manifests" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'0' * 64}", "size": 1},
            {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(content)},
        ]
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def test_the_models_of_an_ollama_store_have_the_names_that_ollama_shows(
    database: Database, directory: Path, tmp_path: Path
) -> None:
    small = model(tmp_path / "small.gguf")
    large = model(tmp_path / "large.gguf", numbers={"llama.context_length": 32_768})
    ollama_store(
        directory,
        {
            "registry.ollama.ai/library/qwen3/8b": small,
            "registry.ollama.ai/library/qwen3/latest": small,
            "hf.co/org/Repo-GGUF/Q4_K_M": large,
        },
    )
    (directory / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "half").write_text('{"layers": [')
    (directory / "manifests" / "stray").write_text("[]")
    ModelScan(database, [directory]).run()
    rows = {r["name"]: r for r in database.models.get_all()}
    assert set(rows) == {"qwen3:8b", "hf.co/org/Repo-GGUF:Q4_K_M"}
    assert rows["qwen3:8b"]["ctx_size"] == 8192
    assert Path(rows["qwen3:8b"]["model_path"]).name.startswith("sha256-")
    assert ModelScan(database, [directory]).run().changed == 0


def test_a_store_in_a_subdirectory_is_found_and_its_hostile_manifests_change_nothing(
    database: Database, directory: Path, tmp_path: Path
) -> None:
    store = directory / "ollama" / "models"
    ollama_store(store, {"registry.ollama.ai/library/m/1b": model(tmp_path / "m.gguf")})
    hostile = store / "manifests" / "registry.ollama.ai" / "library" / "evil"
    hostile.mkdir()
    for name, content in {
        "deep": "[" * 100_000,
        "huge": json.dumps({"layers": [{"x": "y" * 300_000}]}),
        "escape": json.dumps(
            {"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:../../../etc/passwd"}]}
        ),
        "list": json.dumps({"layers": [1, None, "x"]}),
        "binary": "\0\x01",
    }.items():
        (hostile / name).write_text(content)
    ModelScan(database, [directory]).run()
    assert [r["name"] for r in database.models.get_all()] == ["m:1b"]


def test_the_row_of_a_loaded_model_whose_file_was_deleted_stays_until_it_is_unloaded(
    database: Database, directory: Path
) -> None:
    path = model(directory / "m.gguf")
    model(directory / "other.gguf")
    scan = ModelScan(database, [directory])
    scan.run()
    model_id = next(r["id"] for r in database.models.get_all() if r["name"] == "m")
    database.models.update(model_id, {"status": "loaded"})
    path.unlink()
    assert scan.run().removed == 0
    database.models.update(model_id, {"status": "idle"})
    scan.run()
    assert [r["name"] for r in database.models.get_all()] == ["other"]
