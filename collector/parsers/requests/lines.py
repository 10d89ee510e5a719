"""What llama-server prints about a request, in all its builds.

To add what another build prints, add it to the patterns here, and a recording of its log to
`tests/recordings/requests/`. The facts are measured: each pattern names the builds that print it.
"""

import re
from typing import NamedTuple

MAX_NUMBER = 2**53

_SLOT = re.compile(r"slot +([a-z_]{1,40})(?:\(\))?: id +(\d{1,6}) \| task (-?\d{1,16}) \| ?").match
_SELECTED = re.compile(
    # From b6500 on `sim_best`, from b10229 on `f_sim_best`; builds of 2024 print `similarity`.
    r"selected slot by \w+ similarity.*?(?:sim_best|similarity) = ([\d.]{1,12})(?:.*?f_keep = ([\d.]{1,12}))?"
).match
_LAUNCH = re.compile(r"processing task(?:, is_child = ([01]))?").match
_PROMPT = re.compile(r"new prompt,.*?\b(?:task\.n_tokens|n_prompt_tokens) = (\d{1,12})").match
_CACHED = re.compile(
    # `-lv 4` from b11000 on; before it; until 2025.
    r"(?:cached n_tokens = (\d{1,12})|n_tokens = \d+, memory_seq_rm \[(\d{1,12}),|kv cache rm \[(\d{1,12}),)"
).match
_SHIFT = re.compile(r"slot context shift,.*?n_discard = (\d{1,12})").match
_RELEASE = re.compile(r"stop processing: (n_tokens|n_past) = (\d{1,12}), truncated = ([01])").match
_TIMING = re.compile(
    # Until b9093 one record of several lines, whose `eval time` counts `runs` until 2025; then one line each.
    r"(prompt eval|eval|total) time = +(\d{1,12}\.\d{2}) ms / +(\d{1,12}) (?:tokens|runs)"
    r"|draft acceptance(?: rate)? = [\d.]+ \( *(\d{1,12}) accepted / +(\d{1,12}) generated\)"
).finditer

_CANCEL = re.compile(r"srv +\w+(?:\(\))?: cancel task, id_task = (\d{1,16})$").match
_ERROR = re.compile(r"srv +send_error: task id = (\d{1,16}), error: (.*)", re.DOTALL).match
_PROXY = re.compile(r"srv +proxy_reques\w*: proxying request to model .* on port (\d{1,5})$").match
_SPAWN = re.compile(r"srv +load: spawning server instance with name=.* on port (\d{1,5})$").match
_ACCESS = re.compile(
    r"srv +log_server_r\w*(?:\(\))?: (?:done )?request: ([A-Z]{3,7}) (/[^\s?]{0,200})\S* (\S{1,64}) (\d{3})$"
).match
_START = re.compile(r"(?:srv +llama_server: initializing|build_info: |build: \d|main: loading model)").match
_MODEL = re.compile(r"srv +load_model: loading model '(.{1,4096})'$").match
_STOP = re.compile(
    r"srv +(?:operator\(\)|llama_server|main)\w*: (?:cleaning up before exit|exit command received)"
).match

# Builds of 2024 and ik_llama.cpp print values with names. As text and as JSON they parse to the same message.
_NAMED = re.compile(
    r"(slot is processing task|slot released|kv cache rm \[p0, end\)"
    r"|(prompt |generation )?(?:eval|total) time += +(\d{1,12}\.\d{2}) ms"
    r"(?: / +(\d{1,12}) (?:tokens|runs))?.{,99}?)"
    r" (?:id_slot|slot_id)=(\d{1,6}) (?:id_task|task_id)=(\d{1,16})(?= |$)"
).match
_MAX_NAMED_VALUES = 16

