# SPDX-License-Identifier: GPL-3.0-or-later
"""service_restart with what supervisord has beside single programs: groups, numprocs, TCP, and a slow stop."""

from __future__ import annotations

import os
import signal
import typing as t
from pathlib import Path

import pytest

from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.checks import services as services_check
from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

SLOW = "/bin/sh -c 'trap \"sleep 2; exit 0\" TERM; while :; do sleep 0.1; done'"
NAMES = ("farm:farm_00", "farm:farm_01", "site:front", "site:back", "slow")


class Host:
    """A supervisord with a program of two processes, a group of two programs and one that stops slowly."""

    def __init__(self, daemon: Supervisord, port: int, state: Path) -> None:
        self.daemon, self.port, self.state = daemon, port, state

    def pids(self, *names: str) -> t.List[int]:
        return [int(word) for word in self.daemon.ctl("pid", *names).split()]

    def run(self, *units: str, socket: str = "", check_mode: bool = False, **options: t.Any) -> Result:
        settings = {"wait_timeout": 10, "wait_sleep": 0.05, "min_healthy_time": 0, "max_restarts": 0, **options}
        return service_restart.run(
            parse_services([{"name": unit.replace(":*", ""), "unit": unit} for unit in units]),
            open_manager("supervisor", socket or self.daemon.socket),
            Options(**{"state_dir": str(self.state), **settings}),
            check_mode=check_mode,
        )

    def check(self, *units: str) -> t.Tuple[str, str]:
        entries = [{"name": unit} for unit in units]
        result = services_check.check(entries, manager="supervisor", supervisor_socket=self.daemon.socket)
        return result.status, result.message


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Host]:
    port, quick = free_port(), {"startsecs": "0"}
    numbered = {"numprocs": "2", "process_name": "%(program_name)s_%(process_num)02d", **quick}
    programs = {
        "farm": Program("/bin/sleep 1000", options=numbered),
        "front": Program("/bin/sleep 1001", options=quick),
        "back": Program("/bin/sleep 1002", options=quick),
        "slow": Program(SLOW, options={**quick, "stopwaitsecs": "20"}),
    }
    extra = ["[group:site]", "programs=front,back", "[inet_http_server]", f"port=127.0.0.1:{port}"]
    with supervisord(programs, extra=extra) as daemon:
        host = Host(daemon, port, tmp_path_factory.mktemp("state"))
        wait_until(lambda: all(host.pids(*NAMES)), what="the programs")
        yield host


@pytest.mark.parametrize(
    ("unit", "names"),
    [
        ("farm", ("farm:farm_00", "farm:farm_01")),
        ("site:*", ("site:front", "site:back")),
        ("site:front", ("site:front",)),
    ],
)
def test_a_group_is_restarted_whole(host: Host, unit: str, names: t.Tuple[str, ...]) -> None:
    before = host.pids(*NAMES)
    predicted = host.run(unit, check_mode=True)
    assert predicted.changed
    assert host.pids(*NAMES) == before
    done = host.run(unit)
    assert done.changed
    after = host.pids(*NAMES)
    assert [name for name, old, new in zip(NAMES, before, after) if old != new] == list(names)
    assert all(after)
    assert not host.run(unit, state="started").changed


def test_a_group_with_one_program_down_is_down(host: Host) -> None:
    running, other = host.pids("farm:farm_00", "farm:farm_01")
    host.daemon.ctl("stop", "farm:farm_01")
    status, message = host.check("farm", "site")
    assert status == "critical"
    assert "farm: it is STOPPED" in message
    assert host.run("farm", state="started").changed
    still, started = host.pids("farm:farm_00", "farm:farm_01")
    assert still == running
    assert started not in (0, other)
    assert host.check("farm", "site")[0] == "ok"
    os.kill(started, signal.SIGKILL)
    wait_until(lambda: "start it again 1 times" in host.check("farm")[1], what="the automatic restart")


def test_supervisord_on_tcp(host: Host) -> None:
    before = host.daemon.pid("site:front")
    assert host.run("site:front", socket=f"http://127.0.0.1:{host.port}").changed
    assert host.daemon.pid("site:front") not in (0, before)


def test_a_stop_slower_than_the_wait_is_followed_to_its_end(host: Host) -> None:
    before = host.daemon.pid("slow")
    assert host.run("slow", wait_timeout=1).changed
    assert host.daemon.pid("slow") not in (0, before)


@pytest.mark.parametrize(
    ("socket", "words"),
    [
        ("http://192.0.2.1:9001", "must be on this host"),
        ("http://ops:secret@127.0.0.1:9001", "must not hold a user or a password"),
        ("https://127.0.0.1:9001", "must begin with http://"),
        ("http://127.0.0.1", "must name a port"),
    ],
)
def test_an_address_that_cannot_be_used(socket: str, words: str) -> None:
    with pytest.raises(OpsError, match=words) as caught:
        open_manager("supervisor", socket)
    assert "secret" not in str(caught.value)
