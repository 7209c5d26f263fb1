# SPDX-License-Identifier: GPL-3.0-or-later
"""After a failover the address leads to another server, but the connections that exist to the demoted one."""

from __future__ import annotations

import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.health_app import health_app
from tests.support.patched_tree import patched_tree
from tests.support.redis_proxy import RedisProxy, redis_proxy
from tests.support.waiting import wait_until


class Failover(t.NamedTuple):
    old: servers.Redis
    new: servers.Redis
    proxy: RedisProxy

    def happen(self) -> None:
        self.proxy.target = self.new.port
        self.old.cli("REPLICAOF", "127.0.0.1", "1")


@pytest.fixture
def failover() -> t.Iterator[Failover]:
    with servers.redis() as old, servers.redis() as new, redis_proxy(old.port) as proxy:
        yield Failover(old, new, proxy)


def test_the_throttle_and_the_heartbeats_reach_the_new_server(failover: Failover, tmp_path: Path) -> None:
    tree = patched_tree(tmp_path, "wheels_ops/load.py", "wheels_ops/celery_throttle.py")
    program = """
import sys, time
from app.wheels_ops.celery_throttle import LoadPublisher, Reader
url = sys.argv[1]
reader, publisher = Reader(url, 0.0), LoadPublisher(url)
reader.show("pam:beat:heartbeat", {"at": 1})
reader.refresh()
publisher.observe(1.0)
print("ready", flush=True)
sys.stdin.readline()
reader.show("pam:beat:heartbeat", {"at": 2})
for _ in range(8): publisher.observe(99.0, 95.0)
publisher.close()
reader.refresh()
print(reader.throttle.level, flush=True)
"""
    with subprocess.Popen(
        [str(BACKEND_PYTHON), "-c", program, failover.proxy.url],
        env=tree.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        observer = "pam:throttle:observer:" + socket.gethostname()
        wait_until(lambda: failover.old.cli("EXISTS", observer) == "1", what="the publisher has connected")
        failover.happen()
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) >= 2, "read from the new server"
    assert failover.new.cli("GET", "pam:beat:heartbeat") == '{"at": 2}'
    assert failover.old.cli("GET", "pam:beat:heartbeat") == '{"at": 1}'
    assert failover.new.cli("HGET", "pam:throttle", "source") == "monitor"


def test_the_health_check_follows_and_tells_a_full_disk_from_an_outage(failover: Failover) -> None:
    quick = {"HEALTH_CHECK_INTERVAL": "0.2", "HEALTH_CHECK_TIMEOUT": "2"}
    with health_app(quick, REDIS_URL=failover.proxy.url) as app:
        wait_until(lambda: app.check("redis:write") == "pass", what="before")
        failover.happen()
        wait_until(lambda: failover.new.cli("KEYS", "wheels_ops:probe:*"), what="a write on the new server")
        assert app.check("redis:write") == "pass" and app.check("redis:connection") == "pass"
        dump = failover.new.directory / "dump.rdb"
        dump.mkdir()
        failover.new.cli("CONFIG", "SET", "save", "3600 1")
        failover.new.cli("BGSAVE")
        wait_until(lambda: app.check("redis:write") == "fail", what="a full disk is seen")
        checks = app.health()["checks"]
        assert checks["redis:connection"][0]["status"] == "pass", "it answers"
        assert "MISCONF" in checks["redis:write"][0]["output"]
