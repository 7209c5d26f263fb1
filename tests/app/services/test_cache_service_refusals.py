# SPDX-License-Identifier: GPL-3.0-or-later
"""What the application has replaced is not served again, whatever state Redis is in; redis-cli is the witness."""

from __future__ import annotations

import contextlib
import time
import typing as t
from pathlib import Path

import pytest

from tests.app.services.test_cache_service_outages import cluster_port, redis_on
from tests.support import servers
from tests.support.cache_program import Talk, run
from tests.support.patched_tree import Tree, patched_tree
from tests.support.redis_proxy import Verdict, redis_proxy
from tests.support.waiting import free_port, wait_until


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "services/cache_service.py")


def set_config(server: servers.Redis, **values: str) -> None:
    for name, value in values.items():
        assert server.cli("CONFIG", "SET", name.replace("_", "-"), value) == "OK"


@contextlib.contextmanager
def configured(server: servers.Redis, name: str) -> t.Iterator[None]:
    set_config(server, **{name: "1"})
    yield
    set_config(server, **{name: "0"})


@contextlib.contextmanager
def misconf(server: servers.Redis) -> t.Iterator[None]:
    """Its dump cannot be written: something else is in its place."""
    dump = server.directory / "dump.rdb"
    dump.mkdir()
    set_config(server, save="3600 1")
    server.cli("BGSAVE")
    wait_until(lambda: "rdb_last_bgsave_status:err" in server.cli("INFO", "persistence"), what="failed dump")
    yield
    dump.rmdir()
    server.cli("BGSAVE")
    wait_until(lambda: "rdb_last_bgsave_status:ok" in server.cli("INFO", "persistence"), what="dump")


@contextlib.contextmanager
def replica(server: servers.Redis) -> t.Iterator[None]:
    """Of a server that is not there: what it holds stays."""
    assert server.cli("REPLICAOF", "127.0.0.1", "1") == "OK"
    yield
    assert server.cli("REPLICAOF", "NO", "ONE") == "OK"


@contextlib.contextmanager
def masterdown(server: servers.Redis) -> t.Iterator[None]:
    set_config(server, replica_serve_stale_data="no")
    with replica(server):
        yield


#: Nothing from this process's memory.
FROM_REDIS = {"CACHE_L1_TTL": "0", "CACHE_STALE_IF_ERROR": "0"}
STATES: t.Dict[str, t.Tuple[t.Callable[[servers.Redis], t.ContextManager[None]], str]] = {
    "MISCONF": (misconf, "MISCONF"),
    "READONLY": (replica, "ReadOnlyError"),
    "MASTERDOWN": (masterdown, "MasterDownError"),
    "NOREPLICAS": (lambda server: configured(server, "min-replicas-to-write"), "NOREPLICAS"),
    "OOM": (lambda server: configured(server, "maxmemory"), "OutOfMemoryError"),
}
#: ``expenses`` and ``user_profile`` are beginnings of earlier releases too, whose names have no prefix.
KEYS = [
    "set",
    "user_profile:set",
    "delete",
    "user_profile:delete",
    "batch:1",
    "batch:2",
    "expenses:1",
    "pam:expenses:1",
    "first:1",
    "unwritable",
    "load",
    "other",
]
_SCENE = """
old, keys = "old", json.loads(sys.argv[1]) if len(sys.argv) > 1 else KEYS
async def read():
    found = {key: await cache.get(key) for key in keys}
    batch = await cache.batch_get(keys)
    return {key: [found[key], batch.get(key), await cache.exists(key)] for key in keys}
await cache.initialize()
for key in keys: await cache.set(key, old)
before = await read()
say("ready"); await heard()
await cache.set("set", "new"); await cache.set("user_profile:set", "new")
deleted = [await cache.delete("delete"), await cache.delete("user_profile:delete")]
await cache.batch_set({"batch:1": "new", "batch:2": "new"})
await cache.delete_pattern("expenses:*"); await cache.clear_prefix("first:")
await cache.set("unwritable", {("no", "key"): 1})
first = await read()
loaded = [await cache.get_or_set("set", lambda: "loaded") for _ in range(2)]
await cache.get_or_set("load", lambda: "no")
say([before, first, loaded, await read(), cache._breaker_open(), cache.counters.breaker_opened, cache.redis is not None,
     (await cache.get_stats())["pending_invalidations"]])
await heard()
deadline = time.monotonic() + 60
while cache._store.pending.entries and time.monotonic() < deadline: await asyncio.sleep(0.02)
after = await read()
await cache.set("set", "newer"); await cache.batch_set({"batch:1": "newer"})
batched = (await cache.batch_get(["batch:1"])).get("batch:1")
say([after, await cache.get("set"), batched, len(cache._store.pending.entries)])
"""


