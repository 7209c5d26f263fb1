# SPDX-License-Identifier: MIT
"""The load of the machine as a level, and the signal that background work obeys. Needs no Celery: the web processes
write it too."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import socket
import threading
import time
import typing as t
from dataclasses import dataclass

from app.core.logging import get_logger
from app.wheels_ops import env
from app.wheels_ops.redis_url import default_url

logger = get_logger(__name__)

KEY = "pam:throttle"
#: Says that a performance monitor measures, so that beat need not: with ``:`` and the host's name on that host, without
#: on all.
OBSERVER_KEY = "pam:throttle:observer"
#: Seconds after which a throttle ends when nobody renews it, and between two renewals.
EXPIRES, RENEW = 90, 15
#: Levels and the classes of work that are slowed down without anybody asking for it; see ``celery_throttle``.
LEVELS = 4
AUTOMATIC: t.Tuple[str, ...] = ("cleanup", "analytics", "digest")


def levels() -> t.Tuple[float, ...]:
    """CPU in percent at which level 1, 2 and 3 begin: the host's warning and critical, and what leaves nothing for
    requests."""
    warning = env.number("CPU_WARNING_THRESHOLD", 70.0)
    critical = max(warning, env.number("CPU_CRITICAL_THRESHOLD", 85.0))
    return warning, critical, max(95.0, critical)


RAISE = levels()
#: A level ends when the load has been this far below its beginning for HOLD seconds.
BELOW, HOLD = 10.0, 15.0
#: Time constant of the average in seconds: 2-core machine busy from one moment to the next is at level 2 after 6 s.
TAU = 3.0
#: PSI cpu ``some avg10`` in percent, the longest stall of the event loop in ms, and the percentage of the last minute
#: in which it was blocked, that mean as much as RAISE. Level 2 begins where the monitor warns of a stall.
PSI_RAISE: t.Tuple[float, ...] = (50.0, 70.0, 90.0)
LAG_RAISE: t.Tuple[float, ...] = (100.0, 250.0, 1000.0)
BLOCKED_RAISE: t.Tuple[float, ...] = (10.0, 25.0, 50.0)


#: Writes, and renews the expiry: 1 written, 0 left alone. Left alone is an operator's throttle, and a higher level that
#: another process wrote (a busy machine beside an idle one): it expires when that one no longer renews it.
_WRITE = """
if redis.call('HGET', KEYS[1], 'source') == 'operator' then return 0 end
local writer, level = redis.call('HGET', KEYS[1], 'writer'), tonumber(redis.call('HGET', KEYS[1], 'level') or '0') or 0
if writer and writer ~= ARGV[7] and level > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[1] == '0' then return 1 end
redis.call('HSET', KEYS[1], 'level', ARGV[1], 'classes', ARGV[2], 'source', ARGV[3], 'reason', ARGV[4],
    'since', ARGV[5], 'writer', ARGV[7])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return 1
"""


def observer_key() -> str:
    """The key of this host's monitor."""
    return f"{OBSERVER_KEY}:{socket.gethostname()}"


#: Who writes: one process.
WRITER = f"{socket.gethostname()}:{os.getpid()}"


def redis_address(url: object) -> str:
    """The address as redis-py takes it. Celery wants ``ssl_cert_reqs=CERT_NONE`` in the one that both read, redis-py
    ``none``."""
    return re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)",
        lambda match: match[1].lower(),
        str(url),
        flags=re.IGNORECASE,
    )


def client_for(url: str) -> t.Any:
    """A client that never keeps its caller waiting for long: a slow Redis means full rate."""
    import redis

    return redis.Redis.from_url(
        redis_address(url),
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        decode_responses=True,
        health_check_interval=30,
    )


def demoted(error: BaseException) -> bool:
    """Whether a Redis said that it is not the one that takes writes: after a failover its name leads elsewhere."""
    if type(error).__name__ in ("ReadOnlyError", "MasterDownError"):  # of these the client takes the code off the text
        return True
    return bool(re.search(r"\b(READONLY|MASTERDOWN|NOREPLICAS)\b", str(error)))


def on_current_server(client: t.Any, work: t.Callable[[t.Any], t.Any]) -> t.Any:
    """``work(client)``; from a demoted server once more on the one that the client's address leads to now."""
    try:
        return work(client)
    except Exception as error:
        if not demoted(error):
            raise
        client.connection_pool.disconnect()
        return work(client)


def _score(value: t.Optional[float], limits: t.Sequence[float]) -> float:
    """A measurement on the scale of RAISE, linear between the limits."""
    if value is None or value <= 0:
        return 0.0
    xs, ys = (0.0, *limits), (0.0, *RAISE)
    for x_low, x_high, low, high in zip(xs, xs[1:], ys, ys[1:]):
        if value <= x_high:
            return low + (high - low) * (value - x_low) / (x_high - x_low)
    return 100.0


