# SPDX-License-Identifier: GPL-3.0-or-later
"""What callers rely on: names, round trips, expiry, patterns, statistics; against a real Redis."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import servers
from tests.support.cache_program import run
from tests.support.patched_tree import Tree, patched_tree
from tests.support.waiting import slowness


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "services/cache_service.py")


def test_round_trips_and_expiry(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    assert cache.redis is None and cache.default_ttl == 300
    await cache.initialize(); await cache.initialize()
    assert (await get_cache()) is cache and await cache.redis.ping()
    values = {"zero": 0, "empty": "", "false": False, "list": [], "dict": {}, "none": None, "text": "\\ud83d\\ude80 \\x00 x", "deep": {"a": [1, {"b": 2.5}]},
              "date": dt.date(2025, 7, 30), "amount": decimal.Decimal("1.10")}
    for key, value in values.items():
        assert await cache.set(f"user_profile:{key}", value) is None
    back = {key: await cache.get(f"user_profile:{key}") for key in values}
    batch = await cache.batch_get([f"user_profile:{key}" for key in values] + ["user_profile:absent"])
    await cache.batch_set({"a:1": 0, "a:2": "", "a:3": None}, ttl=60)
    return [back, batch, await cache.batch_get(["a:1", "a:2", "a:3", "a:4"]), await cache.exists("a:1"), await cache.exists("a:9"),
            await cache.get("absent"), await cache.batch_get([]), await cache.delete("a:1"), await cache.delete("a:1"), await cache.exists("a:1"),
            [await cache.redis.pttl("pam:cache:" + key) for key in ("a:2", "user_profile:zero")]]
    """,
    )
    back, batch, second, there, absent, nothing, empty, gone, again, after, ttls = found
    assert back == {
        "zero": 0,
        "empty": "",
        "false": False,
        "list": [],
        "dict": {},
        "none": None,
        "text": "\U0001f680 \x00 x",
        "deep": {"a": [1, {"b": 2.5}]},
        "date": "2025-07-30",
        "amount": "1.10",
    }
    assert batch == {f"user_profile:{key}": value for key, value in back.items()}
    assert second == {"a:1": 0, "a:2": "", "a:3": None}
    assert (there, absent, nothing, empty, gone, again, after) == (True, False, None, {}, 1, 0, False)
    assert 53_000 < ttls[0] <= 60_000 and 269_000 < ttls[1] <= 300_000
    assert all(key.startswith("pam:cache:") for key in redis.cli("KEYS", "*").splitlines())


def test_attributes_are_there_outside_an_event_loop(tree: Tree) -> None:
    """Callers look at them while their modules are imported."""
    found = tree.json(
        "import json; from app.services.cache_service import CacheService, cache_service; fresh = CacheService();"
        " print(json.dumps([fresh.redis is None, fresh.default_ttl, type(fresh._connection_lock).__name__,"
        " cache_service.redis is None]))"
    )
    assert found == [True, 300, "Lock", True]


def test_a_double_of_the_client_can_be_put_in_and_taken_out(tree: Tree, redis: servers.Redis) -> None:
    """As ``unittest.mock.patch.object`` and pytest's ``monkeypatch`` do it in the backend's own tests."""
    found = run(
        tree,
        redis.url,
        """
    from unittest.mock import AsyncMock, patch
    double = AsyncMock()
    double.get.return_value = '{"name": "Ann"}'
    await cache.initialize()
    own = cache.redis
    with patch.object(cache, "redis", double):
        inside = [cache.redis is double, await cache.get("user_profile:1"), await cache.get("anything")]
    after = [cache.redis is own, await cache.get("user_profile:1")]
    cache.redis = double
    cache.redis = own
    return [inside, after, cache.redis is own, cache._override is None, double.get.await_count]
    """,
        env={"CACHE_L1_TTL": "0", "CACHE_STALE_IF_ERROR": "0"},
    )
    assert found == [[True, {"name": "Ann"}, {"name": "Ann"}], [True, None], True, True, 2]


