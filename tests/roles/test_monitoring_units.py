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
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.supervised import FAULTY_APP
from tests.support.waiting import wait_until

TEMPLATES = COLLECTION / "roles/monitoring/templates"
PLACES: t.Dict[str, t.Any] = {
    "monitoring_ops_python": "/opt/wheels-ops/venv/bin/python",
    "monitoring_program_dir": "/opt/wheels-ops",
    "monitoring_config_file": "/etc/wheels-ops/monitor.json",
    "monitoring_state_dir": "/var/lib/wheels-ops",
    "monitoring_deadline": 20,
    "monitoring_prometheus_file": "",
}
#: What the configuration of the programs says of the recovery.
RECOVERY: t.Dict[str, t.Any] = {
    "log_directories": ["/var/log/app"],
    "log_reopen": [],
    "install_speech": False,
    "disk_sources": [{"path": "/srv/100% tmp", "age": "24h"}, {"kind": "packages"}],
}
#: The highest exposure that is accepted, of ten.
EXPOSURE = {"monitor": 3.5, "recovery": 3.5}


def unit(name: str, **places: t.Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((TEMPLATES / f"{name}.service.j2").read_text(encoding="utf-8"))
    recovery = {**RECOVERY, **{key: places.pop(key) for key in RECOVERY if key in places}}
    return template.render({**PLACES, "monitoring_gathered": {"recovery": recovery}, **places})


@pytest.mark.parametrize(
    ("name", "exposure", "places"),
    [
        *((name, exposure, {}) for name, exposure in EXPOSURE.items()),
        ("recovery", 3.8, {"log_reopen": ["kill", "-USR1", "1"]}),
        ("recovery", 3.8, {"install_speech": True}),
    ],
)
def test_systemd_knows_every_line_and_grades_the_unit(
    tmp_path: Path, name: str, exposure: float, places: t.Dict[str, t.Any]
) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / f"wheels-ops-{name}.service"
    path.write_text(unit(name, monitoring_ops_python="/bin/true", **places))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={exposure * 10:.0f}", "--no-pager"]
    graded = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert graded.returncode == 0, graded.stdout[-3000:] + graded.stderr
    assert "Overall exposure level" in graded.stdout
    # What this version of systemd does not know it ignores, with a warning.
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert not [line for line in verified.stderr.splitlines() if path.name in line], verified.stderr


def in_its_sandbox(text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with what a unit leaves it, by other means than systemd's: a file system that is read-only but for
    ReadWritePaths and RuntimeDirectory, the unit's environment, and no capability outside CapabilityBoundingSet.
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
    """The monitor measures another user's log and process; the recovery rotates it, keeps its owner, and neither writes
    anywhere else.
    """
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
    places = {"monitoring_state_dir": str(state), "log_directories": [str(logs)], "disk_sources": []}

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
    """logrotate takes the rights of the directory's owner, and needs a place for its policy: neither /tmp nor any other
    of the system is writable.
    """
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
        "log_directories": [str(logs)],
        "disk_sources": [],
        "log_reopen": ["kill"],
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


@pytest.fixture
def machine() -> t.Iterator[ContainerHost]:
    """With what root has on a machine: without SYS_ADMIN systemd leaves out ProtectSystem and says nothing."""
    try:
        with container_host(["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "LEASE"]) as host:
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


@pytest.mark.root
@pytest.mark.slow
def test_systemd_runs_both_in_their_units(machine: ContainerHost) -> None:
    """As the role installs them, with seccomp, capabilities and a read-only file system.

    The monitor says what it says outside, and the recovery
    rotates, cleans up, restarts and purges. Neither writes anywhere else.
    """
    host, web = machine, "http://127.0.0.1:8000"
    host.run("useradd", "--system", "app")
    host.run("su", "postgres", "-c", "psql -qc \"CREATE ROLE watch LOGIN PASSWORD 'watch-w0rd'\"")
    host.write("/root/web.mode", "error")
    host.unit("pam-backend", f"{sys.executable} {FAULTY_APP} 8000 /root/web.mode")
    wait_until(lambda: host.run("curl", "-s", web, check=False).returncode == 0, what="the backend")
    host.write("/root/web.mode", "healthy")
    host.run(
        "sh",
        "-euc",
        "mkdir -p /var/log/pam; yes line | head -c 3000000 > /var/log/pam/app.log; chown -R app:app /var/log/pam;"
        " head -c 1000000 /dev/zero > /var/cache/apt/archives/x_1_all.deb;"
        " touch -d '9 days ago' /var/cache/apt/archives/x_1_all.deb;"
        " for i in $(seq 1 60); do echo SET user_profile:$i x; done | redis-cli > /dev/null",
    )
    redis_url = "redis://127.0.0.1:6379/0"
    gate = {"type": "http", "url": f"{web}/readyz", "timeout": 2, "body_json": {"status": "pass"}}
    variables = {
        "wheels_ops_hosts": "all",
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
        "wheels_ops_filesystems": [],
        "wheels_ops_log_directories": ["/var/log/pam"],
        "wheels_ops_disk_budgets": {"/var/log/pam": 1_000_000, "/var/cache/apt": 100_000},
        "wheels_ops_database_dsn": "postgresql://watch:watch-w0rd@127.0.0.1:5432/postgres",
        "wheels_ops_redis_url": redis_url,
        "wheels_ops_services": [
            {"name": "redis", "gate": {"type": "redis", "url": redis_url}},
            {"name": "pam-backend", "gate": gate},
        ],
        "monitoring_subjects": ["memory", "disk", "database", "redis", "http", "services"],
        "monitoring_recovery_scheduled": True,
        "monitoring_recovery": {"confirm_after": 0, "cache_prefixes": ["user_profile:"]},
        "recovery_log_max_size": "1MB",
        "recovery_disk_sources": [{"kind": "packages"}],
        "services_min_healthy_time": 0.5,
    }
    installed = host.playbook("- ansible.builtin.import_playbook: wheels.ops.monitor\n", "-e", json.dumps(variables))
    assert "failed=0" in installed, installed
    host.run("systemctl", "stop", "wheels-ops-monitor.timer", "wheels-ops-recovery.timer")
    for name in ("monitor", "recovery"):
        # In the unit itself: what it may not do is tried there.
        places = f"/etc/planted-{name} /tmp/planted-{name} /root/planted-{name}"
        probe = f"[Service]\nExecStartPre=-/bin/sh -c 'touch {places}'\n"
        host.write(f"/etc/systemd/system/wheels-ops-{name}.service.d/probe.conf", probe)
    host.run("systemctl", "daemon-reload")

    def result(name: str, report: str) -> t.Dict[str, t.Any]:
        host.run("systemctl", "start", f"wheels-ops-{name}.service", check=False)
        assert (
            "Read-only file system" in host.run("journalctl", "--no-pager", "-u", f"wheels-ops-{name}.service").stdout
        )
        return t.cast("t.Dict[str, t.Any]", json.loads(host.run("cat", f"/var/lib/wheels-ops/{report}.json").stdout))

    inside = result("monitor", "health")
    program = "/opt/wheels-ops/production_health_monitor.py"
    config = ("--config", "/etc/wheels-ops/monitor.json")
    host.run(sys.executable, program, *config, "--output", "/root/outside.json", check=False)
    outside = json.loads(host.run("cat", "/root/outside.json").stdout)
    statuses = {check["name"]: check["status"] for check in inside["checks"]}
    assert statuses == {check["name"]: check["status"] for check in outside["checks"]}, inside["checks"]
    assert "unknown" not in statuses.values(), inside["checks"]
    assert (statuses["redis"], statuses["http"], statuses["services"]) == ("warning", "critical", "critical")

    made = result("recovery", "recovery")
    outcomes = {each["action"]: each["outcome"] for each in made["recovery_results"]}
    assert {
        name: outcomes.get(name) for name in ("log_rotation", "disk_cleanup", "service_restart", "cache_clear")
    } == (dict.fromkeys(("log_rotation", "disk_cleanup", "service_restart", "cache_clear"), "done")), made[
        "recovery_results"
    ]
    assert "200" in host.run("curl", "-so", "/dev/null", "-w", "%{http_code}", f"{web}/readyz").stdout
    assert host.run("redis-cli", "--scan", "--pattern", "user_profile:*").stdout.strip() == ""
    logs = host.run("stat", "-c", "%U %n", *host.run("sh", "-c", "ls -d /var/log/pam/*").stdout.split()).stdout
    assert len(logs.splitlines()) == 2 and all(line.startswith("app ") for line in logs.splitlines()), logs
    assert host.run("sh", "-c", "ls /var/cache/apt/archives/*.deb", check=False).stdout == ""
    assert host.run("sh", "-c", "ls -d /etc/planted* /tmp/planted* /root/planted*", check=False).stdout == ""
