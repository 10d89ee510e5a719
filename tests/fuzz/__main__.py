"""Fuzzes one target, or all of them one after another, guided by the coverage that atheris measures.

Usage:
    python -m tests.fuzz --seconds 30             every target
    python -m tests.fuzz log_lines --seconds 600  one
    python -m tests.fuzz log_lines FILE...        only reads the files, without atheris

Exits with 0 where nothing was found. A finding is a file that the output names: fix the fault, put the file
into `tests/fuzz/findings/NAME/`, and write a test beside the other tests of that parser.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SLOWEST_SECONDS = 120
"""For one input; only one that is read forever needs so long."""

MEMORY_MB = 2048
LONGEST_INPUT_BYTES = 8192


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the target; without it, all")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to read only")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="makes the same inputs again; 0 = random")
    parser.add_argument(
        "--corpus", type=Path, help="a folder for interesting inputs, which the next run starts from"
    )
    arguments = parser.parse_args()
    if arguments.files:
        read_files(arguments.name, arguments.files)
    elif arguments.name:
        sys.exit(fuzz(arguments.name, arguments.seconds, arguments.corpus, arguments.seed))
    else:
        fuzz_all(arguments.seconds, arguments.corpus, arguments.seed)


def read_files(name: str, files: list[Path]) -> None:
    """Read inputs as the fuzzer does; a fault is a plain traceback."""
    from tests.fuzz.targets import TARGETS

    for file in files:
        TARGETS[name].examine(file.read_bytes())
        print(f"{file}: nothing wrong")


def fuzz_all(seconds: int, corpus: Path | None, seed: int) -> None:
    """Fuzz every target in a process of its own, because the fuzzer ends the process that it runs in."""
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in TARGETS:
        kept = ["--corpus", str(corpus / name)] if corpus else []
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), *kept]
        command += ["--seed", str(seed)]
        print(f"+ python -m tests.fuzz {name} --seconds {seconds}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"faults were found in: {', '.join(failed)}")


def fuzz(name: str, seconds: int, corpus: Path | None = None, seed: int = 0) -> int:
    """Fuzz one target in a child process and return its exit status, 0 where nothing was found."""
    with tempfile.TemporaryDirectory(prefix="llama-collector-fuzz-") as scratch:
        child = os.fork()
        if not child:
            run_fuzzer(name, seconds, corpus, seed, Path(scratch))
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def run_fuzzer(name: str, seconds: int, corpus: Path | None, seed: int, scratch: Path) -> None:
    """Fuzz one target in this process; the fuzzer ends it and this function does not return."""
    import atheris

    tempfile.tempdir = str(scratch)
    with atheris.instrument_imports(include=["collector", "tomllib"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.seeds import seeds

    write_seeds(scratch / "seeds", seeds(name))
    dictionary = scratch / "words"
    dictionary.write_text("".join(map(_word, TARGETS[name].words)), encoding="ascii")
    learnt = corpus or scratch / "learnt"
    learnt.mkdir(parents=True, exist_ok=True)
    options = (
        f"-dict={dictionary}",
        f"-max_total_time={seconds}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-seed={seed}",
        f"-artifact_prefix={Path.cwd()}/{name}-",
    )
    atheris.Setup([sys.argv[0], *options, str(learnt), str(scratch / "seeds")], TARGETS[name].examine)
    atheris.Fuzz()


def write_seeds(directory: Path, seeds: list[bytes]) -> None:
    """Write a file for each seed."""
    directory.mkdir()
    for number, seed in enumerate(seeds):
        (directory / str(number)).write_bytes(seed)


def _word(text: str) -> str:
    """Return a line of the fuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"\n'


if __name__ == "__main__":
    main()
