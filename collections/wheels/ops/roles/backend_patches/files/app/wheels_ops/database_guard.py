# SPDX-License-Identifier: MIT
"""The emergency procedure for the database: retry, read-only operation, alert, restart request.

1. The connection is tried again with exponential backoff and jitter (tenacity), a bounded number of times a round.
2. Where ``DATABASE_REPLICA_URL`` names a replica that answers, the registered asyncpg pools are pointed at it,
   read-only.
3. An alert is raised at once; administrators see it in the log, in ``health`` and through a request to the host.
4. After ``DATABASE_RESTART_AFTER`` seconds (60) without the primary the host is asked for a restart, at most every ten
   minutes.

A backend without ``DATABASE_URL`` reaches its database through Supabase's REST interface: then that is what is watched
and tried again, and ``SUPABASE_REPLICA_URL`` is where reads may go (see ``rest_door.py``).

When the primary is back, the pools are pointed back at it and everything is cleared.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import typing as t
from urllib.parse import parse_qsl, urlencode

from app.core.logging import get_logger
from app.monitoring.memory_optimizer import within
from app.wheels_ops.rest_door import RestDoor

logger = get_logger(__name__)

ATTEMPTS = 4
RESTART_EVERY_SECONDS = 600.0


#: asyncpg's own parameters and two settings of the server; it would hand any other one to the server, which refuses it.
_PARAMETERS = (
    "host",
    "port",
    "dbname",
    "database",
    "user",
    "password",
    "passfile",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "target_session_attrs",
    "application_name",
    "options",
)


def dsn_of(name: str) -> str:
    """A PostgreSQL URL from the environment as asyncpg reads it; empty where there is none.

    Parameters of SQLAlchemy's drivers, of libpq and of poolers (``prepared_statement_cache_size``, ``channel_binding``,
    ``pgbouncer``) are left out; ``ssl``, as SQLAlchemy spells it, becomes ``sslmode``.
    """
    value = os.environ.get(name, "").strip()
    scheme, separator, rest = value.partition("://")
    if not separator or not scheme.startswith("postgres"):
        return ""
    address, _ignored, query = rest.partition("?")
    words = []
    for key, text in parse_qsl(query):
        if key == "ssl":
            key, text = "sslmode", {"true": "require", "false": "disable"}.get(text.lower(), text)
        if key in _PARAMETERS:
            words.append((key, text))
    return f"postgresql://{address}" + (f"?{urlencode(words)}" if words else "")


class DatabaseGuard:
    """``state`` is ``ok``, ``reconnecting``, ``read_only`` or ``down``.

    ``alert(level, message)`` and ``ask_host(kind, details)`` are given by whoever starts the guard.
    """

    def __init__(
        self,
        *,
        timeout: float,
        alert: t.Callable[[str, str], None],
        clear: t.Callable[[], None],
        ask_host: t.Callable[[str, t.Dict[str, t.Any]], t.Awaitable[t.Any]],
        restart_after: float,
    ) -> None:
        self.primary = dsn_of("DATABASE_URL")
        self.replica = dsn_of("DATABASE_REPLICA_URL")
        self.door = None if self.primary else RestDoor.of("SUPABASE_URL", timeout)
        self.replica_door = RestDoor.of("SUPABASE_REPLICA_URL", timeout) if self.door else None
        self.timeout = timeout
        self.restart_after = restart_after
        self.state = "ok"
        self.since = time.monotonic()
        self.attempts = 0
        self.connection: t.Any = None
        self._replica_connection: t.Any = None
        self._down_since: t.Optional[float] = None
        self._next_restart = 0.0
        self._alerted = False
        self._alert, self._clear, self._ask_host = alert, clear, ask_host
        self._pools: t.List[t.Tuple[t.Any, t.Dict[str, t.Any]]] = []
        self._switched: t.List[t.Any] = []

    # -- for the application ----------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        return self.state == "read_only"

    def current_dsn(self) -> str:
        """Where to connect to now."""
        return self.replica if self.read_only else self.primary

    def current_url(self) -> str:
        """Which REST interface to ask now; empty where the database is reached by ``current_dsn``."""
        door = self.replica_door if self.read_only else self.door
        return door.url if door else ""

    def register_pool(self, pool: t.Any, **connect_arguments: t.Any) -> None:
        """An asyncpg pool that is to follow the guard; ``connect_arguments`` are those it was made with."""
        self._pools.append((pool, connect_arguments))

    def pools(self) -> t.List[t.Tuple[t.Any, t.Dict[str, t.Any]]]:
        """The registered pools and the one of the backend's own database service, where it has one."""
        pools = list(self._pools)
        service = getattr(sys.modules.get("app.services.database"), "database_service", None)
        pool = getattr(service, "_pool", None)
        if hasattr(pool, "set_connect_args") and all(pool is not entry for entry, _ignored in pools):
            pools.append((pool, {"command_timeout": 30}))
        return pools

    def pool_numbers(self) -> t.Dict[str, float]:
        """Connections in use and in all, over every known pool."""
        size = idle = 0
        for pool, _ignored in self.pools():
            with contextlib.suppress(Exception):
                size, idle = size + pool.get_size(), idle + pool.get_idle_size()
        return {"db_pool_size": float(size), "db_pool_in_use": float(size - idle)} if self.pools() else {}

    def describe(self) -> t.Dict[str, t.Any]:
        return {
            "state": self.state,
            "seconds_in_state": round(time.monotonic() - self.since, 1),
            "attempts": self.attempts,
            "replica_configured": bool(self.replica or self.replica_door),
            "reached_by": "postgresql" if self.primary else "rest" if self.door else "",
        }

    # -- the procedure ----------------------------------------------------------------------------------------------

    async def connect(self) -> t.Any:
        """The kept connection to the primary, made anew where it is gone; or its REST interface."""
        if self.door is not None:
            return self.door
        import asyncpg

        if self.connection is None or self.connection.is_closed():
            self.connection = await within(
                asyncpg.connect(
                    self.primary, timeout=self.timeout, command_timeout=self.timeout, statement_cache_size=0
                ),
                self.timeout,
            )
        return self.connection

    def drop(self) -> None:
        """Forgets the kept connection without waiting for a server that may be frozen."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.terminate()

    async def attempt(self, ask: t.Callable[[t.Any], t.Awaitable[t.Any]]) -> t.Any:
        """``ask(connection)`` within the timeout; a failed connection is dropped."""
        try:
            return await within(self._ask(ask), 2 * self.timeout)
        except BaseException:
            self.drop()
            raise

    async def _ask(self, ask: t.Callable[[t.Any], t.Awaitable[t.Any]]) -> t.Any:
        connection = await self.connect()
        return await within(ask(connection), self.timeout)

    async def reconnect(self, ask: t.Callable[[t.Any], t.Awaitable[t.Any]]) -> t.Any:
        """One round of bounded retries with exponential backoff and jitter; raises the last error."""
        try:
            from tenacity import AsyncRetrying, stop_after_attempt, wait_exponential_jitter
        except ImportError:  # then a round is one attempt: the primary must be found again in any case
            self.attempts += 1
            return await self.attempt(ask)
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(initial=0.1, max=2, jitter=0.2),
            reraise=True,
        ):
            with attempt:
                self.attempts += 1
                return await self.attempt(ask)
        raise AssertionError("tenacity ended without an attempt")

    async def failed(self) -> None:
        """Called after a confirmed failure: alert, and start counting."""
        if self._down_since is None:
            self._down_since = time.monotonic()
        if self.state == "ok":
            self._to("reconnecting")
        if not self._alerted:
            self._alerted = True
            self._alert("critical", "the database does not answer")
            await self._ask_host("alert", {"subject": "database", "state": self.state})

    async def gave_up(self) -> None:
        """Called when a round of retries found nothing: replica, then restart request."""
        if await self._replica_answers():
            if not self.read_only:
                self._to("read_only")
                await self._point_pools_at(self.replica, read_only=True)
        elif self.state != "down":
            self._to("down")
            if self._switched:
                await self._point_pools_at(self.primary, read_only=False)
        now = time.monotonic()
        if self._down_since is not None and now - self._down_since >= self.restart_after and now >= self._next_restart:
            self._next_restart = now + RESTART_EVERY_SECONDS
            logger.error(f"🛢️ The database is gone for {now - self._down_since:.0f} s: asking the host for a restart")
            await self._ask_host("restart", {"subject": "database", "seconds": round(now - self._down_since)})

    async def recovered(self) -> None:
        if self.state == "ok" and self._down_since is None:
            return
        logger.info(
            f"🛢️ The database answers again after {time.monotonic() - (self._down_since or time.monotonic()):.1f} s"
        )
        self._down_since, self._alerted, self.attempts = None, False, 0
        self._to("ok")
        self._clear()
        if self._switched:
            await self._point_pools_at(self.primary, read_only=False)
        await self._close_replica()

    def _to(self, state: str) -> None:
        if state != self.state:
            logger.warning(f"🛢️ Database: {self.state} -> {state}")
            self.state, self.since = state, time.monotonic()

    async def _replica_answers(self) -> bool:
        if self.replica_door is not None:
            try:
                return bool(await within(self.replica_door.state("profiles"), self.timeout))
            except Exception as error:  # a replica that is down too is an answer
                logger.warning(f"🛢️ The replica does not answer: {type(error).__name__}")
                return False
        if not self.replica:
            return False
        import asyncpg

        try:
            if self._replica_connection is None or self._replica_connection.is_closed():
                self._replica_connection = await within(
                    asyncpg.connect(
                        self.replica, timeout=self.timeout, command_timeout=self.timeout, statement_cache_size=0
                    ),
                    self.timeout,
                )
            return bool(await within(self._replica_connection.fetchval("select 1"), self.timeout))
        except Exception as error:  # a replica that is down too is an answer
            logger.warning(f"🛢️ The replica does not answer: {type(error).__name__}")
            await self._close_replica()
            return False

    async def _close_replica(self) -> None:
        connection, self._replica_connection = self._replica_connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.terminate()

    async def _point_pools_at(self, dsn: str, *, read_only: bool) -> None:
        """Later connections of the pools go there; those that exist are replaced as they come back."""
        self._switched = []
        for pool, arguments in self.pools():
            settings = {
                **arguments.get("server_settings", {}),
                **({"default_transaction_read_only": "on"} if read_only else {}),
            }
            try:
                pool.set_connect_args(dsn, **{**arguments, **({"server_settings": settings} if settings else {})})
                await within(pool.expire_connections(), self.timeout)
            except Exception as error:  # one pool that cannot be moved must not keep the others
                logger.error(f"🛢️ A connection pool could not be moved: {type(error).__name__}")
                continue
            if read_only:
                self._switched.append(pool)

    async def close(self) -> None:
        self.drop()
        await self._close_replica()
