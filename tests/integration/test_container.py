"""The service in a booted Debian: the README's own commands, a real systemd, journal and llama-server.

The tests share one container and run in the order of a service's life.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.container import CLONE, WHEELS, Container, wait_for
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
SERVICE = "llama-collector.service"
SETTINGS = "/etc/llama-collector/collector.toml"
DATABASE = "/var/lib/llama-collector/llama-dashboard.db"
PROGRAM = "/opt/llama-collector/bin/llama-collector"

LLAMA_SERVER_UNIT = f"""\
[Service]
User=llm
ExecStart=/bin/sh -c 'sleep infinity | exec /opt/llama-server/bin/python {CLONE}/tests/support/serve.py \
--model /home/llm/models/tiny.gguf --metrics --port 8080 --api-key s3cr3t'
[Install]
WantedBy=multi-user.target
"""

TEST_DROP_IN = """\
[Service]
WatchdogSec=5
LoadCredential=api-key:/etc/llama-collector/api-key
"""
"""A shorter watchdog time than the shipped one, and the README's lines for a key."""


COMPLETION = """
import json, urllib.request, urllib.error
body = json.dumps({"prompt": "a b c", "n_predict": 480, "ignore_eos": True}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/completion", body, {"Authorization": "Bearer s3cr3t"})
try:
    urllib.request.urlopen(request)
except urllib.error.HTTPError as error:  # some builds stop at random bytes that are not text
    assert error.code == 500
"""


def readme_commands(word: str) -> str:
    """Return the one block of the README's service section that contains a word."""
    section = README.split("\n## As a service\n")[1].split("\n## ")[0]
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return block


class Host(Container):
    """The container, with queries and commands for the service in it."""

    def rows(self, statement: str, user: str = "") -> list[dict[str, object]]:
        return self.query(statement, database=DATABASE, user=user)

    def wait_for_rows(self, statement: str) -> list[dict[str, object]]:
        return wait_for(lambda: self.rows(statement), lambda: f"{statement}\n{self.journal()}")

    def newest(self) -> int:
        (row,) = self.rows("SELECT coalesce(max(id), 0) AS id FROM metrics")
        return int(str(row["id"]))

    def wait_for_samples(self) -> None:
        """Wait for three more."""
        self.wait_for_rows(f"SELECT id FROM metrics WHERE id >= {self.newest() + 3}")

    def longest_gap(self, first: int) -> int:
        """Return the most seconds between two samples since this id; the interval is one second."""
        (row,) = self.rows(
            "SELECT max(gap) AS gap FROM (SELECT timestamp - lag(timestamp) OVER (ORDER BY id) AS gap "
            f"FROM metrics WHERE id >= {first})"
        )
        return int(str(row["gap"]))

    def journal(self) -> str:
        return self.shell(f"journalctl --no-pager --unit={SERVICE} --lines=200")

    def change_settings(self, *expressions: str) -> None:
        """Edit the settings file with sed."""
        for expression in expressions:
            before = self.shell(f"cat {SETTINGS}")
            self.call("sed", "--in-place", expression, SETTINGS)
            assert self.shell(f"cat {SETTINGS}") != before, expression

    @property
    def main_process(self) -> int:
        return int(self.show(SERVICE, "MainPID")[0])

    @property
    def state(self) -> str:
        return self.show(SERVICE, "ActiveState")[0]

    @property
    def restarts(self) -> int:
        return int(self.show(SERVICE, "NRestarts")[0])

    def wait_until_restarted(self, process: int) -> None:
        wait_for(lambda: self.state == "active" and self.main_process not in (0, process), self.journal)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("container")) as container:
        container.shell(
            "useradd --create-home llm && chmod 711 /home/llm && useradd grafana && useradd stranger\n"
            f"python3 -m venv /opt/llama-server && /opt/llama-server/bin/pip install --quiet --find-links={WHEELS} xllamacpp"
        )
        models = container.root / "home/llm/models"
        models.mkdir()
        (models / "tiny.gguf").write_bytes(tiny_model.read_bytes())
        container.write("/etc/systemd/system/llama-server.service", LLAMA_SERVER_UNIT)
        container.shell("systemctl daemon-reload && systemctl enable --now llama-server")
        answers = """python3 -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8080/health")'"""
        wait_for(
            lambda: container.call("bash", "-c", answers, check=False).returncode == 0,
            lambda: container.shell("journalctl --no-pager --unit=llama-server"),
        )
        yield container