def test_ttl_forms(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    for key, ttl in {"zero": 0, "none": None, "negative": -5, "float": 2.5, "delta": dt.timedelta(minutes=2), "one": 1}.items():
        await cache.set(key, 1, ttl)
    return {key: await cache.redis.pttl("pam:cache:" + key) for key in ("zero", "none", "negative", "float", "delta", "one")}
    """,
    )
    for key in ("zero", "none", "negative"):
        assert 269_000 < found[key] <= 300_000
    assert 2_000 < found["float"] <= 2_500 and 107_000 < found["delta"] <= 120_000 and 0 < found["one"] <= 1_000


def test_no_ttl_raises_or_looks_like_an_outage(tree: Tree, redis: servers.Redis) -> None:
    """Text out of a settings file, numbers beyond Redis's clock, no number at all: the entry is there
    and has an end.
    """
    found = run(
        tree,
        redis.url,
        """
    odd = {"text": "60", "words": "soon", "nan": float("nan"), "inf": float("inf"), "huge": 1e18, "beyond": 10**400, "list": [1],
           "decimal": decimal.Decimal("1.5"), "delta": dt.timedelta.max, "back": dt.timedelta(seconds=-1)}
    for key, ttl in odd.items():
        await cache.set("set:" + key, 1, ttl)
        await cache.batch_set({"batch:" + key: 1}, ttl)
        await cache.get_or_set("load:" + key, lambda: 1, ttl)
    left = {key: [await cache.redis.pttl(f"pam:cache:{kind}:{key}") for kind in ("set", "batch", "load")] for key in odd}
    return [left, cache.counters.errors]
    """,
    )
    left, errors = found
    year = 365 * 86_400_000
    for key, (low, high) in {
        "text": (53_000, 60_000),
        "words": (269_000, 300_000),
        "nan": (269_000, 300_000),
        "list": (269_000, 300_000),
        "back": (269_000, 300_000),
        "decimal": (1_000, 1_500),
    }.items():
        assert all(low < value <= high for value in left[key]), (key, left[key])
    assert all(8 * year < value <= 10 * year for key in ("inf", "huge", "beyond", "delta") for value in left[key]), left
    assert errors == 0


def test_the_environment_says_how_long_an_entry_lives_by_default(tree: Tree, redis: servers.Redis) -> None:
    body = 'await cache.set("k", 1); return [cache.default_ttl, await cache.redis.pttl("pam:cache:k")]'
    for text, seconds in {"180": 180, "": 300, "0": 300, "-1": 300, "nonsense": 300, "0.2": 300}.items():
        default, left = run(tree, redis.url, body, env={"CACHE_TTL": text})
        assert default == seconds and 0.89 * seconds < left / 1000 <= seconds, text


def test_a_value_that_cannot_be_written_or_a_key_that_cannot_be_hashed_raises_nothing(
    tree: Tree, redis: servers.Redis
) -> None:
    assert run(
        tree,
        redis.url,
        """
    class Broken:
        def __str__(self): raise RuntimeError("no text")
        def model_dump(self): raise RuntimeError("no fields")
    broken = Broken()
    await cache.set("b", broken); await cache.set("b", broken, use_pickle=True); await cache.batch_set({"b": broken, "good": 1})
    loaded = await cache.get_or_set("load", lambda: broken)
    await cache.set(["list"], 2)
    return [await cache.get("b"), await cache.get("good"), loaded is broken, await cache.get(["list"]), cache.counters.errors]
    """,
    ) == [None, 1, True, 2, 4]


def test_nothing_is_served_after_its_end(tree: Tree, redis: servers.Redis) -> None:
    """Not even by this process's own memory, which would keep an entry for longer.

    Read as often as it takes to see the end.
    """
    found = run(
        tree,
        redis.url,
        """
    async def until_gone():
        began, last = time.monotonic(), 0.0
        await cache.set("short", 1, ttl=1); await cache.set("long", 1, ttl=60)
        while await cache.get("short") is not None and last < 30:
            last = time.monotonic() - began
        return last
    first = await until_gone()
    before = cache.counters.local_hits
    await cache.redis.set("pam:cache:short", "2", ex=60)  # another process, after that end
    again = [await cache.get("short"), await cache.get("short"), cache.counters.local_hits - before]
    return [first, again, await cache.get("long")]
    """,
        env={"CACHE_L1_TTL": "3600"},
    )
    assert found[0] < 3 * slowness() and found[1] == [2, 2, 1] and found[2] == 1


def test_keys_need_not_be_text(tree: Tree, redis: servers.Redis) -> None:
    assert run(
        tree,
        redis.url,
        """
    await cache.set(7, "a"); await cache.batch_set({8: "b"})
    return [await cache.get(7), await cache.get("7"), await cache.exists(7), await cache.batch_get([7, 8]), await cache.get_or_set(9, lambda: "c"),
            await cache.get(None), await cache.delete(7), await cache.get(7), await cache.delete_pattern(8)]
    """,
    ) == ["a", "a", True, {"7": "a", "8": "b"}, "c", None, 1, None, 1]


def test_use_pickle_keeps_types_without_pickle(tree: Tree, redis: servers.Redis) -> None:
    assert run(
        tree,
        redis.url,
        """
    class Colour(enum.Enum):
        RED = "red"
    value = {"when": dt.datetime(2025, 7, 30, 12, tzinfo=dt.timezone.utc), "day": dt.date(2025, 1, 2), "at": dt.time(3, 4),
             "for": dt.timedelta(days=1, microseconds=3),
             "amount": decimal.Decimal("1.10"), "id": uuid.UUID(int=7), "raw": b"\\x00\\xff", "pair": (1, (2,)), "set": {1, 2}, "frozen": frozenset({"a"}),
             1: "int key", "$type": "bytes", "nan": None, "list": [(1, 2)], "text": "\\x01{}"}
    await cache.set("typed", value, use_pickle=True)
    back = await cache.get("typed", use_pickle=True)
    await cache.set("enum", [Colour.RED], use_pickle=True)
    await cache.set("bad", object(), use_pickle=True)
    return [back == value, {type(a) is type(back[k]) for k, a in value.items()} == {True}, await cache.get("typed") == value, await cache.get("enum"),
            await cache.get("bad"), cache.counters.errors]
    """,
    ) == [True, True, True, ["red"], None, 1]


def test_glob_semantics_where_callers_use_them(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    async def fill():
        await cache.batch_set({"expenses:u1:a": 1, "expenses:u1:b": 1, "expenses:u2:a": 1, "expensesX": 1, "pam:expenses:q1": 1, "pam:budgets:q": 1,
                               "odd:[x]*?": 1, "odd:x": 1})
    async def left():
        return sorted([key async for key in cache.redis.scan_iter("pam:cache:*")])
    out = {}
    await fill(); out["delete with star"] = [await cache.delete("expenses:u1:*"), len(await left())]
    await fill(); out["delete_pattern"] = [await cache.delete_pattern("expenses:*"), await left()]
    await fill(); out["clear_prefix"] = [await cache.clear_prefix("odd:[x]"), await cache.exists("odd:x")]
    await fill(); out["literal delete"] = [await cache.delete("odd:[x]*?"), await cache.exists("odd:x")]
    out["empty"] = [await cache.clear_prefix(""), await cache.delete_pattern(""), await cache.delete_pattern("*" * 50)]
    await cache.redis.set("foreign", "x")
    out["everything of ours"] = [await cache.delete_pattern("*") > 0, await cache.redis.keys("*")]
    await cache.get("expenses:u1:a")
    return out
    """,
    )
    assert found["delete with star"] == [2, 6]
    assert found["delete_pattern"][0] == 4 and not [key for key in found["delete_pattern"][1] if ":expenses:" in key], (
        "and what the database service wrote"
    )
    assert found["clear_prefix"] == [1, True] and found["literal delete"] == [1, True]
    assert found["empty"] == [0, 0, 0] and found["everything of ours"] == [True, ["foreign"]]


