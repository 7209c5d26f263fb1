# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache file in each release of the stand-in backend: callers get what they call, and a Redis that hangs holds up
nobody.
"""

from __future__ import annotations

import signal
import time
import typing as t

import pytest
import redis as redis_client

from tests.backend.materialise import RELEASES
from tests.support import servers
from tests.support.backend_env import running_backend
from tests.support.waiting import slowness, wait_until


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_release(release: str, postgres: servers.Postgres) -> None:
    def guard(directory: t.Any) -> None:
        """The August release does not start with its own speech service; that is another file's matter."""
        path = directory / "app/services/tts/tts_service.py"
        if release == "august":
            path.write_text(
                path.read_text().replace(
                    "from .streaming_tts import streaming_tts_service\n", "streaming_tts_service = None\n"
                )
            )

    password = "s3cretpw"
    with servers.redis() as redis:
        redis.cli("CONFIG", "SET", "requirepass", password)
        client = redis_client.Redis(port=redis.port, password=password)
        client.rpush("email", "task")
        client.set("sess:1", "x")
        url = f"redis://:{password}@127.0.0.1:{redis.port}/0"
        with running_backend(
            release, postgres.database(), url, patched=["services/cache_service.py"], prepare=guard
        ) as backend:
            assert backend.request("GET", "/health/services").json()["cache"]["status"] == "healthy"
            assert backend.request("GET", "/health/redis").json()["status"] == "healthy"
            redis.process.send_signal(signal.SIGSTOP)
            try:
                started = time.monotonic()
                for _ in range(5):
                    assert backend.request("GET", "/health/redis").json()["status"] != "healthy"
                assert backend.request("GET", "/health").status == 200
                assert time.monotonic() - started < 20 * slowness(), "the first version took 20 s for one"
            finally:
                redis.process.send_signal(signal.SIGCONT)
            wait_until(
                lambda: backend.request("GET", "/health/redis").json()["status"] == "healthy",
                what="health after Redis is back",
            )
            said = backend.logged() + (backend.app_log.read_text() if backend.app_log.exists() else "")
        assert password not in said
        assert (client.lrange("email", 0, -1), client.ttl("email"), client.get("sess:1"), client.ttl("sess:1")) == (
            [b"task"],
            -1,
            b"x",
            -1,
        )