def test_the_commands_of_the_readme_install_and_start_the_service(host: Host) -> None:
    host.shell(f"cd {CLONE}\n{readme_commands('llama-collector install')}")
    assert host.state == "active"
    assert host.show(SERVICE, "UnitFileState", "User") == ["enabled", "llama-collector"]
    assert host.newest() >= 1, "ready means that the first sample is in the database"
    assert host.shell(f"stat -c '%U:%G %a' {SETTINGS} /var/lib/llama-collector {DATABASE}").split("\n")[
        :3
    ] == [
        "root:llama-collector 640",
        "llama-collector:llama-collector 750",
        "llama-collector:llama-collector 640",
    ]


def test_a_second_install_changes_no_setting(host: Host) -> None:
    host.change_settings(
        "s|^# interval = 5 |interval = 1 |", "s|^# flush_interval = 5 |flush_interval = 1 |",
        's|^# directory = .*|directory = "/home/llm/models"|',
        's|^# journal_units = .*|journal_units = ["llama-server.service", "flood.service"]|',
        "s|^# logs_max_rows = .*|logs_max_rows = 0|",
    )  # fmt: skip
    host.shell("install -m 600 /dev/stdin /etc/llama-collector/api-key <<<s3cr3t")
    host.write(f"/etc/systemd/system/{SERVICE}.d/override.conf", TEST_DROP_IN)
    settings = host.shell(f"cat {SETTINGS}")
    printed = host.call(PROGRAM, "install").stdout
    assert f"keep {SETTINGS}" in printed
    assert host.shell(f"cat {SETTINGS}") == settings
    assert host.show(SERVICE, "ActiveState", "WatchdogUSec") == ["active", "5s"]


def test_samples_journal_lines_and_models_are_stored(host: Host) -> None:
    host.wait_for_rows("SELECT * FROM metrics WHERE active_models = 1 AND uptime > 0 AND memory_usage > 0")
    host.call("python3", "-c", COMPLETION)
    host.wait_for_rows("SELECT * FROM llama_metrics WHERE memory_used_mb > 1")
    host.wait_for_rows("SELECT * FROM logs WHERE source = 'llama-server'")
    host.wait_for_rows(
        "SELECT * FROM models WHERE model_path = '/home/llm/models/tiny.gguf' AND file_size > 0 AND block_count > 0"
    )
    failing = "SELECT * FROM collector_health WHERE state NOT IN ('ok', 'up', 'running', 'absent')"
    wait_for(lambda: not host.rows(failing), lambda: host.rows(failing))  # these queries make a flush wait


def test_the_status_line_contains_the_state_of_each_source(host: Host) -> None:
    def line() -> str:
        return host.show(SERVICE, "StatusText")[0]

    wait_for(lambda: "gpu absent; llama_server up; models loaded 1; database " in line(), line)
    assert line().startswith("sampling every 1 s; ")


def test_the_watchdog_is_notified_in_time(host: Host) -> None:
    process = host.main_process
    (before,) = host.show(SERVICE, "WatchdogTimestampMonotonic")
    later = int(before) + 10_000_000  # twice its time
    wait_for(lambda: int(host.show(SERVICE, "WatchdogTimestampMonotonic")[0]) > later)
    assert host.main_process == process


def test_systemd_rates_its_exposure_on_this_system_as_low(host: Host) -> None:
    ended = host.call("systemd-analyze", "security", "--threshold=15", "--no-pager", SERVICE, check=False)
    assert ended.returncode == 0, ended.stdout[-300:]


