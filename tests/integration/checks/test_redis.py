# SPDX-License-Identifier: GPL-3.0-or-later
"""The Redis check against real servers in each state that refuses writes."""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from tests.support import servers
from tests.support.waiting import free_port, wait_until
from wheels_ops.checks import celery, suite
from wheels_ops.checks import redis as redis_check


@pytest.fixture(scope="module")
def server() -> t.Iterator[servers.Redis]:
    with servers.redis(options=["--repl-ping-replica-period", "1"]) as running:
        yield running


@contextlib.contextmanager
def configured(server: servers.Redis, **settings: str) -> t.Iterator[None]:
    before = {
        name: server.cli("CONFIG", "GET", name).partition("\n")[2]
        for name in (word.replace("_", "-") for word in settings)
    }
    try:
        for name, value in settings.items():
            server.cli("CONFIG", "SET", name.replace("_", "-"), value)
        yield
    finally:
        for name, value in before.items():
            server.cli("CONFIG", "SET", name, value)


def test_the_write_that_is_tried_changes_nothing(server: servers.Redis) -> None:
    server.cli("FLUSHALL")
    before = server.cli("INFO", "persistence").partition("rdb_changes_since_last_save:")[2].split()[0]
    assert redis_check.check(server.url).details["writes"] == "accepted"
    assert server.cli("DBSIZE") == "0"
    assert server.cli("INFO", "persistence").partition("rdb_changes_since_last_save:")[2].split()[0] == before


def test_a_full_server_is_named_and_celery_is_not_restarted_for_it(server: servers.Redis) -> None:
    server.cli("SET", "user_profile:1", "x")
    with configured(server, maxmemory="1mb"):
        assert "OOM" in server.cli("SET", "other", "y"), "the witness"
        check, worker = redis_check.check(server.url), celery.check(server.url)
    assert (check.status, check.remedy) == ("emergency", "cache_purge") and check.message.startswith(
        "Redis refuses writes (OOM, "
    )
    assert (
        worker.status == "critical" and "refuses writes (OOM)" in worker.message and worker.remedy != "service_restart"
    )
    assert redis_check.check(server.url).message == "1 cache keys never expire."
    server.cli("FLUSHALL")


def test_too_few_replicas_a_replica_and_one_without_its_primary(server: servers.Redis) -> None:
    with configured(server, min_replicas_to_write="1"):
        assert redis_check.check(server.url).details["writes"] == "refused: NOREPLICAS"
    server.cli("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        assert redis_check.check(server.url).details["writes"] == "refused: READONLY"
        with configured(server, replica_serve_stale_data="no"):
            assert redis_check.check(server.url).details["writes"] == "refused: MASTERDOWN"
    finally:
        server.cli("REPLICAOF", "NO", "ONE")
    assert redis_check.check(server.url).status == "ok"


def test_a_disk_that_takes_no_snapshot(server: servers.Redis) -> None:
    """The snapshot cannot be renamed onto a directory, so that it fails for root as well."""
    (server.directory / "dump.rdb").mkdir()
    with configured(server, save="3600 1"):
        server.cli("SET", "x", "1")
        server.cli("BGSAVE")
        wait_until(
            lambda: "rdb_last_bgsave_status:err" in server.cli("INFO", "persistence"), what="the failed snapshot"
        )
        check = redis_check.check(server.url)
        assert (check.status, check.details["writes"], check.remedy) == (
            "critical",
            "refused: MISCONF",
            "disk_cleanup",
        ), check.message
        (server.directory / "dump.rdb").rmdir()
        server.cli("BGSAVE")
        wait_until(lambda: "rdb_last_bgsave_status:ok" in server.cli("INFO", "persistence"), what="the snapshot")
        assert redis_check.check(server.url).status == "ok"
    server.cli("FLUSHALL")


def test_a_wrong_password_is_critical_for_redis_and_celery(server: servers.Redis) -> None:
    wrong = server.url.replace("redis://", "redis://:wrong-word@")
    with contextlib.ExitStack() as stack:
        server.cli("CONFIG", "SET", "requirepass", "right-word")
        stack.callback(lambda: server.cli("-a", "right-word", "--no-auth-warning", "CONFIG", "SET", "requirepass", ""))
        found = suite.run(suite.Options(subjects=("redis", "celery"), redis_url=wrong))["checks"]
        none = redis_check.check(server.url)
        assert redis_check.check(server.url.replace("redis://", "redis://:right-word@")).status == "ok"
    assert [(check["name"], check["status"], check["remedy"]) for check in found] == [
        ("redis", "critical", ""),
        ("celery", "critical", ""),
    ]
    assert "wrong-word" not in repr(found) and "password" in found[0]["message"]
    assert none.status == "critical" and "wants a password" in none.message
