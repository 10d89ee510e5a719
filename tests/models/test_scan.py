"""The scan of real directories, with the real child process."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from collector.database import Database
from collector.errors import SourceFailed
from collector.models import mounts
from collector.models import scan as scan_models
from collector.models.header_reader import Answer, HeaderReader
from collector.models.inventory import SETTLE_SECONDS
from collector.models.scan import MODEL_FILES, SCAN_TIME_KEY, SUMMARY_KEY, ModelScan
from tests.support.gguf_files import raw_header, write_model, write_shards

NUMBERS = {"llama.context_length": 8192, "llama.embedding_length": 4096, "general.file_type": 15}
OF_OTHER_PROGRAMS = {
    "favorite": 1,
    "parameters": '{"temperature": 0.7}',
    "threads": 16,
    "batch_size": 1024,
    "status": "loaded",
}


class SharedReader(HeaderReader):
    """A reader whose process serves all tests: its start needs most of the time of a scan."""

    def __exit__(self, *_: object) -> None:
        if self._stop.is_set():  # an answer may be under way
            self.close()

    def with_stop(self, stop: threading.Event) -> HeaderReader:
        self._stop = stop
        return self


@pytest.fixture(scope="module")
def shared_reader() -> Iterator[SharedReader]:
    reader = SharedReader(threading.Event())
    yield reader
    reader.close()


@pytest.fixture(autouse=True)
def _one_process(shared_reader: SharedReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_models, "HeaderReader", shared_reader.with_stop)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db", (MODEL_FILES,)) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def scan(database: Database, directory: Path) -> ModelScan:
    return ModelScan(database, [directory])


def model(path: Path, **options: Any) -> Path:
    """Write a model that was modified long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path, **{"numbers": NUMBERS} | options)
    return aged(path)


def broken(path: Path) -> Path:
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    return aged(path)


def aged(path: Path) -> Path:
    """Set the modification time some minutes back; no two files get the same."""
    then = path.stat().st_mtime_ns - 10 * SETTLE_SECONDS * 10**9
    os.utime(path, ns=(then, then))
    return path


def names(database: Database) -> list[str]:
    return sorted(row["name"] for row in database.models.get_all())


def only(database: Database) -> dict[str, Any]:
    (row,) = database.models.get_all()
    return row


def warnings_of(action: Callable[[], object]) -> list[str]:
    """Return the warnings that an action logs."""
    with capture_logs() as events:
        action()
    return [event["event"] for event in events if event["log_level"] == "warning"]


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_self: object, path: str) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(HeaderReader, "read", read)


# The row of a model


def test_a_model_gets_a_row_with_all_values_of_its_header(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "deep" / "below" / "Llama-3.Q4_K_M.gguf")
    before = int(time.time())
    summary = scan.run()
    row = only(database)
    assert row["id"].startswith(f"model_{row['created_at']}_")
    assert before <= row["created_at"] <= row["updated_at"] <= time.time()
    assert {name: row[name] for name in row.keys() - {"id", "created_at", "updated_at"}} == {
        "name": "Llama-3.Q4_K_M",
        "type": "llama",
        "status": "idle",
        "parameters": "{}",
        "model_path": str(path),
        "file_size": path.stat().st_size,
        "params": '{"hidden_size": 4096}',
        "quantization": "Q4_K_M",
        "ctx_size": 8192,
        "embedding_size": 4096,
        "block_count": 0,
        "head_count": 0,
        "head_count_kv": 0,
        "ffn_dim": 0,
        "file_type": 15,
        "batch_size": 512,
        "threads": 4,
        "favorite": 0,
    }
    assert (summary.found, summary.added, summary.complete) == (1, 1, True)
    assert database.meta.get(SCAN_TIME_KEY) >= before
    assert database.meta.get(SUMMARY_KEY)["added"] == 1


def test_an_absent_key_leaves_the_documented_default(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "m.gguf", numbers={})
    scan.run()
    assert (only(database)["ctx_size"], only(database)["file_type"], only(database)["params"]) == (
        4096,
        0,
        None,
    )


