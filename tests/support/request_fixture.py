"""Make a fixture of a log of llama-server, and list its lines that are not understood.

    python -m tests.support.request_fixture LOG NAME

copies the log to `tests/recordings/request_logs/NAME/server.log`, and writes beside it the requests that were
found, one JSON object a line. Then it prints how many there are, and each form of line that names a task, tells
nothing to the tracker, and is in no other recording: what a new build prints is among these. Look through both
files before you commit them: at `-lv 5` a log contains prompts.
"""

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from collector.errors import SourceFailed
from collector.logs.past.files import read_records
from collector.parsers.log.record import Record
from collector.parsers.requests.lines import parse_event
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker
from tests.support.paths import RECORDINGS

FOLDER = RECORDINGS / "request_logs"
KNOWN = RECORDINGS / "requests"


def requests_of(log: Path) -> list[Request]:
    """Return the requests of a log, whose times are stamps, or the times in its lines, or 0."""
    tracker = RequestTracker()
    found: list[Request] = []
    for records in read_records(log):
        found += tracker.add(records, [record.stamp or record.time or 0.0 for record in records])
    return [*found, *tracker.end()]


def as_lines(requests: list[Request]) -> str:
    """Return requests as JSON, one a line."""
    return "".join(f"{json.dumps(asdict(one))}\n" for one in requests)


def silent_forms(log: Path) -> Iterator[tuple[str, str]]:
    """Yield form and text of each line that names a task and tells the tracker nothing."""
    for records in read_records(log):
        yield from (
            (form_of(record), record.message)
            for record in records
            if _NAMES_TASK(record.message) and parse_event(record.message) is None
        )


def form_of(record: Record) -> str:
    """Return what the lines of one kind have in common: everything but numbers and quoted text."""
    return _VALUE.sub("#", record.message.partition("\n")[0])[:200]


_NAMES_TASK = re.compile(
    r"slot |.{0,200}\b(?:id_task|task_id|task) ?[=|]? ?\d|srv +send_error|srv +stop"
).match
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d.]*| +")


def make_fixture(log: Path, name: str, folder: Path = FOLDER) -> list[str]:
    """Make the fixture; return what to print."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", name):
        return [f"error: {name!r} is no name of a fixture: use small letters, digits, points and hyphens"]
    target = folder / name
    requests = requests_of(log)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, target / "server.log")
    (target / "requests.jsonl").write_text(as_lines(requests))
    known = {form for path in KNOWN.glob("*/server.log") for form, _ in silent_forms(path)}
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for form, text in silent_forms(log):
        if form not in known:
            counts[form] += 1
            examples.setdefault(form, text)
    outcomes = Counter(one.outcome for one in requests)
    return [
        f"{target}: {len(requests)} requests" + "".join(f", {n} {name}" for name, n in outcomes.items()),
        *(f"not understood, {count} times: {examples[form]}" for form, count in counts.most_common()),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(*make_fixture(Path(sys.argv[1]), sys.argv[2]), sep="\n")
    except SourceFailed as error:
        sys.exit(f"error: {error}")