PROBE = """
import ctypes, errno, json, os, socket, subprocess
from pathlib import Path

def fails_with(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return ""

server = next(p for p in Path("/proc").iterdir() if p.name.isdigit() and "serve.py" in (p / "cmdline").read_text()
              and (p / "cmdline").read_bytes().startswith(b"/opt"))
listening = subprocess.run(["journalctl", "-q", "-n1", "--unit=llama-server"], capture_output=True, text=True).stdout
print(json.dumps({
    "user": os.getuid() != 0 and os.stat("/proc/self").st_uid == os.getuid(),
    "model": open("/home/llm/models/tiny.gguf", "rb").read(4).decode(),
    "other process": os.stat(server).st_uid != os.getuid() and len((server / "stat").read_text().split()) > 40,
    "journal": bool(listening),
    "api key": fails_with(lambda: open("/etc/llama-collector/api-key")),
    "settings": fails_with(lambda: open("/etc/llama-collector/collector.toml", "a")),
    "program": fails_with(lambda: open("/opt/llama-collector/x", "w")),
    "home": fails_with(lambda: open("/home/llm/x", "w")),
    "tmp": os.path.exists("/tmp/of-others"),
    "disk": fails_with(lambda: os.mknod("/var/lib/llama-collector/disk", 0o60600, os.makedev(8, 0))),
    "kill": fails_with(lambda: os.kill(int(server.name), 15)),
    "namespace": ctypes.CDLL(None, use_errno=True).unshare(0x10000000),
    "network": fails_with(lambda: socket.create_connection(("10.9.9.9", 8081), 2)),
    "device": fails_with(lambda: open("/dev/of-others")),
    "packets": fails_with(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
    "state": fails_with(lambda: open("/var/lib/llama-collector/probe", "w")),
}), flush=True)
"""


def test_in_its_sandbox_it_reads_what_it_needs_and_can_do_nothing_else(host: Host) -> None:
    """Run a probe with the unit's own directives instead of the collector."""
    unit = re.sub(
        r"^ExecStart=.*",
        "ExecStart=/opt/llama-collector/bin/python /usr/local/probe.py",
        host.shell(f"cat /etc/systemd/system/{SERVICE}"),
        flags=re.MULTILINE,
    )
    unit = re.sub(r"^(Type|Restart|WatchdogSec)=.*\n", "", unit, flags=re.MULTILINE).replace(
        "[Service]", "[Service]\nType=oneshot"
    )
    host.write("/etc/systemd/system/probe.service", unit)
    host.write("/usr/local/probe.py", PROBE)
    host.shell(
        "touch /tmp/of-others && mknod -m 666 /dev/of-others c 10 200 && ip addr add 10.9.9.9/32 dev lo"
    )
    opened = host.call("bash", "-c", ": </dev/of-others", user="stranger", check=False)
    assert "Operation not permitted" not in opened.stderr, "outside the sandbox it is allowed"
    host.shell("systemctl daemon-reload && systemctl start probe")
    printed = host.shell("journalctl --unit=probe --output=cat --lines=20 | grep ^{")
    seen = json.loads(printed)
    assert seen.pop("network") in ("timed out", "EPERM"), "not ECONNREFUSED, which the other end would send"
    assert seen == {
        "user": True, "model": "GGUF", "other process": True, "journal": True,
        "api key": "EACCES", "settings": "EACCES", "program": "EROFS", "home": "EROFS", "tmp": False,
        "disk": "EPERM", "kill": "EPERM", "namespace": -1, "device": "EPERM", "packets": "EAFNOSUPPORT",
        "capabilities": ["0" * 16] * 5, "state": "",
    }  # fmt: skip


def test_a_reload_applies_new_settings_and_loses_no_sample(host: Host) -> None:
    process, first = host.main_process, host.newest()
    host.change_settings('s|^# minimum_level = "debug" |minimum_level = "info" |')
    host.shell("systemctl reload llama-collector")
    wait_for(lambda: host.show(SERVICE, "ActiveState", "SubState") == ["active", "running"])
    host.wait_for_samples()
    assert host.main_process == process
    assert host.longest_gap(first) < 5


