"""Classification of the files of a walk: what each one is, and which of them are one model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.models.header_reader import Answer
from collector.models.storage import ModelFile
from collector.models.walk import MAX_INTEGER, SUFFIX, FoundFile, Walk, part_of

SETTLE_SECONDS = 60
"""A file that cannot be parsed and was modified less than this long ago may still be being written."""

_MAX_SHOWN_PARTS = 5

PartSet = tuple[str, int]
"""A model in several files: its path without number and extension, and how many parts it has."""


class Model(NamedTuple):
    """One model on the disk.

    Args:
        file: the file whose header describes it; of several parts the first.
        name: see `model_name`.
        file_size: bytes of all its files.
    """

    file: ModelFile
    name: str
    file_size: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """The files and models in the directories.

    Args:
        files: by path, every file whose content is known: read now, or unchanged since it was read.
        models: the models among them.
        waiting: paths of the files that the next scan has to read.
        messages: one sentence for every file that turned out to be broken or incomplete.
        unreadable: one sentence for every file that cannot be read at the moment.
    """

    files: Mapping[str, ModelFile]
    models: Sequence[Model]
    waiting: Sequence[str]
    messages: Sequence[str]
    unreadable: Sequence[str]


def classify_files(
    walk: Walk, answers: Mapping[str, Answer], stored: Mapping[str, ModelFile], now_ns: int
) -> Inventory:
    """Return what every file of a walk is, and which files are one model.

    Args:
        walk: the files that were found.
        answers: contents of the files that were read in this scan, by path.
        stored: `StoredInventory.files`.
        now_ns: nanoseconds since 1970.
    """
    files: dict[str, ModelFile] = {}
    waiting, messages, unreadable = [], [], []
    for path, found in walk.files.items():
        answer = answers.get(path)
        file = None if path in walk.downloading else _classify(found, answer, stored.get(path), now_ns)
        if file is None:
            waiting.append(found.found_at)
        else:
            files[path] = file
        if answer and answer.verdict == "unreadable":
            unreadable.append(f"{printable_path(found.found_at)}: {answer.reason}")
        elif answer and file and file.verdict == "broken":
            messages.append(f"{printable_path(found.found_at)} {answer.reason}")

    part_sets, misnamed = _group_parts(files.values(), walk.other_names)
    reasons = misnamed | _find_missing_parts(part_sets, waiting, now_ns)
    for path, reason in reasons.items():
        if reason != files[path].reason:
            files[path] = files[path]._replace(reason=reason)
            if reason:
                messages.append(f"{printable_path(files[path].found_at)} {reason}")
    models = _list_models(files, part_sets, walk.stated_names)
    return Inventory(files, models, waiting, messages, unreadable)


def _classify(
    found: FoundFile, answer: Answer | None, before: ModelFile | None, now_ns: int
) -> ModelFile | None:
    """Return what a file is; None if that is not known yet and the next scan has to read it."""
    if answer is None:
        if before is not None and before.is_unchanged(found):
            return ModelFile(*found, before.verdict, before.reason, before.model_id)
        return None  # the scan ended early, before it read this file
    if answer.verdict == "unreadable":
        return None
    if answer.verdict == "broken" and not answer.foreign and not _is_settled(found, now_ns):
        return None  # probably a download or copy under way
    return ModelFile(*found, answer.verdict, answer.reason, before.model_id if before else None)


def model_name(found_at: str) -> str:
    """Return the name of the model in a file.

    It is `big` for `/models/big.gguf` and for `/models/big-00001-of-00003.gguf`.
    """
    name = found_at.rpartition("/")[2]
    if part := part_of(found_at):
        return part[0].rpartition("/")[2]
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def printable_path(path: str) -> str:
    """Return a path for a message: on one line, and valid Unicode whatever bytes its names contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def _is_settled(file: FoundFile | ModelFile, now_ns: int) -> bool:
    """Return whether a file was not modified a moment ago, so that nothing is writing it any more."""
    return abs(now_ns - file.modified_ns) > SETTLE_SECONDS * 10**9


def _group_parts(
    files: Iterable[ModelFile], other_names: Mapping[str, Sequence[str]]
) -> tuple[dict[PartSet, dict[int, ModelFile]], dict[str, str]]:
    """Group the parts of models in several files, by all names under which they were found.

    Returns:
        the parts of each set by number; and the reason, by path, of each part whose name has no number.
    """
    sets: dict[PartSet, dict[int, ModelFile]] = defaultdict(dict)
    misnamed: dict[str, str] = {}
    for file in files:
        if file.verdict != "part":
            continue
        parts = [part for name in (file.found_at, *other_names.get(file.path, ())) if (part := part_of(name))]
        for name, number, count in parts:
            sets[name, count][number] = file
        if not parts:
            misnamed[file.path] = (
                "is one part of a model: rename it to NAME-00001-of-0000N.gguf, as it was before"
            )
    return sets, misnamed


def _find_missing_parts(
    part_sets: Mapping[PartSet, Mapping[int, ModelFile]], waiting: Iterable[str], now_ns: int
) -> dict[str, str]:
    """Return, for the lowest part of each set, the reason that names the missing parts; empty if none is.

    A set is left out while its files are still arriving: one of its parts waits for the next scan, or was
    modified a moment ago. Example: of `big-00001-of-00003.gguf` to `big-00003-of-00003.gguf`, which are being
    downloaded, only the first two exist so far.
    """
    arriving = {(part[0], part[2]) for part in map(part_of, waiting) if part}
    whole = {parts[min(parts)].path for (_, count), parts in part_sets.items() if len(parts) == count}
    reasons = dict.fromkeys(whole, "")
    for (name, count), parts in part_sets.items():
        if (name, count) in arriving or parts[min(parts)].path in whole:
            continue
        missing = [str(number) for number in range(1, count + 1) if number not in parts]
        lowest = parts[min(parts)]
        if all(_is_settled(file, now_ns) for file in parts.values()):
            shown = ", ".join(missing[:_MAX_SHOWN_PARTS]) + ", …" * (len(missing) > _MAX_SHOWN_PARTS)
            reasons[lowest.path] = f"is part of a model of {count} files, of which are missing: {shown}"
    return reasons


def _list_models(
    files: Mapping[str, ModelFile],
    part_sets: Mapping[PartSet, Mapping[int, ModelFile]],
    stated_names: Mapping[str, str],
) -> list[Model]:
    """Return every model in one file, then every set whose first part is present."""
    models = [
        Model(file, stated_names.get(file.path) or model_name(file.found_at), file.size_bytes)
        for file in files.values()
        if file.verdict == "model"
    ]
    by_first_part: dict[str, Model] = {}
    for parts in part_sets.values():
        if 1 in parts:
            first = files[parts[1].path]
            size = min(sum(part.size_bytes for part in parts.values()), MAX_INTEGER)
            model = Model(first, model_name(first.found_at), size)
            # One file may be the first of two sets; the larger one is whole, or nearer to it.
            by_first_part[first.path] = max(model, by_first_part.get(first.path, model), key=_file_size)
    return [*models, *by_first_part.values()]


def _file_size(model: Model) -> int:
    """Return the bytes of all files of a model."""
    return model.file_size
