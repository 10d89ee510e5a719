"""Which row of `models` a model gets when several could be its row."""

from collections.abc import Sequence

from collector.models.header_reader import Answer
from collector.models.inventory import Inventory, Model
from collector.models.matching import RowChanges, match_rows
from collector.models.storage import ModelFile, ModelRow, StoredInventory

NOW = 1_700_000_000


def file(path: str, inode: int = 1, *, modified_ns: int = 1, model_id: str | None = None) -> ModelFile:
    return ModelFile(path, path, 100, modified_ns, inode, "/ disk", "model", "", model_id)


def row(row_id: str, path: str | None) -> ModelRow:
    return ModelRow(row_id, "name", path, 100)


def match(
    found: Sequence[ModelFile],
    stored_files: Sequence[ModelFile] = (),
    rows: Sequence[ModelRow] = (),
    gone: Sequence[ModelFile] = (),
    answers: dict[str, Answer] | None = None,
) -> RowChanges:
    models = [Model(found_file, "name", found_file.size_bytes) for found_file in found]
    inventory = Inventory({found_file.path: found_file for found_file in found}, models, (), (), ())
    stored = StoredInventory({stored.path: stored for stored in stored_files}, {r.id: r for r in rows})
    return match_rows(
        inventory, answers or {}, stored, {gone_file.path: gone_file for gone_file in gone}, NOW
    )


def test_an_unchanged_file_keeps_its_row_and_changes_nothing() -> None:
    before = file("/m/a.gguf", model_id="old")
    changes = match([before], [before], [row("old", "/m/a.gguf")])
    assert changes == RowChanges({"/m/a.gguf": "old"}, [], {})


def test_a_renamed_file_gets_its_row_before_the_new_file_at_its_old_path() -> None:
    before = file("/m/a.gguf", inode=1, model_id="old")
    renamed, new = file("/m/b.gguf", inode=1), file("/m/a.gguf", inode=2, modified_ns=2)
    changes = match([new, renamed], [before], [row("old", "/m/a.gguf")])
    assert changes.model_ids["/m/b.gguf"] == "old"
    assert [inserted["model_path"] for inserted in changes.inserted] == ["/m/a.gguf"]
    assert changes.updated == {"old": {"model_path": "/m/b.gguf"}}


def test_of_several_rows_of_other_programs_for_one_file_the_oldest_is_used() -> None:
    changes = match([file("/m/a.gguf")], rows=[row("oldest", "/m/a.gguf"), row("newer", "/m/a.gguf")])
    assert changes == RowChanges({"/m/a.gguf": "oldest"}, [], {})


def test_of_several_equal_deleted_files_the_row_of_the_one_with_the_same_name_is_used() -> None:
    gone = [file("/disk1/x.gguf", 5, model_id="x"), file("/disk1/name.gguf", 6, model_id="same name")]
    changes = match(
        [file("/disk2/name.gguf", 7)], gone, [row("x", "/disk1/x.gguf"), row("same name", None)], gone
    )
    assert changes.model_ids == {"/disk2/name.gguf": "same name"}


def test_one_row_belongs_to_one_model_only() -> None:
    gone = [file("/disk1/a.gguf", 5, model_id="old")]
    copies = [file("/disk2/a.gguf", 6), file("/disk2/b.gguf", 7)]
    changes = match(copies, gone, [row("old", "/disk1/a.gguf")], gone)
    assert changes.model_ids["/disk2/a.gguf"] == "old"
    assert [inserted["id"] for inserted in changes.inserted] == [changes.model_ids["/disk2/b.gguf"]]


def test_a_header_without_a_value_clears_only_the_columns_that_may_be_null() -> None:
    before = file("/m/a.gguf", model_id="old")
    answer = Answer(
        "model", columns={"quantization": None, "params": None, "ctx_size": None, "type": "llama"}
    )
    changes = match([before], [before], [row("old", "/m/a.gguf")], answers={"/m/a.gguf": answer})
    assert changes.updated == {"old": {"quantization": None, "params": None, "type": "llama"}}
