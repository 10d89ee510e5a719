"""The settings: TOML in, frozen dataclasses out. Every setting, default and bound stands here, once."""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from collector.errors import SettingsError
from collector.parsers.cron import cron_fault

DEFAULT_FILES = (Path("config/collector.toml"), Path("/etc/llama-collector/collector.toml"))
API_KEY_VARIABLE = "LLAMA_API_KEY"
API_KEY_CREDENTIAL = "api-key"

Check = Callable[[Any], str | None]
"""Takes a value of the right type; says what is wrong with it, or None."""


def _setting(default: Any, meaning: str, check: Check = lambda _: None, *, or_list: bool = False) -> Any:
    """One key of the file.

    Args:
        default: its value where the file does not name it; its type is the type wanted.
        meaning: one line for the README, with unit and range.
        check: what the type does not say.
        or_list: whether a list of such values is taken as well.
    """
    metadata = {"meaning": meaning, "check": check, "or_list": or_list}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _between(low: float, high: float) -> Check:
    return lambda value: None if low <= value <= high else f"must be from {low} to {high}"


def _zero_or_between(low: float, high: float) -> Check:
    return lambda value: None if value == 0 else _between(low, high)(value)


def _text_or_texts(value: str | list[str]) -> str | None:
    texts = [value] if isinstance(value, str) else value
    return _all_not_empty(texts) if texts else "must not be empty"


def _one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _not_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty"


def _all_not_empty(values: list[str]) -> str | None:
    return None if all(value.strip() for value in values) else "must not hold an empty text"


def _llama_server_url(value: str) -> str | None:
    if not value:
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        return f"is no URL ({error})"
    if parts.scheme == "unix":
        return None if parts.path.startswith("/") and not parts.netloc else "must be unix:///PATH.sock"
    return _http_url(value, parts)


def _http_url(value: str, parts: SplitResult) -> str | None:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must start with http://, https:// or unix:///, and name a host"
    if parts.username or parts.password:
        return "must not hold a password: put the key into api_key_file"
    if not value.isprintable() or not _is_host(parts.hostname, is_address="[" in parts.netloc):
        return "must name a host in ASCII, or a valid address"
    return "must end before ? and #" if parts.query or parts.fragment else None


def _is_host(name: str, *, is_address: bool) -> bool:
    """Whether the client (no wrong addresses) and the resolver (no long names) take it."""
    try:
        if is_address or _LIKE_AN_ADDRESS(name):
            ip_address(name)
        name.encode("idna")
    except ValueError:
        return False
    return name.isascii()


_LIKE_AN_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+").fullmatch


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where the rows go."""

    path: str = _setting("data/llama-dashboard.db", "the SQLite file", _not_empty)
    flush_interval: int = _setting(5, "seconds between two commits, 1 to 3600", _between(1, 3600))
    on_damage: str = _setting(
        "stop",
        "what is done about a damaged file: stop, or fresh (set it aside and begin an empty one)",
        _one_of("stop", "fresh"),
    )


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How often is sampled."""

    interval: int = _setting(5, "seconds between two samples, 1 to 3600", _between(1, 3600))


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """Which llama-server is watched."""

    url: str = _setting(
        "http://127.0.0.1:8080",
        'http://, https:// or unix:///PATH.sock, with the --api-prefix if there is one; "" = none',
        _llama_server_url,
    )
    api_key_file: str = _setting("", f"file that holds the API key; {API_KEY_VARIABLE} stands in for it")
    timeout: float = _setting(2.0, "seconds to wait for an answer, 0.1 to 60", _between(0.1, 60))
    process_name: str = _setting("llama-server", "name of its processes", _not_empty)


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """Whether GPUs are read."""

    enabled: bool = _setting(True, "read NVIDIA GPUs through NVML")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class ModelsSettings:
    """Where the models lie."""

    directory: str | list[str] = _setting(
        "~/models",
        "the models directory, or a list of several; disk_usage is of the first one's partition",
        _text_or_texts,
        or_list=True,
    )
    rescan_interval: int = _setting(
        300, "seconds between two scans of it, 10 to 86400; 0 = never", _zero_or_between(10, 86_400)
    )