def test_statistics_and_health(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    await cache.set("a", 1)
    for _ in range(3):
        await cache.get("a")
    await cache.get("b")
    return [await cache.get_cache_stats(), await cache.get_stats(), await cache.health_check()]
    """,
    )
    stats, short, health = found
    assert {"connected", "total_keys", "used_memory", "connected_clients", "uptime_seconds", "redis_version"} <= set(
        stats
    )
    assert (
        stats["connected"] is True
        and stats["total_keys"] == 1
        and stats["hit_rate"] == 0.75
        and (stats["hits"], stats["misses"], stats["sets"]) == (3, 1, 1)
    )
    assert short["memory_usage_mb"] > 0 and health["status"] == "healthy" and health["latency_ms"] >= 0
    found = run(
        tree,
        "redis://127.0.0.1:1/0",
        """
    await cache.initialize()
    try:
        await cache.health_check()
        health = "returned"
    except CacheUnavailableError as error:
        health = str(error)
    return [cache.redis, await cache.get_cache_stats(), await cache.get_stats(), health]
    """,
    )
    assert (
        found[0] is None
        and found[1]["connected"] is False
        and found[1]["error"]
        and found[2]["memory_usage_mb"] == 0
        and found[3] != "returned"
    )


def test_instances_share_one_pool_and_survive_event_loops(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    def other_loops():
        for number in range(30):
            async def once():
                await CacheService().set(f"loop:{number}", number)
                return await CacheService().get(f"loop:{number}")
            assert asyncio.run(once()) == number
        return len(os.listdir("/proc/self/fd"))
    async def request(number):
        service = CacheService()
        await service.set(f"k:{number}", number)
        assert await service.get(f"k:{number}") == number
    await cache.initialize()
    for wave in range(20):
        await asyncio.gather(*[request(number) for number in range(50)])
    clients = len(await cache.redis.client_list())
    await asyncio.to_thread(other_loops)
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.to_thread(other_loops)
    after = len(os.listdir("/proc/self/fd"))
    passing = CacheService()
    await passing.get("x"); await passing.close()
    still = await cache.redis.ping()
    await cache.close()
    closed = cache.redis
    await cache.set("again", 1)
    return [clients, after - before, still, closed, await cache.get("again"), cache.redis is not None]
    """,
    )
    clients, growth, still, closed, again, reopened = found
    assert clients <= 20 and growth <= 3 and still is True and closed is None and again == 1 and reopened is True


