"""`install` and `uninstall` as far as possible without changing this machine; `test_container` runs them in full."""

import os
import tomllib
from pathlib import Path

import pytest

from collector.commands import install
from collector.errors import CollectorError
from collector.settings import load_settings
from tests.support.paths import ROOT

TARGETS = (install.UNIT_FILE, install.SYSUSERS_FILE, install.TMPFILES_FILE, install.SETTINGS_FILE)


def test_a_dry_run_prints_every_step_and_takes_none(capsys: pytest.CaptureFixture[str]) -> None:
    before = [target.exists() for target in TARGETS]
    install.install(dry_run=True)
    printed = capsys.readouterr().out
    assert [target.exists() for target in TARGETS] == before
    for target in TARGETS:
        assert f"write {target}\n" in printed or (f"keep {target}\n" in printed and target.exists())
    for command in (
        "systemd-sysusers",
        "systemd-tmpfiles --create",
        "systemctl restart llama-collector.service",
    ):
        assert f"run {command}" in printed


def test_a_dry_run_of_uninstall_says_what_remains(capsys: pytest.CaptureFixture[str]) -> None:
    install.uninstall(dry_run=True)
    assert (
        "kept: the settings in /etc/llama-collector, the database in /var/lib/llama-collector"
        in capsys.readouterr().out
    )


def test_a_program_in_another_directory_is_not_installed_and_the_right_commands_are_shown() -> None:
    with pytest.raises(CollectorError, match="sudo python3 -m venv /opt/llama-collector"):
        install.install(dry_run=False)


def test_only_root_may_uninstall(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CollectorError, match="put sudo before it"):
        install.uninstall(dry_run=False)
    assert capsys.readouterr().out == ""


def test_in_a_checkout_its_own_files_are_installed() -> None:
    assert install._shipped("config/collector.toml") == ROOT / "config" / "collector.toml"


def test_a_new_service_has_valid_settings_and_its_database_in_its_state_directory(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(install.default_settings())
    assert load_settings(file).database_path == Path("/var/lib/llama-collector/llama-dashboard.db")
    assert tomllib.loads(file.read_text())["database"] == {
        "path": "/var/lib/llama-collector/llama-dashboard.db"
    }


def test_a_file_is_written_completely_and_readable_by_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    install._write(target, "text")
    install._write(target, "other text")
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("other text", 0o644)
    assert list(target.parent.iterdir()) == [target]