@dataclass(frozen=True, slots=True)
class LogsSettings:
    """Which output of llama-server is kept."""

    files: list[str] = _setting([], "its log files; * and ? stand for any characters", _all_not_empty)
    journal_units: list[str] = _setting(
        [], "its systemd units, read from the journal by members of the group systemd-journal", _all_not_empty
    )
    minimum_level: str = _setting(
        "debug",
        "debug, info, warn, error, critical; lines below it are not kept",
        _one_of("debug", "info", "warn", "error", "critical"),
    )


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How much is kept."""

    metrics_max_rows: int = _setting(
        100_000, "samples that are kept, 1000 to 1000000000; 0 = all", _zero_or_between(1000, 1_000_000_000)
    )
    logs_max_rows: int = _setting(
        100_000, "log lines that are kept, 1000 to 1000000000; 0 = all", _zero_or_between(1000, 1_000_000_000)
    )
    max_age_days: int = _setting(
        0, "days for which samples and log lines are kept, 1 to 36500; 0 = all", _zero_or_between(1, 36_500)
    )
    max_database_mb: int = _setting(
        0,
        "largest size of the database, MB, 10 to 10000000; 0 = any",
        _zero_or_between(10, 10_000_000),
    )
    interval: int = _setting(3600, "seconds between two prunings, 60 to 86400", _between(60, 86_400))


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """When the database is copied, and where to."""

    directory: str = _setting(
        "backup", "where the backups go; relative to the database's directory", _not_empty
    )
    schedule: str = _setting(
        "0 2 * * *",
        'cron line in local time; "" = no backups of its own',
        lambda v: cron_fault(v) if v else None,
    )
    keep: int = _setting(7, "backups that are kept, 1 to 1000", _between(1, 1000))
    self_test_days: int = _setting(
        30, "days between two trial restores of the newest one, 1 to 365; 0 = never", _zero_or_between(1, 365)
    )


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """How the collector tells its own events."""

    level: str = _setting("info", "debug, info, warning, error", _one_of("debug", "info", "warning", "error"))
    format: str = _setting(
        "auto", "auto (the journal's under systemd), console, json", _one_of("auto", "console", "json")
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, one field a table of the file."""

    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    llama_server: LlamaServerSettings = field(default_factory=LlamaServerSettings)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    models: ModelsSettings = field(default_factory=ModelsSettings)
    logs: LogsSettings = field(default_factory=LogsSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    backup: BackupSettings = field(default_factory=BackupSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @property
    def database_path(self) -> Path:
        """The database file, absolute."""
        return absolute(self.database.path)

    @property
    def backup_directory(self) -> Path:
        """Where the backups go, absolute."""
        return self.database_path.parent / os.path.expanduser(self.backup.directory)  # noqa: PTH111 - as in `absolute`

    @property
    def models_directories(self) -> tuple[Path, ...]:
        """The models directories, absolute; at least one."""
        named = self.models.directory
        return tuple(absolute(path) for path in ([named] if isinstance(named, str) else named))


def absolute(path: str) -> Path:
    """A path of the settings: `~` is the home directory, relative is to the working directory."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - Path.expanduser may raise


def find_settings_file(named: Path | None) -> Path | None:
    """The file that is named, else the first default that is there, else None."""
    return named or next((path for path in DEFAULT_FILES if path.is_file()), None)


def load_settings(path: Path | None) -> Settings:
    """Read and check the settings.

    Args:
        path: the file; None for the defaults.

    Raises:
        SettingsError: the file cannot be read or is wrong; all faults at once.
    """
    if path is None:
        return Settings()
    try:
        text = _read(path)
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8: {error.reason} at byte {error.start}"]) from error
    except (ValueError, RecursionError) as error:  # of a number of 5,000 digits not tomllib's own error
        raise SettingsError([f"{path}: is not TOML: {error}"]) from error
    return settings_from(document, _Locations(str(path), text))


def _read(path: Path) -> str:
    """The text of the file, where it is one that tomllib reads in little memory."""
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise SettingsError([f"{path}: is longer than {_MAX_FILE_BYTES:,} bytes"])
    text = data.decode("utf-8").replace("\r\n", "\n")
    # What tomllib keeps of a dotted key grows with the square of its parts.
    if any(line.count(".") > _MAX_DOTS for line in _TEXT_OR_COMMENT.sub("", text).split("\n")):
        raise SettingsError([f"{path}: a key has more than {_MAX_DOTS} dots"])
    return text


_MAX_FILE_BYTES, _MAX_DOTS = 64 * 1024, 32
# A text that nothing ends goes too: to look for the end of each anew takes the square of the time.
_TEXT_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)|' r"'''.*?(?:'''|\Z)|" r'"(?:\\.|[^"\\\n])*"?|' r"'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)


def settings_from(document: Mapping[str, object], locations: "_Locations | None" = None) -> Settings:
    """Build the settings from a parsed document.

    Raises:
        SettingsError: unknown keys, wrong types, values out of range; all faults at once.
    """
    where = locations or _Locations("settings", "")
    faults: list[str] = []
    known = {f.name: f for f in fields(Settings)}
    faults += [
        f"{where.of(name)}: unknown table or key [{_printable(name)}]"
        for name in document
        if name not in known
    ]
    sections: dict[str, Any] = {
        name: _section(known[name].default_factory, name, document[name], where, faults)  # type: ignore[arg-type]
        for name in known
        if name in document
    }
    if faults:
        raise SettingsError(faults)
    return Settings(**sections)


def read_api_key(settings: LlamaServerSettings) -> str | None:
    """The API key: the content of `api_key_file`, else the environment's, else systemd's, else None.

    systemd's is the credential `api-key` that a unit names with LoadCredential=.

    Raises:
        SettingsError: the file cannot be read, or holds no key.
    """
    if not settings.api_key_file and (from_environment := os.environ.get(API_KEY_VARIABLE)):
        return from_environment
    path = absolute(settings.api_key_file) if settings.api_key_file else _api_key_credential()
    if path is None:
        return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SettingsError([f"[llama_server] api_key_file: {path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"[llama_server] api_key_file: {path} holds more than plain ASCII"]) from error
    if not key or not key.isprintable():
        raise SettingsError([f"[llama_server] api_key_file: {path} must hold the key on one line"])
    return key


def _api_key_credential() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, API_KEY_CREDENTIAL) if directory else None
    return path if path and path.is_file() else None


class _Locations:
    """Finds the line of a key, so that an error can name it."""

    def __init__(self, path: str, text: str) -> None:
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
        line = self._lines.get((section, key)) or self._lines.get(("", section))
        return f"{self._path}, line {line}" if line else self._path


def _section(
    make: Callable[..., object], name: str, table: object, where: _Locations, faults: list[str]
) -> object:
    if not isinstance(table, dict):
        faults.append(f"{where.of(name)}: {name} must be a table: write [{name}]")
        return None
    known: dict[str, Field[Any]] = {f.name: f for f in fields(make)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        fault = _fault(known[key], value) if key in known else f"is unknown; known are {', '.join(known)}"
        if fault:
            faults.append(f"{where.of(name, key)}: [{name}] {_printable(key)} {fault}")
        else:
            values[key] = value
    return None if faults else make(**values)


def _fault(setting: Field[Any], value: object) -> str | None:
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    listed = setting.metadata["or_list"] and isinstance(value, list)
    if not (_same_type(value, [default]) if listed else _same_type(value, default)):
        return f"must be {_TYPE_NAMES[type(default)]}, not {_shown(value)}"
    fault: str | None = _text_fault(value) or setting.metadata["check"](value)
    return f"{fault}, not {_shown(value)}" if fault else None


def _text_fault(value: object) -> str | None:
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return None if all(map(_is_usable, texts)) else _USABLE_TEXT


def _is_usable(text: str) -> bool:
    """Whether a system call takes it: nearly all texts are paths, and two of them may make one."""
    encoded = os.fsencode(text)
    longest_name = max(map(len, encoded.split(b"/")))
    return b"\0" not in encoded and len(encoded) <= _LONGEST_TEXT and longest_name <= _LONGEST_NAME


_LONGEST_TEXT, _LONGEST_NAME = 1000, 255  # bytes
_USABLE_TEXT = f"must have at most {_LONGEST_TEXT} bytes, no name in it more than {_LONGEST_NAME}, and no NUL"


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # of thousands of digits, which Python does not print
        return "such a long number"


def _printable(key: str) -> str:
    return key[:60] if key.isprintable() else f"{key!r:.60}"


_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list of texts",
}


def _same_type(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is type(default)
