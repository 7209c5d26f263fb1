# SPDX-License-Identifier: GPL-3.0-or-later
"""R2: sweeping and deleting touch nothing of others: every foreign key byte for byte and TTL for TTL, every queued task
executed.
"""

from __future__ import annotations

import random
import subprocess
import typing as t

import pytest
import redis as redis_client

from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.cache_program import run
from tests.support.patched_tree import Tree, patched_tree
from tests.support.waiting import wait_until

FOREIGN_STRINGS = (
    "rate_limit:requests:1.2.3.4",
    "security_event:1",
    "threats:x",
    "severity_count:high",
    "blocked_ip:1.2.3.4",
    "blocked_user:u",
    "celery-task-meta-1",
    "pam:response:abc",
    "pam:response:abc:metadata",
    "pam:throttle",
    "pam:unknown:1",
    "sess:1",
    "user_profileX:1",
    "xuser_profile:1",
    "pam:cachex:1",
    "pam:cache",
    "user_profile",
    "USER_PROFILE:1",
    "contexts:1",
    " context:1",
    "_kombu.string:1",
    "unacked_x:1",
    "{user_profile:1}",
)


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "services/cache_service.py")


@pytest.fixture(params=["scripts", "no scripts"])
def either(request: pytest.FixtureRequest, redis: servers.Redis) -> t.Iterator[servers.Redis]:
    """A Redis that runs scripts for its clients, and one that does not."""
    client = redis_client.Redis(port=redis.port)
    if request.param == "no scripts":
        client.execute_command("ACL", "SETUSER", "default", "-@scripting")
    yield redis
    client.execute_command("ACL", "SETUSER", "default", "+@all")


def end(client: redis_client.Redis, key: t.Union[bytes, str]) -> int:
    """When a key expires (milliseconds since 1970), -1 for never."""
    return int(client.execute_command("PEXPIRETIME", key))


def foreign(client: redis_client.Redis) -> t.Dict[bytes, t.Tuple[t.Optional[bytes], int]]:
    """Serialised value and expiry time of everything that is not under our prefixes as a string."""
    ours = (b"pam:cache:", b"user_profile:", b"context:", b"response:", b"pam:profiles:", b"expenses:")
    return {
        key: (client.dump(key), end(client, key))
        for key in t.cast(t.List[bytes], client.keys("*"))
        if not key.startswith(ours) or client.type(key) != b"string"
    }


def populate(client: redis_client.Redis) -> None:
    """What shares the database with the cache: all types, with and without an end."""
    rng = random.Random(4)
    client.rpush("email", *[f"task {number}" for number in range(50)])
    client.rpush("celery", "task")
    client.sadd("_kombu.binding.email", "email\x06\x16\x06\x16email")
    client.hset("unacked", mapping={"a": "b"})
    client.zadd("unacked_index", {"a": 1.0})
    client.hset("pam:throttle:state", mapping={"level": "2"})
    client.xadd("stream", {"a": "b"})
    for name in FOREIGN_STRINGS:
        client.set(name, rng.randbytes(40))
        client.set(name + "~timed", rng.randbytes(40), ex=rng.randrange(5000, 90_000))
    # Under our own words, but of a type that we never write: somebody else's.
    client.rpush("context:list", "x")
    client.hset("user_profile:hash", mapping={"a": "b"})
    client.sadd("pam:profiles:set", "x")


