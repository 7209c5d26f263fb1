# SPDX-License-Identifier: GPL-3.0-or-later
"""service_restart and the role's drain launcher under a real systemd."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import typing as t

import pytest
import testinfra

from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.faulty_app import MODES
from tests.support.supervised import FAULTY_APP
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]
QUICK = {"wait_sleep": 0.1, "wait_timeout": 40, "min_healthy_time": 0.5, "healthy_deadline": 15, "max_restarts": 0}


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as host:
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


def web(host: ContainerHost, name: str, port: int, mode: str = "healthy", **service: str) -> t.Dict[str, t.Any]:
    """A unit with the faulty application; gives its entry for ``services``."""
    host.write(f"/root/{name}.mode", mode)
    host.unit(name, f"{sys.executable} {FAULTY_APP} {port} /root/{name}.mode", **service)
    wait_until(
        lambda: host.run("curl", "-sf", f"http://127.0.0.1:{port}/readyz", check=False).returncode == 0, what=name
    )
    return {
        "name": name,
        "gate": {
            "type": "http",
            "url": f"http://127.0.0.1:{port}/readyz",
            "timeout": 2,
            "body_json": {"status": "pass"},
        },
    }


def test_check_mode_then_real_then_started(host: ContainerHost) -> None:
    redis = {"name": "redis", "gate": {"type": "redis", "url": "redis://127.0.0.1:6379/0"}}
    services = [redis, {**web(host, "pam-backend", 8000), "depends_on": ["redis"]}]
    units = ("redis-server", "pam-backend")
    before = [host.show(unit, "InvocationID") for unit in units]
    host.run("redis-cli", "RPUSH", "email", "a", "b")

    predicted = host.module("service_restart", {"services": services, **QUICK}, check_mode=True)
    assert predicted["changed"], predicted
    assert [host.show(unit, "InvocationID") for unit in units] == before

    done = host.module("service_restart", {"services": services, **QUICK})
    assert done["changed"], done
    after = [host.show(unit, "InvocationID") for unit in units]
    assert not set(after) & set(before)
    assert [(entry["action"], entry["target"]) for entry in done["actions"]] == [
        ("restart", "redis"),
        ("restart", "pam-backend"),
    ]
    assert done["actions"][1]["instance_after"] == after[1]
    assert done["queued_tasks"]["redis"]["after"]["email"] == 2
    assert host.run("redis-cli", "LLEN", "email").stdout.strip() == "2"
    assert set(done) == set(predicted)
    assert done["diff"]

    again = host.module("service_restart", {"services": services, "state": "started", **QUICK})
    assert not again["changed"]
    assert [host.show(unit, "InvocationID") for unit in units] == after


def test_eight_faults_are_caught(host: ContainerHost) -> None:
    names = (*MODES, "healthy")
    entries = {
        name: web(host, f"fault-{name.replace('_', '-')}", 8100 + number, Restart="on-failure")
        for number, name in enumerate(names)
    }
    host.run("systemctl", "stop", "fault-stale")
    host.write("/root/other.mode", "healthy")
    host.unit("other", f"{sys.executable} {FAULTY_APP} {8100 + names.index('stale')} /root/other.mode")
    for name in names:
        host.write(f"/root/{entries[name]['name']}.mode", name)
    wait_until(
        lambda: host.run("curl", "-sf", f"http://127.0.0.1:{8100 + names.index('stale')}/", check=False).returncode == 0
    )

    def attempt(name: str) -> t.Dict[str, t.Any]:
        # Each has a state of its own: one lock keeps two runs of a host apart. Only a fault is waited for in vain.
        options = {
            **QUICK,
            "min_healthy_time": 3,
            "healthy_deadline": 40 if name == "healthy" else 8,
            "state_dir": f"/root/state-{name}",
        }
        return host.module("service_restart", {"services": [entries[name]], **options})

    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(attempt, names)))
    assert [name for name in names if not found[name].get("failed")] == ["healthy"], found
    for name in MODES:
        assert any(f"starting as {name}" in line for line in found[name]["log"]), found[name]
        assert found[name]["last_state"]["unit"] == entries[name]["name"]
    assert "belongs to process" in found["stale"]["msg"]


def test_a_storm_of_restarts_never_ends_in_start_limit_hit(host: ContainerHost) -> None:
    """systemd counts restarts by hand: the sixth within ten seconds leaves the service down.

    The naive loop shows it.
    """
    web(host, "naive", 8200)
    results = [host.run("systemctl", "restart", "naive", check=False).returncode for _ in range(6)]
    assert any(results)
    assert host.show("naive", "Result") == "start-limit-hit"

    entry = web(host, "steady", 8201)
    for _ in range(8):
        done = host.module("service_restart", {"services": [entry], **{**QUICK, "min_healthy_time": 0}})
        assert done.get("changed"), done
        assert host.show("steady", "ActiveState") == "active"
    assert host.show("steady", "Result") == "success"

    # Where waiting would take too long it refuses, and the service stays up.
    strict = web(host, "strict", 8203, StartLimitInterval="600", StartLimitBurst="3")
    assert host.module("service_restart", {"services": [strict], **{**QUICK, "min_healthy_time": 0}}).get("changed")
    refused = host.module("service_restart", {"services": [strict], **QUICK})
    assert refused["blocked_reason"] == "start limit of systemd", refused
    assert not refused["changed"]
    assert host.show("strict", "ActiveState") == "active"


def test_budget_and_cool_down_over_runs(host: ContainerHost) -> None:
    entry = web(host, "bounded", 8202)
    options = {
        **QUICK,
        "min_healthy_time": 0,
        "max_restarts": 2,
        "window": 600,
        "state_dir": "/root/bounded",
        "wait_timeout": 60,
    }
    for _ in range(2):
        assert host.module("service_restart", {"services": [entry], **options})["changed"]
    before = host.show("bounded", "InvocationID")
    refused = host.module("service_restart", {"services": [entry], **options})
    assert refused["failed"]
    assert "budget of 2 restarts" in refused["blocked_reason"]
    assert host.show("bounded", "InvocationID") == before
    assert not host.module(
        "service_restart", {"services": [entry], **options, "only_if": ["failed", "stopped", "stale"]}
    )["changed"]


def test_what_is_missing_is_named(host: ContainerHost) -> None:
    missing = host.module("service_restart", {"services": [{"name": "nothing-here"}], **QUICK})
    assert missing["failed"]
    assert "does not know nothing-here" in missing["msg"]
    wrong = host.module("service_restart", {"services": [{"name": "nothing-here"}], "manager": "supervisor", **QUICK})
    assert "supervisor_socket" in wrong["msg"]


PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    services_python: {python}
    services_socket_activation: true
    services_backend_unit: drained
    services_backend_python: {backend}
    services_application: restarting_app:app
    services_uvicorn_options: --app-dir {repository}/tests/support
    services_listen: 127.0.0.1:8300
    services_wait_sleep: 0.1
    services_min_healthy_time: 0.5
    services_manager: systemd
    services_list:
      - name: drained
        gate: {{type: http, url: "http://127.0.0.1:8300/"}}
  roles: [wheels.ops.services]
"""