def scene(keys: t.Sequence[str]) -> str:
    return _SCENE.replace("KEYS", repr(list(keys)))


REPLACED = [key for key in KEYS if key not in ("load", "other")]


def judge_replaced(values: t.Mapping[str, t.Sequence[t.Any]]) -> None:
    for key in REPLACED:
        assert values[key] == [None, None, False], f"{key}: {values[key]}"


@pytest.mark.parametrize("state", STATES)
def test_nothing_replaced_is_served_while_redis_refuses(tree: Tree, state: str) -> None:
    enter, kind = STATES[state]
    with servers.redis() as server, Talk(tree, server.url, scene(KEYS)) as talk:
        assert talk.said() == "ready"
        for key in ("user_profile:set", "user_profile:delete", "expenses:1"):  # what an earlier release wrote
            server.cli("SET", key, '"oldest"')
        with enter(server):
            talk.say()
            before, first, loaded, later, is_open, opened, connected, pending = talk.said()
            assert all(value == ["old", "old", True] for value in before.values()), before
            judge_replaced(first)
            judge_replaced(later)
            assert loaded == ["loaded", "loaded"] and (is_open, opened, connected) == (False, 0, True)
            if state == "OOM":  # it still deletes
                assert pending == 0 and server.cli("EXISTS", "pam:cache:set", "pam:cache:batch:1") == "0"
            else:
                assert pending >= 7
                assert state == "MASTERDOWN" or server.cli("GET", "pam:cache:set") == '"old"', "Redis still holds it"
        talk.say()
        after, newer, batched, left = talk.said()
        judge_replaced(after)
        assert (newer, batched, left) == ("newer", "newer", 0)
        left_over = {key for key in REPLACED if server.cli("EXISTS", key, f"pam:cache:{key}") != "0"}
        assert left_over == {"set", "batch:1"}, "what was written since"
        assert server.cli("GET", "pam:cache:other") == '"old"', "what was not replaced is still there"
    refused = [line for line in tree.logged() if line["event"].startswith("Cache: Redis refuses")]
    assert len([line for line in refused if line["error"] == kind]) == 1, "one line, however often it is retried"


def test_loading(tree: Tree, tmp_path: Path) -> None:
    """It was restarted, and reads its dump for as long as the test wants: it holds what was replaced meanwhile."""
    programs = servers.binaries.redis()
    port = free_port()
    server = servers.Redis(programs, tmp_path, port, t.cast(t.Any, None))
    with contextlib.ExitStack() as stack:
        with redis_on(port, tmp_path):
            talk = stack.enter_context(Talk(tree, server.url, scene(KEYS)))
            assert talk.said() == "ready"
            server.cli("EVAL", "for n = 1, 300 do redis.call('SET', 'filler' .. n, string.rep(n, 2000)) end", "0")
            server.cli("CONFIG", "SET", "rdbcompression", "no")
            server.cli("SAVE")
        slowly = ("--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024")
        stack.enter_context(redis_on(port, tmp_path, *slowly))
        wait_until(lambda: "LOADING" in server.cli("GET", "x"), what="loading")
        talk.say()
        _before, first, loaded, later, *_rest = talk.said()
        judge_replaced(first)
        judge_replaced(later)
        assert loaded == ["loaded", "loaded"]
        assert "LOADING" in server.cli("GET", "x"), "it was loading all the time"
        server.cli("CONFIG", "SET", "key-load-delay", "0")
        wait_until(lambda: "LOADING" not in server.cli("GET", "x"), what="loaded")
        talk.say()
        after, newer, batched, left = talk.said()
        judge_replaced(after)
        assert (newer, batched, left) == ("newer", "newer", 0)
        assert server.cli("GET", "pam:cache:delete") == "" and server.cli("GET", "pam:cache:expenses:1") == ""


