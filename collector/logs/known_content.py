"""Files whose content was read already, under another name or inode: it is not read again."""

from collections.abc import Sequence
from pathlib import Path

from collector.logs.position import FilePosition
from collector.logs.tail import Tail


def open_known_content(path: Path, tails: Sequence[Tail], finished: Sequence[FilePosition]) -> Tail | None:
    """Open a file behind what was read of its content already, if it is a copy of that.

    Examples: rsync puts a longer copy in the place of the log; somebody restores the log of yesterday, which
    is the beginning of what was read.

    Args:
        path: where a file has appeared.
        tails: the files that are open.
        finished: positions of files that were read to their end and closed.

    Returns:
        the file at its position; None if its content is new.

    Raises:
        OSError: it cannot be opened.
        SourceFailed: it is not a regular file.
    """
    known = [tail.position for tail in tails] + list(finished)
    for position in sorted(known, key=lambda one: one.offset, reverse=True):
        if position.offset and (tail := Tail.resume(path, position)):
            return _if_distinctive(tail)
    tail = Tail.open(path)
    if tail.status.st_size and any(tail.skip_if_beginning_of(one) for one in tails):
        return _if_distinctive(tail)
    tail.close()
    return None


def open_missed(path: Path, finished: Sequence[FilePosition]) -> Tail | None:
    """Open a rotated file that nobody reads yet; None if all of its content was read already.

    Args:
        path: of the file.
        finished: positions of files that were read to their end and closed.

    Raises:
        OSError: it cannot be opened.
        SourceFailed: it is not a regular file.
    """
    for position in finished:
        if position.offset and (tail := Tail.resume(path, position)):
            if tail.status.st_size > position.offset:
                return tail
            tail.close()
            return None
    return Tail.open(path)


def _if_distinctive(tail: Tail) -> Tail | None:
    """Return a tail if what was read of its file cannot be equal by chance; else close it.

    Builds that print no stamps begin each run with the same lines: an equal beginning shows nothing.
    """
    if tail.is_distinctive():
        return tail
    tail.close()
    return None