def test_the_role_moves_the_backend_onto_a_socket_and_restarts_fail_no_request(host: ContainerHost) -> None:
    """From a plain uvicorn that holds its port itself to the drain launcher; then restarts under load of both kinds of
    clients.
    """
    support = REPOSITORY / "tests/support"
    plain = f"{BACKEND_PYTHON} -m uvicorn restarting_app:app --app-dir {support} --port 8300"
    host.unit("drained", plain, Environment="START_SECONDS=0.5", StartLimitIntervalSec="0")
    play = PLAY.format(python=sys.executable, backend=BACKEND_PYTHON, repository=REPOSITORY)
    host.playbook(play)
    assert "drain.py" in host.show("drained", "ExecStart")
    assert host.show("drained", "Type") == "notify"
    assert host.show("drained.socket", "ActiveState") == "active"
    witness = testinfra.get_host(f"podman://{host.name}")
    assert witness.service("drained").is_running
    assert witness.socket("tcp://127.0.0.1:8300").is_listening
    unit = witness.file("/etc/systemd/system/drained.socket")
    assert (unit.user, unit.group, unit.mode) == ("root", "root", 0o644)
    second = host.playbook(play, "-e", "services_state=started")
    assert "changed=0" in second, second

    words = [sys.executable, "-m", "tests.support.load", "--port", "8300", "--seconds", "10"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(
                host.run,
                "sh",
                "-c",
                f"cd {REPOSITORY} && exec {' '.join([*words, *extra])}",
                env={"PYTHONDONTWRITEBYTECODE": "1"},
            )
            for extra in ([], ["--keep-alive"])
        ]
        entry = {"name": "drained", "gate": {"type": "http", "url": "http://127.0.0.1:8300/"}}
        for _ in range(2):
            done = host.module("service_restart", {"services": [entry], **QUICK})
            assert done.get("changed"), done
    found = [json.loads(load.result().stdout) for load in loads]
    print(found)
    for each in found:
        assert each["failed"] == 0, found
        assert each["ok"] > 100
        assert each["processes"] >= 2
