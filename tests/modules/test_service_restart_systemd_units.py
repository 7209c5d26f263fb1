# SPDX-License-Identifier: GPL-3.0-or-later
"""service_restart with the kinds of units that people have: changed, slow to stop, bound to others, finished, idle."""

from __future__ import annotations

import sys
import typing as t

import pytest

from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.waiting import wait_until

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


def bound(host: ContainerHost, name: str, to: str, kind: str) -> t.Dict[str, t.Any]:
    """A unit that systemd restarts with another one; gives its entry for ``services``."""
    host.write(
        f"/etc/systemd/system/{name}.service",
        f"[Unit]\n{kind}={to}.service\nAfter={to}.service\n[Service]\nExecStart=/usr/bin/sleep 1003\n",
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", name)
    return {"name": name, "depends_on": [to]}


def test_what_systemd_restarts_itself_is_restarted_once(host: ContainerHost) -> None:
    host.unit("base", "/usr/bin/sleep 1004")
    entries = [{"name": "base"}, bound(host, "part", "base", "PartOf"), bound(host, "needs", "base", "Requires")]
    # Nothing declares that this one belongs to the base.
    entries.append({**bound(host, "quiet", "base", "PartOf"), "depends_on": []})
    entries.append({**bound(host, "last", "part", "Wants"), "depends_on": ["part"]})
    names = [str(entry["name"]) for entry in entries]
    before = {name: starts(host, name) for name in names}

    predicted = host.module("service_restart", {"services": entries, **QUICK}, check_mode=True)
    done = host.module("service_restart", {"services": entries, **QUICK})
    assert done["changed"], done
    assert {name: starts(host, name) - before[name] for name in names} == dict.fromkeys(names, 1)
    assert done["order"] == predicted["order"]
    assert {entry["target"]: entry["propagated"] for entry in done["actions"]} == {
        "base": False,
        "part": True,
        "needs": True,
        "quiet": True,
        "last": False,
    }
    assert all(entry["instance_before"] != entry["instance_after"] for entry in done["actions"])


def test_a_stop_slower_than_the_wait_is_followed_to_its_end(host: ContainerHost) -> None:
    host.unit("slow", "/bin/sh -c 'trap \"sleep 3; exit 0\" TERM; while :; do sleep 0.1; done'", TimeoutStopSec="30")
    before = starts(host, "slow")
    done = host.module("service_restart", {"services": [{"name": "slow"}], **{**QUICK, "wait_timeout": 1}})
    assert done.get("changed"), done
    assert starts(host, "slow") - before == 1
    assert host.show("slow", "ActiveState") == "active"
    assert host.show("slow", "Job") == ""


SOCKET = "[Socket]\nListenStream=127.0.0.1:8400\n"
ECHO = (
    "import os, socket; os.environ['LISTEN_FDS']; server = socket.socket(fileno=3)\n"
    "while True: server.accept()[0].close()\n"
)


def test_a_finished_oneshot_and_an_idle_socket_are_healthy(host: ContainerHost) -> None:
    host.write("/root/echo.py", ECHO)
    host.write("/etc/systemd/system/idle.socket", SOCKET)
    host.write("/etc/systemd/system/idle.service", f"[Service]\nExecStart={sys.executable} /root/echo.py\n")
    host.write("/etc/systemd/system/timed.timer", "[Timer]\nOnCalendar=2099-01-01\n")
    host.write("/etc/systemd/system/timed.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "idle.socket", "timed.timer")
    host.unit("migrate", "/bin/true", Type="oneshot")
    host.write("/etc/systemd/system/never.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n")
    entries = [{"name": name} for name in ("migrate", "idle", "timed")]
    checked = services_check(host, *entries)
    assert checked["status"] == "ok", checked
    assert "ended successfully" in checked["message"]
    assert "idle.socket" in checked["message"]
    assert services_check(host, {"name": "never"})["status"] == "critical"

    for options in ({"state": "started"}, {"only_if": ["failed", "stopped", "unhealthy"]}):
        nothing = host.module("service_restart", {"services": entries, **options, **QUICK})
        assert nothing.get("changed") is False, nothing
    done = host.module("service_restart", {"services": entries[:1], **QUICK})
    assert done.get("changed"), done
    assert done["actions"][0]["action"] == "start"

    # A gate that connects starts it, as any client does, and its own process has to answer.
    gate = {"type": "tcp", "port": 8400}
    assert services_check(host, {"name": "idle", "gate": gate})["status"] == "ok"
    assert host.show("idle", "ActiveState") == "active"
    host.write("/etc/systemd/system/broken.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "broken", check=False)
    assert services_check(host, {"name": "broken"})["status"] == "critical"
    failed = host.module("service_restart", {"services": [{"name": "broken"}], **QUICK})
    assert failed["failed"]
    assert "result exit-code" in failed["msg"]


def test_debians_postgresql_leads_to_its_cluster(host: ContainerHost) -> None:
    """postgresql.service is /bin/true and stays active whatever becomes of the server."""
    gate = {"type": "tcp", "port": 5432, "verify_owner": False}  # root of a container may not look into another user's
    entry = {"name": "database", "unit": "postgresql", "gate": gate}
    assert services_check(host, entry)["status"] == "ok", services_check(host, entry)

    before = host.show("postgresql@15-main", "InvocationID")
    done = host.module("service_restart", {"services": [entry], **QUICK})
    assert done.get("changed"), done
    assert host.show("postgresql@15-main", "InvocationID") not in ("", before)
    postmaster = host.run("head", "-1", "/var/lib/postgresql/15/main/postmaster.pid").stdout.strip()
    assert done["after"]["database"]["pid"] == int(postmaster)

    host.run("systemctl", "kill", "--signal=KILL", "postgresql@15-main")
    wait_until(lambda: host.show("postgresql@15-main", "ActiveState") == "failed", what="the end of the server")
    assert host.show("postgresql", "ActiveState") == "active"
    assert services_check(host, entry)["status"] == "critical"
    healed = host.module("service_restart", {"services": [entry], "only_if": ["failed", "stopped"], **QUICK})
    assert healed.get("changed"), healed
    assert host.run("runuser", "-u", "postgres", "--", "psql", "-Atc", "select 1").stdout.strip() == "1"


def test_units_of_a_user(host: ContainerHost) -> None:
    """Run as the user of the services, without a session: as become_user does it."""
    host.user("rootless")
    number = host.run("id", "-u", "rootless").stdout.strip()
    # What pam_systemd and loginctl enable-linger do on a whole host.
    host.write("/etc/systemd/system/user@.service.d/x.conf", "[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n")
    own = {"XDG_RUNTIME_DIR": f"/run/user/{number}"}
    services = [{"name": "web"}]
    arguments = {"services": services, "service_manager": "systemd_user", "state_dir": "/home/rootless/state", **QUICK}
    refused = host.module("service_restart", arguments, user="rootless")
    assert "enable-linger" in refused["msg"], refused

    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", f"user@{number}")
    host.write("/home/rootless/.config/systemd/user/web.service", "[Service]\nExecStart=/usr/bin/sleep 1005\n")
    host.run("chown", "-R", "rootless", "/home/rootless")
    host.run("systemctl", "--user", "start", "web", user="rootless", env=own)

    def show(name: str) -> str:
        words = ["systemctl", "--user", "show", "--value", f"--property={name}", "web"]
        return host.run(*words, user="rootless", env=own).stdout.strip()

    before = show("InvocationID")
    predicted = host.module("service_restart", arguments, user="rootless", check_mode=True)
    assert predicted.get("changed"), predicted
    assert show("InvocationID") == before
    done = host.module("service_restart", arguments, user="rootless")
    assert done.get("changed"), done
    assert done["actions"][0]["instance_after"] == show("InvocationID") != before
    assert done["after"]["web"]["pid"] == int(show("MainPID"))
    assert not host.module("service_restart", {**arguments, "state": "started"}, user="rootless")["changed"]
