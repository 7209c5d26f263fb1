# SPDX-License-Identifier: MIT
"""Samples the dependencies of this process in the background: database, Redis, Celery, CORS, text to speech, WebSocket.

Each check is a task of its own with its own timeout, so a frozen dependency delays nobody. A failure is confirmed by a
second try before it is posted: seen within ``2 * timeout + interval`` seconds, and a single slow answer is no alarm.
Answers of the API come from what was posted; nothing there ever waits for a dependency.

Environment: ``HEALTH_CHECK_INTERVAL`` 5 s, ``HEALTH_CHECK_TIMEOUT`` 1 s, ``DATABASE_URL``, ``DATABASE_REPLICA_URL``,
``DATABASE_RESTART_AFTER`` 60 s, ``HEALTH_EXPECTED_TABLES``, ``REDIS_URL``, ``CELERY_QUEUES``,
``CELERY_QUEUE_DEPTH_WARNING`` 1000, ``CELERY_QUEUE_AGE_WARNING`` 900 s, ``CELERY_BEAT_HEARTBEAT_KEY``,
``CELERY_THROTTLE_FROM_WEB`` (true: the load seen here slows background work down).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import os
import random
import re
import socket
import sys
import time
import typing as t

from app.core.logging import get_logger
from app.monitoring.memory_optimizer import end_tasks, orphaned, within
from app.wheels_ops import env, redis_url
from app.wheels_ops.database_guard import DatabaseGuard
from app.wheels_ops.load import LoadPublisher, ProcessorSampler, demoted, redis_address
from app.wheels_ops.rest_door import RestDoor

logger = get_logger(__name__)

#: Tables whose absence the incident report names.
EXPECTED_TABLES = ("affiliate_sales", "user_wishlists", "wishlist_items")
#: Every policy is looked at again after this time, even where the catalogue says that none has changed.
POLICY_PROBE_SECONDS = 60.0
QUEUES = ("email", "maintenance", "analytics", "cleanup", "notifications", "default", "celery")
FOREIGN_ORIGIN = "https://wheels-ops-probe.invalid"
PREFLIGHT_PATH = "/api/v1/pam/chat"


class Down(Exception):
    """A dependency that does not do its work; the message says so in one sentence."""


class Check:
    """``run`` measures and posts its details; it raises where the dependency is down, which becomes ``name: fail``."""

    name = ""
    kind = "component"

    def __init__(self, checks: HealthChecks) -> None:
        self.checks = checks
        self.board = checks.board

    async def run(self) -> None:
        """Each check has its own."""

    async def failed(self, reason: str) -> None:
        self.post("fail", reason)

    async def close(self) -> None:
        return None

    def post(self, status: str, output: str = "", *, name: str = "", value: t.Any = None, unit: str = "") -> None:
        self.board.post(
            name or self.name, status, output, value=value, unit=unit, kind=self.kind, period=self.checks.period
        )

    def skip(self, reason: str, name: str = "") -> None:
        self.board.note(name or self.name, reason)


class HealthChecks:
    """All checks of this process and the numbers they found."""

    def __init__(self, api: t.Any) -> None:
        self.api = api
        self.board = api.board
        self.interval = env.number("HEALTH_CHECK_INTERVAL", 5.0, low=0.05)
        self.timeout = env.number("HEALTH_CHECK_TIMEOUT", 1.0, low=0.01)
        #: Seconds between two samples at most, where the answer is waited for longer than the next one.
        self.period = max(self.interval, self.timeout)
        self.numbers: t.Dict[str, float] = {}
        self.tasks: t.List[asyncio.Task[None]] = []
        #: Ends the loops, also where a library loses a cancellation (``asyncio.wait_for`` does, up to Python 3.11).
        self.stopping = False
        self.publisher: t.Optional[LoadPublisher] = None
        self.processor = ProcessorSampler()
        self.checks: t.List[Check] = [
            DatabaseCheck(self),
            RedisCheck(self),
            CorsCheck(self),
            SpeechCheck(self),
            WebSocketCheck(self),
            StabilityCheck(self),
        ]

    async def start(self) -> None:
        monitor = self.api.performance_monitor
        monitor.sources.append(self.current_numbers)
        self.publisher = self._publisher()
        if self.publisher is not None:
            monitor.observers.append(self._tell_celery)
        await asyncio.wait([asyncio.create_task(self.once(check)) for check in self.checks], timeout=4 * self.timeout)
        self.tasks = [asyncio.create_task(self._loop(check), name=f"check-{check.name}") for check in self.checks]

    def _publisher(self) -> t.Optional[LoadPublisher]:
        """Writes the load for Celery, whose beat then need not measure on this host; None without a Redis to write
        to."""
        url = next((check.url for check in self.checks if isinstance(check, RedisCheck)), "")
        enabled = env.flag("CELERY_THROTTLE_ENABLED", True) and env.flag("CELERY_THROTTLE_FROM_WEB", True)
        installed = sys.modules.get("redis") is not None or importlib.util.find_spec("redis") is not None
        return LoadPublisher(url) if url and not redis_url.unsupported(url) and enabled and installed else None

    def _tell_celery(self, values: t.Mapping[str, float]) -> None:
        """Background work slows down with the load that we measure; never waits."""
        if self.publisher is not None and "cpu_percent" in values:
            _ignored, pressure = self.processor.sample()
            loop = values.get("loop_lag_ms"), values.get("loop_blocked_percent")
            self.publisher.observe(values["cpu_percent"], pressure, *loop)

    async def stop(self) -> None:
        self.stopping = True
        monitor = self.api.performance_monitor
        if self._tell_celery in monitor.observers:
            monitor.observers.remove(self._tell_celery)
        if self.publisher is not None:
            await asyncio.to_thread(self.publisher.close)
        await end_tasks(*self.tasks)
        self.tasks.clear()
        if self.current_numbers in self.api.performance_monitor.sources:
            self.api.performance_monitor.sources.remove(self.current_numbers)
        for check in self.checks:
            with contextlib.suppress(Exception):
                await check.close()

    def current_numbers(self) -> t.Dict[str, float]:
        return self.numbers

    async def _loop(self, check: Check) -> None:
        await asyncio.sleep(self.interval * random.random())  # not all at the same moment
        while not self.stopping:
            await self.once(check)
            await asyncio.sleep(self.interval)

    async def once(self, check: Check) -> None:
        """One measurement, confirmed by a second one where it failed."""
        reason = ""
        for attempt in (1, 2):
            try:
                await within(check.run(), 3 * self.timeout)
                return
            except Exception as error:
                reason = str(error) if isinstance(error, Down) else f"no answer ({type(error).__name__})"
                if not isinstance(error, (Down, OSError, asyncio.TimeoutError)):
                    logger.debug(f"🩺 {check.name}: {type(error).__name__}: {error}")
            if attempt == 1:
                await asyncio.sleep(min(0.3, self.interval))
        try:
            await check.failed(reason)
        except Exception as error:
            self.board.post(check.name, "fail", reason, kind=check.kind, period=self.period)
            logger.error(f"🩺 The procedure for {check.name} failed: {type(error).__name__}: {error}")


class DatabaseCheck(Check):
    """select 1, the tables that must be there, and whether any policy is recursive (42P17), asked as
    ``authenticated``."""

    name = "database:connection"
    kind = "datastore"

    def __init__(self, checks: HealthChecks) -> None:
        super().__init__(checks)
        monitor, api = checks.api.performance_monitor, checks.api
        self.guard = DatabaseGuard(
            timeout=checks.timeout,
            alert=lambda level, message: monitor.raise_alert("database", api.AlertLevel(level), message),
            clear=lambda: monitor.clear_alert("database"),
            ask_host=self._ask_host,
            restart_after=env.number("DATABASE_RESTART_AFTER", 60.0),
        )
        self.tables = env.names("HEALTH_EXPECTED_TABLES", EXPECTED_TABLES)
        self._policies: t.Tuple[str, float, t.List[str]] = ("", 0.0, [])
        self._rounds: t.Optional[asyncio.Task[None]] = None

    async def _ask_host(self, kind: str, details: t.Dict[str, t.Any]) -> None:
        await asyncio.to_thread(
            self.checks.api.write_request,
            kind,
            f"database {details.get('state') or 'does not come back'}",
            requested_by="database guard",
            details=details,
        )

    async def run(self) -> None:
        guard = self.guard
        if not guard.primary and guard.door is None:
            self.skip("neither DATABASE_URL nor SUPABASE_URL with its key is set")
            return
        try:
            import asyncpg  # noqa: F401 - only whether it is there
        except ImportError:
            if guard.door is None:
                self.skip("asyncpg is not installed")
                return
        if self._rounds is not None and not self._rounds.done():
            return  # the emergency procedure is at work and posts what it finds
        facts = await guard.attempt(self._ask)
        await self._post(facts)

    async def _post(self, facts: t.Tuple[float, t.List[str], t.Optional[t.List[str]]]) -> None:
        milliseconds, missing, recursive = facts
        await self.guard.recovered()
        self.checks.numbers["db_query_ms"] = milliseconds
        self.checks.numbers.update(self.guard.pool_numbers())
        self.post("pass", value=round(milliseconds, 2), unit="ms")
        self.board.sections["database"] = self.guard.describe()
        if missing:
            self.post("fail", f"missing tables: {', '.join(missing)}", name="database:tables", value=len(missing))
        else:
            self.post("pass", name="database:tables", value=0)
        if recursive is None:
            self.skip("the role authenticated does not exist, or this user may not become it", name="database:policies")
        elif recursive:
            self.post(
                "fail",
                f"infinite recursion in the policies of {', '.join(recursive)}",
                name="database:policies",
                value=len(recursive),
            )
        else:
            self.post("pass", name="database:policies", value=0)

    async def failed(self, reason: str) -> None:
        self.post("fail", reason)
        for name in ("database:tables", "database:policies"):
            self.board.note(name, "the database does not answer")
        self.checks.numbers.pop("db_query_ms", None)
        await self.guard.failed()
        self.board.sections["database"] = self.guard.describe()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._emergency(), name="database-emergency")

    async def _emergency(self) -> None:
        """Rounds of retries until the primary is back; posts after each."""
        while not self.checks.stopping:
            try:
                facts = await self.guard.reconnect(self._ask)
            except Exception:  # whatever a driver raises: the primary is still gone
                await self.guard.gave_up()
                self.board.sections["database"] = self.guard.describe()
                if self.guard.read_only:
                    self.post("warn", "read-only operation from the replica")
                else:
                    self.post("fail", "the database does not answer")
                await asyncio.sleep(self.checks.interval)
            else:
                await self._post(facts)
                return

    async def _ask(self, connection: t.Any) -> t.Tuple[float, t.List[str], t.Optional[t.List[str]]]:
        """(milliseconds of ``select 1``, missing tables, recursive tables or None where that cannot be asked)."""
        if isinstance(connection, RestDoor):
            return await connection.facts(self.tables)
        started = time.perf_counter()
        await connection.fetchval("select 1")
        milliseconds = 1000 * (time.perf_counter() - started)
        rows = await connection.fetch(
            "select c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = 'public' and c.relkind in ('r', 'p', 'v', 'f') and c.relname = any($1::text[])",
            self.tables,
        )
        missing = sorted(set(self.tables) - {row["relname"] for row in rows})
        return milliseconds, missing, await self._recursive(connection)

    async def _recursive(self, connection: t.Any) -> t.Optional[t.List[str]]:
        if not await connection.fetchval(
            "select count(*) > 0 from pg_catalog.pg_roles where rolname = 'authenticated' and"
            " pg_catalog.pg_has_role(oid, 'member')"
        ):
            return None
        current = await connection.fetchval(
            "select md5(coalesce((select string_agg(p.oid::text || ':' || p.xmin::text, ',' order by p.oid) from"
            " pg_catalog.pg_policy p), '') || '/' || coalesce((select string_agg(c.oid::text || ':' || c.xmin::text,"
            " ',' order by c.oid) from pg_catalog.pg_class c where c.relrowsecurity), ''))"
        )
        fingerprint, probed, tables_before = self._policies
        if current == fingerprint and time.monotonic() - probed < POLICY_PROBE_SECONDS:
            return tables_before
        recursive: t.List[str] = []
        tables = await connection.fetch(
            "select c.relname as name, pg_catalog.format('%I.%I', n.nspname, c.relname) as quoted, (select"
            " pg_catalog.quote_ident(a.attname) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum >"
            " 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity = '' order by a.attnum limit 1) as"
            " field from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where"
            " c.relrowsecurity and n.nspname = 'public' order by c.relname limit 200"
        )
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("set local role authenticated")
            for table in tables:
                if await self._is_recursive(connection, table["quoted"], table["field"]):
                    recursive.append(table["name"])
        finally:
            await transaction.rollback()
        self._policies = (current, time.monotonic(), recursive)
        return recursive

    async def _is_recursive(self, connection: t.Any, table: str, field: t.Optional[str]) -> bool:
        """PREPARE goes as far as the rewriter, where recursion is found: nothing is planned, run or changed."""
        statements = [f"select 1 from {table}", f"delete from {table}", f"insert into {table} default values"]
        if field:
            statements.append(f"update {table} set {field} = {field}")
        for statement in statements:
            savepoint = connection.transaction()
            await savepoint.start()
            try:
                await connection.execute(f"prepare wheels_ops_probe as {statement}")
                await connection.execute("deallocate wheels_ops_probe")
            except Exception as error:
                await savepoint.rollback()
                if getattr(error, "sqlstate", "") == "42P17":
                    return True
            else:
                await savepoint.commit()
        return False

    async def close(self) -> None:
        await end_tasks(self._rounds)
        await self.guard.close()


class RedisCheck(Check):
    """PING, a write under an own key, the depth and age of the Celery queues, and the heartbeats of celery beat and of
    the workers."""

    name = "redis:connection"
    kind = "datastore"

    def __init__(self, checks: HealthChecks) -> None:
        super().__init__(checks)
        self.url = redis_url.configured()
        self.key = f"wheels_ops:probe:{socket.gethostname()}:{os.getpid()}"
        self.queues = env.names("CELERY_QUEUES", QUEUES)
        self.heartbeat_key = env.text("CELERY_BEAT_HEARTBEAT_KEY", "pam:beat:heartbeat")
        self.workers_key = env.text("CELERY_WORKERS_HEARTBEAT_KEY", "pam:workers:heartbeat")
        self._client: t.Any = None
        self._heads: t.Dict[str, t.Tuple[bytes, float]] = {}
        self._beat_seen = False

    async def run(self) -> None:
        if not self.url:
            self.skip("REDIS_URL is not set")
            return
        if redis_url.unsupported(self.url):
            self.skip(redis_url.unsupported(self.url))
            return
        try:
            import redis.asyncio as redis
        except ImportError:
            self.skip("the redis client is not installed")
            return
        self._connect()
        try:
            started = time.perf_counter()
            try:
                await self._client.ping()
            except redis.ResponseError as error:  # it answers: that it takes no writes (MISCONF) is told as such
                if demoted(error):
                    await self.close()
                    self._connect()
            self.post("pass", value=round(1000 * (time.perf_counter() - started), 2), unit="ms")
            await self._write()
            await self._celery()
        except BaseException:
            await self.close()
            raise
        await self._cache()

    def _connect(self) -> None:
        import redis.asyncio as redis

        if self._client is None:
            timeout = self.checks.timeout
            self._client = redis.from_url(
                redis_address(self.url),
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                single_connection_client=True,
            )

    async def _write(self) -> None:
        token = f"{time.time():.3f}"
        try:
            try:
                answer = await self._exchange(token)
            except Exception as error:
                if not demoted(error):
                    raise
                await self.close()  # after a failover the address leads to another server
                self._connect()
                answer = await self._exchange(token)
        except Exception as error:
            if type(error).__name__ in ("TimeoutError", "ConnectionError"):
                raise
            code = re.search(r"\b(MISCONF|NOREPLICAS)\b", str(error))
            self.post("fail", f"Redis refuses writes ({code[1] if code else type(error).__name__})", name="redis:write")
            return
        wrong = (answer.decode() if isinstance(answer, bytes) else answer) != token
        self.post(
            "fail" if wrong else "pass", "what was written is not what is read" if wrong else "", name="redis:write"
        )

    async def _exchange(self, token: str) -> t.Any:
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self.key, token, ex=60)
            pipe.get(self.key)
            answer_to_set, answer_to_get = await pipe.execute(
                raise_on_error=False
            )  # raised there, an error may lose its text
        for answer in (answer_to_set, answer_to_get):
            if isinstance(answer, Exception):
                raise answer
        return answer_to_get

    async def _celery(self) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for queue in self.queues:
                pipe.llen(queue)
                pipe.lindex(queue, -1)
            pipe.get(self.heartbeat_key)
            pipe.get(self.workers_key)
            answers = await pipe.execute(raise_on_error=False)
        now = time.monotonic()
        depth, oldest = 0, 0.0
        for index, queue in enumerate(self.queues):
            length, head = answers[2 * index], answers[2 * index + 1]
            if not isinstance(length, int) or not length or isinstance(head, Exception) or head is None:
                self._heads.pop(queue, None)
                continue
            depth += length
            head_before = self._heads.get(queue)
            if head_before is None or head_before[0] != head:
                head_before = self._heads[queue] = (head, now)
            oldest = max(oldest, now - head_before[1])
        self.checks.numbers.update(celery_queue_depth=float(depth), celery_queue_age_s=oldest)
        late = oldest > env.number("CELERY_QUEUE_AGE_WARNING", 900)
        deep = depth > env.number("CELERY_QUEUE_DEPTH_WARNING", 1000)
        reason = f"the oldest task waits for {oldest:.0f} s at least" if late else f"{depth} tasks wait" if deep else ""
        self.post("warn" if late or deep else "pass", reason, name="celery:queues", value=depth)
        self._beat(answers[-2])
        self._workers(answers[-1])

    def _beat(self, answer: t.Any) -> None:
        """The heartbeat says when celery beat was last alive (``at``, epoch); without one ever seen nothing is
        claimed."""
        if answer is None or isinstance(answer, Exception):
            if self._beat_seen:
                self.post("warn", "celery beat has stopped", name="celery:beat")
            else:
                self.skip("no heartbeat of celery beat seen", name="celery:beat")
            return
        self._beat_seen = True
        try:
            facts = json.loads(answer)
            age = time.time() - float(facts["at"] if isinstance(facts, dict) else facts)
        except (ValueError, KeyError, TypeError):
            self.skip("the heartbeat of celery beat cannot be read", name="celery:beat")
            return
        late = age > env.number("CELERY_BEAT_MAX_AGE", 15.0)
        reason = f"last tick of celery beat {age:.0f} s ago" if late else ""
        self.post("warn" if late else "pass", reason, name="celery:beat", value=round(age, 1), unit="s")

    def _workers(self, answer: t.Any) -> None:
        """The newest heartbeat of any worker (``at``, epoch), kept for a day: it fails where no worker lives any more.

        One that runs its tasks in its own process (``solo``) shows none while it runs one, and nothing can be told.
        """
        name = "celery:workers"
        if answer is None or isinstance(answer, Exception):
            self.skip("no heartbeat of a Celery worker seen", name=name)
            return
        try:
            facts = json.loads(answer)
            age, solo = time.time() - float(facts["at"]), facts.get("solo") is True
        except (ValueError, KeyError, TypeError, AttributeError):
            self.skip("the heartbeat of the Celery workers cannot be read", name=name)
            return
        late = age > env.number("CELERY_WORKER_MAX_AGE", 15.0)
        if late and solo:
            self.skip(f"last heartbeat {age:.0f} s ago: the worker is at a task, or has stopped", name=name)
            return
        reason = f"no Celery worker lives: the last heartbeat of any was {age:.0f} s ago" if late else ""
        self.post("fail" if late else "pass", reason, name=name, value=round(age, 1), unit="s")

    async def _cache(self) -> None:
        """What the cache service says of itself, within the timeout; its hit rate is a metric."""
        service = getattr(sys.modules.get("app.services.cache_service"), "cache_service", None)
        ask = getattr(service, "get_stats", None) or getattr(service, "get_cache_stats", None)
        if ask is None:
            return
        with contextlib.suppress(Exception):
            answer = ask()
            stats = await within(answer, self.checks.timeout) if inspect.isawaitable(answer) else answer
            self.board.sections["cache"] = {
                key: value for key, value in stats.items() if isinstance(value, (str, int, float, bool, type(None)))
            }
            rate = stats.get("hit_rate")  # 0 to 1, of this process
            if isinstance(rate, (int, float)) and stats.get("hits", 1) + stats.get("misses", 1):
                self.checks.numbers["cache_hit_rate"] = 100.0 * rate

    async def failed(self, reason: str) -> None:
        self.post("fail", reason)
        for name in ("redis:write", "celery:queues", "celery:beat", "celery:workers"):
            self.board.note(name, "Redis does not answer")
        for name in ("celery_queue_depth", "celery_queue_age_s"):
            self.checks.numbers.pop(name, None)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await within((getattr(client, "aclose", None) or client.close)(), 0.2)


class CorsCheck(Check):
    """A preflight through the application itself: the first own origin must be allowed, a foreign one must not."""

    name = "cors:preflight"
    #: A policy does not change while a process runs, and each foreign preflight is a line in the log.
    FOREIGN_EVERY = 60.0

    def __init__(self, checks: HealthChecks) -> None:
        super().__init__(checks)
        self._next_foreign = 0.0

    async def run(self) -> None:
        application = self.checks.api.api.application
        origin = _own_origin()
        if application is None or not origin:
            self.skip("no application or no CORS origin known yet")
            return
        status, headers = await _preflight(application, origin)
        if status != 200 or headers.get("access-control-allow-origin") != origin:
            raise Down(f"CORS: the OPTIONS preflight of an own origin is answered {status}")
        if time.monotonic() >= self._next_foreign:
            _ignored, headers = await _preflight(application, FOREIGN_ORIGIN)
            if headers.get("access-control-allow-origin") in (FOREIGN_ORIGIN, "*"):
                raise Down("CORS: the preflight of a foreign origin is allowed")
            self._next_foreign = time.monotonic() + self.FOREIGN_EVERY
        self.post("pass")


def _own_origin() -> str:
    policy = getattr(sys.modules.get("app.core.cors_config"), "cors_config", None)
    origins = getattr(policy, "origins", None) or []
    return next((str(entry) for entry in origins if "*" not in str(entry)), "")


async def _preflight(application: t.Any, origin: str) -> t.Tuple[int, t.Dict[str, str]]:
    """Status and headers of OPTIONS, straight through the ASGI application."""
    status = 0
    headers: t.Dict[str, str] = {}
    scope: t.MutableMapping[str, t.Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "OPTIONS",
        "scheme": "http",
        "path": PREFLIGHT_PATH,
        "raw_path": PREFLIGHT_PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"origin", origin.encode()),
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-headers", b"authorization,content-type"),
            (b"user-agent", b"wheels-ops-self-check"),
        ],
    }

    async def receive() -> t.MutableMapping[str, t.Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: t.MutableMapping[str, t.Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update(
                {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message.get("headers", ())}
            )

    await application(scope, receive, send)
    return status, headers


class SpeechCheck(Check):
    """Whether any engine that makes audio is usable, from the speech service's own breaker states."""

    name = "tts:engines"

    async def run(self) -> None:
        service = getattr(sys.modules.get("app.services.tts.tts_service"), "tts_service", None)
        ask: t.Optional[t.Callable[[], t.Any]] = getattr(service, "get_service_status", None)
        if ask is None:
            self.skip("the speech service is not loaded")
            return
        answer = ask()
        status: t.Dict[str, t.Any] = (
            await within(answer, self.checks.timeout) if inspect.isawaitable(answer) else answer
        )
        if not (status.get("initialized") or status.get("is_initialized")):
            self.post("warn", "the speech service is not initialized: answers are text only")
            return
        word = str(status.get("service_status") or status.get("status") or "")
        usable = _usable_engines(status.get("engines"))
        if not usable and _is_untried(status.get("engines")):
            self.skip("no speech engine has been tried yet")
        elif usable == 0 or word in ("unhealthy", "failed", "error", "text_only"):
            self.post("warn", "no speech engine works: answers are text only", value=0)
        else:
            self.post("pass", value=usable)

    async def failed(self, reason: str) -> None:
        self.post("warn", f"the speech service gives no state: {reason}")


