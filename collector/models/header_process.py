"""The short-lived process that reads the headers of GGUF files. Started by `header_reader`.

It alone imports `gguf`, whose numpy would stay in the daemon's memory. What a file may cost is bounded:
memory and processor time by limits of the kernel, the wall time by the parent.

One JSON text a line on standard input, the path of a file; one JSON object a line on standard output, the
answer. Before the first one comes a line that says it is ready. Ends with its standard input.
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

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from collector.errors import NotGguf, ParseError
from collector.parsers.gguf_header import parse_header
from collector.parsers.model_facts import WANTED_KEYS, Facts, Format, model_facts

MEMORY_BYTES = 64 * 2**20
"""Beyond what it has after its imports."""

PROCESSOR_SECONDS = 20
"""For one file. The longest headers take 0.1 s."""

FORMAT = Format(
    file_types={
        int(kind): kind.name.removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE")
        for kind in LlamaFileType
        if kind is not LlamaFileType.GUESSED
    },
    tensor_types={int(kind): kind.name for kind in GGMLQuantizationType},
    block_sizes={int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()},
)


def main() -> None:
    """Answer until standard input ends."""
    os.nice(10)  # inference goes first
    _limit_memory()
    _say({"ready": True})
    for line in sys.stdin:
        _limit_processor_time()
        _say(answer(json.loads(line)))


def answer(path: str) -> dict[str, Any]:
    """What is to be said of a file.

    Returns:
        the fields of `Facts`, or of why there are none: `broken`, what is wrong with its content, with
        `foreign` where it is of another format; `unreadable`, why it could not be read just now.
    """
    try:
        return asdict(read_facts(path))
    except NotGguf as error:
        return {"broken": str(error), "foreign": True}
    except ParseError as error:
        return {"broken": str(error), "foreign": False}
    except MemoryError:
        return {"broken": "has a header that needs more memory than any real one", "foreign": False}
    except OSError as error:
        return {"unreadable": error.strerror or str(error)}


def read_facts(path: str) -> Facts:
    """Read one file.

    Raises:
        ParseError: its content is not a model's.
        OSError: it cannot be read.
    """
    # Not blocking: the file may have become a FIFO since it was seen. For files it changes nothing.
    with open(path, "rb", buffering=0, opener=_opener) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ParseError("is not a file")
        header = parse_header(file, status.st_size, WANTED_KEYS)
        return model_facts(header, PurePath(path).name, status.st_size, FORMAT)


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as status:  # noqa: PTH123
        pages = int(status.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_processor_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
