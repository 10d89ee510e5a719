"""What the files of the models directories are now: from the walk, what was remembered, and what was read."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from collector.models.header_reader import Answer
from collector.models.records import FileRecord
from collector.models.walk import GREATEST_INTEGER, SUFFIX, FoundFile, Walk, part_of

SETTLE_SECONDS = 60
"""A file that cannot be understood and changed less long ago may still be being written."""

_SHOWN_MISSING_PARTS = 5
_SIZE_AND_TIME = slice(2, 4)  # of a FoundFile as of a FileRecord

Set = tuple[str, int]
"""A model in several files: its name with its directory, and how many parts it has."""


@dataclass(slots=True)
class Model:
    """A model as it lies on the disk.

    Args:
        record: of the file that describes it.
        name: file name without extension, and without the number of the part.
        file_size: bytes of all its files.
    """

    record: FileRecord
    name: str
    file_size: int


@dataclass(slots=True)
class Inventory:
    """What lies there.

    Args:
        records: of all files of which something certain can be said, by path.
        models: the models among them.
        waiting: names of the files that another scan must look at.
        news: sentences to be told once.
        unreadable: sentences on files that cannot be read just now.
    """

    records: dict[str, FileRecord] = field(default_factory=dict)
    models: list[Model] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How many files are no GGUF files by their content."""
        return sum(record.verdict == "broken" for record in self.records.values())


def is_unchanged(file: FoundFile | FileRecord, record: FileRecord | None) -> bool:
    """Whether a file is as it was when it was read: size and time are the same."""
    return record is not None and file[_SIZE_AND_TIME] == record[_SIZE_AND_TIME]


def describes_model(record: FileRecord) -> bool:
    """Whether a row of `models` belongs to the file: not to a later part, nor to what is no model."""
    if record.verdict == "part":
        part = part_of(record.found_at)
        return part is not None and part[1] == 1
    return record.verdict == "model"


def model_name(found_at: str) -> str:
    """The name of the model in a file: without directory, extension and number of the part."""
    part = part_of(found_at)
    return os.path.basename(part[0] if part else found_at[: -len(SUFFIX)])  # noqa: PTH119


def shown_path(path: str) -> str:
    """A path on one line, whatever bytes its names are made of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def take_inventory(
    walk: Walk, answers: Mapping[str, Answer], records: Mapping[str, FileRecord], now_ns: int
) -> Inventory:
    """Say of every file what it is.

    Args:
        walk: the files.
        answers: on those that were read in this scan, by path.
        records: what earlier scans remember, by path.
        now_ns: nanoseconds since 1970.
    """
    inventory = Inventory()
    for found in walk.files.values():
        _take_file(inventory, found, answers.get(found.path), records.get(found.path), now_ns)
    sets: dict[Set, dict[int, FileRecord]] = defaultdict(dict)
    for record in list(inventory.records.values()):
        if record.verdict == "model":
            inventory.models.append(Model(record, model_name(record.found_at), record.size_bytes))
        elif record.verdict == "part":
            _take_part(inventory, record, sets)
    _take_sets(inventory, sets, now_ns)
    return inventory


def _take_file(
    inventory: Inventory, found: FoundFile, answer: Answer | None, known: FileRecord | None, now_ns: int
) -> None:
    if answer is None:
        if known is not None and is_unchanged(found, known):
            inventory.records[found.path] = FileRecord(*found, known.verdict, known.reason, known.model_id)
        else:
            inventory.waiting.append(found.found_at)
    elif answer.verdict == "unreadable":
        inventory.waiting.append(found.found_at)
        inventory.unreadable.append(f"{shown_path(found.found_at)}: {answer.reason}")
    elif answer.verdict == "broken" and not (answer.foreign or _is_settled(found, now_ns)):
        inventory.waiting.append(found.found_at)
    else:
        model_id = known.model_id if known else None
        inventory.records[found.path] = FileRecord(*found, answer.verdict, answer.reason, model_id)
        if answer.verdict == "broken":
            inventory.news.append(f"{shown_path(found.found_at)} {answer.reason}")


def _is_settled(file: FoundFile | FileRecord, now_ns: int) -> bool:
    return abs(now_ns - file.modified_ns) > SETTLE_SECONDS * 10**9


def _take_part(inventory: Inventory, record: FileRecord, sets: dict[Set, dict[int, FileRecord]]) -> None:
    if part := part_of(record.found_at):
        name, number, count = part
        sets[name, count][number] = record
    else:
        _set_reason(inventory, record, "is one part of a model: name it NAME-00001-of-0000N.gguf, as it was")


def _take_sets(inventory: Inventory, sets: Mapping[Set, Mapping[int, FileRecord]], now_ns: int) -> None:
    arriving = {(part[0], part[2]) for part in map(part_of, inventory.waiting) if part}
    for key, present in sets.items():
        if key not in arriving:
            _check_parts(inventory, key[1], present, now_ns)
        if 1 in present:
            size = min(sum(record.size_bytes for record in present.values()), GREATEST_INTEGER)
            first = inventory.records[present[1].path]
            inventory.models.append(Model(first, model_name(first.found_at), size))


def _check_parts(inventory: Inventory, count: int, present: Mapping[int, FileRecord], now_ns: int) -> None:
    """Say which parts are missing, once nothing moves any more."""
    missing = [str(number) for number in range(1, count + 1) if number not in present]
    lowest = present[min(present)]
    if not missing:
        _set_reason(inventory, lowest, "")
    elif all(_is_settled(record, now_ns) for record in present.values()):
        named = ", ".join(missing[:_SHOWN_MISSING_PARTS]) + ", …" * (len(missing) > _SHOWN_MISSING_PARTS)
        _set_reason(inventory, lowest, f"is part of a model of {count} files, of which are missing: {named}")


def _set_reason(inventory: Inventory, record: FileRecord, reason: str) -> None:
    if reason != record.reason:
        inventory.records[record.path] = record._replace(reason=reason)
        inventory.news += [f"{shown_path(record.found_at)} {reason}"] if reason else []
