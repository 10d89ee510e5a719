"""The parser of the settings file: TOML, checked against dataclasses that declare its tables.

A table is declared as a dataclass, and each of its keys as a field that `setting` returns:

    @dataclass(frozen=True, slots=True)
    class SamplingSettings:
        interval: int = setting(5, "seconds between two samples", Range(1, 3600))

The type of the default is the type that a value must have.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from collector.errors import SettingsError

MAX_BYTES = 64 * 1024
_MAX_DOTS = 32
_MAX_TEXT_BYTES, _MAX_NAME_BYTES = 1000, 255
_TEXT_FAULT = (
    f"must have at most {_MAX_TEXT_BYTES} bytes, no name in it more than {_MAX_NAME_BYTES}, and no NUL"
)
_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list of texts",
}
# An unterminated text matches too. Otherwise every further quote would start a search to the end of the file,
# which needs quadratic time.
_TEXT_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)|' r"'''.*?(?:'''|\Z)|" r'"(?:\\.|[^"\\\n])*"?|' r"'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)

Check = Callable[[Any], str | None]
"""Returns what is wrong with a value of the right type, or None."""


@dataclass(frozen=True, slots=True)
class Range:
    """A check of a number's range; its text describes the range in the documentation.

    Args:
        low: the smallest value.
        high: the largest value.
        zero: what 0 means, if 0 is allowed outside the range.
    """

    low: float
    high: float
    zero: str = ""

    def __call__(self, value: float) -> str | None:
        """Return what is wrong with a number, or None."""
        is_valid = self.low <= value <= self.high or (self.zero and value == 0)
        return None if is_valid else f"must be from {self.low} to {self.high}"

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{f'; 0 = {self.zero}' if self.zero else ''}"


def one_of(*choices: str) -> Check:
    """Return a check that a text is one of the choices."""
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def not_empty(value: str) -> str | None:
    """Return what is wrong with a text that is empty or only spaces, or None."""
    return None if value.strip() else "must not be empty"


def all_not_empty(values: list[str]) -> str | None:
    """Return what is wrong with a list that contains an empty text, or None; the list may be empty."""
    return None if all(value.strip() for value in values) else "must not contain an empty text"


def setting(default: Any, meaning: str, check: Check = lambda _: None, *, or_list: bool = False) -> Any:
    """Declare one key of the file.

    Args:
        default: its value if the file does not contain it; all values must have the type of the default.
        meaning: one line for the documentation, with the unit; a range is appended to it.
        check: what a value of this type must fulfil.
        or_list: whether a list of such values is accepted too.
    """
    if isinstance(check, Range):
        meaning = f"{meaning}, {check}"
    metadata = {"meaning": meaning, "check": check, "or_list": or_list}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Locations:
    """The line number of each key in a settings file, for error messages.

    Args:
        path: name of the file in messages.
        text: its content.
    """

    def __init__(self, path: str, text: str = "") -> None:
        self._path = path
        self._lines: dict[tuple[str, str], int] = {}
        section = ""
        for number, line in enumerate(text.split("\n"), 1):
            if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
                section = header[1]
                self._lines.setdefault((section, ""), number)
            elif assignment := re.match(r"\s*([\w-]+)\s*=", line):
                self._lines.setdefault((section, assignment[1]), number)

    def of(self, section: str, key: str = "") -> str:
        """Return the file and line of a table or of a key in it, with which a message begins."""
        line = self._lines.get((section, key)) or self._lines.get(("", section))
        return f"{self._path}, line {line}" if line else self._path


def parse_document(data: bytes, path: str) -> tuple[dict[str, Any], Locations]:
    """Parse the content of a settings file.

    Args:
        data: the content.
        path: name of the file in messages.

    Raises:
        SettingsError: it is not UTF-8 or not TOML, or parsing it would need much memory.
    """
    if len(data) > MAX_BYTES:
        raise SettingsError([f"{path}: is longer than {MAX_BYTES:,} bytes"])
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        # The memory that tomllib needs for a dotted key grows with the square of its parts.
        if any(line.count(".") > _MAX_DOTS for line in _TEXT_OR_COMMENT.sub("", text).split("\n")):
            raise SettingsError([f"{path}: a key has more than {_MAX_DOTS} dots"])
        return tomllib.loads(text), Locations(path, text)
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8: {error.reason} at byte {error.start}"]) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is not a TOMLDecodeError
        raise SettingsError([f"{path}: is not TOML: {error}"]) from error


def find_faults(
    document: Mapping[str, object], tables: Mapping[str, type], locations: Locations
) -> Iterator[str]:
    """Yield a sentence for each fault of a document: unknown keys, wrong types, values out of range.

    Args:
        document: the parsed file.
        tables: the dataclass of each table.
        locations: the line of each key, for the sentences.
    """
    for name in document:
        if name not in tables:
            yield f"{locations.of(name)}: unknown table or key [{_printable(name)}]"
    for name, declaration in tables.items():
        table = document.get(name, {})
        if not isinstance(table, dict):
            yield f"{locations.of(name)}: {name} must be a table: write [{name}]"
            continue
        known = {declared.name: declared for declared in fields(declaration)}
        for key, value in table.items():
            unknown = f"is unknown; known are {', '.join(known)}"
            if fault := _value_fault(known[key], value) if key in known else unknown:
                yield f"{locations.of(name, key)}: [{name}] {_printable(key)} {fault}"


def _value_fault(declared: Field[Any], value: object) -> str | None:
    """Return what is wrong with the value of a key, or None."""
    default = declared.default if declared.default_factory is MISSING else declared.default_factory()
    is_list = declared.metadata["or_list"] and isinstance(value, list)
    if not (_same_type(value, [default]) if is_list else _same_type(value, default)):
        return f"must be {_TYPE_NAMES[type(default)]}, not {_shortened(value)}"
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    fault = declared.metadata["check"](value) if all(map(_is_valid_path, texts)) else _TEXT_FAULT
    return f"{fault}, not {_shortened(value)}" if fault else None


def _same_type(value: object, default: object) -> bool:
    """Return whether a value has the type of a default; a whole number is valid for a float."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is type(default)


def _is_valid_path(text: str) -> bool:
    """Return whether a system call accepts a text as a path, even joined to another: most texts are paths."""
    encoded = os.fsencode(text)
    longest_name = max(map(len, encoded.split(b"/")))
    return b"\0" not in encoded and len(encoded) <= _MAX_TEXT_BYTES and longest_name <= _MAX_NAME_BYTES


def _shortened(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python prints no number of thousands of digits
        return "such a long number"


def _printable(key: str) -> str:
    return key[:60] if key.isprintable() else f"{key!r:.60}"