def test_a_file_that_is_not_a_model_gets_no_row(database: Database, directory: Path, scan: ModelScan) -> None:
    model(directory / "mmproj-f16.gguf")
    model(directory / "vision.gguf", architecture="clip")
    model(directory / "style.gguf", texts={"general.type": "adapter"})
    model(directory / "matrix.gguf", texts={"general.type": "imatrix"})
    model(directory / "vocabulary.gguf", tensors={})
    (directory / "notes.txt").write_text("GGUF")
    (directory / "half.gguf.part").write_text("GGUF")
    model(directory / ".Trash-1000" / "deleted.gguf")
    assert warnings_of(scan.run) == []
    assert names(database) == []


def test_progress_names_every_file_before_it_is_read(directory: Path, scan: ModelScan) -> None:
    paths = [model(directory / f"{name}.gguf") for name in "ab"]
    steps: list[tuple[int, int, str]] = []
    scan.run(lambda *step: steps.append(step))
    assert steps == [(0, 2, str(paths[0])), (1, 2, str(paths[1])), (2, 2, "")]


def test_one_scan_covers_several_directories(database: Database, tmp_path: Path) -> None:
    first, second = (model(tmp_path / name / f"{name}.gguf").parent for name in ("one", "two"))
    assert ModelScan(database, [first, second, first]).run().found == 2
    assert names(database) == ["one", "two"]


# Later scans


