import threading
from contextlib import suppress

import pytest
import structlog

from collector.errors import DatabaseBusy, SourceAbsent, SourceFailed
from collector.health import COLLECTOR_HEALTH, OK, Health, State, observe


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (SourceAbsent("no GPU"), "absent"),
        (SourceFailed("lost"), "failed"),
        (DatabaseBusy("locked"), "waiting"),
        (ZeroDivisionError("oops"), "failed"),
    ],
)
def test_an_error_becomes_a_state_and_no_result(error: Exception, state: str) -> None:
    health = Health("gpu")
    assert observe(health, lambda: failing(error)) is None
    assert health.state.name == state
    assert str(error) in health.state.message


def test_a_state_is_logged_once_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    health = Health("gpu")
    for error in (SourceAbsent("a"), SourceAbsent("b"), SourceAbsent("c")):
        observe(health, lambda error=error: failing(error))  # type: ignore[misc]
    observe(health, lambda: 1)
    observe(health, lambda: 1)
    logged = [line for line in capsys.readouterr().out.splitlines() if "gpu" in line]
    assert len(logged) == 2
    assert "absent" in logged[0]
    assert "gpu: ok" in logged[1]
    assert health.row()[COLLECTOR_HEALTH.written_columns.index("failures")] == 3


def test_a_change_that_two_threads_detect_at_once_is_logged_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, both_log = [], threading.Barrier(2)

    class SlowLogger:
        def warning(self, text: str) -> None:
            logged.append(text)
            with suppress(threading.BrokenBarrierError):
                both_log.wait(0.5)

    monkeypatch.setattr(structlog, "get_logger", SlowLogger)
    health, busy = Health("flush"), DatabaseBusy("locked")
    threads = [threading.Thread(target=observe, args=(health, lambda: failing(busy))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logged == ["flush: waiting: locked"]
    assert health.row()[COLLECTOR_HEALTH.written_columns.index("runs")] == 2


def test_success_from_the_start_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    observe(Health("host"), lambda: 1)
    assert capsys.readouterr().out == ""


def test_the_state_of_a_result_is_its_own() -> None:
    health = Health("llama_server")
    assert observe(health, lambda: 5, lambda _: State("loading")) == 5
    assert health.state.name == "loading"


def test_an_unexpected_exception_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    observe(Health("host"), lambda: failing(KeyError("no such column")))
    assert "Traceback" in capsys.readouterr().out


def test_a_row_fits_its_table() -> None:
    health = Health("host")
    observe(health, lambda: 1, lambda _: OK)
    assert len(health.row()) == len(COLLECTOR_HEALTH.written_columns)