def test_a_reload_of_a_wrong_file_changes_nothing_and_logs_why(host: Host) -> None:
    process = host.main_process
    host.change_settings("s|^interval = 1 |interval = -1 |")
    host.shell("systemctl reload llama-collector")
    (row,) = host.wait_for_rows(
        "SELECT message, level FROM logs WHERE message LIKE 'the old settings stay in use%' LIMIT 1"
    )
    assert row["level"] == "error"
    assert f"{SETTINGS}, line" in str(row["message"])
    assert "[sampling] interval must be from 1 to 3600, not -1" in str(row["message"])
    host.wait_for_samples()
    assert (host.state, host.main_process) == ("active", process)


def test_a_start_with_wrong_settings_fails_with_the_reason_and_is_not_repeated(host: Host) -> None:
    assert host.call("systemctl", "restart", SERVICE, check=False).returncode != 0
    assert host.show(SERVICE, "ActiveState", "SubState", "ExecMainStatus") == ["failed", "failed", "78"]
    assert "[sampling] interval must be from 1 to 3600, not -1" in host.journal()
    host.change_settings("s|^interval = -1 |interval = 1 |")
    host.shell(f"systemctl start {SERVICE}")
    host.wait_for_samples()


def test_after_a_kill_it_is_restarted(host: Host) -> None:
    process, newest = host.main_process, host.newest()
    host.call("systemctl", "kill", "--signal=KILL", "--kill-who=main", SERVICE)
    host.wait_until_restarted(process)
    host.wait_for_rows(f"SELECT * FROM metrics WHERE id > {newest + 1}")


def test_a_process_that_hangs_is_ended_by_the_watchdog(host: Host) -> None:
    process = host.main_process
    host.call("systemctl", "kill", "--signal=STOP", "--kill-who=main", SERVICE)
    host.wait_until_restarted(process)
    journal = host.journal()
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal, "the stack of each thread"
    host.wait_for_samples()


def test_on_a_full_disk_it_goes_on_and_loses_no_sample(host: Host) -> None:
    host.shell(f"systemctl stop {SERVICE}")
    host.shell(
        "mount -t tmpfs -o size=32m,mode=750,uid=llama-collector,gid=llama-collector none /var/lib/llama-collector"
    )
    host.shell(f"systemctl start {SERVICE}")
    host.wait_for_samples()
    process = host.main_process
    host.shell("head --bytes=64M /dev/zero >/var/lib/llama-collector/ballast || true")
    wait_for(lambda: "flush failed" in host.show(SERVICE, "StatusText")[0], host.journal)
    full_since = host.newest()
    before = host.shell("date +%s")
    wait_for(lambda: int(host.shell("date +%s")) > int(before) + 10, "ten seconds, twice the watchdog's time")
    host.shell("rm /var/lib/llama-collector/ballast")
    host.wait_for_rows(f"SELECT * FROM metrics WHERE id > {full_since + 12}")
    assert host.main_process == process
    assert host.longest_gap(1) < 5, "of the ten seconds"
    assert host.rows("SELECT count(*) AS logged FROM logs WHERE message LIKE 'flush: failed%'") == [
        {"logged": 1}
    ]
    host.shell(f"systemctl stop {SERVICE} && umount /var/lib/llama-collector && systemctl start {SERVICE}")


def test_limits_hold_under_a_flood_of_logs_and_no_line_is_lost(host: Host) -> None:
    process = host.main_process
    host.shell(
        "systemd-run --quiet --wait --unit=flood --property=LogRateLimitBurst=10000000 "
        """python3 -c 'for n in range(100_000): print("flood", n, "x" * 100)'"""
    )
    last = host.wait_for_rows("SELECT * FROM logs WHERE message LIKE 'flood 99999 %'")
    assert len(last) == 1
    (row,) = host.rows(
        "SELECT count(*) AS lines, count(DISTINCT message) AS texts FROM logs WHERE message LIKE 'flood %'"
    )
    assert row == {"lines": 100_000, "texts": 100_000}
    assert host.main_process == process
    maximum, current, tasks = (
        int(text) for text in host.show(SERVICE, "MemoryMax", "MemoryCurrent", "TasksMax")
    )
    assert (maximum, tasks) == (256 * 2**20, 48)
    assert 0 < current <= maximum
    group = f"/system.slice/{SERVICE}"
    limit = host.shell(
        f"cat /sys/fs/cgroup/memory{group}/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup{group}/memory.max"
    )
    assert int(limit) == maximum, "the kernel enforces the limit"
    events = host.shell(
        f"cat /sys/fs/cgroup/memory{group}/memory.oom_control 2>/dev/null || cat /sys/fs/cgroup{group}/memory.events"
    )
    assert re.search(r"^oom_kill 0$", events, re.MULTILINE), events


