# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache on Python 3.9 and 3.10 and with redis-py 4, on addresses that it does not speak, and with defects of ours."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.cache_program import run
from tests.support.patched_tree import Tree, patched_tree
from tests.support.tcp_gate import gate


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "services/cache_service.py", "wheels_ops/redis_url.py")


@pytest.fixture
def older(tmp_path: Path) -> t.Dict[str, str]:
    """What only newer releases have is taken away before anything is imported: asyncio.timeout (3.11), aclose (5.0.1)."""
    (tmp_path / "sitecustomize.py").write_text(
        "import redis.asyncio, asyncio\n"
        "redis.asyncio.Redis.close, redis.asyncio.Redis.aclose = redis.asyncio.Redis.aclose, None\n"
        "del redis.asyncio.Redis.aclose, asyncio.timeout\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_cache_works_without_what_newer_releases_have(
    tree: Tree, older: t.Dict[str, str], redis_server: servers.Redis
) -> None:
    found = run(
        tree,
        redis_server.url,
        """
        await cache.initialize()
        kept = [await cache.set("of-old", {"a": 1}, 60), await cache.get("of-old")]
        await cache.close()
        return [hasattr(asyncio, "timeout"), kept, cache.counters.errors]
        """,
        env=older,
    )
    assert found == [False, [None, {"a": 1}], 0]
    assert redis_server.cli("EXISTS", "pam:cache:of-old") == "1"


def test_limits_in_time_hold_without_asyncio_timeout(
    tree: Tree, older: t.Dict[str, str], redis_server: servers.Redis
) -> None:
    with gate(redis_server.port) as way:
        found = run(
            tree,
            f"redis://127.0.0.1:{way.port}/0",
            """
            await cache.initialize()
            class Silent:
                async def get(self, *_): await asyncio.sleep(60)
            started = time.monotonic()
            try:
                async with module.time_limit(0.1):
                    await asyncio.sleep(60)
            except TimeoutError:
                expired = time.monotonic() - started < 30
            task = asyncio.ensure_future(asyncio.sleep(60))
            async def outer():
                async with module.time_limit(30):
                    await task
            waiting = asyncio.ensure_future(outer())
            await asyncio.sleep(0.05)
            waiting.cancel()
            try:
                await waiting
            except asyncio.CancelledError:
                cancelled = True
            return [expired, cancelled]
            """,
            env=older,
        )
    assert found == [True, True], "its own end is a TimeoutError, a cancellation stays one"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sentinel://:s3cret@10.0.0.1:26379/mymaster", "Sentinel"),
        ("redis+sentinel://10.0.0.1/mymaster", "Sentinel"),
        ("redis+cluster://:s3cret@10.0.0.1:7000", "a cluster"),
        ("redis://:s3cret@10.0.0.1:7000,10.0.0.2:7000/0", "a cluster"),
        ("http://10.0.0.1", "must begin with redis://"),
    ],
)
def test_address_that_is_not_supported_is_refused_by_name(tree: Tree, url: str, name: str) -> None:
    assert run(tree, url, "await cache.initialize()\nreturn await cache.get('x')") is None
    lines = [line["event"] for line in tree.logged() if line["level"] == "error"]
    assert len(lines) == 1 and lines[0].startswith("Cache is off: REDIS_URL") and name in lines[0], lines
    assert "s3cret" not in lines[0]


def test_error_in_the_program_is_no_outage(tree: Tree, redis_server: servers.Redis) -> None:
    found = run(
        tree,
        redis_server.url,
        """
        await cache.initialize()
        def broken(client):
            return client.no_such_method()
        for _ in range(5):
            with contextlib.suppress(CacheUnavailableError):
                await cache._call(broken)
        return [cache._link().open, cache._link().failures, await cache.set("after", 1, 60), await cache.get("after")]
        """,
    )
    assert found == [False, 0, None, 1]
    (line,) = [line for line in tree.logged() if line["level"] == "error"]
    assert line["event"] == "Cache: an error in the program, Redis is not to blame"
    assert "no_such_method" in line["error"] and ":" in line["place"]