# Until February 2024: a task is named only where it begins, and durations name neither task nor slot.
_EARLY_SLOT = re.compile(
    r"slot (\d{1,6}) (?:is processing \[task id: (\d{1,16})\]|: kv cache rm - \[(\d{1,12}),|(released) \()"
).match
_EARLY_TIMING = re.compile(
    r"print_timings: +(prompt eval|eval|total) time = +(\d{1,12}\.\d{2}) ms"
    r"(?: / +(\d{1,12}) (?:tokens|runs))?"
).match


class Selected(NamedTuple):
    """A slot was chosen because of what it holds.

    Args:
        slot: its number.
        similarity: share of the prompt that the slot holds already.
        kept_share: share of what the slot holds that the prompt keeps; None = not reported.
    """

    slot: int
    similarity: float
    kept_share: float | None


class Launch(NamedTuple):
    """A task begins."""

    slot: int
    task: int
    is_child: bool


class Prompt(NamedTuple):
    """The length of a task's prompt, tokens."""

    task: int
    slot: int
    tokens: int


class Cached(NamedTuple):
    """How many tokens of a task's prompt its slot holds already."""

    task: int
    slot: int
    tokens: int


class Shift(NamedTuple):
    """The context of a task was full, and tokens were discarded."""

    task: int
    slot: int
    tokens: int


class Timings(NamedTuple):
    """What a record says of the durations of a task; by name: milliseconds, and tokens or runs."""

    task: int
    slot: int
    values: dict[str, tuple[float, int]]


class EarlyCached(NamedTuple):
    """How many tokens of its prompt a slot holds already."""

    slot: int
    tokens: int


class EarlyTimings(NamedTuple):
    """A duration of the task that is released next, as in `Timings`."""

    values: dict[str, tuple[float, int]]


class EarlyRelease(NamedTuple):
    """The task of a slot ends."""

    slot: int


class Release(NamedTuple):
    """A task ends.

    Args:
        task: its id.
        slot: its slot.
        context_tokens: what the slot holds now.
        truncated: whether the prompt or the answer was cut.
        timings_follow: whether this build prints the durations after this line.
    """

    task: int
    slot: int
    context_tokens: int
    truncated: bool
    timings_follow: bool


class Cancel(NamedTuple):
    """The client of a task has left, or its answer failed."""

    task: int


class Failure(NamedTuple):
    """A task fails."""

    task: int
    error: str


class Arrival(NamedTuple):
    """A router passes a request to the child at a port."""

    port: int


class ModelPath(NamedTuple):
    """The process loads this model, and has not processed anything before."""

    path: str


class ProcessEnd(NamedTuple):
    """The process at a port begins anew, or is about to end; port 0 is the one that writes."""

    port: int


class Access(NamedTuple):
    """A line of the access log: an HTTP request was answered.

    Args:
        method: GET, POST, …
        path: without what follows a question mark.
        client: its address.
        status: of the answer.
    """

    method: str
    path: str
    client: str
    status: int


Event = (
    Selected
    | Launch
    | Prompt
    | Cached
    | Shift
    | Timings
    | EarlyCached
    | EarlyTimings
    | EarlyRelease
    | Release
    | Cancel
    | Failure
    | Arrival
    | ModelPath
    | ProcessEnd
    | Access
)


def parse_event(message: str) -> Event | None:
    """Return what a record tells of a request; None for any other.

    Args:
        message: of a record, with all its lines.
    """
    if message.startswith("slot "):
        return _parse_slot(message)
    if message.startswith("srv "):
        return _parse_server(message)
    if message.startswith("print_timings: "):
        return _parse_early_timing(message)
    if "_task=" in message or "task_id=" in message:
        return _parse_named(message)
    if message.startswith("request remote_addr="):
        return _parse_named_access(message)
    return ProcessEnd(0) if _START(message) else None


