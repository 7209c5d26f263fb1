# SPDX-License-Identifier: GPL-3.0-or-later
"""cache_purge against a real Redis that holds a cache, Celery's tasks and other people's keys; redis-cli is the
witness.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
import typing as t

import pytest
import redis as redis_client

from tests.support import servers
from tests.support.servers import Redis
from tests.support.waiting import wait_until
from wheels_ops.checks import celery as celery_check
from wheels_ops.checks import redis as redis_check
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import cache_purge
from wheels_ops.remedies.cache_purge import Options

FOREIGN = {
    "_kombu.binding.email": ("SADD", "email\x06\x16\x06\x16email"),
    "email": ("RPUSH", "task"),
    "reports": ("RPUSH", "task of a queue of its own"),
    "_kombu.binding.reports": ("SADD", "reports\x06\x16\x06\x16reports"),
    "email\x06\x163": ("RPUSH", "urgent"),
    "unacked": ("HSET", "tag", "task"),
    "unacked_index": ("ZADD", "1", "tag"),
    "celery-task-meta-1": ("SET", "{}"),
    "rate_limit:requests:1.2.3.4": ("SET", "3"),
    "blocked_ip:1.2.3.4": ("SET", "1"),
    "sess:abc": ("SET", "cart"),
    "somebody:else": ("SET", "1"),
}


def fill(redis: Redis, count: int = 500) -> None:
    """A cache of ``count`` profiles, every other with an expiry, and what others keep in the same database."""
    values = (
        "local v,k=string.rep('x',100),'user_profile:'..i; if i%2==0 then redis.call('SETEX',k,600,v) else"
        " redis.call('SET',k,v) end"
    )
    redis.cli("EVAL", f"for i=1,ARGV[1] do {values} end", "0", str(count))
    for key, (command, *words) in FOREIGN.items():
        redis.cli(command, key, *words)


def dump(redis: Redis) -> t.Dict[str, str]:
    """The bytes and the expiry of every foreign key, by a client of its own."""
    return {key: redis.cli("--no-raw", "DUMP", key) + redis.cli("TTL", key) for key in FOREIGN}


def size(redis: Redis) -> int:
    return int(redis.cli("DBSIZE"))


def test_check_mode_then_real_then_nothing(redis: Redis) -> None:
    fill(redis)
    before, foreign = size(redis), dump(redis)
    options = Options(prefixes=("user_profile:",))

    predicted = cache_purge.run(redis.url, options, check_mode=True)
    assert predicted.changed
    assert predicted.extra["key_count"] == 500
    assert size(redis) == before

    done = cache_purge.run(redis.url, options)
    assert done.changed
    assert size(redis) == before - 500
    assert redis.cli("KEYS", "user_profile:*") == ""
    assert done.extra["key_count"] == predicted.extra["key_count"]
    assert done.extra["bytes_freed"] == predicted.extra["bytes_freed"] > 500 * 100
    assert done.after["key_count"] == predicted.after["key_count"] == before - 500
    assert set(done.as_dict()) == set(predicted.as_dict())
    assert dump(redis) == foreign

    again = cache_purge.run(redis.url, options)
    assert not again.changed
    assert again.extra["key_count"] == 0
    assert dump(redis) == foreign


def test_only_keys_that_never_expire(redis: Redis) -> None:
    fill(redis)
    done = cache_purge.run(redis.url, Options(prefixes=("user_profile:",), missing_ttl=True))
    assert done.extra["key_count"] == 250
    assert done.extra["left"]["expires"] == 250
    assert redis.cli("EXISTS", "user_profile:1", "user_profile:2") == "1"


def test_only_keys_that_nobody_asks_for(redis: Redis) -> None:
    # No small integers: the server shares one object, and one idle time, among all keys that hold the same.
    redis.cli("SET", "response:old", "an answer")
    redis.cli("SET", "response:new", "an answer")
    # The server counts whole seconds since the last access; DEBUG SLEEP is not allowed, so the clock has to pass.
    deadline = time.monotonic() + 10
    while int(redis.cli("OBJECT", "IDLETIME", "response:old")) < 2 and time.monotonic() < deadline:
        threading.Event().wait(0.1)
        redis.cli("GET", "response:new")
    done = cache_purge.run(redis.url, Options(prefixes=("response:",), idle_time=2))
    assert done.extra["key_count"] == 1
    assert done.extra["left"]["in_use"] == 1
    assert redis.cli("EXISTS", "response:new") == "1"


def test_patterns_reach_no_key_of_celery_or_of_anyone_else(redis: Redis) -> None:
    fill(redis)
    foreign = dump(redis)
    every_letter = tuple(f"{letter}*" for letter in "abcdefghijklmnopqrstuvwxyz_")
    refused = [pattern for pattern in every_letter if _refused(pattern)]
    allowed = [pattern for pattern in every_letter if pattern not in refused and pattern != "s*"]
    cache_purge.run(redis.url, Options(patterns=tuple(allowed), types=cache_purge.TYPES))
    assert dump(redis) == foreign
    assert size(redis) == len(FOREIGN)


def _refused(pattern: str) -> bool:
    try:
        cache_purge.validate(Options(patterns=(pattern,)))
    except OpsError:
        return True
    return False


def test_a_list_under_a_cache_prefix_is_left_alone(redis: Redis) -> None:
    redis.cli("RPUSH", "user_profile:queue", "task")
    done = cache_purge.run(redis.url, Options(prefixes=("user_profile:",)))
    assert not done.changed
    assert done.extra["left"]["type"] == 1


def test_named_protection_can_be_lifted(redis: Redis) -> None:
    fill(redis, 2)
    done = cache_purge.run(
        redis.url, Options(prefixes=("celery-task-meta-",), unprotect=("celery*", "celery-task-meta-*"))
    )
    assert done.extra["key_count"] == 1
    assert redis.cli("EXISTS", "celery-task-meta-1") == "0"
    assert redis.cli("EXISTS", "unacked", "email") == "2"


def test_own_protection_and_a_bound(redis: Redis) -> None:
    fill(redis)
    done = cache_purge.run(redis.url, Options(prefixes=("user_profile:",), protect=("user_profile:1*",), max_keys=100))
    assert done.extra["key_count"] == 100
    assert not done.extra["complete"]
    assert redis.cli("EXISTS", "user_profile:1", "user_profile:100") == "2"


def test_keys_that_are_no_text(redis: Redis) -> None:
    client = redis_client.Redis(port=redis.port)
    client.set(b"response:\xff\xfe[*]", b"\x00")
    client.close()
    done = cache_purge.run(redis.url, Options(prefixes=("response:",)))
    assert done.extra["key_count"] == 1
    assert size(redis) == 0


def test_two_patterns_that_share_a_key_count_it_once(redis: Redis) -> None:
    fill(redis)
    options = Options(prefixes=("user_profile:",), patterns=("user_*",))
    predicted = cache_purge.run(redis.url, options, check_mode=True)
    done = cache_purge.run(redis.url, options)
    assert predicted.extra["key_count"] == done.extra["key_count"] == 500


def test_a_million_keys_in_slices_that_nobody_notices(redis: Redis) -> None:
    """The load of the incident's host: a large cache and queued tasks; another client looks at its own latency
    meanwhile.
    """
    for _ in range(20):
        redis.cli(
            "EVAL",
            "for i=1,50000 do redis.call('SET','user_profile:'..redis.call('INCR','somebody:counter'),'x') end",
            "0",
        )
    for key, (command, *words) in FOREIGN.items():
        redis.cli(command, key, *words)
    foreign = dump(redis)
    stop, slowest = threading.Event(), [0.0]

    def watch() -> None:
        with redis_client.Redis(port=redis.port) as other:
            while not stop.is_set():
                begun = time.monotonic()
                other.ping()
                slowest[0] = max(slowest[0], time.monotonic() - begun)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = cache_purge.run(redis.url, Options(prefixes=("user_profile:",)))
    stop.set()
    watcher.join()
    took, slice_ms = done.extra["duration_ms"], done.extra["longest_slice_ms"]
    print(
        f"{done.extra['key_count']} keys in {took:.0f} ms, longest slice {slice_ms} ms, slowest PING"
        f" {slowest[0] * 1000:.1f} ms"
    )
    assert done.extra["key_count"] == 1_000_000
    assert done.extra["slices"] > 100
    assert dump(redis) == foreign
    assert size(redis) == len(FOREIGN) + 1


def test_what_it_sends_blocks_nobody(redis: Redis) -> None:
    fill(redis)
    redis.cli("CONFIG", "RESETSTAT")
    cache_purge.run(redis.url, Options(prefixes=("user_profile:",)))
    sent = redis.cli("INFO", "commandstats")
    assert "cmdstat_unlink" in sent
    for command in ("keys", "flushdb", "flushall", "del", "expire"):
        assert f"cmdstat_{command}:" not in sent


def test_errors_name_the_way_out(redis: Redis) -> None:
    with pytest.raises(OpsError, match="does not answer") as caught:
        cache_purge.run("redis://:s3cret@127.0.0.1:1/0", Options(prefixes=("a:",)))
    assert "s3cret" not in str(caught.value)
    with pytest.raises(OpsError, match="URL"):
        cache_purge.run("http://127.0.0.1", Options(prefixes=("a:",)))
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
    try:
        redis.cli("SET", "a:1", "1")
        with pytest.raises(OpsError, match="LFU"):
            cache_purge.run(redis.url, Options(prefixes=("a:",), idle_time=5))
    finally:
        redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_a_cluster_is_purged_key_by_key_on_every_primary() -> None:
    """Two primaries; the keys of a prefix lie in many slots of both."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(servers.redis(options=["--cluster-enabled", "yes"])) for _ in range(2)]
        for node, slots in zip(nodes, (("0", "8191"), ("8192", "16383"))):
            node.cli("CLUSTER", "ADDSLOTSRANGE", *slots)
        bus_port = nodes[1].cli("CONFIG", "GET", "cluster-port").split()[-1]
        nodes[0].cli("CLUSTER", "MEET", "127.0.0.1", str(nodes[1].port), bus_port)

        def ready(node: Redis) -> bool:
            return "cluster_state:ok" in node.cli("CLUSTER", "INFO") and "slots_ok:16384" in node.cli("CLUSTER", "INFO")

        wait_until(lambda: all(ready(node) for node in nodes), timeout=40, what="the cluster")
        program = nodes[0].programs.path("redis-cli")
        words = [f"SET user_profile:{number} x\n" for number in range(40)] + ["SET sess:1 x\n", "RPUSH email x\n"]
        cluster = [program, "-c", "-p", str(nodes[0].port)]
        subprocess.run(cluster, input="".join(words), text=True, check=True, capture_output=True)
        before = [size(node) for node in nodes]
        assert sum(before) == 42 and min(before) > 5

        options = Options(prefixes=("user_profile:",))
        predicted = cache_purge.run(nodes[1].url, options, check_mode=True)
        assert [size(node) for node in nodes] == before
        done = cache_purge.run(nodes[1].url, options)
        assert (predicted.extra["key_count"], done.extra["key_count"]) == (40, 40)
        assert sum(size(node) for node in nodes) == 2 == done.after["key_count"]
        assert set(predicted.as_dict()) == set(done.as_dict())
        assert not cache_purge.run(nodes[0].url, options).changed


def test_the_checks_say_of_a_cluster_what_it_is() -> None:
    """Celery does not work on one: its user and database are not what is wrong."""
    with servers.redis(options=["--cluster-enabled", "yes"]) as node:
        node.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: "cluster_state:ok" in node.cli("CLUSTER", "INFO"), what="the cluster")
        found = celery_check.check(node.url, timeout=0.2)
        assert (found.status, found.remedy) == ("critical", "")
        assert "a node of a cluster" in found.message and "user" not in found.message
        assert redis_check.check(node.url).status == "ok"