def test_a_cluster_without_all_its_slots(tree: Tree, tmp_path: Path) -> None:
    port = cluster_port()
    server = servers.Redis(servers.binaries.redis(), tmp_path, port, t.cast(t.Any, None))
    with redis_on(port, tmp_path, "--cluster-enabled", "yes"):
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: "cluster_state:ok" in server.cli("CLUSTER", "INFO"), what="cluster")
        with Talk(
            tree,
            f"redis://127.0.0.1:{port}",
            """
            for key in ("set", "delete", "a:1"): await cache.set(key, "old")
            say([await cache.get(key) for key in ("set", "delete", "a:1")]); await heard()
            await cache.set("set", "new"); await cache.delete("delete"); await cache.delete_pattern("a:*")
            say([await cache.get(key) for key in ("set", "delete", "a:1")]); await heard()
            while cache._store.pending.entries: await asyncio.sleep(0.02)
            say([await cache.get(key) for key in ("set", "delete", "a:1")])
            """,
            env=FROM_REDIS,
        ) as talk:
            assert talk.said() == ["old"] * 3
            server.cli("CLUSTER", "DELSLOTSRANGE", "0", "100")
            wait_until(lambda: "CLUSTERDOWN" in server.cli("GET", "pam:cache:set"), what="cluster down")
            talk.say()
            assert talk.said() == [None] * 3
            server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "100")
            wait_until(lambda: "old" in server.cli("GET", "pam:cache:set"), what="cluster")
            talk.say()
            assert talk.said() == [None] * 3
            assert server.cli("EXISTS", "pam:cache:set") == "0" and server.cli("EXISTS", "pam:cache:a:1") == "0"


WRITES = (b"SET", b"UNLINK", b"EVAL", b"EVALSHA")


def only_writes(verdict: Verdict) -> t.Callable[[t.List[bytes]], Verdict]:
    return lambda words: verdict if words[0] in WRITES else "pass"


@pytest.mark.parametrize(
    ("verdict", "closed"),
    [
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", True),
        (b"-ERR Error running script (call to f_1): @user_script:1: -MISCONF Redis is configured\r\n", True),  # Redis 6
        (b"-NOPERM this user has no permissions to run the command\r\n", True),
        ("cut", None),
        ("cut after", None),
        ("silence", None),
    ],
)
def test_writes_that_a_fake_refuses_cuts_or_swallows(
    tree: Tree,
    redis: servers.Redis,
    verdict: Verdict,
    closed: t.Optional[bool],
) -> None:
    """Between this client and a real Redis; what was cut may or may not have been executed."""
    with redis_proxy(redis.port) as proxy, Talk(tree, proxy.url, scene(KEYS)) as talk:
        assert talk.said() == "ready"
        proxy.judge = only_writes(verdict)
        talk.say()
        _before, first, loaded, later, _is_open, opened, *_rest = talk.said()
        judge_replaced(first)
        judge_replaced(later)
        assert loaded == ["loaded", "loaded"]
        assert opened == 0, "reads and PING are answered: no outage"
        proxy.judge = lambda words: "pass"
        talk.say()
        after, newer, batched, left = talk.said()
        judge_replaced(after)
        assert (newer, batched) == ("newer", "newer") and (left == 0 or not closed)
    assert redis.cli("GET", "pam:cache:set") == '"newer"' and redis.cli("EXISTS", "pam:cache:delete") == "0"


def test_a_write_that_arrives_late_does_not_stay(tree: Tree, redis: servers.Redis) -> None:
    """A box in between held it while the client gave up, wrote again and was answered."""
    with (
        redis_proxy(redis.port) as proxy,
        Talk(
            tree,
            proxy.url,
            """
        await cache.initialize()
        module.SETTLE = 600.0
        say("ready"); await heard()
        await cache.set("a", "late"); await cache.set("b", "late")
        say("given up"); await heard()
        await cache.set("a", "newer")
        while any(entry.uncertain for entry in cache._store.pending.entries.values()): await asyncio.sleep(0.01)
        say(await cache.get("a")); await heard()
        for entry in cache._store.pending.entries.values(): entry.due = 0.0  # the time is over
        while cache._store.pending.entries: await asyncio.sleep(0.02)
        say([await cache.get("a"), await cache.get("b")])
        """,
            env=FROM_REDIS,
        ) as talk,
    ):
        assert talk.said() == "ready"
        proxy.judge = only_writes("silence")
        talk.say()
        assert talk.said() == "given up"
        proxy.judge = lambda words: "pass"
        talk.say()
        assert talk.said() == "newer"
        proxy.release()
        wait_until(lambda: '"late"' in redis.cli("MGET", "pam:cache:a", "pam:cache:b"), what="late write")
        talk.say()
        assert talk.said() == [None, None]
    assert redis.cli("EXISTS", "pam:cache:a", "pam:cache:b") == "0"