def _usable_engines(engines: t.Any) -> t.Optional[int]:
    """How many engines that make audio are usable; None where the service does not say."""
    if not isinstance(engines, dict):
        return None
    if isinstance(engines.get("healthy_engines"), int):
        return int(engines["healthy_engines"])
    table = engines["engines"] if isinstance(engines.get("engines"), dict) else engines
    count, any_state = 0, False
    for name, entry in table.items():
        if not isinstance(entry, dict) or name == "text_only":
            continue
        state = entry.get("state") or entry.get("breaker") or entry.get("status")
        if state is None:
            continue
        any_state = True
        word = str(state.get("state") if isinstance(state, dict) else state)
        count += word in ("closed", "half_open", "half-open", "healthy", "ok", "available", "ready")
    return count if any_state else None


def _is_untried(engines: t.Any) -> bool:
    """Whether the first attempt of an engine is still to come or under way, as in the first moment after the start."""
    table = engines.get("engines") if isinstance(engines, dict) else None
    entries = table.values() if isinstance(table, dict) else ()
    return any(
        isinstance(entry, dict) and entry.get("status") == "unproven" and not entry.get("failures") for entry in entries
    )


class WebSocketCheck(Check):
    """Connections, and whether the heartbeat still runs while there are any."""

    name = "websocket:heartbeat"

    async def run(self) -> None:
        manager = getattr(sys.modules.get("app.core.websocket_manager"), "manager", None)
        if manager is None:
            self.skip("the WebSocket manager is not loaded")
            return
        public = getattr(manager, "get_public_stats", None)
        if public is not None:
            stats: t.Dict[str, t.Any] = public()
            self.board.sections["websocket"] = json.loads(json.dumps(stats, default=str))
        count = len(getattr(manager, "active_connections", ()))
        self.checks.numbers["active_connections"] = float(count)
        task = getattr(manager, "heartbeat_task", None)
        if count and (task is None or task.done()):
            raise Down("the WebSocket heartbeat has stopped while there are connections")
        self.post("pass", value=count)