LONG_READER = """
import signal, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM metrics").fetchone()
signal.pause()
"""
READ = f"file:{DATABASE}?mode=ro"


class TestReaders:
    @pytest.fixture(params=["running", "stopped", "killed"])
    def state(self, host: Host, request: pytest.FixtureRequest) -> Iterator[str]:
        if request.param == "stopped":
            host.shell(f"systemctl stop {SERVICE}")
        if request.param == "killed":
            host.shell(f"systemctl kill --signal=KILL {SERVICE}; systemctl stop {SERVICE}")
        yield request.param
        host.shell(f"systemctl start {SERVICE}")

    def test_check_prints_the_command_that_gives_a_user_access(self, host: Host) -> None:
        refused = host.call(PROGRAM, "check", "--as", "grafana", check=False)
        assert refused.returncode == 1
        assert (
            "grafana may not enter /var/lib/llama-collector (drwxr-x--- llama-collector:llama-collector)"
            in refused.stdout
        )
        (command,) = re.findall(r"^ +(sudo .*)$", refused.stdout, re.MULTILINE)
        host.shell(command)
        assert host.call(PROGRAM, "check", "--as", "grafana").returncode == 0

    def test_a_member_of_the_group_reads_and_another_user_does_not(self, host: Host, state: str) -> None:
        assert state
        (row,) = host.rows("SELECT count(*) AS rows FROM metrics", user="grafana")
        assert int(str(row["rows"])) > 0
        patient = ("sqlite3", "-cmd", ".timeout 10000")
        assert host.call(*patient, READ, "SELECT 1 FROM metrics LIMIT 1", user="grafana").stdout == "1\n"
        refused = host.call(
            "sqlite3", "-readonly", DATABASE, "SELECT 1 FROM metrics", user="stranger", check=False
        )
        assert "unable to open database file" in refused.stderr

    def test_a_member_of_the_group_cannot_write(self, host: Host, state: str) -> None:
        assert state
        refused = host.call(
            "sqlite3", "-cmd", ".timeout 10000", DATABASE, "DELETE FROM metrics", user="grafana", check=False
        )
        assert "attempt to write a readonly database" in refused.stderr
        assert host.call("touch", "/var/lib/llama-collector/x", user="grafana", check=False).returncode != 0

    def test_status_works_for_a_member_and_tells_another_user_why_not(self, host: Host) -> None:
        assert "running (process" in host.call(PROGRAM, "status", user="grafana").stdout
        refused = host.call(PROGRAM, "status", user="stranger", check=False)
        assert refused.returncode == 78
        assert f"{SETTINGS}: cannot be read: Permission denied" in refused.stderr
        host.write("/tmp/strange.toml", f'[database]\npath = "{DATABASE}"\n')
        refused = host.call(PROGRAM, "--config", "/tmp/strange.toml", "status", user="stranger", check=False)
        assert refused.stderr.startswith(
            f"llama-collector: {DATABASE}: Permission denied: llama-collector check --as"
        )

    def test_check_prints_the_command_for_a_directory_that_hides_all_models(self, host: Host) -> None:
        host.shell("chmod 700 /home/llm")
        refused = host.call(PROGRAM, "check", user="llama-collector", check=False)
        host.shell("chmod 711 /home/llm")
        assert "sudo setfacl -m u:llama-collector:x /home/llm" in refused.stdout

    def test_a_long_reader_is_named_in_the_log_and_no_sample_is_lost(self, host: Host) -> None:
        process, newest = host.main_process, host.newest()
        host.write("/usr/local/reader.py", LONG_READER)
        host.shell(f"systemd-run --quiet --unit=reader --uid=grafana python3 /usr/local/reader.py {DATABASE}")
        wait_for(lambda: "flush waiting" in host.show(SERVICE, "StatusText")[0], host.journal)
        reader = host.show("reader", "MainPID")[0]
        named = f"because the database is locked by process {reader} (python3)"
        wait_for(lambda: named in host.journal(), host.journal)
        assert host.newest() <= newest + 5, "others can read while samples wait in the buffer"
        host.shell("systemctl stop reader")
        host.wait_for_rows(f"SELECT * FROM logs WHERE message LIKE '%{named}%'")
        host.wait_for_rows(f"SELECT * FROM metrics WHERE id > {newest + 30}")
        assert host.longest_gap(newest) < 5
        assert host.main_process == process