def test_an_unchanged_file_is_not_read_again_even_by_the_next_collector(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.gguf", "mmproj-a.gguf"):
        model(directory / name)
    write_shards(directory, "set", 2, [1, 2])
    bad = broken(directory / "bad.gguf")
    scan.run()
    rows = database.models.get_all()
    refuse_to_read(monkeypatch)
    assert warnings_of(ModelScan(database, [directory]).run) == []
    assert database.models.get_all() == rows
    os.utime(bad)
    with pytest.raises(AssertionError, match=r"bad\.gguf was read"):
        scan.run()


def test_a_changed_file_is_read_again_and_the_columns_of_other_programs_stay(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "m.gguf")
    scan.run()
    database.models.update(only(database)["id"], OF_OTHER_PROGRAMS | {"name": "my model"})
    before = only(database)
    model(path, numbers=NUMBERS | {"llama.context_length": 32768}, architecture="llama")
    assert scan.run().changed == 1
    after = only(database)
    kept = ("id", "created_at", "name", *OF_OTHER_PROGRAMS)
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after["ctx_size"] == 32768


def test_the_row_that_another_program_made_for_a_file_is_used(
    database: Database, directory: Path, scan: ModelScan, tmp_path: Path
) -> None:
    path = model(directory / "m.gguf")
    (tmp_path / "alias").symlink_to(directory)
    named = str(tmp_path / "alias" / "m.gguf")
    made = database.models.save({"name": "theirs", "model_path": named, **OF_OTHER_PROGRAMS})
    summary = scan.run()
    row = only(database)
    assert {name: row[name] for name in ("id", "name", "model_path", *OF_OTHER_PROGRAMS)} == {
        "id": made["id"],
        "name": "theirs",
        "model_path": named,
        **OF_OTHER_PROGRAMS,
    }
    assert (row["ctx_size"], row["file_size"]) == (8192, path.stat().st_size)
    assert (summary.added, summary.changed) == (0, 1)
    assert scan.run().changed == 0


def test_a_row_that_was_deleted_is_written_again_while_its_file_exists(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "m.gguf")
    write_shards(directory, "set", 2, [1, 2])
    scan.run()
    for row in database.models.get_all():
        database.models.delete(row["id"])
    assert scan.run().added == 2
    assert {row["quantization"] for row in database.models.get_all()} == {"Q4_K_M"}


@pytest.mark.parametrize("target", ["renamed.gguf", "below/m.gguf", "below/renamed.gguf"])
def test_a_file_that_moved_keeps_its_row(
    database: Database, directory: Path, scan: ModelScan, target: str
) -> None:
    path = model(directory / "m.gguf")
    model(directory / "other.gguf")
    scan.run()
    (row,) = (row for row in database.models.get_all() if row["name"] == "m")
    database.models.update(row["id"], OF_OTHER_PROGRAMS)
    (directory / "below").mkdir()
    path.rename(directory / target)
    summary = scan.run()
    moved = database.models.get_by_id(row["id"])
    assert moved is not None
    assert (moved["model_path"], moved["name"]) == (str(directory / target), Path(target).stem)
    assert moved["favorite"] == 1
    assert (summary.found, summary.added, summary.removed) == (2, 0, 0)
    assert scan.run().changed == 0


def test_a_file_that_moved_to_another_disk_keeps_its_row(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "m.gguf")
    scan.run()
    row = only(database)
    shutil.copy2(path, directory / "copy.gguf")  # another inode, the same size and time: as mv does
    path.unlink()
    scan.run()
    assert (only(database)["id"], only(database)["name"]) == (row["id"], "copy")


def test_files_that_swap_their_names_keep_their_rows(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    small = model(directory / "small.gguf", numbers=NUMBERS | {"llama.context_length": 1})
    large = model(directory / "large.gguf", tensors={"t": np.zeros(4096, np.float32)})
    scan.run()
    before = {row["name"]: row for row in database.models.get_all()}
    small.rename(directory / "kept")
    large.rename(small)
    (directory / "kept").rename(large)
    scan.run()
    after = {row["name"]: row for row in database.models.get_all()}
    for old, new in (("small", "large"), ("large", "small")):
        assert after[new]["model_path"] == str(directory / f"{new}.gguf")
        for column in ("id", "ctx_size", "file_size"):
            assert after[new][column] == before[old][column]


def test_a_new_file_at_the_path_of_one_that_moved_does_not_get_its_row(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "m.gguf")
    scan.run()
    row = only(database)
    path.rename(directory / "old.gguf")
    path.write_bytes(b"GGUF")  # the new one is still being copied
    scan.run()
    assert (only(database)["id"], only(database)["name"]) == (row["id"], "old")
    model(path, numbers={"llama.context_length": 1})
    scan.run()
    rows = {row["name"]: row for row in database.models.get_all()}
    assert rows.keys() == {"m", "old"}
    assert (rows["old"]["id"], rows["m"]["ctx_size"]) == (row["id"], 1)


# Parts


def test_the_parts_of_a_model_are_one_row_with_the_sum_of_their_sizes(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    paths = write_shards(directory, "big", 3, [1, 2, 3])
    assert warnings_of(scan.run) == []
    row = only(database)
    assert (row["name"], row["model_path"], row["ctx_size"]) == ("big", str(paths[0]), 8192)
    assert row["file_size"] == sum(path.stat().st_size for path in paths)


def test_the_missing_parts_of_a_model_are_logged_once_and_its_size_grows_when_they_arrive(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    for path in write_shards(directory, "big", 4, [1, 3]):
        aged(path)
    (sentence,) = warnings_of(scan.run)
    assert sentence.endswith(
        "big-00001-of-00004.gguf is part of a model of 4 files, of which are missing: 2, 4"
    )
    assert warnings_of(scan.run) == []
    size = only(database)["file_size"]
    for path in write_shards(directory, "big", 4, [2, 4]):
        aged(path)
    assert warnings_of(scan.run) == []
    assert only(database)["file_size"] > size
    (directory / "big-00004-of-00004.gguf").unlink()
    assert "missing: 4" in warnings_of(scan.run)[0]
    assert only(database)["name"] == "big"


def test_nothing_is_logged_while_parts_are_still_arriving(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    (first,) = write_shards(directory, "big", 3, [1])
    assert warnings_of(scan.run) == []
    aged(first)
    (second,) = write_shards(directory, "big", 3, [2])
    second.write_bytes(second.read_bytes()[:-40])
    assert warnings_of(scan.run) == []
    assert only(database)["file_size"] == first.stat().st_size


def test_parts_without_the_first_one_are_not_a_model(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    for path in write_shards(directory, "big", 2, [2]):
        aged(path)
    assert "missing: 1" in warnings_of(scan.run)[0]
    assert names(database) == []


def test_the_warning_for_a_part_without_a_number_in_its_name_explains_how_to_rename_it(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    (first,) = write_shards(directory, "big", 2, [1])
    first.rename(directory / "big.gguf")
    assert "NAME-00001-of-0000N.gguf" in warnings_of(scan.run)[0]
    assert names(database) == []


# Links


def test_the_links_of_a_hugging_face_cache_are_followed_and_name_the_model(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    cache = directory / "models--org--name"
    blob = model(cache / "blobs" / "0123abcd")
    for revision in ("rev1", "rev2"):
        (cache / "snapshots" / revision).mkdir(parents=True)
        (cache / "snapshots" / revision / "m.Q8_0.gguf").symlink_to("../../blobs/0123abcd")
    assert scan.run().found == 1
    row = only(database)
    assert (row["name"], row["model_path"]) == ("m.Q8_0", str(cache / "snapshots" / "rev1" / "m.Q8_0.gguf"))
    shutil.rmtree(cache / "snapshots" / "rev1")
    scan.run()
    assert only(database) == row | {
        "model_path": str(cache / "snapshots" / "rev2" / "m.Q8_0.gguf"),
        "updated_at": only(database)["updated_at"],
    }
    shutil.rmtree(cache / "snapshots" / "rev2")
    assert blob.exists()
    assert scan.run().removed == 1


def test_one_file_under_two_names_is_two_models_only_if_the_paths_differ_after_resolving(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "m.gguf")
    (directory / "a-link.gguf").symlink_to(path)
    scan.run()
    assert names(database) == ["m"]
    (directory / "hard.gguf").hardlink_to(path)
    scan.run()
    assert names(database) == ["hard", "m"]


def test_loops_of_links_are_not_followed(database: Database, directory: Path, scan: ModelScan) -> None:
    model(directory / "deep" / "m.gguf")
    (directory / "deep" / "up").symlink_to(directory)
    (directory / "deep" / "self").symlink_to("self")
    (directory / "nowhere.gguf").symlink_to("gone")
    assert warnings_of(scan.run) == [
        f"models: {directory}/deep/self cannot be read (Too many levels of symbolic links): "
        "what is stored about the files there is kept"
    ]
    assert only(database)["model_path"] == str(directory / "deep" / "m.gguf")


# Deleted files


def test_the_row_of_a_deleted_file_is_deleted(database: Database, directory: Path, scan: ModelScan) -> None:
    model(directory / "stays.gguf")
    model(directory / "below" / "goes.gguf")
    scan.run()
    shutil.rmtree(directory / "below")
    assert scan.run().removed == 1
    assert names(database) == ["stays"]
    assert database.query("SELECT count(*) AS n FROM model_files") == [{"n": 1}]


def test_the_row_of_the_last_file_of_a_directory_is_deleted(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "m.gguf")
    scan.run()
    (directory / "m.gguf").unlink()
    assert scan.run().removed == 1
    assert names(database) == []


def test_a_row_of_another_program_is_deleted_with_its_file_except_in_an_empty_directory(
    database: Database, directory: Path, scan: ModelScan, tmp_path: Path
) -> None:
    (directory / "disk").mkdir()
    for name, path in {
        "gone": directory / "gone.gguf",
        "unmounted": directory / "disk" / "m.gguf",
        "outside": tmp_path / "elsewhere" / "m.gguf",
        "relative": Path("models/m.gguf"),
        "other format": directory / "there.bin",
    }.items():
        database.models.save({"name": name, "model_path": str(path)})
    database.models.save({"name": "without path"})
    (directory / "there.bin").touch()
    (sentence,) = warnings_of(scan.run)
    assert sentence.startswith(f"models: {directory}/disk is empty")
    assert names(database) == ["other format", "outside", "relative", "unmounted", "without path"]
    assert warnings_of(scan.run) == []


def test_the_rows_of_a_missing_or_unreadable_directory_are_kept_which_is_logged_once(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "m.gguf")
    scan.run()
    directory.rename(directory.with_name("away"))
    assert warnings_of(scan.run) == [
        f"models: {directory} cannot be read (No such file or directory): what is stored about the files there is kept"
    ]
    assert warnings_of(scan.run) == []
    assert names(database) == ["m"]
    directory.with_name("away").rename(directory)
    assert warnings_of(scan.run) == []
    directory.rename(directory.with_name("away"))
    directory.touch()
    assert "Not a directory" in warnings_of(scan.run)[0]
    assert names(database) == ["m"]


def test_the_rows_of_a_subdirectory_that_cannot_be_read_are_kept(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(directory / "nas" / "m.gguf")
    model(directory / "goes.gguf").with_name("stays.gguf").touch()
    scan.run()
    (directory / "goes.gguf").unlink()
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("/nas"):
            raise OSError(116, "Stale file handle")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (directory / "nas" / "m.gguf").unlink()
    assert warnings_of(scan.run) == [
        f"models: {directory}/nas cannot be read (Stale file handle): what is stored about the files there is kept"
    ]
    assert names(database) == ["m"]


class MountTable:
    """A replacement for the kernel's list of mounts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set()

    def set(self, **sources: str) -> None:
        lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw"]
        lines += [f"23 22 8:2 / {point} rw shared:1 - ext4 {source} rw" for point, source in sources.items()]
        self._path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountTable:
    monkeypatch.setattr(mounts, "MOUNT_TABLE", tmp_path / "mountinfo")
    monkeypatch.setattr(mounts, "_file_system_id", lambda _: 0)
    return MountTable(tmp_path / "mountinfo")


def test_the_rows_of_an_unmounted_disk_are_kept_which_is_logged_once(
    database: Database, directory: Path, scan: ModelScan, mount_table: MountTable
) -> None:
    model(directory / "disk" / "m.gguf")
    model(directory / "disk" / "gone.gguf")
    model(directory / "here.gguf")
    mount_table.set(**{f"{directory}/disk": "/dev/sdb1"})
    scan.run()
    ids = {row["name"]: row["id"] for row in database.models.get_all()}

    mount_table.set()
    (directory / "disk").rename(directory.with_name("away"))
    (directory / "disk").mkdir()
    assert warnings_of(scan.run) == [
        f"models: the disk at {directory}/disk is not mounted, or another one is: what is stored about 2 files on it is kept"
    ]
    assert warnings_of(scan.run) == []
    assert names(database) == ["gone", "here", "m"]

    (directory / "disk").rmdir()
    directory.with_name("away").rename(directory / "disk")
    (directory / "disk" / "gone.gguf").unlink()
    mount_table.set(**{f"{directory}/disk": "/dev/sdb1"})
    assert scan.run().removed == 1
    assert {row["name"]: row["id"] for row in database.models.get_all()} == {n: ids[n] for n in ("here", "m")}


def test_the_rows_of_a_disk_are_kept_while_another_is_mounted_at_the_same_path(
    database: Database, directory: Path, scan: ModelScan, mount_table: MountTable
) -> None:
    path = model(directory / "m.gguf")
    mount_table.set(**{str(directory): "/dev/first"})
    scan.run()
    path.unlink()
    model(directory / "second.gguf", numbers={})
    mount_table.set(**{str(directory): "/dev/second"})
    scan.run()
    assert names(database) == ["m", "second"]


def test_a_disk_with_a_new_device_name_is_recognised_by_its_files(
    database: Database, directory: Path, scan: ModelScan, mount_table: MountTable
) -> None:
    path = model(directory / "goes.gguf")
    model(directory / "stays.gguf")
    mount_table.set(**{str(directory): "/dev/sdb1"})
    scan.run()
    path.unlink()
    mount_table.set(**{str(directory): "/dev/sdc1"})
    scan.run()
    assert names(database) == ["stays"]


def test_the_row_of_a_link_to_an_unmounted_disk_is_kept(
    database: Database, directory: Path, scan: ModelScan, mount_table: MountTable, tmp_path: Path
) -> None:
    target = model(tmp_path / "disk" / "m.gguf")
    (directory / "m.gguf").symlink_to(target)
    mount_table.set(**{str(target.parent): "/dev/sdb1"})
    scan.run()
    shutil.rmtree(target.parent)
    mount_table.set()
    assert len(warnings_of(scan.run)) == 1
    assert names(database) == ["m"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_the_rows_of_a_real_mount_are_kept_when_it_is_unmounted(
    database: Database, directory: Path, scan: ModelScan, tmp_path: Path, kind: str
) -> None:
    point, source = directory / "disk", tmp_path / "source"
    point.mkdir()
    source.mkdir()
    model(directory / "here.gguf")
    mount = ["mount", "--bind", str(source)] if kind == "bind" else ["mount", "-t", "tmpfs", "none"]
    subprocess.run([*mount, str(point)], check=True)
    try:
        model(point / "m.gguf")
        model(point / "gone.gguf")
        scan.run()
        (point / "gone.gguf").unlink()
        assert scan.run().removed == 1
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert list(point.iterdir()) == []
    assert [f"the disk at {point} is not mounted" in sentence for sentence in warnings_of(scan.run)] == [True]
    assert warnings_of(scan.run) == []
    assert names(database) == ["here", "m"]


# Scans that are stopped early


def test_a_scan_stopped_during_the_walk_changes_nothing(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "m.gguf")
    scan.run()
    last = database.meta.get(SUMMARY_KEY)
    (directory / "m.gguf").unlink()
    stop = threading.Event()
    stop.set()
    assert scan.run(stop=stop).complete is False
    assert names(database) == ["m"]
    assert database.meta.get(SUMMARY_KEY) == last


def test_a_scan_stopped_while_it_reads_stores_what_it_read_and_deletes_nothing(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / "goes.gguf")
    scan.run()
    (directory / "goes.gguf").unlink()
    for name in "abc":
        model(directory / f"{name}.gguf")
    stop = threading.Event()

    def stop_at_the_second(done: int, _total: int, _path: str) -> None:
        if done == 1:
            stop.set()

    summary = scan.run(stop_at_the_second, stop)
    assert (summary.added, summary.removed, summary.waiting, summary.complete) == (1, 0, 2, False)
    assert names(database) == ["a", "goes"]
    assert scan.run().added == 2
    assert names(database) == ["a", "b", "c"]


def test_the_first_file_without_an_answer_ends_a_scan_and_is_read_last_by_the_next(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        model(directory / f"{name}.gguf")
    read_paths: list[str] = []

    def read(_self: object, path: str) -> Answer:
        read_paths.append(Path(path).stem)
        if path.endswith("a.gguf"):
            return Answer("unreadable", "could not be read", timed_out=True)
        return Answer("model")

    monkeypatch.setattr(HeaderReader, "read", read)
    first, second = scan.run(), scan.run()
    assert read_paths == ["a", "b", "c", "a"]
    assert (first.complete, second.complete) == (False, True)
    assert (second.added, second.unreadable, second.waiting) == (2, 1, 1)
    assert names(database) == ["b", "c"]


# Files that are being written, and hostile ones


def test_a_file_still_being_copied_is_left_for_the_next_scan_without_a_warning(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    content = model(directory / "whole.gguf", tensors={"t": np.zeros(4096, np.float32)}).read_bytes()
    (directory / "whole.gguf").unlink()
    path = directory / "m.gguf"
    for part in (b"", bytes(len(content)), content[:3], content[:100], content[:-1]):
        path.write_bytes(part)
        assert warnings_of(scan.run) == []
        assert names(database) == []
    path.write_bytes(content)
    scan.run()
    assert names(database) == ["m"]


def test_a_model_that_is_being_overwritten_keeps_its_row(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    path = model(directory / "m.gguf")
    scan.run()
    row = only(database)
    path.write_bytes(path.read_bytes()[:50])
    assert warnings_of(scan.run) == []
    assert only(database) == row
    aged(path)
    assert "ends after 50 bytes" in warnings_of(scan.run)[0]
    assert only(database) == row
    model(path)
    scan.run()
    assert only(database)["id"] == row["id"]


def test_a_broken_file_is_logged_once_until_it_changes(directory: Path, scan: ModelScan) -> None:
    path = broken(directory / "bad.gguf")
    (sentence,) = warnings_of(scan.run)
    assert sentence.startswith(f"models: {path} claims to contain ")
    assert warnings_of(scan.run) == []
    aged(path)
    assert warnings_of(scan.run) == [sentence]


def test_a_file_of_another_format_is_logged_at_once(directory: Path, scan: ModelScan) -> None:
    (directory / "page.gguf").write_text("<html>404</html>")
    assert warnings_of(scan.run) == [f"models: {directory}/page.gguf is not a GGUF file"]
    assert warnings_of(scan.run) == []


def test_only_regular_files_are_opened(database: Database, directory: Path, scan: ModelScan) -> None:
    os.mkfifo(directory / "fifo.gguf")
    model(directory / "directory.gguf" / "m.gguf")
    (directory / "device.gguf").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket.gguf"))
        assert warnings_of(scan.run) == []
    assert names(database) == ["m"]


@pytest.mark.timeout(20)
def test_a_file_that_becomes_a_fifo_blocks_nothing(directory: Path, scan: ModelScan) -> None:
    path = model(directory / "m.gguf")

    def replace(done: int, _total: int, _path: str) -> None:
        if done == 0 and path.is_file():
            path.unlink()
            os.mkfifo(path)

    (sentence,) = warnings_of(lambda: scan.run(replace))
    assert sentence == f"models: {path} is not a file"


def test_names_that_are_not_utf8_or_not_on_one_line_are_logged_readably(
    database: Database, directory: Path, scan: ModelScan
) -> None:
    model(directory / os.fsdecode(b"caf\xe9.gguf"))
    model(directory / "two\nlines.gguf")
    model(directory / os.fsdecode(b"\xff") / "m.gguf")
    sentences = warnings_of(scan.run)
    assert sorted(sentences) == [
        f"models: {directory}/\\udcff/m.gguf has a name that is not UTF-8, which the database cannot store: rename it",
        f"models: {directory}/caf\\udce9.gguf has a name that is not UTF-8, which the database cannot store: rename it",
    ]
    assert warnings_of(ModelScan(database, [directory]).run) == []
    assert names(database) == ["two\nlines"]


def test_numbers_that_sqlite_cannot_store_do_not_stop_a_scan(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(directory / "m.gguf")
    real = os.DirEntry.stat

    class Far:
        """The status of a file of the year 2400 with an inode of 64 bits, as some file systems report it."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            status = real(entry)
            self.st_mode, self.st_size = status.st_mode, status.st_size
            self.st_mtime_ns, self.st_ino = 2**64, 2**64 - 1

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self._entry = entry
            self.name, self.path = entry.name, entry.path
            self.is_dir, self.is_symlink = entry.is_dir, entry.is_symlink

        def stat(self) -> Far:
            return Far(self._entry)

    class Entries:
        def __init__(self, path: str) -> None:
            self._entries = SCANDIR(path)

        def __enter__(self) -> Iterator[Entry]:
            return map(Entry, self._entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Entries)
    assert scan.run().added == 1
    assert scan.run().changed == 0
    assert names(database) == ["m"]


SCANDIR = os.scandir


def test_a_file_without_read_permission_is_logged_once_and_read_once_it_has_it(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(directory / "m.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root may read everything
        assert warnings_of(scan.run) == [
            f"models: {path}: may not be read by this user: change its owner or mode"
        ]
        assert warnings_of(scan.run) == []
    assert scan.run().added == 1
    assert names(database) == ["m"]


def test_ten_thousand_hostile_files_do_not_stop_a_scan(directory: Path, scan: ModelScan) -> None:
    content = raw_header(pair_count=2**63)
    for number in range(10_000):
        path = directory / f"{number}.gguf"
        path.write_bytes(content)
        os.utime(path, (0, 0))
    assert scan.run().unreadable == 10_000
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert scan.run().unreadable == 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - started < 2


def test_the_summary_is_json_for_other_programs(database: Database, directory: Path, scan: ModelScan) -> None:
    model(directory / "m.gguf")
    broken(directory / "bad.gguf")
    scan.run()
    (row,) = database.query("SELECT value FROM metadata WHERE key = ?", (SUMMARY_KEY,))
    summary = json.loads(row["value"])
    assert (summary["found"], summary["unreadable"], summary["complete"]) == (1, 1, True)


def test_the_error_for_a_child_process_that_cannot_start_names_what_to_do(
    database: Database, directory: Path, scan: ModelScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(directory / "m.gguf")
    monkeypatch.setattr(scan_models, "HeaderReader", HeaderReader)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SourceFailed, match="shows why"):
        scan.run()
    assert names(database) == []
    assert database.meta.get(SCAN_TIME_KEY) is None


def test_the_daemon_does_not_import_gguf() -> None:
    code = f"import sys, {scan_models.__name__}; sys.exit('gguf' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
