# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of the monitor and the recovery: what systemd says of their sandbox, and that both do their work in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import jinja2
import pytest

from tests.support.collection import COLLECTION
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.waiting import wait_until

TEMPLATES = COLLECTION / "roles/monitoring/templates"
PLACES: t.Dict[str, t.Any] = {
    "monitoring_python": "/opt/wheels-ops/venv/bin/python",
    "monitoring_program_dir": "/opt/wheels-ops",
    "monitoring_config_file": "/etc/wheels-ops/monitor.json",
    "monitoring_state_dir": "/var/lib/wheels-ops",
    "monitoring_deadline": 20,
    "recovery_log_directories": ["/var/log/app"],
    "recovery_disk_sources": [{"path": "/srv/100% tmp", "age": "24h"}, {"kind": "packages"}],
}
#: The highest exposure that is accepted, of ten.
EXPOSURE = {"monitor": 3.5, "recovery": 4.0}


def unit(name: str, **places: t.Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((TEMPLATES / f"{name}.service.j2").read_text(encoding="utf-8"))
    return template.render({**PLACES, **places})


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_knows_every_line_and_grades_the_unit(tmp_path: Path, name: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / f"wheels-ops-{name}.service"
    path.write_text(unit(name, monitoring_python="/bin/true"))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[name] * 10:.0f}", "--no-pager"]
    graded = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert graded.returncode == 0, graded.stdout[-3000:] + graded.stderr
    assert "Overall exposure level" in graded.stdout
    # What this version of systemd does not know it ignores, with a warning.
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert not [line for line in verified.stderr.splitlines() if path.name in line], verified.stderr


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as running:
            yield running
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


def run_unit(host: ContainerHost, name: str, configuration: t.Mapping[str, t.Any], **places: t.Any) -> t.Dict[str, t.Any]:
    """Runs the unit as the timer would; gives its report."""
    host.write("/etc/wheels-ops/monitor.json", json.dumps(configuration))
    host.run("chmod", "600", "/etc/wheels-ops/monitor.json")
    host.run("mkdir", "-p", "/var/lib/wheels-ops")
    text = unit(name, monitoring_python=sys.executable, monitoring_program_dir=str(COLLECTION / "roles/monitoring/files"), **places)
    host.write(f"/etc/systemd/system/wheels-ops-{name}.service", text)
    host.run("systemctl", "daemon-reload")
    done = host.run("systemctl", "start", f"wheels-ops-{name}", check=False)
    report = "health.json" if name == "monitor" else "recovery.json"
    found = host.run("cat", f"/var/lib/wheels-ops/{report}", check=False)
    log = host.run("journalctl", "--no-pager", "-u", f"wheels-ops-{name}", "-n", "40", check=False).stdout
    assert found.returncode == 0, f"{done.stderr}\n{log}"
    return t.cast("t.Dict[str, t.Any]", json.loads(found.stdout))


@pytest.mark.root
@pytest.mark.slow
def test_both_do_their_work_in_their_sandbox(host: ContainerHost) -> None:
    """On a host of its own: what each measures and changes is what it does outside of any sandbox."""
    host.run("useradd", "--system", "app")
    host.write("/srv/app.py", "import http.server\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n"
               "        self.send_response(200); self.end_headers(); self.wfile.write(b'{}')\n"
               "held = bytearray(30_000_000)\nhttp.server.HTTPServer(('127.0.0.1', 8000), H).serve_forever()\n")  # fmt: skip
    host.unit("web", "/usr/bin/python3 /srv/app.py", User="app")
    wait_until(lambda: host.run("curl", "-sf", "http://127.0.0.1:8000/health", check=False).returncode == 0)
    host.run("systemctl", "start", "redis-server")
    host.run("mkdir", "-p", "/var/log/app", "/srv/100% tmp")
    host.run("sh", "-c", "head -c 3000000 /dev/zero >/var/log/app/a.log; chown -R app: /var/log/app; chmod 700 /var/log/app")
    services = [{"name": "web", "gate": {"type": "http", "url": "http://127.0.0.1:8000/health"}}, {"name": "redis-server"}]
    checks = {
        "subjects": ["memory", "cpu", "disk", "redis", "http", "services"],
        "base_url": "http://127.0.0.1:8000",
        "redis_url": "redis://127.0.0.1:6379/0",
        "services": services,
        "filesystems": ["/", "/tmp"],
        "disk_budgets": {"/var/log/app": 1_000_000},
        "logs": ["/var/log/app/*.log"],
        "scope": "services",
        "memory_limits_mb": {"web": 500},
    }
    recovery = {"log_directories": ["/var/log/app"], "log_max_size": "1MB", "confirm_after": 0, "min_healthy_time": 0.5}
    configuration = {"checks": checks, "recovery": recovery, "state_dir": "/var/lib/wheels-ops", "deadline": 30}
    report = run_unit(host, "monitor", configuration)
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    assert {name: statuses[name] for name in ("redis", "http", "services")} == dict.fromkeys(("redis", "http", "services"), "ok"), report["checks"]
    assert statuses["disk"] in ("warning", "critical"), "the log of another user is seen, and over its budget"
    memory = next(check for check in report["checks"] if check["name"] == "memory")
    assert memory["details"]["services"]["web"]["resident_bytes"] > 30_000_000
    assert "unknown" not in statuses.values()
    assert report["notes"] == []
    assert host.run("test", "-s", "/var/lib/wheels-ops/monitor.jsonl").returncode == 0
    # A service is down, and a log too large: the recovery restarts the one and rotates the other, with its owner.
    host.run("systemctl", "stop", "web")
    report = run_unit(host, "recovery", configuration)
    outcomes = {each["action"]: each["outcome"] for each in report["recovery_results"]}
    assert outcomes["service_restart"] == "done", report["recovery_results"]
    assert host.show("web", "ActiveState") == "active"
    assert host.run("stat", "-c", "%s %U", "/var/log/app/a.log").stdout.split() == ["0", "app"], report["recovery_results"]
    rotated = host.run("sh", "-c", "stat -c %U /var/log/app/a.log*gz").stdout.split()
    assert rotated == ["app"]
