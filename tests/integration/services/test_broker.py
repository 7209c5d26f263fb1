# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery's queues in a real Redis."""

from __future__ import annotations

from tests.support import servers
from tests.support.servers import Redis
from tests.support.waiting import wait_until
from wheels_ops.services import broker


def test_depths_of_queues_of_every_application_in_a_database(redis: Redis) -> None:
    client = broker.connect(redis.url)
    for prefix in ("", "shop:"):
        redis.cli("SADD", f"{prefix}_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
        redis.cli("SADD", f"{prefix}_kombu.binding.celery.pidbox", "\x06\x16\x06\x16one@host.celery.pidbox")
        redis.cli("RPUSH", f"{prefix}celery", "1", "2")
        redis.cli("RPUSH", f"{prefix}celery\x06\x167", "3")
        redis.cli("HSET", f"{prefix}unacked", "tag", "message")
    redis.cli("RPUSH", "feed", "no task")
    redis.cli("SET", "email", "no list")
    redis.cli("RPUSH", "abc.reply.celery.pidbox", "an answer")
    redis.cli("-n", "2", "RPUSH", "a\nb\x06\x162", "task")
    assert broker.prefixes(client) == ["", "shop:"]
    assert broker.queues(client, ["email"]) == ["celery", "email", "shop:celery"]
    assert broker.waiting_tasks(client, broker.queues(client, ["email"])) == {
        "celery": 3,
        "shop:celery": 3,
        "unacked": 2,
    }
    assert broker.count_tasks(client) == {
        "unacked": 1,
        "celery": 3,
        "shop:celery": 3,
        "shop:unacked": 1,
        "feed": 1,
        "a\\nb (database 2)": 1,
    }
    assert broker.databases(client) == [0, 2]
    client.close()


def test_what_waits_in_a_server_in_cluster_mode_is_counted_over_its_slots() -> None:
    with servers.redis(options=["--cluster-enabled", "yes"]) as server:
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: "cluster_state:ok" in server.cli("CLUSTER", "INFO"), what="the cluster")
        server.cli("RPUSH", "celery", "1", "2")
        server.cli("RPUSH", "email", "1")
        server.cli("HSET", "unacked", "tag", "message")
        client = broker.connect(server.url)
        assert broker.count_tasks(client) == {"unacked": 1, "celery": 2, "email": 1}
        client.close()
