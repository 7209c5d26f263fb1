# SPDX-License-Identifier: GPL-3.0-or-later
"""service_restart with the kinds of units that people have: changed, slow to stop, bound to others, finished, idle."""

from __future__ import annotations

import typing as t

import pytest

from tests.support.container_host import ContainerHost, Unavailable, container_host

pytestmark = [pytest.mark.root, pytest.mark.slow]
QUICK = {"wait_sleep": 0.05, "wait_timeout": 20, "min_healthy_time": 0.2, "healthy_deadline": 10, "max_restarts": 0}


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as host:
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


def services_check(host: ContainerHost, *services: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """What ``health_info`` says of these services."""
    done = host.module("health_info", {"subjects": ["services"], "services": list(services)})
    return t.cast("t.Dict[str, t.Any]", done["checks"][0])


def starts(host: ContainerHost, unit: str) -> int:
    """How often systemd started a unit, by its journal."""
    return host.run("journalctl", "--quiet", "--output=cat", f"UNIT={unit}.service").stdout.count("Started ")


def test_a_changed_unit_is_read_before_its_restart(host: ContainerHost) -> None:
    host.unit("changed", "/usr/bin/sleep 1001")
    host.write("/etc/systemd/system/changed.service", "[Service]\nExecStart=/usr/bin/sleep 1002\n")
    assert host.show("changed", "NeedDaemonReload") == "yes"
    entry = {"name": "changed"}
    assert services_check(host, entry)["status"] == "warning"

    refused = host.module("service_restart", {"services": [entry], "daemon_reload": False, **QUICK})
    assert refused["failed"]
    assert "old definition" in refused["msg"]
    assert "sleep 1001" in host.run("ps", "-ww", "-p", host.show("changed", "MainPID"), "-o", "args=").stdout

    started = host.module("service_restart", {"services": [entry], "state": "started", **QUICK})
    assert not started["changed"]
    assert "changed on disk" in str(started["warnings"])

    predicted = host.module("service_restart", {"services": [entry], "only_if": ["stale"], **QUICK}, check_mode=True)
    assert host.show("changed", "NeedDaemonReload") == "yes"
    done = host.module("service_restart", {"services": [entry], "only_if": ["stale"], **QUICK})
    assert [[entry["action"] for entry in each["actions"]] for each in (predicted, done)] == [
        ["daemon_reload", "restart"]
    ] * 2
    assert "sleep 1002" in host.run("ps", "-ww", "-p", host.show("changed", "MainPID"), "-o", "args=").stdout
    assert services_check(host, entry)["status"] == "ok"
    assert not host.module("service_restart", {"services": [entry], "only_if": ["stale"], **QUICK})["changed"]
