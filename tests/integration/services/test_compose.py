# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers with Compose's labels in a real engine, asked and restarted by the modules; podman says what became of
them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.support.container_host import BUILD
from tests.support.module_run import run_module
from tests.support.waiting import free_port, wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.services.compose import PROJECT, SERVICE, Compose

pytestmark = pytest.mark.root
LIMITS = ["--ulimit=nofile=10000:10000", "--ulimit=nproc=4096:4096"]
#: Says so when it starts, and ends when it is asked to, as the first process of a container has to by itself.
PROGRAM = """\
import signal, sys
signal.signal(signal.SIGTERM, lambda *_words: sys.exit(0))
print("the program began", flush=True)
print("a warning of the program", file=sys.stderr, flush=True)
signal.pause()
"""
BROKEN = "import sys; print('no module named shop', file=sys.stderr); sys.exit(3)"


class Project:
    """A Compose project of containers that podman runs."""

    def __init__(self, runtime: str, image: str, name: str) -> None:
        self.runtime, self.image, self.name = runtime, image, name
        self.port = free_port()

    def podman(self, *words: str) -> str:
        completed = subprocess.run(
            ["podman", "--runtime", self.runtime, *words], capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout.strip()

    def add(
        self, service: str, *command: str, project: str = "", network: str = "--network=none", start: bool = True
    ) -> None:
        project = project or self.name
        labels = [f"--label={PROJECT}={project}", f"--label={SERVICE}={service}"]
        where = [f"--name={project}-{service}", network, "--stop-timeout=5", "--stop-signal=SIGTERM"]
        self.podman("create", *where, *labels, *LIMITS, self.image, *command)
        if start:
            self.podman("start", f"{project}-{service}")

    def said(self, service: str, expression: str) -> str:
        return self.podman("inspect", "--format", "{{" + expression + "}}", f"{self.name}-{service}")

    def services(self) -> t.List[t.Dict[str, t.Any]]:
        url = f"redis://127.0.0.1:{self.port}/0"
        return [
            {"name": "redis", "unit": f"{self.name}:redis", "gate": {"type": "redis", "url": url}},
            {"name": "worker", "unit": f"{self.name}:worker", "depends_on": ["redis"]},
        ]


@pytest.fixture(scope="module")
def project() -> t.Iterator[Project]:
    if os.geteuid() or not shutil.which("podman"):
        pytest.skip("needs root and podman")
    runtime = subprocess.run([str(BUILD), "--runtime"], capture_output=True, text=True, check=False)
    if runtime.returncode:
        pytest.skip(runtime.stderr.strip()[-300:])
    image = subprocess.run([str(BUILD)], capture_output=True, text=True, check=True).stdout.strip()
    running = Project(runtime.stdout.strip(), image, f"wops{secrets.token_hex(4)}")
    try:
        words = ["redis-server", "--protected-mode", "no", "--save", ""]
        # On a network of its own: what listens at the port on this host is none of its processes.
        running.add("redis", *words, network=f"--publish=127.0.0.1:{running.port}:6379")
        running.add("worker", "python3", "-c", PROGRAM)
        running.add("broken", "python3", "-c", BROKEN, start=False)
        running.add("worker", "python3", "-c", PROGRAM, project=f"{running.name}b", start=False)
        wait_until(lambda: "the program began" in running.podman("logs", f"{running.name}-worker"), what="the worker")
        yield running
    finally:
        names = [f"{running.name}-{service}" for service in ("redis", "worker", "broken")]
        words = ["rm", "--force", "--ignore", "--time=0", *names, f"{running.name}b-worker"]
        subprocess.run(["podman", *words], capture_output=True, check=False)


def health(project: Project) -> t.Dict[str, t.Any]:
    result = run_module("health_info", subjects=["services"], services=project.services(), service_manager="compose")
    (check,) = result["checks"]
    return t.cast("t.Dict[str, t.Any]", check)


def restart(project: Project, tmp_path: Path, *, check: bool = False, **options: t.Any) -> t.Dict[str, t.Any]:
    words: t.Dict[str, t.Any] = {"services": project.services(), "service_manager": "compose", **options}
    return run_module("service_restart", check=check, state_dir=str(tmp_path / "state"), min_healthy_time=0.2, **words)


def test_stopped_service_is_seen_and_started_in_order(project: Project, tmp_path: Path) -> None:
    check = health(project)
    assert check["status"] == "ok" and check["details"]["manager"] == "compose", check
    assert str(check["details"]["services"]["redis"]["pid"]) == project.said("redis", ".State.Pid")
    limits = {"redis": 512.0}
    words: t.Dict[str, t.Any] = {
        "services": project.services(),
        "service_manager": "compose",
        "memory_limits_mb": limits,
    }
    (memory,) = run_module("health_info", subjects=["memory"], **words)["checks"]
    assert memory["details"]["services"]["redis"]["processes"] == 1, memory
    assert 0 < memory["details"]["services"]["redis"]["resident_bytes"] < 512 * 2**20
    project.podman("stop", f"{project.name}-redis", f"{project.name}-worker")
    check = health(project)
    assert check["status"] == "critical" and "redis: it is exited" in check["message"], check
    predicted = restart(project, tmp_path, check=True, state="started")
    assert predicted["changed"] and project.said("redis", ".State.Status") == "exited"
    started = restart(project, tmp_path, state="started")
    assert started["changed"] and not started.get("failed"), started
    assert [each["target"] for each in started["actions"]] == [each["target"] for each in predicted["actions"]]
    assert project.said("redis", ".State.StartedAt") < project.said("worker", ".State.StartedAt")
    assert not restart(project, tmp_path, state="started")["changed"]
    assert health(project)["status"] == "ok"


def test_restart_replaces_every_process_in_order(project: Project, tmp_path: Path) -> None:
    before = {name: project.said(name, ".State.Pid") for name in ("redis", "worker")}
    result = restart(project, tmp_path, state="restarted")
    assert result["changed"] and not result.get("failed"), result
    after = {name: project.said(name, ".State.Pid") for name in ("redis", "worker")}
    assert not set(before.values()) & set(after.values())
    assert project.said("redis", ".State.StartedAt") < project.said("worker", ".State.StartedAt")
    # It was asked to end and did, within its time.
    assert "the program began\n" * 2 in project.podman("logs", f"{project.name}-worker") + "\n"


def test_service_that_does_not_start_says_why(project: Project, tmp_path: Path) -> None:
    services = [{"name": "broken", "unit": f"{project.name}:broken"}]
    result = restart(project, tmp_path, state="started", services=services)
    assert result["failed"] and "exit status 3" in result["msg"], result
    assert "no module named shop" in json.dumps(result)
    assert Compose().states([f"{project.name}:broken"])[f"{project.name}:broken"].failed


def test_lines_of_both_streams_are_in_the_log(project: Project) -> None:
    lines = Compose().log_tail(f"{project.name}:worker", 2)
    assert sorted(lines) == ["a warning of the program", "the program began"]
    assert len(Compose().log_tail(f"{project.name}:worker", 1)) == 1


def test_service_that_cannot_be_told_is_refused(project: Project, tmp_path: Path) -> None:
    """Another project has a worker, too; and one of no container can only be created by Compose."""
    with pytest.raises(OpsError, match=r"worker names several services of Compose: .*project:service") as refused:
        Compose().states(["worker"])
    assert f"{project.name}:worker (podman), {project.name}b:worker (podman)" in str(refused.value)
    services = [{"name": "none", "unit": f"{project.name}:none"}]
    result = restart(project, tmp_path, state="started", services=services)
    assert result["failed"] and "none" in result["msg"], result
    check = run_module("health_info", subjects=["services"], services=services, service_manager="compose")["checks"][0]
    assert check["status"] == "critical" and "compose does not know it" in check["message"]