@dataclass
class Load:
    """From measurements to a level: an average, the worst of three signals, and hysteresis."""

    level: int = 0
    average: float = 0.0
    reason: str = ""
    _last: t.Optional[float] = None
    _below_since: t.Optional[float] = None

    def observe(
        self,
        cpu_percent: float,
        psi: t.Optional[float] = None,
        loop_lag_ms: t.Optional[float] = None,
        loop_blocked_percent: t.Optional[float] = None,
        *,
        now: t.Optional[float] = None,
    ) -> int:
        """One measurement at any interval; ``psi`` is cpu ``some avg10`` in percent. Gives the level."""
        now = time.monotonic() if now is None else now
        # The first measurement is taken as it is, a later one counts by the time since the one before.
        weight = 1.0 if self._last is None else 1.0 - 2.718281828 ** (-max(0.0, now - self._last) / TAU)
        if self._last is None:
            weight = 0.5
        self._last = now
        self.average += weight * (max(0.0, min(100.0, cpu_percent)) - self.average)
        scores = {"cpu": self.average, "psi": _score(psi, PSI_RAISE), "lag": _score(loop_lag_ms, LAG_RAISE)}
        scores["blocked"] = _score(loop_blocked_percent, BLOCKED_RAISE)
        worst = max(scores, key=lambda name: scores[name])
        score = scores[worst]
        target = sum(score >= limit for limit in RAISE)
        if target >= self.level:
            self._below_since = None
            self.level = target
        elif score < RAISE[self.level - 1] - BELOW:
            self._below_since = now if self._below_since is None else self._below_since
            if now - self._below_since >= HOLD:
                self.level, self._below_since = sum(score >= limit - BELOW for limit in RAISE[: self.level - 1]), None
        else:
            self._below_since = None
        reasons = {
            "cpu": f"cpu {self.average:.0f} %",
            "psi": f"cpu pressure {psi or 0:.0f} %",
            "lag": f"event loop {loop_lag_ms or 0:.0f} ms late",
            "blocked": f"event loop blocked {loop_blocked_percent or 0:.0f} % of the time",
        }
        self.reason = reasons[worst]
        return self.level


class LoadPublisher:
    """For whoever measures the load: ``observe`` after every sample, ``close`` at the end.

    ``observe`` never waits for Redis: writing is the work of a thread of its own, which starts with the first call. The
    hash is written when the level changes and renewed while it is above 0; it expires by itself when we die.
    """

    def __init__(self, redis_url: t.Optional[str] = None, *, source: str = "monitor") -> None:
        self.url, self.source = redis_url, source
        self.load = Load()
        self._queue: queue.Queue[t.Optional[t.Tuple[int, str]]] = queue.Queue(maxsize=8)
        self._thread: t.Optional[threading.Thread] = None
        self._written: t.Tuple[int, float] = (0, float("-inf"))
        self._since = ""

    def observe(
        self,
        cpu_percent: float,
        psi: t.Optional[float] = None,
        loop_lag_ms: t.Optional[float] = None,
        loop_blocked_percent: t.Optional[float] = None,
    ) -> int:
        """Takes a measurement and gives the level (0 to 3). Cheap, may be called on an event loop."""
        level = self.load.observe(cpu_percent, psi, loop_lag_ms, loop_blocked_percent)
        now = time.monotonic()
        if level != self._written[0] or now - self._written[1] >= RENEW:
            self._written = (level, now)
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((level, self.load.reason))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="throttle-writer", daemon=True)
                self._thread.start()
        return level

    def close(self) -> None:
        """Ends the thread; what was written is left to expire."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(2)

    def _work(self) -> None:
        client = None
        failing = False
        while True:
            item = self._queue.get()
            if item is None:
                return
            level, reason = item
            try:
                client = client or client_for(self.url or default_url())
                self._since = (self._since or str(int(time.time()))) if level else ""
                write = functools.partial(
                    publish,
                    level=level,
                    classes=AUTOMATIC,
                    source=self.source,
                    reason=reason,
                    since=self._since,
                )
                on_current_server(client, write)
                failing = False
            except Exception as error:  # the hash expires, which is the full rate
                if not failing:
                    logger.warning("Throttle cannot be written: %s", type(error).__name__)
                failing = True


def publish(
    client: t.Any,
    level: int,
    classes: t.Sequence[str],
    source: str,
    reason: str,
    *,
    since: str = "",
    expires: int = EXPIRES,
) -> bool:
    """Writes the hash, unless an operator's is in force; whether it was written."""
    if source == "monitor":
        client.set(observer_key(), source, ex=2 * RENEW)
    return bool(
        client.eval(
            _WRITE,
            1,
            KEY,
            str(level),
            ",".join(classes),
            source,
            reason,
            since or str(int(time.time())),
            str(expires),
            WRITER,
        )
    )


async def publish_level(
    level: int, *, reason: str = "", redis_url: t.Optional[str] = None, source: str = "monitor"
) -> bool:
    """Writes a level once, without stopping the event loop; for callers that have their own way of judging the load."""
    import asyncio

    def write() -> bool:
        client = client_for(redis_url or default_url())
        try:
            return publish(client, max(0, min(LEVELS - 1, level)), AUTOMATIC, source, reason)
        finally:
            client.close()

    return await asyncio.to_thread(write)


class ProcessorSampler:
    """CPU of the whole machine in percent since the last call, and PSI, from /proc; (None, None) elsewhere."""

    def __init__(self) -> None:
        self._last: t.Optional[t.Tuple[int, int]] = None

    def sample(self) -> t.Tuple[t.Optional[float], t.Optional[float]]:
        try:
            with open("/proc/stat", encoding="ascii") as file:
                numbers = [int(word) for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return None, None
        total, idle = sum(numbers), numbers[3] + numbers[4]
        last, self._last = self._last, (total, idle)
        psi = None
        with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/pressure/cpu", encoding="ascii") as file:
            psi = float(file.readline().split("avg10=")[1].split()[0])
        if last is None or total <= last[0]:
            return None, psi
        return 100.0 * (1.0 - (idle - last[1]) / (total - last[0])), psi