def test_a_stop_is_clean(host: Host) -> None:
    host.shell(f"systemctl stop {SERVICE}")
    assert host.show(SERVICE, "ActiveState", "Result") == ["inactive", "success"]
    assert host.rows("SELECT message FROM logs ORDER BY id DESC LIMIT 1") == [
        {"message": "collector: stopped"}
    ]


def test_after_a_reboot_it_collects_again_and_stores_no_line_of_the_journal_twice(host: Host) -> None:
    newest = host.newest()
    host.shell(f"systemctl start {SERVICE}")
    host.reboot()
    wait_for(lambda: host.state == "active", host.journal)
    host.wait_for_rows(f"SELECT * FROM metrics WHERE active_models = 1 AND id > {newest + 2}")
    assert host.rows("SELECT count(*) AS lines FROM logs WHERE message LIKE 'flood %'") == [
        {"lines": 100_000}
    ]


@pytest.mark.parametrize("version", ["99.0.0", "0.0.1"])
def test_another_version_keeps_data_and_settings(host: Host, version: str) -> None:
    settings, newest = host.shell(f"cat {SETTINGS}"), host.newest()
    host.shell(
        f"systemctl stop {SERVICE} && runuser -u llama-collector -- sqlite3 {DATABASE} "
        f"""'ALTER TABLE metrics ADD COLUMN "of {version}" REAL; CREATE TABLE "later {version}" (x)'"""
    )  # as a newer version would leave it
    host.shell(
        f"rm -rf /tmp/other && mkdir /tmp/other && cd {CLONE} && cp -r pyproject.toml README.md collector config systemd /tmp/other\n"
        f"""sed -i 's/^__version__ = .*/__version__ = "{version}"/' /tmp/other/collector/__init__.py\n"""
        f"""sed -i 's/^version = .*/version = "{version}"/' /tmp/other/pyproject.toml\ncd /tmp/other\n"""
        f"{readme_commands('llama-collector install')}"
    )
    host.wait_for_rows(f"SELECT * FROM logs WHERE message LIKE 'collector: running: version {version}%'")
    host.wait_for_rows(f"SELECT * FROM metrics WHERE id > {newest + 2}")
    assert host.rows("SELECT min(id) AS first FROM metrics") == [{"first": 1}]
    assert host.shell(f"cat {SETTINGS}") == settings


def test_uninstall_keeps_data_and_settings_and_may_be_repeated(host: Host) -> None:
    printed = host.shell(readme_commands("uninstall"))
    assert host.state == "inactive"
    files = (
        f"systemd/system/{SERVICE}",
        "sysusers.d/llama-collector.conf",
        "tmpfiles.d/llama-collector.conf",
    )
    assert [file for file in files if (host.root / "etc" / file).exists()] == []
    assert "kept: the settings in /etc/llama-collector, the database in /var/lib/llama-collector" in printed
    assert host.rows("SELECT message FROM logs ORDER BY id DESC LIMIT 1") == [
        {"message": "collector: stopped"}
    ]
    assert "interval = 1" in host.shell(f"cat {SETTINGS}")
    host.shell(readme_commands("uninstall"))
