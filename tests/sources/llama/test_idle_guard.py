from dataclasses import replace

from collector.parsers.server_answers import Props
from collector.sources.llama.idle_guard import FIRST_HARMLESS_BUILD, IdleGuard
from collector.sources.llama.local.process import LlamaProcess


def props(build: int | None, *, can_sleep: bool = True) -> Props:
    return Props(
        is_router=False, build=build, can_sleep=can_sleep, has_metrics=True, max_instances=None, model=None
    )


def process(cpu_seconds: float) -> LlamaProcess:
    return LlamaProcess(1, 0.0, None, cpu_seconds, 0, ())


def decisions(guard: IdleGuard, *cpu_seconds: float | None) -> list[bool]:
    """Return whether each sample is read; every reading succeeds."""
    answers = []
    for spent in cpu_seconds:
        answers.append(guard.may_read(None if spent is None else process(spent)))
        if answers[-1]:
            guard.record_read()
    return answers


def test_a_build_whose_metrics_do_not_wake_models_is_always_read() -> None:
    assert decisions(IdleGuard(props(FIRST_HARMLESS_BUILD), is_new=False), None, 1.0, 1.0) == [
        True,
        True,
        True,
    ]


def test_a_build_without_sleep_is_always_read() -> None:
    assert decisions(IdleGuard(props(5000, can_sleep=False), is_new=False), None, 1.0) == [True, True]


def test_other_builds_are_read_once_at_first_then_while_they_are_active_and_once_more() -> None:
    for build in (None, FIRST_HARMLESS_BUILD - 1):
        guard = IdleGuard(props(build), is_new=False)
        assert decisions(guard, 1.0, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0) == [
            True,
            False,
            True,
            True,
            True,
            False,
            False,
        ]


def test_the_request_of_the_collector_does_not_count_as_activity() -> None:
    guard = IdleGuard(props(None), is_new=False)
    assert decisions(guard, 1.0, 2.0, 2.01, 2.01, 2.02, 2.02) == [True, True, True, False, False, False]


def test_a_model_that_was_just_loaded_is_read_once() -> None:
    assert decisions(IdleGuard(props(None), is_new=True), 0.01, 0.01, 0.01) == [True, False, False]


def test_a_process_that_replaced_another_one_counts_as_active() -> None:
    assert decisions(IdleGuard(props(None), is_new=False), 5.0, 0.3, 0.3, 0.3) == [True, True, True, False]


def test_a_process_that_replaced_another_one_and_used_as_much_time_counts_as_active() -> None:
    guard = IdleGuard(props(None), is_new=False)
    processes = [process(5.0), *[replace(process(5.0), pid=2)] * 3]
    answers = []
    for one in processes:
        answers.append(guard.may_read(one))
        if answers[-1]:
            guard.record_read()
    assert answers == [True, True, True, False]


def test_a_process_that_is_not_visible_is_not_read() -> None:
    assert decisions(IdleGuard(props(None), is_new=False), None, None) == [False, False]


def test_activity_while_the_process_was_not_visible_is_read_afterwards() -> None:
    guard = IdleGuard(props(None), is_new=False)
    assert decisions(guard, 1.0, None, 2.0, 2.0, 2.0) == [True, False, True, True, False]


def test_a_reading_that_failed_is_tried_again() -> None:
    guard = IdleGuard(props(None), is_new=False)
    assert [guard.may_read(process(spent)) for spent in (1.0, 2.0, 2.0, 2.0)] == [True, True, True, True]
    assert decisions(guard, 2.0, 2.0, 2.0) == [True, True, False]