def _parse_slot(message: str) -> Event | None:
    match = _SLOT(message)
    if match is None:
        return _parse_early_slot(message) or _parse_named(message)
    slot, task, text = int(match[2]), int(match[3]), message[match.end() :]
    if task < 0:
        found = _SELECTED(text)
        return found and Selected(slot, float(found[1]), float(found[2]) if found[2] else None)
    if match[1] == "print_timing":
        return _parse_timings(slot, task, text)
    if found := _RELEASE(text):
        return Release(task, slot, int(found[2]), found[3] == "1", timings_follow=found[1] == "n_past")
    if found := _LAUNCH(text):
        return Launch(slot, task, is_child=found[1] == "1")
    return _parse_tokens(slot, task, text)


def _parse_tokens(slot: int, task: int, text: str) -> Event | None:
    if found := _PROMPT(text):
        return Prompt(task, slot, int(found[1]))
    if found := _CACHED(text):
        return Cached(task, slot, int(found[1] or found[2] or found[3]))
    found = _SHIFT(text)
    return found and Shift(task, slot, int(found[1]))


def _parse_timings(slot: int, task: int, text: str) -> Timings | None:
    values: dict[str, tuple[float, int]] = {}
    for found in _TIMING(text):
        if found[1]:
            values[found[1]] = float(found[2]), int(found[3])
        else:
            values["draft"] = float(found[4]), int(found[5])
    return Timings(task, slot, values) if values else None


def _parse_early_slot(message: str) -> Launch | EarlyCached | EarlyRelease | None:
    found = _EARLY_SLOT(message)
    if found is None:
        return None
    slot = int(found[1])
    if found[2]:
        return Launch(slot, int(found[2]), is_child=False)
    return EarlyCached(slot, int(found[3])) if found[3] else EarlyRelease(slot)


def _parse_early_timing(message: str) -> EarlyTimings | None:
    found = _EARLY_TIMING(message)
    return found and EarlyTimings({found[1]: (float(found[2]), int(found[3] or 0))})


def _parse_named(message: str) -> Event | None:
    """Return what a line with named values tells. Its durations precede the release."""
    found = _NAMED(message)
    if found is None:
        return None
    slot, task = int(found[5]), int(found[6])
    if found[3]:
        name = {"prompt ": "prompt eval", "generation ": "eval"}.get(found[2], "total")
        return Timings(task, slot, {name: (float(found[3]), int(found[4] or 0))})
    if found[1] == "slot is processing task":
        return Launch(slot, task, is_child=False)
    values = dict(value.partition("=")[::2] for value in message[found.end() :].split(" ", _MAX_NAMED_VALUES))
    tokens = values.get("n_past" if found[1] == "slot released" else "p0", "")
    if not _IS_COUNT(tokens):
        return None
    if found[1] == "slot released":
        is_truncated = values.get("truncated") == "true"
        return Release(task, slot, int(tokens), is_truncated, timings_follow=False)
    return Cached(task, slot, int(tokens))


def _parse_named_access(message: str) -> Access | None:
    values = dict(value.partition("=")[::2] for value in message.split(" ", _MAX_NAMED_VALUES))
    path, status = values.get("path", ""), values.get("status", "")
    if not (path.startswith("/") and _IS_COUNT(status)):
        return None
    method, client = values.get("method", ""), values.get("remote_addr", "")
    return Access(method[:7], path.partition("?")[0][:200], client[:64], int(status))


_IS_COUNT = re.compile(r"\d{1,12}").fullmatch


def _parse_server(message: str) -> Event | None:
    if found := _CANCEL(message):
        return Cancel(int(found[1]))
    if found := _ERROR(message):
        return Failure(int(found[1]), found[2])
    if found := _ACCESS(message):
        return Access(found[1], found[2], found[3], int(found[4]))
    return _parse_process(message)


def _parse_process(message: str) -> Event | None:
    """Return what a router, or a process about itself, tells."""
    if found := _PROXY(message):
        return Arrival(int(found[1]))
    if found := _MODEL(message):
        return ModelPath(found[1])
    if found := _SPAWN(message):
        return ProcessEnd(int(found[1]))
    return ProcessEnd(0) if _START(message) or _STOP(message) else None