def test_after_a_failover_the_new_server_gets_the_writes(tree: Tree) -> None:
    """The name leads to another server; the connections that exist, to the demoted one."""
    with (
        servers.redis() as old,
        servers.redis() as new,
        redis_proxy(old.port) as proxy,
        Talk(
            tree,
            proxy.url,
            """
        await cache.initialize(); client = cache.redis
        await asyncio.gather(*[cache.set(f"k{number}", "old") for number in range(30)])
        say("ready"); await heard()
        await asyncio.gather(*[cache.set(f"k{number}", "new") for number in range(30)])
        say([[await cache.get(f"k{number}") for number in range(30)], cache.redis is client, await cache.health_check(),
             cache.counters.breaker_opened, len(cache._store.pending.entries)])
        """,
        ) as talk,
    ):
        assert talk.said() == "ready"
        proxy.target = new.port
        with replica(old):
            talk.say()
            values, same, health, opened, pending = talk.said()
        assert values == ["new"] * 30 and same and health["connected"] and (opened, pending) == (0, 0)
        assert new.cli("GET", "pam:cache:k7") == '"new"' and old.cli("GET", "pam:cache:k7") == '"old"'


def test_reads_beside_a_refused_write_do_not_bring_back_the_old_value(tree: Tree, redis: servers.Redis) -> None:
    """What a read between the write and its refusal got would be served from this process's memory for seconds."""
    with (
        redis_proxy(redis.port) as proxy,
        Talk(
            tree,
            proxy.url,
            """
        await cache.set("a", "old")
        say("ready"); await heard()
        writing = asyncio.ensure_future(cache.set("a", "new"))
        await asyncio.sleep(0.05)
        beside = await cache.get("a")
        await writing
        cancelled = asyncio.ensure_future(cache.delete("b"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        say([beside, await cache.get("a"), cache._store.pending.covers("b")])
        """,
        ) as talk,
    ):
        assert talk.said() == "ready"
        proxy.judge = only_writes("silence")
        talk.say()
        assert talk.said() == ["old", None, True]


def test_a_load_that_began_before_a_write_is_not_cached(tree: Tree, redis: servers.Redis) -> None:
    assert (
        run(
            tree,
            redis.url,
            """
    source, reading, go_on = "old", asyncio.Event(), asyncio.Event()
    async def load():
        value = source
        reading.set(); await go_on.wait()
        return value
    out = []
    for change in (lambda: cache.delete("a"), lambda: cache.delete_pattern("a*"), lambda: cache.set("a", "new")):
        source = "old"; reading.clear(); go_on.clear(); await cache.delete("a")
        under_way = asyncio.ensure_future(cache.get_or_set("a", load))
        await reading.wait()
        source = "new"
        await change()
        go_on.set()
        out.append([await under_way, await cache.get_or_set("a", load)])
    return out
    """,
        )
        == [["old", "new"]] * 3
    )


def test_a_burst_loses_nothing_and_opens_nothing(tree: Tree, redis: servers.Redis) -> None:
    assert run(
        tree,
        redis.url,
        """
    await cache.batch_set({f"b:{number}": number for number in range(2000)}, 600)
    lost = []
    for count in (500, 2000):
        values = await asyncio.gather(*[cache.get(f"b:{number}") for number in range(count)])
        lost.append(sum(value is None for value in values))
    clients = int((await cache.redis.info("clients"))["connected_clients"])
    return [lost, cache.counters.breaker_opened, cache.counters.errors, cache._breaker_open(), clients <= 25]
    """,
        env=FROM_REDIS,
    ) == [[0, 0], 0, 0, False, True]


def test_a_burst_on_a_dead_redis_is_let_go_at_once(tree: Tree, redis: servers.Redis) -> None:
    """Its queue waits for no more than what three failures take, however long it is; what is kept of it is bounded."""
    with (
        redis_proxy(redis.port) as proxy,
        Talk(
            tree,
            proxy.url,
            """
        await cache.initialize()
        say("ready"); await heard()
        values = await asyncio.gather(*[cache.get(f"b:{number}") for number in range(2000)])
        await asyncio.gather(*[cache.delete(f"gone{number % 50}:{number}") for number in range(5000)])
        link = cache._link()
        say([set(values) == {None}, cache._breaker_open(), cache.counters.breaker_opened, cache.counters.errors < 100,
             len(link.pending) <= module.MOST_PENDING,
             all(link.invalidations.covers(f"gone{number % 50}:{number}") for number in range(5000))])
        """,
        ) as talk,
    ):
        assert talk.said() == "ready"
        proxy.judge = lambda words: "silence"
        talk.say()
        assert talk.said() == [True, True, 1, True, True, True]


