import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import SettingsError
from collector.parsers.settings_file import Range
from collector.settings import (
    LlamaServerSettings,
    Settings,
    find_settings_file,
    load_settings,
    read_api_key,
    settings_from,
)

SAMPLE = Path(__file__).parents[1] / "config" / "collector.toml"


def uncommented(text: str) -> str:
    """Return the sample file with every default active."""
    lines = text.splitlines()
    return "\n".join(line[2:] if line.startswith("# ") and " = " in line else line for line in lines)


def test_without_a_file_every_setting_has_its_default() -> None:
    settings = load_settings(None)
    assert settings.database.path == "data/llama-dashboard.db"
    assert settings.sampling.interval == 5
    assert settings.llama_server.url == "http://127.0.0.1:8080"


def test_the_sample_file_contains_only_the_defaults() -> None:
    assert load_settings(SAMPLE) == Settings()
    assert settings_from(tomllib.loads(uncommented(SAMPLE.read_text()))) == Settings()


def test_the_sample_file_lists_every_setting_with_its_meaning_and_range() -> None:
    text = SAMPLE.read_text()
    assert {section.name for section in fields(Settings)} == set(tomllib.loads(text))
    for section in fields(Settings):
        for setting in fields(section.default_factory):  # type: ignore[arg-type]
            assert f"\n# {setting.name} = " in text
            assert setting.metadata["meaning"].split(";")[0].split(",")[0] in text
            if isinstance(setting.metadata["check"], Range):
                (line,) = re.findall(
                    rf"^# {setting.name} = .*{setting.metadata['meaning']}$", text, re.MULTILINE
                )
                assert line.endswith(f", {setting.metadata['check']}")


def test_all_faults_are_reported_at_once_each_with_its_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        "[sampling]\n"
        "interval = 0\n"
        "intervall = 3\n"
        "\n"
        "[llama_server]\n"
        'url = "ftp://x"\n'
        "timeout = true\n"
        "[gpus]\n"
        "[gpu]\n"
        'enabled = "yes"\n'
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert caught.value.faults == [
        f"{file}, line 8: unknown table or key [gpus]",
        f"{file}, line 2: [sampling] interval must be from 1 to 3600, not 0",
        f"{file}, line 3: [sampling] intervall is unknown; known are interval",
        f"{file}, line 6: [llama_server] url must start with http://, https:// or unix:///, and name a host, "
        "not 'ftp://x'",
        f"{file}, line 7: [llama_server] timeout must be a number, not True",
        f"{file}, line 10: [gpu] enabled must be true or false, not 'yes'",
    ]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sampling", "interval", 3601),
        ("sampling", "interval", 2.5),
        ("sampling", "interval", "5"),
        ("sampling", "interval", True),
        ("database", "path", ""),
        ("database", "path", 7),
        ("llama_server", "timeout", 0),
        ("llama_server", "timeout", float("nan")),
        ("llama_server", "url", "http://"),
        ("llama_server", "url", "http://me:secret@host"),
        ("llama_server", "url", "http://host:99999"),
        ("llama_server", "url", "http://host/?q=1"),
        ("llama_server", "url", "unix://relative.sock"),
        ("llama_server", "url", "[::1"),
        ("llama_server", "url", "http://127.0.0.1\n:80"),
        ("llama_server", "url", "http://616.0.0.1"),
        ("llama_server", "url", "http://[v1.x]"),
        ("llama_server", "url", "http://a..b"),
        ("llama_server", "url", "http://" + "a" * 64),
        ("llama_server", "url", "http://äö\ud7ff"),
        ("backup", "schedule", "0 0 30 2 *"),
        ("database", "path", "a\0b"),
        ("models", "directory", ["a", "a\0b"]),
        ("database", "path", "ä" * 128),
        ("backup", "directory", "a/" * 501),
        ("logging", "level", "loud"),
    ],
)
def test_a_wrong_value_is_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"\[{section}\] {key}"):
        settings_from({section: {key: value}})


