"""The settings: every table, key, default and limit of the settings file is declared here, once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from collector.errors import SettingsError
from collector.parsers.cron import cron_fault
from collector.parsers.server_url import server_url_fault
from collector.parsers.settings_file import (
    MAX_BYTES,
    Locations,
    Range,
    all_not_empty,
    find_faults,
    not_empty,
    one_of,
    parse_document,
    setting,
)

DEFAULT_FILES = (Path("config/collector.toml"), Path("/etc/llama-collector/collector.toml"))
API_KEY_VARIABLE = "LLAMA_API_KEY"
API_KEY_CREDENTIAL = "api-key"


def _directories_fault(value: str | list[str]) -> str | None:
    texts = [value] if isinstance(value, str) else value
    return all_not_empty(texts) if texts else "must not be empty"


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The database file, and when rows are committed."""

    path: str = setting("data/llama-dashboard.db", "the SQLite file", not_empty)
    flush_interval: int = setting(5, "seconds between two commits", Range(1, 3600))
    on_damage: str = setting(
        "stop",
        "what is done about a damaged file: stop, or fresh (set it aside and begin an empty one)",
        one_of("stop", "fresh"),
    )


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """The rate of sampling."""

    interval: int = setting(5, "seconds between two samples", Range(1, 3600))


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """The llama-server that is watched."""

    url: str = setting(
        "http://127.0.0.1:8080",
        'http://, https:// or unix:///PATH.sock, with the --api-prefix if there is one; "" = none',
        server_url_fault,
    )
    api_key_file: str = setting("", f"file that holds the API key; {API_KEY_VARIABLE} stands in for it")
    timeout: float = setting(2.0, "seconds to wait for an answer", Range(0.1, 60))
    process_name: str = setting("llama-server", "name of its processes", not_empty)


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """The GPUs that are read."""

    enabled: bool = setting(True, "read NVIDIA GPUs through NVML")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class ModelsSettings:
    """The models directories and their scans."""

    directory: str | list[str] = setting(
        "~/models",
        "the models directory, or a list of several; disk_usage is of the first one's partition",
        _directories_fault,
        or_list=True,
    )
    rescan_interval: int = setting(300, "seconds between two scans of it", Range(10, 86_400, zero="never"))


@dataclass(frozen=True, slots=True)
class LogsSettings:
    """The output of llama-server that is stored."""

    files: list[str] = setting([], "its log files; * and ? stand for any characters", all_not_empty)
    journal_units: list[str] = setting(
        [], "its systemd units, read from the journal by members of the group systemd-journal", all_not_empty
    )
    minimum_level: str = setting(
        "debug",
        "debug, info, warn, error, critical; lines below it are not kept",
        one_of("debug", "info", "warn", "error", "critical"),
    )


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """The limits beyond which the oldest rows are deleted."""

    metrics_max_rows: int = setting(100_000, "samples that are kept", Range(1000, 1_000_000_000, zero="all"))
    logs_max_rows: int = setting(100_000, "log lines that are kept", Range(1000, 1_000_000_000, zero="all"))
    max_age_days: int = setting(
        0, "days for which samples and log lines are kept", Range(1, 36_500, zero="all")
    )
    max_database_mb: int = setting(0, "largest size of the database, MB", Range(10, 10_000_000, zero="any"))
    interval: int = setting(3600, "seconds between two prunings", Range(60, 86_400))


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """The backups of the database."""

    directory: str = setting(
        "backup", "where the backups go; relative to the database's directory", not_empty
    )
    schedule: str = setting(
        "0 2 * * *",
        'cron line in local time; "" = no backups of its own',
        lambda v: cron_fault(v) if v else None,
    )
    keep: int = setting(7, "backups that are kept", Range(1, 1000))
    self_test_days: int = setting(
        30, "days between two trial restores of the newest one", Range(1, 365, zero="never")
    )


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The form of the collector's own events."""

    level: str = setting("info", "debug, info, warning, error", one_of("debug", "info", "warning", "error"))
    format: str = setting(
        "auto", "auto (the journal's under systemd), console, json", one_of("auto", "console", "json")
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; each field is a table of the settings file."""

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
        """The absolute path of the database."""
        return absolute(self.database.path)

    @property
    def backup_directory(self) -> Path:
        """The absolute path of the backup directory."""
        return self.database_path.parent / os.path.expanduser(self.backup.directory)  # noqa: PTH111 - as in `absolute`

    @property
    def models_directories(self) -> tuple[Path, ...]:
        """The absolute paths of the models directories; at least one."""
        named = self.models.directory
        return tuple(absolute(path) for path in ([named] if isinstance(named, str) else named))


def absolute(path: str) -> Path:
    """Return a path of the settings as an absolute one: `~` is the home directory."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - Path.expanduser may raise


def find_settings_file(named: Path | None) -> Path | None:
    """Return the named file, else the first default file that exists, else None."""
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
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    return settings_from(*parse_document(data, str(path)))


def settings_from(document: Mapping[str, Any], locations: Locations | None = None) -> Settings:
    """Build the settings from a parsed document.

    Args:
        document: the tables of a settings file.
        locations: the line of each key, for messages.

    Raises:
        SettingsError: unknown keys, wrong types, values out of range; all faults at once.
    """
    tables: dict[str, Any] = {table.name: table.default_factory for table in fields(Settings)}
    if faults := list(find_faults(document, tables, locations or Locations("settings"))):
        raise SettingsError(faults)
    return Settings(**{name: tables[name](**values) for name, values in document.items()})


def read_api_key(settings: LlamaServerSettings) -> str | None:
    """Return the API key of llama-server.

    It is the content of `api_key_file`, else the environment's variable, else the credential `api-key` that
    a systemd unit names with LoadCredential=, else None.

    Raises:
        SettingsError: the file cannot be read, or contains no key.
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
        raise SettingsError(
            [f"[llama_server] api_key_file: {path} contains characters other than ASCII"]
        ) from error
    if not key or not key.isprintable():
        raise SettingsError([f"[llama_server] api_key_file: {path} must contain the key on one line"])
    return key


def _api_key_credential() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, API_KEY_CREDENTIAL) if directory else None
    return path if path and path.is_file() else None