def test_a_sweep_leaves_everything_of_others_as_it_was(tree: Tree, either: servers.Redis) -> None:
    client = redis_client.Redis(port=either.port)
    populate(client)
    for number in range(500):
        client.set(f"pam:cache:own:{number}", "1")
        client.set(f"user_profile:{number}", '{"a": 1}')
        client.set(f"response:/x:{number}", "[]", ex=7000 + number)
        client.set(f"pam:profiles:{number}", "[]")
        client.set(f"pam:cache:timed:{number}", "1", ex=5000)
    before = foreign(client)
    timed = {key: end(client, key) for key in client.keys("*") if client.ttl(key) > 0}
    found = run(
        tree,
        either.url,
        """
    first = await cache.clear_expired()
    second = await cache.clear_expired()
    return [int(first), vars(first), int(second), vars(second)]
    """,
    )
    assert foreign(client) == before
    assert {key: end(client, key) for key in timed} == timed, "an end that was set stays"
    assert found[1]["adopted"] == 1500 and found[0] >= 1500 and found[1]["finished"] and found[1]["legacy"] == 1500
    assert found[2] == 0 and found[3]["adopted"] == 0
    adopted = [
        client.ttl(key)
        for pattern in ("pam:cache:own:*", "user_profile:[0-9]*", "pam:profiles:[0-9]*")
        for key in client.keys(pattern)
    ]
    assert len(adopted) == 1500 and all(140 <= ttl <= 300 for ttl in adopted) and len(set(adopted)) > 50, (
        "spread, not all at once"
    )


