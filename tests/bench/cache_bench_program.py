# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the backend's interpreter: one measurement of the cache. Arguments: ``ours`` or ``naive``, what. Prints JSON,
last line.

``naive`` is the first version, written from the description of its defects: no prefix, a pool with long timeouts and
the client's default retries, a sweep by KEYS and one TTL for each key, everything read from Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
import typing as t

import redis.asyncio as aioredis
from app.services.cache_service import CacheService

VALUE = {"id": 1, "name": "a" * 120, "ok": True, "tags": ["x", "y", "z"], "n": 3.5}


class Naive:
    def __init__(self) -> None:
        self.redis: t.Any = None
        self.default_ttl = 300
        self.timeout = 5.0

    async def initialize(self) -> None:
        self.redis = aioredis.from_url(
            os.environ["REDIS_URL"],
            decode_responses=True,
            max_connections=20,
            health_check_interval=30,
            socket_connect_timeout=10,
            socket_timeout=self.timeout,
        )

    async def get(self, key: str) -> t.Any:
        try:
            text = await self.redis.get(key)
            return None if text is None else json.loads(text)
        except Exception:
            return None

    async def set(self, key: str, value: t.Any, ttl: t.Optional[int] = None) -> None:
        await self.redis.setex(key, ttl or self.default_ttl, json.dumps(value, default=str))

    async def get_or_set(self, key: str, loader: t.Callable[[], t.Awaitable[t.Any]]) -> t.Any:
        value = await self.get(key)
        if value is None:
            value = await loader()
            await self.set(key, value)
        return value

    async def clear_expired(self) -> int:
        for key in await self.redis.keys("*"):
            if await self.redis.ttl(key) == -1:
                await self.redis.expire(key, self.default_ttl)
        return 0

    async def clear_prefix(self, prefix: str) -> int:
        self.timeout = 600.0  # one DEL of a million names takes longer than the first version would have waited
        await self.initialize()
        keys = await self.redis.keys(prefix + "*")
        return int(await self.redis.delete(*keys)) if keys else 0

    async def clear_by_script(self, prefix: str) -> int:
        """As fastapi-cache does it."""
        self.timeout = 600.0
        await self.initialize()
        script = "for i, name in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', name); end"
        await self.redis.eval(script, 0, prefix + "*")
        return 0


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(who: str, what: str) -> t.Any:
    cache: t.Any = CacheService() if who == "ours" else Naive()
    await cache.initialize()
    if what in ("clear_expired", "clear_prefix", "clear_by_script"):
        arguments = [] if what == "clear_expired" else ["x" if who == "ours" else "pam:cache:x"]
        start, used = time.perf_counter(), cpu()
        await getattr(cache, what)(*arguments)
        return {"wall": time.perf_counter() - start, "cpu": cpu() - used}
    if what == "hit":
        if who == "ours":
            cache._store.fresh_for = 3600.0  # what is measured is a hit; how long one stays fresh is a setting
        await cache.set("hot", VALUE)
        await cache.get("hot")
        number = 20_000 if who == "ours" else 2_000
        used = cpu()
        for _ in range(number):
            await cache.get("hot")
        return {"us": (cpu() - used) / number * 1e6}
    if what == "stampede":
        loads = 0

        async def load() -> t.Any:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.1)
            return VALUE

        await asyncio.gather(*[cache.get_or_set("hot", load) for _ in range(200)])
        return {"loads": loads}
    # an outage: the parent stops Redis between the lines
    await cache.set("hot", VALUE)
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    for number in range(1000 if who == "ours" else 1):
        start = time.perf_counter()
        await cache.get(f"k{number}")
        times.append(time.perf_counter() - start)
    print("done", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    while who == "ours" and cache._breaker_open():
        await cache.get("poll")
        await asyncio.sleep(0.01)
    return {
        "first": max(times[:3]),
        "rest": sorted(times[3:] or times)[int(len(times[3:] or times) * 0.99)],
        "back": time.perf_counter() - start,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2]))))
