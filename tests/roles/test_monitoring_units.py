# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of the monitor and the recovery: what systemd says of their sandbox, and that both do their work in it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import jinja2
import pytest

from tests.support import servers
from tests.support.collection import COLLECTION

TEMPLATES = COLLECTION / "roles/monitoring/templates"
PLACES: t.Dict[str, t.Any] = {
    "monitoring_python": "/opt/wheels-ops/venv/bin/python",
    "monitoring_program_dir": "/opt/wheels-ops",
    "monitoring_config_file": "/etc/wheels-ops/monitor.json",
    "monitoring_state_dir": "/var/lib/wheels-ops",
    "monitoring_deadline": 20,
    "recovery_log_directories": ["/var/log/app"],
    "recovery_log_reopen": [],
    "recovery_disk_sources": [{"path": "/srv/100% tmp", "age": "24h"}, {"kind": "packages"}],
}
#: The highest exposure that is accepted, of ten.
EXPOSURE = {"monitor": 3.5, "recovery": 3.5}


def unit(name: str, **places: t.Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((TEMPLATES / f"{name}.service.j2").read_text(encoding="utf-8"))
    return template.render({**PLACES, **places})


@pytest.mark.parametrize(
    ("name", "exposure", "places"),
    [
        *((name, exposure, {}) for name, exposure in EXPOSURE.items()),
        ("recovery", 3.8, {"recovery_log_reopen": ["kill", "-USR1", "1"]}),
    ],
)
def test_systemd_knows_every_line_and_grades_the_unit(
    tmp_path: Path, name: str, exposure: float, places: t.Dict[str, t.Any]
) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / f"wheels-ops-{name}.service"
    path.write_text(unit(name, monitoring_python="/bin/true", **places))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={exposure * 10:.0f}", "--no-pager"]
    graded = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert graded.returncode == 0, graded.stdout[-3000:] + graded.stderr
    assert "Overall exposure level" in graded.stdout
    # What this version of systemd does not know it ignores, with a warning.
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert not [line for line in verified.stderr.splitlines() if path.name in line], verified.stderr


def in_its_sandbox(text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with what a unit leaves it, by other means than systemd's: a file system that is read-only but for ReadWritePaths and
    RuntimeDirectory, the unit's environment, and no capability outside CapabilityBoundingSet.
    """
    values = [line.partition("=") for line in text.splitlines()]
    places = [
        word.lstrip("-") for name, _sign, value in values if name == "ReadWritePaths" for word in shlex.split(value)
    ]
    bounds = [
        f"+{word[4:].lower()}"
        for name, _sign, value in values
        if name == "CapabilityBoundingSet"
        for word in value.split()
    ]
    mounts = [f"mount --bind {shlex.quote(place)} {shlex.quote(place)}" for place in places if Path(place).is_dir()]
    runtime = [Path("/run") / value for name, _sign, value in values if name == "RuntimeDirectory"]
    mounts += [f"mount -t tmpfs -o mode=0700 tmpfs {shlex.quote(str(directory))}" for directory in runtime]
    environment = {**os.environ, **dict(value.split("=", 1) for name, _sign, value in values if name == "Environment")}
    capabilities = f"--no-new-privs --inh-caps=-all --bounding-set=-all,{','.join(bounds)}"
    script = " && ".join(
        [
            "mount --make-rprivate /",
            *mounts,
            "mount -o remount,bind,ro /",
            f"exec setpriv {capabilities} {shlex.join(words)}",
        ]
    )
    absent = [directory for directory in runtime if not directory.exists()]
    for directory in absent:
        directory.mkdir()
    try:
        command = ["unshare", "--mount", "sh", "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    finally:
        for directory in absent:
            directory.rmdir()


@pytest.fixture
def place() -> t.Iterator[Path]:
    """Not below pytest's own directory, which no other user may enter."""
    root = Path(tempfile.mkdtemp(prefix="wheels-ops-units-"))
    root.chmod(0o755)
    try:
        yield root
    finally:
        shutil.rmtree(root)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
def test_both_do_their_work_in_their_sandbox(place: Path, redis: servers.Redis) -> None:
    """The monitor measures another user's log and process; the recovery rotates it, keeps its owner, and neither writes anywhere else."""
    logs, state, elsewhere = place / "logs", place / "state", place / "elsewhere"
    for directory in (logs, state, elsewhere):
        directory.mkdir()
    log = logs / "app.log"
    log.write_bytes(b"a line\n" * 500_000)
    for path in (log, logs):
        path.chmod(0o700)
        os.chown(path, 65534, 65534)
    recovery = {"log_directories": [str(logs)], "log_max_size": "1MB", "confirm_after": 0}
    checks = {
        "subjects": ["cpu", "disk", "redis"],
        "redis_url": redis.url,
        "filesystems": [str(place)],
        "disk_budgets": {str(logs): 1_000_000},
        "logs": [f"{logs}/*.log"],
        "scope": "services",
    }
    config = place / "monitor.json"
    config.write_text(json.dumps({"checks": checks, "recovery": recovery, "state_dir": str(state), "deadline": 60}))
    config.chmod(0o600)
    files = COLLECTION / "roles/monitoring/files"
    places = {"monitoring_state_dir": str(state), "recovery_log_directories": [str(logs)], "recovery_disk_sources": []}

    def report(name: str, program: str) -> t.Dict[str, t.Any]:
        output = state / f"{name}.json"
        words = [sys.executable, str(files / program), "--config", str(config), "--output", str(output)]
        done = in_its_sandbox(unit(name, **places), *words)
        assert output.exists(), f"{done.stdout}\n{done.stderr}"
        return t.cast("t.Dict[str, t.Any]", json.loads(output.read_text()))

    probe = in_its_sandbox(unit("monitor", **places), "touch", str(elsewhere / "planted"))
    if "unshare" in probe.stderr or "mount:" in probe.stderr:
        pytest.skip(f"no mount namespace here: {probe.stderr.strip()}")
    assert "Read-only file system" in probe.stderr
    health = report("monitor", "production_health_monitor.py")
    statuses = {check["name"]: check["status"] for check in health["checks"]}
    assert statuses["redis"] == "ok", health["checks"]
    assert statuses["disk"] not in ("ok", "unknown"), "the log of another user is seen, and over its budget"
    assert statuses["cpu"] != "unknown"
    assert health["notes"] == []
    assert (state / "monitor.jsonl").stat().st_size > 0
    made = report("recovery", "scripts/automated_recovery.py")
    assert [(each["action"], each["changed"]) for each in made["recovery_results"]][:1] == [("log_rotation", True)], (
        made["recovery_results"]
    )
    rotated = sorted(path for path in logs.iterdir() if path.name.endswith(".gz"))
    assert rotated, sorted(logs.iterdir())
    assert {path.stat().st_uid for path in logs.iterdir() if not path.name.startswith(".")} == {65534}
    assert list(elsewhere.iterdir()) == []


_WRITER = """
import os, signal, sys, time
os.setuid(65534)
log = open(sys.argv[1], "a")
def reopen(*_):
    global log
    log.close()
    log = open(sys.argv[1], "a")
signal.signal(signal.SIGUSR1, reopen)
print("ready", flush=True)
while True:
    log.write("a line\\n")
    log.flush()
    time.sleep(0.01)
"""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
def test_the_recovery_has_logrotate_rename_a_log_of_another_user_in_its_sandbox(place: Path) -> None:
    """logrotate takes the rights of the directory's owner, and needs a place for its policy: neither /tmp nor any other of the system is writable."""
    if not shutil.which("logrotate"):
        pytest.skip("logrotate is not installed")
    logs, state = place / "logs", place / "state"
    for directory in (logs, state):
        directory.mkdir()
    log = logs / "app.log"
    log.write_bytes(b"a line\n" * 500_000)
    for path in (log, logs):
        os.chown(path, 65534, 65534)
    places: t.Dict[str, t.Any] = {
        "monitoring_state_dir": str(state),
        "recovery_log_directories": [str(logs)],
        "recovery_disk_sources": [],
        "recovery_log_reopen": ["kill"],
    }
    probe = in_its_sandbox(unit("recovery", **places), "touch", str(place / "planted"))
    if "unshare" in probe.stderr or "mount:" in probe.stderr:
        pytest.skip(f"no mount namespace here: {probe.stderr.strip()}")
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(log)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        recovery = {
            "log_directories": [str(logs)],
            "log_max_size": "1MB",
            "confirm_after": 0,
            "log_reopen": ["kill", "-USR1", str(writer.pid)],
        }
        checks = {
            "subjects": ["disk"],
            "filesystems": [str(place)],
            "disk_budgets": {str(logs): 1_000_000},
            "logs": [f"{logs}/*.log"],
            "scope": "services",
        }
        config = place / "monitor.json"
        config.write_text(json.dumps({"checks": checks, "recovery": recovery, "state_dir": str(state), "deadline": 60}))
        config.chmod(0o600)
        output = state / "recovery.json"
        program = COLLECTION / "roles/monitoring/files/scripts/automated_recovery.py"
        done = in_its_sandbox(
            unit("recovery", **places), sys.executable, str(program), "--config", str(config), "--output", str(output)
        )
        assert output.exists(), f"{done.stdout}\n{done.stderr}"
        results = json.loads(output.read_text())["recovery_results"]
    finally:
        writer.kill()
        writer.wait()
    first = results[0]
    assert (first["action"], first["changed"]) == ("log_rotation", True), results
    assert [action["strategy"] for action in first["details"]["actions"] if action.get("changed")] == ["logrotate"], (
        first
    )
    rotated = [path for path in logs.iterdir() if path.name.startswith("app.log-") or path.name.startswith("app.log.")]
    assert rotated, sorted(logs.iterdir())
    assert {path.stat().st_uid for path in logs.iterdir() if not path.name.startswith(".")} == {65534}