def test_expired_keys_are_reclaimed(tree: Tree, redis: servers.Redis) -> None:
    """Redis's own cycle is switched off, as it is in effect when it falls behind: only the sweep can reclaim them."""
    with servers.redis(options=["--enable-debug-command", "yes"]) as own:
        own.cli("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        client = redis_client.Redis(port=own.port)
        for number in range(300):
            client.set(f"pam:cache:{number}", "1", px=1)
        wait_until(lambda: client.pttl("pam:cache:299") == -2, what="the keys' end")
        held = client.dbsize()
        found = run(tree, own.url, "result = await cache.clear_expired(); return [int(result), result.expired]")
        assert held >= 299 and found[1] >= 299 and found[0] == found[1] and client.dbsize() == 0


def test_patterns_and_prefixes_never_leave_our_keys(tree: Tree, either: servers.Redis) -> None:
    client = redis_client.Redis(port=either.port)
    populate(client)
    client.set("user_profile:1", "1")
    before = foreign(client)
    run(
        tree,
        either.url,
        """
    for pattern in ("*", "user_profile:*", "context:*", "rate_limit:*", "_kombu*", "celery*", "email", "pam:*", "pam:response:*", "pam:profiles:*",
                    "[a-z]*", "?*", "unacked*"):
        await cache.delete_pattern(pattern); await cache.delete(pattern); await cache.clear_prefix(pattern.rstrip("*"))
        await cache.set(pattern, 1); await cache.get(pattern); await cache.exists(pattern); await cache.batch_set({pattern: 2}); await cache.delete(pattern)
    for key in ("context:list", "user_profile:hash", "pam:profiles:set", "rate_limit:requests:1.2.3.4", "email"):
        await cache.get(key); await cache.set(key, 1); await cache.batch_get([key]); await cache.batch_set({key: 1}); await cache.delete(key)
        await cache.get_or_set(key, lambda: 1); await cache.delete_pattern(key)
    """,
    )
    assert foreign(client) == before
    assert client.get("user_profile:1") is None, "what an earlier release cached is deleted with its pattern"


def test_what_earlier_releases_cached_is_found_once_and_moves(tree: Tree, either: servers.Redis) -> None:
    client = redis_client.Redis(port=either.port)
    client.set("user_profile:1", '{"name": "old"}', ex=1000)
    client.set("user_trips:1", '["old"]')
    client.set("calendar_events:1", "1")
    client.set("web_search:q", "1")
    client.set("unknown:1", "1")
    found = run(
        tree,
        either.url,
        """
    first = [await cache.get("user_profile:1"), await cache.get("user_trips:1"), await cache.get("unknown:1"), await cache.batch_get(["calendar_events:1"])]
    await cache.set("calendar_events:1", 2)
    exists = await cache.exists("web_search:q")
    await cache.delete("web_search:q")
    keys = sorted(await cache.redis.keys("*"))
    ttls = [await cache.redis.ttl("pam:cache:user_profile:1"), await cache.redis.ttl("pam:cache:user_trips:1")]
    await cache.clear_expired(); await cache.clear_expired()
    return [first, exists, keys, ttls, CacheService()._store.legacy_reads]
    """,
    )
    assert found[0] == [{"name": "old"}, ["old"], None, {"calendar_events:1": 1}] and found[1] is True
    assert found[2] == [
        "pam:cache:calendar_events:1",
        "pam:cache:user_profile:1",
        "pam:cache:user_trips:1",
        "unknown:1",
    ]
    assert 900 < found[3][0] <= 1000 and 0 < found[3][1] <= 300
    assert found[4] is False, "nothing old is left, so nothing old is looked for any more"


def test_a_sweep_is_bounded_resumed_and_alone(tree: Tree, either: servers.Redis) -> None:
    client = redis_client.Redis(port=either.port)
    pipe = client.pipeline()
    for number in range(20_000):
        pipe.set(f"pam:cache:{number}", "1")
    pipe.execute()
    found = run(
        tree,
        either.url,
        """
    parts = []
    while not parts or not parts[-1].finished:
        parts.append(await CacheService().clear_expired(max_seconds=0.01))
    together = await asyncio.gather(*[CacheService().clear_expired() for _ in range(3)])
    keys = [key async for key in cache.redis.scan_iter("pam:cache:!*")]
    return [len(parts), sum(part.adopted for part in parts), max(part.seconds for part in parts), [part.finished for part in together], keys]
    """,
    )
    assert found[0] > 1 and found[1] >= 20_000 and sorted(found[3]) == [False, False, True] and found[4] == []
    client.set("pam:cache:!sweep:lock", "somebody", px=60_000)
    assert run(tree, either.url, "result = await cache.clear_expired(); return [int(result), result.finished]") == [
        0,
        False,
    ]


def test_commands_that_would_block_or_empty_redis_are_never_sent(tree: Tree, redis: servers.Redis) -> None:
    client = redis_client.Redis(port=redis.port)
    client.config_resetstat()
    run(
        tree,
        redis.url,
        """
    await cache.initialize(); await cache.set("a", 1); await cache.get("a"); await cache.batch_get(["a", "b"]); await cache.delete_pattern("*")
    await cache.clear_prefix("x"); await cache.clear_expired(); await cache.get_stats(); await cache.health_check(); await cache.close()
    """,
    )
    used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert not used & {
        "keys",
        "flushdb",
        "flushall",
        "monitor",
        "save",
        "debug",
        "sort",
        "smembers",
        "hgetall",
        "lrange",
    }, used
    assert "scan" in used


_TASKS = """
import sys
from celery import Celery
app = Celery("pam", broker=sys.argv[1], backend=sys.argv[1])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_default_queue="email", broker_connection_retry_on_startup=True)
@app.task(name="note")
def note(number):
    app.backend.client.rpush("done", number)
if sys.argv[2] == "send":
    for number in range(200):
        note.delay(number)
else:
    app.worker_main(["worker", "--pool=solo", "--loglevel=error", "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


def test_queued_celery_tasks_all_run_after_sweeps(tree: Tree, redis: servers.Redis) -> None:
    """The first version gave the queue itself an end: tasks vanished after five minutes."""
    program = tree.directory / "tasks.py"
    program.write_text(_TASKS)
    client = redis_client.Redis(port=redis.port)
    subprocess.run([str(BACKEND_PYTHON), str(program), redis.url, "send"], check=True, capture_output=True, timeout=60)
    assert client.llen("email") == 200
    run(tree, redis.url, "for _ in range(3): await cache.clear_expired(); await cache.delete_pattern('*')")
    assert client.llen("email") == 200 and client.ttl("email") == -1 and client.ttl("_kombu.binding.email") == -1
    worker = subprocess.Popen(
        [str(BACKEND_PYTHON), str(program), redis.url, "work"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: client.llen("done") >= 200, timeout=60, what="200 tasks")
    finally:
        worker.terminate()
        worker.wait(20)
    assert sorted(int(number) for number in t.cast(t.List[bytes], client.lrange("done", 0, -1))) == list(range(200))
