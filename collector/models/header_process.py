"""The child process that reads the headers of GGUF files. `header_reader` starts it.

It is the only process that imports `gguf`, whose numpy would stay in the daemon's memory. The cost of a file
is bounded: memory and processor time by limits of the kernel, the time until the answer by the parent.

Protocol: each line on standard input is the path of a file as JSON text; each line on standard output is the
answer, a JSON object. A first line reports that the process is ready. It exits when standard input ends.
"""

import json
import math
import os
import resource
import stat
import sys
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, LlamaFileType

from collector.errors import NotGguf, ParseError
from collector.parsers.gguf_header import parse_header
from collector.parsers.model_facts import WANTED_KEYS, Facts, Format, model_facts

MEMORY_BYTES = 64 * 2**20
"""Address space on top of what the process uses after its imports."""

PROCESSOR_SECONDS = 20
"""For one file. The longest headers need 0.1 s."""

FORMAT = Format(
    file_types={
        int(kind): kind.name.removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE")
        for kind in LlamaFileType
        if kind is not LlamaFileType.GUESSED
    },
    tensor_types={int(kind): kind.name for kind in GGMLQuantizationType},
    block_sizes={int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()},
    architectures=frozenset(MODEL_ARCH_NAMES.values()),
)


def main() -> None:
    """Limit the resources of this process, then answer requests until standard input ends."""
    os.nice(10)  # inference has priority
    with open("/proc/self/statm", encoding="ascii") as status:  # noqa: PTH123
        used_pages = int(status.read().split()[0])
    memory_limit = used_pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write_line({"ready": True})
    for line in sys.stdin:
        # The kernel counts processor time from the start of the process: move the limit before each file.
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds_limit = math.ceil(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds_limit, resource.RLIM_INFINITY))
        _write_line(describe_file(json.loads(line)))


def describe_file(path: str) -> dict[str, Any]:
    """Return the answer on one file.

    Returns:
        the fields of `Facts`; or `broken`, what is wrong with the content, with `foreign`, whether it is of
        another format; or `unreadable`, why the file cannot be read at the moment, with `over_limit`, whether
        its header exceeds a limit of this process.
    """
    try:
        return asdict(read_facts(path))
    except NotGguf as error:
        return {"broken": str(error), "foreign": True}
    except ParseError as error:
        return {"broken": str(error), "foreign": False}
    except MemoryError:
        return {"unreadable": "has a header that needs more memory than any real one", "over_limit": True}
    except OSError as error:
        return {"unreadable": error.strerror or str(error), "over_limit": False}


def read_facts(path: str) -> Facts:
    """Read the header of one file.

    Raises:
        ParseError: the content is not that of a GGUF file.
        OSError: the file cannot be read.
    """
    # O_NONBLOCK: the file may have been replaced by a FIFO since the walk, and opening one would block until
    # another process opens its other end. It has no effect on regular files.
    extra_flags = os.O_NONBLOCK | os.O_NOCTTY
    with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | extra_flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ParseError("is not a file")
        header = parse_header(file, status.st_size, WANTED_KEYS)
        return model_facts(header, PurePath(path).name, status.st_size, FORMAT)


def _write_line(values: dict[str, Any]) -> None:
    """Write one line of the protocol."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
