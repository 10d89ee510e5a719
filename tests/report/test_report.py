"""The report: known rows give known numbers, and the page loads nothing."""

import os
import pty
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.cli import main
from collector.database import Database
from collector.database.documented import LOGS, METRICS
from collector.errors import DatabaseError
from collector.logs.rows.requests import REQUESTS
from collector.report.page import make_page
from collector.report.period import DAY, HOUR, Period
from collector.schema import Table
from collector.sources.gpu.source import GPU_METRICS
from collector.sources.host import HOST_METRICS
from collector.sources.llama.events import MODEL_EVENTS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.views import VIEWS
from tests.support.chromium import browse
from tests.support.paths import ROOT

NOON = 1_781_265_600  # 2026-06-12 12:00:00 UTC
SIX_HOURS = Period(NOON, NOON + 6 * HOUR)
HOSTILE = "</text></svg><script>alert('x')</script>\"&\x1b[31m\x00\ud800"
VOID = ("meta", "link", "br", "img")


class ParsedPage(HTMLParser):
    """A page as a browser parses it: tags, attributes, and the text of each section by its title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.sections: dict[str, str] = {}
        self.cells: list[str] = []
        self._text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "section":
            self._text = []
        if tag == "td":
            self.cells.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self.sections[self._text[0]] = " ".join(self._text[1:])

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self._text.append(data)
        if self._open and self._open[-1] == "td":
            self.cells[-1] += data

    def row(self, first: str) -> list[str]:
        """Return the cells from the one with this text on."""
        return self.cells[self.cells.index(first) :]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    with Database(tmp_path / "report.db", OWN_TABLES, VIEWS) as opened:
        yield opened
    monkeypatch.undo()
    time.tzset()


def insert(database: Database, table: Table, *rows: dict[str, Any]) -> None:
    with database.transaction() as connection:
        connection.executemany(table.insert_statement, [table.row(row) for row in rows])


def insert_samples(database: Database, *minutes: int) -> None:
    times = [NOON + 60 * minute for minute in minutes]
    insert(database, METRICS, *({"timestamp": moment, "cpu_usage": 25.0} for moment in times))
    insert(database, HOST_METRICS, *({"timestamp": moment, "cpu_usage": 50.0} for moment in times))


def insert_tokens(database: Database, model: str = "m", run: int = 1) -> None:
    insert_samples(database, 0)
    for minute, tokens, seconds in ((0, 100, 10), (1, 1300, 40), (61, 1900, 60)):
        row = {
            "timestamp": NOON + 60 * minute,
            "model": model,
            "run_id": run,
            "counted_from_zero": 0,
            "tokens_predicted_total": tokens,
            "tokens_predicted_seconds_total": seconds,
            "prompt_tokens_total": 2 * tokens,
            "prompt_seconds_total": seconds / 10,
            "predicted_tokens_per_second": 36.0,
            "memory_used_mb": 2048.0,
        }
        insert(database, LLAMA_METRICS, row)


def page(database: Database, period: Period = SIX_HOURS) -> ParsedPage:
    return ParsedPage(make_page(database.path, period))


def section_html(section: str, text: str) -> str:
    return text.split(f"<h2>{section}</h2>")[1].split("</section>", maxsplit=1)[0]


def test_tokens_and_speeds_of_a_model_are_those_of_the_period(database: Database) -> None:
    insert_tokens(database)
    shown = page(database)
    assert shown.row("m")[:7] == ["m", "1,800", "3,600", "unknown", "36.0", "720.0", "counters"]
    bars = shown.sections["Generated tokens"]
    assert "06-12 14:00: 1,200" in bars
    assert "06-12 15:00: 600" in bars


def test_speeds_come_from_requests_where_the_log_is_read(database: Database) -> None:
    insert_tokens(database)
    common = {
        "task": 1,
        "time_source": "stamp",
        "outcome": "finished",
        "model": "m",
        "processed_tokens": 10,
        "prompt_ms": 20.0,
    }
    for second, milliseconds in ((60, 2000.0), (12 * HOUR, 1e6)):
        row = {"timestamp": NOON + second, "generated_tokens": 101, "generation_ms": milliseconds}
        insert(database, REQUESTS, common | row)
    assert page(database).row("m")[:7] == ["m", "1,800", "3,600", "unknown", "50.0", "500.0", "requests"]


def test_data_outside_the_period_do_not_count(database: Database) -> None:
    insert_tokens(database)
    shown = page(database, Period(NOON + HOUR, NOON + 2 * HOUR))
    assert shown.row("m")[:3] == ["m", "600", "1,200"]


def test_the_plots_begin_with_the_oldest_data(database: Database) -> None:
    insert_tokens(database)
    insert(database, LOGS, {"level": "warn", "message": "before", "timestamp": NOON - 60})
    text = make_page(database.path, Period(NOON - 100 * DAY, NOON + 61 * 60))
    assert "2026-06-12 13:58:59 to 2026-06-12 15:01:00" in text
    assert ParsedPage(text).row("2026-06-12 13:59:00")[3] == "before"


def test_loads_and_unloads_are_listed_with_their_times(database: Database) -> None:
    insert_samples(database, 0, 300)
    for minute, event, before, seconds in (
        (1, "loaded", "loading", 4.5),
        (31, "evicted", "loaded", 1800.0),
        (61, "loaded", "loading", None),
    ):
        row = {"timestamp": NOON + 60 * minute, "model": "m", "event": event, "state": "loaded"}
        insert(database, MODEL_EVENTS, row | {"previous_state": before, "seconds_since_last": seconds})
    shown = page(database)
    newer, older = shown.row("2026-06-12 15:01:00"), shown.row("2026-06-12 14:01:00")
    assert newer[1:6] == ["m", "loaded", "unknown", "still there", "4 h"]
    assert older[1:6] == ["m", "loaded", "4.5 s", "evicted 2026-06-12 14:31:00", "30 min"]


def test_errors_are_counted_by_source_and_the_newest_are_shown(database: Database) -> None:
    insert_samples(database, 0)
    for minute, level in ((1, "error"), (2, "warn"), (3, "info"), (70, "critical")):
        row = {
            "level": level,
            "message": f"of minute {minute}",
            "source": "m",
            "timestamp": NOON + 60 * minute,
        }
        insert(database, LOGS, row)
    shown = page(database)
    assert "06-12 14:00: 2" in shown.sections["Warnings and errors"]
    assert "of minute 3" not in shown.cells
    assert shown.row("2026-06-12 15:10:00")[:8] == [
        "2026-06-12 15:10:00", "critical", "m", "of minute 70", "2026-06-12 14:02:00", "warn", "m", "of minute 2",
    ]  # fmt: skip


def test_a_line_is_interrupted_where_nothing_was_sampled(database: Database) -> None:
    insert_samples(database, *range(1, 60), *range(180, 240))
    text = make_page(database.path, SIX_HOURS)
    assert section_html("Processor and GPU", text).count('class="line reactive nofill"') == 2 * 2
    assert ParsedPage(text).row("2026-06-12 14:59:00")[:3] == [
        "2026-06-12 14:59:00",
        "2026-06-12 17:00:00",
        "2 h",
    ]


def test_samples_further_apart_than_the_points_of_a_line_are_still_connected(database: Database) -> None:
    insert_samples(database, *range(5, 360, 30))
    text = section_html("Processor and GPU", make_page(database.path, SIX_HOURS))
    assert text.count('class="line reactive nofill"') == 2


def test_each_gpu_has_a_line_of_its_own(database: Database) -> None:
    insert_samples(database, 1)
    for number in range(2):
        rows = [
            {"timestamp": NOON + second, "gpu_index": number, "uuid": f"GPU-{number}", "name": "RTX", "power_watts": 200.0}
            for second in (60, 120)
        ]  # fmt: skip
        insert(database, GPU_METRICS, *rows)
    shown = page(database)
    assert "GPU 0 RTX GPU 1 RTX" in shown.sections["Power of the GPUs"]
    assert "Memory of the GPUs" not in shown.sections  # no reading: no plot, and no zero


def test_models_with_less_data_are_counted_where_there_are_too_many(database: Database) -> None:
    insert_samples(database, 0)
    for number in range(15):
        insert_tokens(database, f"model {number:02}", run=number)
    shown = page(database)
    assert "3 of which less is known are left out." in shown.sections["Speed of generation"]
    assert "model 14" in shown.cells


def test_a_period_without_samples_says_so_and_when_the_newest_was(database: Database) -> None:
    assert "Nothing was sampled in this period. There is none at all." in make_page(database.path, SIX_HOURS)
    insert_samples(database, 0)
    later = make_page(database.path, Period(NOON + HOUR, NOON + 2 * HOUR))
    assert "Nothing was sampled in this period. The newest sample is of 2026-06-12 14:00:00." in later
    assert "<svg" not in later


def test_text_from_outside_is_escaped_in_the_page_and_its_plots(database: Database) -> None:
    name = HOSTILE.replace("\ud800", "")  # which SQLite does not accept
    insert_tokens(database, name)
    insert(database, LOGS, {"level": "error", "message": name, "source": name, "timestamp": NOON + 60})
    insert(
        database, MODEL_EVENTS, {"timestamp": NOON + 60, "model": name, "event": "loaded", "state": "loaded"}
    )
    text = make_page(database.path, SIX_HOURS)
    shown = ParsedPage(text)
    seen = "</text></svg><script>alert('x')</script>\"&�[31m�"
    assert "script" not in shown.tags
    assert shown.cells.count(seen) == 4
    for section in ("Generated tokens", "Speed of generation", "Memory of the models", "Warnings and errors"):
        assert seen[:30] in shown.sections[section]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_the_page_loads_nothing_and_runs_nothing(recorded: Path) -> None:
    now = int(time.time())
    text = make_page(recorded, Period(now - HOUR, now))
    shown = ParsedPage(text)
    assert {"Models", "Generated tokens", "Speed of generation", "Memory of the machine", "Models in memory"} <= set(
        shown.sections
    )  # fmt: skip
    assert not {"script", "img", "iframe", "object", "embed", "image", "use"} & set(shown.tags)
    loaded = [
        value for name, value in shown.attributes if name in {"src", "href", "xlink:href", "srcset", "data"}
    ]
    assert loaded == ["data:,"]
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert {value for _, value in shown.attributes if value and "//" in value} == {
        "http://www.w3.org/2000/svg"
    }
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "stroke" in styles
    assert not re.search(r"url\(|@import", styles)


@pytest.mark.parametrize(
    ("seconds", "first", "last", "count"),
    [
        (HOUR, "2026-06-12 14:00", "2026-06-12 15:00", 61),
        (DAY, "2026-06-12 14:00", "2026-06-13 14:00", 25),
        (7 * DAY, "2026-06-12", "2026-06-19", 8),
    ],
)
def test_bars_are_minutes_hours_or_days_of_the_readers_clock(
    database: Database, seconds: int, first: str, last: str, count: int
) -> None:
    assert database.path.exists()
    bars = Period(NOON, NOON + seconds).bars
    assert (bars[0], bars[-1], len(bars)) == (first, last, count)


def test_ticks_are_round_in_local_time(database: Database) -> None:
    assert database.path.exists()
    period = Period(NOON + 100, NOON + 100 + DAY)
    assert [period.tick_label(tick) for tick in period.ticks][:3] == ["15:00", "18:00", "21:00"]
    assert 4 <= len(Period(NOON, NOON + 3000 * DAY).ticks) <= 9


def test_a_database_without_views_says_what_adds_them(tmp_path: Path) -> None:
    with Database(tmp_path / "plain.db"):
        pass
    with pytest.raises(DatabaseError, match=r"has no view now: the collector adds it when it starts"):
        make_page(tmp_path / "plain.db", SIX_HOURS)


def command(database: Path, *arguments: str) -> list[str]:
    settings = database.with_suffix(".toml")
    settings.write_text(f'[database]\npath = "{database}"\n')
    return [sys.executable, "-m", "collector", "--config", str(settings), "report", *arguments]


def call(database: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(database, *arguments), capture_output=True, text=True, check=False, cwd=cwd)


def test_the_page_goes_to_standard_output_or_into_the_named_file(database: Database) -> None:
    insert_tokens(database)
    piped = call(database.path, "--since", "9999w")
    file = database.path.with_name("report.html")
    for _ in range(2):  # an earlier report is overwritten
        written = call(database.path, "--since", "9999w", "--output", str(file))
        assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
    for text in (piped.stdout, file.read_text()):
        assert text.startswith("<!DOCTYPE html>")
        assert "<td>1,800</td>" in text


def test_on_a_terminal_the_page_goes_into_a_file_whose_name_is_printed(
    database: Database, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    ended = subprocess.run(command(database.path), stdout=slave, check=False, cwd=tmp_path)
    printed = os.read(master, 1000).decode()
    os.close(slave)
    os.close(master)
    (file,) = tmp_path.glob("llama-report-*.html")
    assert (ended.returncode, printed) == (0, f"the report is in {file.name}\r\n")
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_a_file_that_is_not_a_page_is_not_overwritten(database: Database) -> None:
    before = database.path.stat()
    ended = call(database.path, "--output", str(database.path))
    assert ended.returncode == 1
    assert "let --output end in .html" in ended.stderr
    assert database.path.stat() == before


def test_a_missing_directory_is_reported(database: Database, tmp_path: Path) -> None:
    ended = call(database.path, "--output", str(tmp_path / "missing" / "r.html"))
    assert ended.returncode == 1
    assert (
        "missing/r.html cannot be written: No such file or directory: name another --output" in ended.stderr
    )


@pytest.mark.parametrize("length", ["", "24", "0h", "-1h", "1.5h", "h", "24 h", "1y"])
def test_an_invalid_length_of_time_is_wrong_usage(capsys: pytest.CaptureFixture[str], length: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", f"--since={length}"])
    assert ended.value.code == 2
    assert "write 30m, 24h, 7d or 4w" in capsys.readouterr().err


def test_without_the_extra_the_command_that_installs_it_is_shown(tmp_path: Path) -> None:
    without = (
        "import sys; sys.modules['pygal'] = None; from collector.cli import main; sys.exit(main(['report']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ended.returncode == 1
    assert f"{sys.executable} -m pip install '{extras['report'][0]}'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_daemon_imports_neither_the_report_nor_the_status() -> None:
    script = "import sys, collector.cli, collector.daemon.daemon; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "collector.daemon.daemon" in modules
    assert not {
        "pygal",
        "termios",
        "collector.report",
        "collector.commands.watch",
        "collector.commands.status",
    } & set(modules)


@pytest.mark.slow
def test_a_browser_shows_every_plot_without_a_complaint(recorded: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert call(recorded, "--since", "1h", "--output", str(file)).returncode == 0
    shown = browse(f"file://{file}")
    assert shown.console == ()
    for section in ("Generated tokens", "Speed of generation", "Processor and GPU", "Memory of the models"):
        assert re.search(r"<(rect|circle|path)[^>]*reactive", section_html(section, shown.html)), section