class StabilityCheck(Check):
    """Restarts, crash loops and uptime of the last 24 hours, from the history file; once a minute."""

    name = "process:stability"
    kind = "system"

    def __init__(self, checks: HealthChecks) -> None:
        super().__init__(checks)
        self._next = 0.0

    async def run(self) -> None:
        store = self.checks.api.performance_monitor.store
        if store is None:
            self.skip("there is no history on disk")
            return
        if time.monotonic() >= self._next:
            self.board.sections["stability"] = await store.stability()
            self._next = time.monotonic() + 60
        section = self.board.sections.get("stability", {})
        loops = section.get("crash_loops") or 0
        self.post(
            "warn" if loops else "pass",
            f"{loops} crash loops in the last 24 hours" if loops else "",
            value=section.get("restarts"),
        )

    async def failed(self, reason: str) -> None:
        self.skip(f"the history does not answer: {reason}")


_running: t.Optional[HealthChecks] = None


def guard() -> t.Optional[DatabaseGuard]:
    """The database guard of this process, where the checks run."""
    return (
        next((check.guard for check in _running.checks if isinstance(check, DatabaseCheck)), None) if _running else None
    )


async def start(api: t.Any) -> None:
    """Starts the checks; ``api`` is the module ``app.api.v1.system_health``."""
    global _running
    if _running is not None and any(orphaned(task) for task in _running.tasks):  # their event loop ended without a stop
        await stop()
    if _running is None and api.performance_monitor.is_running:
        _running = HealthChecks(api)
        await _running.start()


async def stop() -> None:
    global _running
    running, _running = _running, None
    if running is not None:
        await running.stop()