def test_a_range_is_written_as_it_is_checked() -> None:
    limited, or_never = Range(0.1, 60), Range(10, 86_400, zero="never")
    assert (str(limited), str(or_never)) == ("0.1 to 60", "10 to 86400; 0 = never")
    assert limited(0) == "must be from 0.1 to 60"
    assert [or_never(value) for value in (0, 10, 86_400)] == [None, None, None]
    assert or_never(9) == or_never(86_401) == "must be from 10 to 86400"


@pytest.mark.parametrize(
    "url", ["", "http://127.0.0.1:8080", "https://host/prefix", "http://[::1]:8080", "unix:///run/llama.sock"]
)
def test_every_documented_form_of_the_url_is_accepted(url: str) -> None:
    assert settings_from({"llama_server": {"url": url}}).llama_server.url == url


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[a\n", "is not TOML"), (b"\xff\xfe", "is not UTF-8"), (b"sampling = 5\n", "must be a table"), (b"a = " + b"[" * 5000, "is not TOML"), (b"a = " + b"1" * 5000, "is not TOML")],
)  # fmt: skip
def test_a_file_that_is_not_a_settings_file_is_refused_by_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings(file)
    assert str(file) in caught.value.faults[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * 65_537, "is longer than 65,536 bytes"),
        (b"a" + b".a" * 33 + b" = 1", "a key has more than 32 dots"),
        (b'"x.y" . ' * 40 + b"z = 1", "a key has more than 32 dots"),
    ],
)
def test_a_file_whose_parsing_needs_much_memory_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "collector.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(file)


def test_dots_in_texts_and_comments_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    dots = "." * 40
    file.write_text(
        f"# {dots}\r\n[models]\r\ndirectory = [\"/a{dots}\", '/b{dots}'] # {dots}\r\n", newline=""
    )
    assert load_settings(file).models.directory == [f"/a{dots}", f"/b{dots}"]


@pytest.mark.parametrize("value", [16**4000, [16**4000]], ids=["number", "list"])
def test_a_number_too_long_for_python_to_print_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match=r"interval must be .*, not such a long number"):
        settings_from({"sampling": {"interval": value}})


def test_every_fault_is_one_printable_line_and_has_the_right_line_number(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('# a\u2028b\n["\\u001b[31m"]\n[gpu]\n"a\\nb" = 1\nenabled = 1\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert caught.value.faults == [
        f"{file}: unknown table or key ['\\x1b[31m']",
        f"{file}: [gpu] 'a\\nb' is unknown; known are enabled",
        f"{file}, line 5: [gpu] enabled must be true or false, not 1",
    ]


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_settings(tmp_path / "missing.toml")


def test_a_file_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_settings_file(None) is None or Path("/etc") in find_settings_file(None).parents  # type: ignore[union-attr]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "collector.toml").touch()
    assert find_settings_file(None) == Path("config/collector.toml")
    assert find_settings_file(Path("named.toml")) == Path("named.toml")


class TestApiKey:
    def test_it_comes_from_the_file_before_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_API_KEY", "from-environment")
        assert read_api_key(LlamaServerSettings()) == "from-environment"
        (tmp_path / "key").write_text("from-file\n")
        assert read_api_key(LlamaServerSettings(api_key_file=str(tmp_path / "key"))) == "from-file"

    def test_without_either_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LLAMA_API_KEY", raising=False)
        assert read_api_key(LlamaServerSettings()) is None

    @pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"k\xc3\xa9y"])
    def test_a_file_without_one_key_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(SettingsError, match="api_key_file"):
            read_api_key(LlamaServerSettings(api_key_file=str(tmp_path / "key")))

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="No such file"):
            read_api_key(LlamaServerSettings(api_key_file=str(tmp_path / "none")))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from([section.name for section in fields(Settings)]) | st.text(max_size=8)
KEYS = st.sampled_from(["path", "interval", "url", "timeout", "enabled", "directory", "level"]) | st.text(
    max_size=8
)


@given(st.dictionaries(SECTIONS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_any_document_gives_settings_or_a_settings_error(document: dict[str, Any]) -> None:
    try:
        settings = settings_from(document)
    except SettingsError as error:
        assert error.faults
    else:
        assert 1 <= settings.sampling.interval <= 3600
        assert 0.1 <= settings.llama_server.timeout <= 60
