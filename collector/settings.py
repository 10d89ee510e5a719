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


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The database file, and when rows are committed."""

    path: str = setting("data/llama-dashboard.db", "the SQLite file", not_empty)
    flush_interval: int = setting(5, "seconds between two commits", Range(1, 3600))
    on_damage: str = setting(
        "stop",
        "what to do if the file is damaged: stop, or fresh (rename it and create an empty database)",
        one_of("stop", "fresh"),
    )


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """The rate of sampling."""

    interval: int = setting(5, "seconds between two samples", Range(1, 3600))


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """The llama-server that is monitored."""

    url: str = setting(
        "http://127.0.0.1:8080",
        'http://, https:// or unix:///PATH.sock, including the --api-prefix of the server; "" = no server',
        lambda v: server_url_fault(v) if v else None,
    )
    api_key_file: str = setting(
        "", f"file that contains the API key; if empty, the environment variable {API_KEY_VARIABLE} is used"
    )
    timeout: float = setting(2.0, "seconds to wait for an answer", Range(0.1, 60))
    process_name: str = setting("llama-server", "process name of the server", not_empty)


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """Whether GPUs are sampled."""

    enabled: bool = setting(True, "read NVIDIA GPUs through NVML")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class ModelsSettings:
    """The models directories and their scans."""

    directory: str | list[str] = setting(
        "~/models",
        "the models directory, or a list of several; disk_usage is that of the partition of the first",
        lambda v: all_not_empty([v] if isinstance(v, str) else v) if v else "must not be empty",
        or_list=True,
    )
    rescan_interval: int = setting(
        300, "seconds between two scans of the models directories", Range(10, 86_400, zero="never")
    )


@dataclass(frozen=True, slots=True)
class LogsSettings:
    """The logs of llama-server that are stored."""

    files: list[str] = setting([], "log files of the server; * and ? are wildcards", all_not_empty)
    journal_units: list[str] = setting(
        [],
        "systemd units (of the system or a user) or container:NAME; needs the group systemd-journal",
        all_not_empty,
    )
    minimum_level: str = setting(
        "debug",
        "debug, info, warn, error or critical; records below this level are not stored",
        one_of("debug", "info", "warn", "error", "critical"),
    )
    client_addresses: bool = setting(
        False,  # noqa: FBT003
        "whether rows of requests contain the addresses of clients, where the log has them",
    )


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """The limits beyond which the oldest rows are deleted."""

    metrics_max_rows: int = setting(
        100_000, "number of samples to keep", Range(1000, 1_000_000_000, zero="all")
    )
    logs_max_rows: int = setting(
        100_000, "number of log records to keep", Range(1000, 1_000_000_000, zero="all")
    )
    max_age_days: int = setting(0, "days to keep samples and log records", Range(1, 36_500, zero="all"))
    requests_max_age_days: int = setting(365, "days to keep requests", Range(1, 36_500, zero="all"))
    max_database_mb: int = setting(
        0, "maximum size of the database in MB", Range(10, 10_000_000, zero="no limit")
    )
    interval: int = setting(3600, "seconds between two prunes", Range(60, 86_400))


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """The backups of the database."""

    directory: str = setting(
        "backup",
        "directory of the backups; a relative path starts at the directory of the database",
        not_empty,
    )
    schedule: str = setting(
        "0 2 * * *",
        'cron line in local time; "" = no scheduled backups',
        lambda v: cron_fault(v) if v else None,
    )
    keep: int = setting(7, "number of backups to keep", Range(1, 1000))
    self_test_days: int = setting(
        30, "days between two trial restores of the newest backup", Range(1, 365, zero="never")
    )


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The level and format of the collector's own events."""

    level: str = setting(
        "info",
        "debug, info, warning or error; events below this level are not logged",
        one_of("debug", "info", "warning", "error"),
    )
    format: str = setting(
        "auto",
        "auto (the format of the journal under systemd, else console), console or json",
        one_of("auto", "console", "json"),
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
    """Return a path of the settings as an absolute path, with `~` replaced by the home directory.

    Raises:
        SettingsError: it is relative to a directory that was deleted.
    """
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - Path.expanduser may raise
    except OSError as error:
        raise SettingsError([f"there is no working directory any more: {_CHANGE_DIRECTORY}"]) from error


_CHANGE_DIRECTORY = "change to another directory (cd /), or name the file with --config and whole paths in it"


def find_settings_file(named: Path | None) -> Path | None:
    """Return the file named on the command line, else the first default file that exists, else None.

    Raises:
        SettingsError: it cannot be looked for.
    """
    if named:
        return named
    for path in DEFAULT_FILES:
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise SettingsError(
                [f"cannot look for {path} ({error.strerror}): {_CHANGE_DIRECTORY}"]
            ) from error
    return None


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

    It is the content of `api_key_file`, else the environment variable, else the credential `api-key` that
    the systemd unit names with LoadCredential=, else None.

    Raises:
        SettingsError: the file cannot be read, or contains no key.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    origin = "[llama_server] api_key_file"
    if settings.api_key_file:
        path = absolute(settings.api_key_file)
    elif key := os.environ.get(API_KEY_VARIABLE):
        return key
    elif credentials and Path(credentials, API_KEY_CREDENTIAL).is_file():
        path, origin = Path(credentials, API_KEY_CREDENTIAL), f"the systemd credential {API_KEY_CREDENTIAL}"
    else:
        return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SettingsError([f"{origin}: {path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{origin}: {path} contains characters other than ASCII"]) from error
    if not key or not key.isprintable():
        raise SettingsError([f"{origin}: {path} must contain the key on one line"])
    return key