def test_a_forked_worker_leaves_its_parents_connection_alone(tree: Tree, redis: servers.Redis) -> None:
    """Parent and child share the selector: a transport that the child lets go of would be deaf in the parent."""
    parent, child, after, value, errors = run(
        tree,
        redis.url,
        """
    import gc, threading
    await cache.set("k", 1)
    before = await cache.redis.client_id()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        async def work():
            await cache.set("k", 2)
            gc.collect()
            return await cache.redis.client_id()
        found = []
        thread = threading.Thread(target=lambda: found.append(asyncio.run(work())))  # a loop of its own: this thread's is the parent's
        thread.start(); thread.join()
        os.write(writing, str(found[0]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    cache.trim_local()
    value = await cache.get("k")
    return [before, int(os.read(reading, 100)), await cache.redis.client_id(), value, cache.counters.errors]
    """,
    )
    assert after == parent != child and value == 2 and errors == 0


def test_a_stand_in_client_can_be_put_in(tree: Tree) -> None:
    """Tests of the backend replace ``.redis``."""
    assert run(
        tree,
        "redis://127.0.0.1:1/0",
        """
    from unittest.mock import AsyncMock
    cache.redis = AsyncMock()
    cache.redis.get.return_value = '{"a": 1}'
    return [await cache.get("x"), (await get_cache()) is cache, cache.redis.get.await_args.args]
    """,
    ) == [{"a": 1}, True, ["pam:cache:x"]]


def test_a_client_that_gives_bytes_can_be_put_in(tree: Tree, redis: servers.Redis) -> None:
    assert run(
        tree,
        redis.url,
        """
    cache.redis = module.aioredis.Redis.from_url(os.environ["REDIS_URL"])
    await cache.set("user_profile:1", {"a": 1}); await cache.batch_set({"b": (1, 2), "user_trips:1": None})
    await cache.redis.set("context:old", '"x"'); await cache.redis.set("pam:cache:forever", "1"); await cache.redis.set("pam:cache:junk", b"\\xff\\x80")
    found = [await cache.get("user_profile:1"), await cache.get("user_profile:1"), await cache.batch_get(["b", "user_trips:1", "junk"]),
             await cache.get("context:old"), await cache.get("junk"), await cache.get_or_set("l", lambda: 5), await cache.exists("b"),
             (await cache.clear_expired()).finished, (await cache.health_check())["connected"], await cache.delete_pattern("*")]
    await cache.redis.aclose()
    return found
    """,
    ) == [{"a": 1}, {"a": 1}, {"b": [1, 2], "user_trips:1": None}, "x", None, 5, True, True, True, 7]


def test_hostile_keys_and_values(tree: Tree, redis: servers.Redis) -> None:
    found = run(
        tree,
        redis.url,
        """
    keys = ["", " ", "\\n\\r\\n*1", "\\x00", "\\ud800", "a" * 100_000, "\\U0001f680" * 1000, "pam:cache:pam:cache:x", "*", "[", "{tag}", "../../x",
            "k:%s" % ("b" * 600)]
    for key in keys:
        await cache.set(key, key.encode("utf-8", "replace").decode())
        await cache.get(key)
        await cache.exists(key)
    long = await cache.get("a" * 100_000) == "a" * 100_000
    deep = []
    for _ in range(100_000):
        deep = [deep]
    await cache.set("deep", deep); await cache.set("typed-deep", deep, use_pickle=True)
    loop = []; loop.append(loop)
    await cache.set("loop", loop)
    await cache.set("huge", "x" * 9_000_000)
    await cache.redis.set("pam:cache:nested", "[" * 200_000, ex=60)
    await cache.redis.set("pam:cache:digits", "1" * 10_000, ex=60)
    await cache.redis.rpush("pam:cache:list", "x")
    await cache.redis.set("pam:cache:types", '\\x01{"$type":"os.system","v":"true"}', ex=60)
    await cache.redis.set("pam:cache:types2", '\\x01{"$type":["x"],"v":1}', ex=60)
    await cache.redis.set("pam:cache:types3", '\\x01{"$type":"decimal","v":"junk"}', ex=60)
    read = [await cache.get(key) for key in ("deep", "typed-deep", "loop", "huge", "nested", "digits", "list", "types", "types2", "types3")]
    sizes = [len(key) async for key in cache.redis.scan_iter("*")]
    for key in keys:
        await cache.delete(key)
    await cache.set("well", 1)
    return [long, read, max(sizes) < 600, cache.counters.rejected_values, await cache.get("well"), cache._breaker_open()]
    """,
    )
    assert (
        found[0] is True and found[1] == [None] * 10 and found[2] is True and found[3] >= 5 and found[4:] == [1, False]
    )