def test_calls_that_fail_while_ping_is_answered_do_not_open_the_breaker(tree: Tree, redis: servers.Redis) -> None:
    with redis_proxy(redis.port) as proxy:
        proxy.judge = lambda words: "silence" if words[0] == b"GET" else "pass"
        assert run(
            tree,
            proxy.url,
            """
        values = [await cache.get(f"k{number}") for number in range(5)]
        await cache.set("a", 1)
        return [values, cache.counters.breaker_opened, cache.counters.errors, await cache.exists("a")]
        """,
        ) == [[None] * 5, 0, 5, True]


def test_invalidations_survive_the_event_loop_they_came_from(tree: Tree, redis: servers.Redis) -> None:
    """A worker runs a loop for each task: the next one knows, and delivers."""
    with (
        redis_proxy(redis.port) as proxy,
        Talk(
            tree,
            proxy.url,
            """
        import threading
        await cache.set("a", "old")
        say("ready"); await heard()
        def task(work):
            out = []
            thread = threading.Thread(target=lambda: out.append(asyncio.run(work())))
            thread.start(); thread.join()
            return out[0]
        task(lambda: cache.delete("a"))
        say([task(lambda: cache.get("a")), await cache.get("a")]); await heard()
        async def until_delivered():
            await cache.get("x")
            while cache._store.pending.entries: await asyncio.sleep(0.02)
        task(until_delivered)
        say(await cache.get("a"))
        """,
        ) as talk,
    ):
        assert talk.said() == "ready"
        proxy.judge = only_writes(b"-MISCONF Redis is configured to save RDB snapshots\r\n")
        talk.say()
        assert talk.said() == [None, None]
        assert redis.cli("GET", "pam:cache:a") == '"old"'
        proxy.judge = lambda words: "pass"
        talk.say()
        assert talk.said() is None
    assert redis.cli("EXISTS", "pam:cache:a") == "0"


def test_what_is_kept_is_bounded_and_never_forgets(tree: Tree) -> None:
    """Many keys of one beginning become its pattern; many of many become everything."""
    found = run(
        tree,
        "redis://127.0.0.1:1",
        """
    out = []
    for name in ("user_profile:{}", "word{}:x", "plain{}"):
        kept = module.Invalidations()
        kept.remember("pattern", ["a\\\\*b*c"])
        for number in range(5000):
            kept.remember("key", [name.format(number)])
        out.append([len(kept.entries) <= module.MOST_PENDING, kept.covers("a*b-c"),
                    all(kept.covers(name.format(number)) for number in range(5000)),
                    kept.covers("untouched"), sorted(text for kind, text in kept.entries if kind == "pattern")])
    return out
    """,
    )
    assert found == [
        [True, True, True, False, ["a\\*b*c", "user_profile:*"]],
        [True, True, True, True, ["*"]],
        [True, True, True, True, ["*"]],
    ]


def test_deletes_of_what_has_a_long_name_or_a_wild_pattern(tree: Tree, redis: servers.Redis) -> None:
    assert run(
        tree,
        redis.url,
        """
    long = "context:" + "x" * 700
    await cache.set(long, 1); await cache.delete_pattern("context:" + "x" * 200 + "*")
    await cache.set("stars:1", 1); await cache.delete_pattern("stars:" + "*?" * 20)
    await cache.set("other", 1); await cache.delete_pattern("*" * 50)
    return [await cache.get(long), await cache.get("stars:1"), await cache.get("other")]
    """,
    ) == [None, None, 1]


def test_the_queue_of_this_process_is_bounded_in_time(tree: Tree, redis: servers.Redis) -> None:
    """Redis answers, each call takes long: whoever waits too long goes without, and Redis is not blamed."""
    with redis_proxy(redis.port) as proxy:

        def slowly(words: t.List[bytes]) -> Verdict:
            if words[0] == b"GET":
                time.sleep(0.1)  # what is slow is the thing under test
            return "pass"

        proxy.judge = slowly
        assert run(
            tree,
            proxy.url,
            """
        module.QUEUE_TIMEOUT = 0.3
        await cache.set("a", 1)
        values = await asyncio.gather(*[cache.get("a") for number in range(60)])
        return [1 in values, None in values, cache.counters.breaker_opened]
        """,
            env={**FROM_REDIS, "REDIS_MAX_CONNECTIONS": "2"},
        ) == [True, True, 0]
