# SPDX-License-Identifier: MIT
"""The history that survives restarts: ``metrics.sqlite`` in ``WHEELS_OPS_METRICS_DIR``, written off the event loop.

Several workers write to the same file: a row is one metric in one slot of time, and a write merges into it (minimum,
maximum, sum, count), so the order does not matter and nothing is counted twice. Bounded: 30 s slots for 24 hours and
15 min slots for 35 days, some 6000 rows a metric. Starts and stops are rows of their own, from which restarts, crash
loops and uptime follow. Where the file cannot be written, history lives in memory and the log says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import sqlite3
import threading
import time
import typing as t
from pathlib import Path

from app.core.logging import get_logger

logger = get_logger(__name__)

FINE, FINE_KEPT = 30, 24 * 3600
COARSE, COARSE_KEPT = 900, 35 * 86400
FLUSH_SECONDS = 30.0
#: Three starts without an orderly stop within this time are a crash loop.
LOOP_WINDOW, LOOP_STARTS = 600, 3
#: Workers that start within so many seconds of each other are one start of the service.
TOGETHER = 10
MAX_METRICS = 64

_SCHEMA = """
create table if not exists metric (id integer primary key, name text not null unique);
create table if not exists sample (
    step integer not null, metric integer not null, slot integer not null,
    low real not null, high real not null, total real not null, count integer not null, last real not null,
    primary key (step, metric, slot)
) without rowid;
create table if not exists life (
    started real not null, worker text not null, stopped real, clean integer not null default 0,
    primary key (started, worker)
);
create table if not exists alert (at real not null, metric text not null, level text not null, message text not null);
"""
_MERGE = """
insert into sample (step, metric, slot, low, high, total, count, last) values (?, ?, ?, ?, ?, ?, ?, ?)
on conflict (step, metric, slot) do update set low = min(low, excluded.low), high = max(high, excluded.high),
    total = total + excluded.total, count = count + excluded.count, last = excluded.last
"""

#: low, high, total, count, last of one metric in one slot
Row = t.List[float]


class MetricsStore:
    """Collects samples in memory and merges them into the file every ``flush_seconds`` from a thread of its own."""

    def __init__(
        self, path: Path, *, flush_seconds: float = FLUSH_SECONDS, clock: t.Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.usable = False
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._worker = _process(os.getpid())
        self._started = 0.0
        self._open_slots: t.Dict[t.Tuple[int, str], Row] = {}
        self._jobs: queue.Queue[
            t.Optional[
                t.Tuple[
                    t.Callable[[sqlite3.Connection], t.Any],
                    t.Optional[t.Tuple[asyncio.AbstractEventLoop, asyncio.Future[t.Any]]],
                ]
            ]
        ]
        self._jobs = queue.Queue(maxsize=1000)
        self._thread: t.Optional[threading.Thread] = None
        self._next_flush = 0.0
        self._next_prune = 0.0
        self._ids: t.Dict[str, int] = {}

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> bool:
        """Opens the file and notes the start of this worker. False where it cannot be written."""
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._started = self._clock()
        self._thread = threading.Thread(
            target=self._work, args=(asyncio.get_running_loop(), ready), name="metrics-store", daemon=True
        )
        self._thread.start()
        self.usable = await ready
        if not self.usable:
            logger.warning(
                f"📊 The metrics history cannot be written to {self.path}: it lives in memory until the next restart"
            )
            self._thread = None
        self._next_flush = self._clock() + self._flush_seconds
        return self.usable

    async def stop(self) -> None:
        """Writes what is left and notes an orderly stop."""
        if not self.usable:
            return
        self.flush()
        now = self._clock()
        started, worker = self._started, self._worker
        try:
            await self._ask(
                lambda db: db.execute(
                    "update life set stopped = ?, clean = 1 where started = ? and worker = ?", (now, started, worker)
                )
            )
        except (queue.Full, asyncio.TimeoutError, sqlite3.Error) as error:
            logger.warning(f"📊 The orderly stop was not noted in the history: {type(error).__name__}")
        self.usable = False
        thread, self._thread = self._thread, None
        with contextlib.suppress(queue.Full):
            await asyncio.to_thread(self._jobs.put, None, True, 5)
        if thread is not None:
            await asyncio.to_thread(thread.join, 5)

    def _work(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[bool]) -> None:
        """The only code that touches the file; runs in the store's own thread."""

        def tell(
            caller: asyncio.AbstractEventLoop,
            future: asyncio.Future[t.Any],
            value: t.Any,
            error: t.Optional[BaseException] = None,
        ) -> None:
            def deliver() -> None:
                if not future.done():
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(error)

            with contextlib.suppress(RuntimeError):  # the loop is closed already: nobody waits
                caller.call_soon_threadsafe(deliver)

        try:
            database = self._open()
        except (OSError, sqlite3.Error):
            tell(loop, ready, False)
            return
        tell(loop, ready, True)
        while True:
            job = self._jobs.get()
            if job is None:
                break
            call, waiting = job
            try:
                with database:
                    answer = call(database)
                    if isinstance(answer, sqlite3.Cursor):
                        answer = answer.fetchall()
                if waiting:
                    tell(*waiting, answer)
            except (OSError, sqlite3.Error) as error:
                if waiting:
                    tell(*waiting, None, error)
                else:
                    logger.warning(f"📊 The metrics history was not written: {type(error).__name__}")
        database.close()

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            database = sqlite3.connect(self.path, timeout=5, check_same_thread=False)
            try:
                database.execute("pragma journal_mode = wal")
                database.execute("pragma synchronous = normal")
                database.execute("pragma cache_size = -512")  # half a MiB: this is no place to hold memory
                with database:
                    database.executescript(_SCHEMA)
                    # A worker whose process is gone without a stop crashed; its last sign of life is its last flush.
                    database.execute(
                        "insert or ignore into life (started, worker) values (?, ?)", (self._started, self._worker)
                    )
                return database
            except sqlite3.DatabaseError as error:
                database.close()
                if attempt == 2 or isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.replace(self.path.with_suffix(".broken"))  # not a database: kept for a look, and begun anew
        raise sqlite3.DatabaseError("unreachable")

    async def _ask(self, call: t.Callable[[sqlite3.Connection], t.Any], timeout: float = 5.0) -> t.Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[t.Any] = loop.create_future()
        try:
            self._jobs.put_nowait((call, (loop, future)))
        except queue.Full:  # a disk that hangs: wait for it somewhere else, and not for ever
            await asyncio.to_thread(self._jobs.put, (call, (loop, future)), True, timeout)
        return await asyncio.wait_for(future, timeout)

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, now: float, values: t.Mapping[str, float], weights: t.Mapping[str, t.Tuple[float, float]]) -> None:
        """One sample of several metrics; ``weights`` gives (sum, count) where a value stands for many events."""
        if not self.usable:
            return
        slot = int(now // FINE)
        for name, value in values.items():
            total, count = weights.get(name, (value, 1))
            if not count or math.isnan(value):
                continue
            row = self._open_slots.get((slot, name))
            if row is None:
                self._open_slots[slot, name] = [value, value, total, count, value]
            else:
                row[0], row[1] = min(row[0], value), max(row[1], value)
                row[2], row[3], row[4] = row[2] + total, row[3] + count, value
        if now >= self._next_flush:
            self._next_flush = now + self._flush_seconds
            self.flush()

    def add_alert(self, metric: str, level: str, message: str) -> None:
        if self.usable:
            now = self._clock()
            self._put(
                lambda db: db.execute("insert into alert values (?, ?, ?, ?)", (now, metric, level, message[:500]))
            )

    def flush(self) -> None:
        """Hands everything collected so far to the thread; gives it up where the thread does not keep up."""
        slots, self._open_slots = self._open_slots, {}
        now = self._clock()
        self._put(lambda db: self._write(db, slots, now))

    def _put(self, call: t.Callable[[sqlite3.Connection], t.Any]) -> None:
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait((call, None))

    def _write(self, database: sqlite3.Connection, slots: t.Mapping[t.Tuple[int, str], Row], now: float) -> None:
        rows = []
        for (slot, name), row in slots.items():
            metric = self._metric(database, name)
            if metric is not None:
                rows.append((FINE, metric, slot, *row))
                rows.append((COARSE, metric, slot * FINE // COARSE, *row))
        database.executemany(_MERGE, rows)
        database.execute(
            "update life set stopped = ? where started = ? and worker = ?", (now, self._started, self._worker)
        )
        if now >= self._next_prune:
            self._next_prune = now + 3600
            for step, kept in ((FINE, FINE_KEPT), (COARSE, COARSE_KEPT)):
                database.execute("delete from sample where step = ? and slot < ?", (step, int((now - kept) // step)))
            database.execute("delete from life where coalesce(stopped, started) < ?", (now - COARSE_KEPT,))
            database.execute("delete from alert where at < ?", (now - COARSE_KEPT,))
            database.execute("delete from alert where rowid <= (select max(rowid) - 10000 from alert)")

    def _metric(self, database: sqlite3.Connection, name: str) -> t.Optional[int]:
        identifier = self._ids.get(name)
        if identifier is None:
            row = database.execute("select id from metric where name = ?", (name,)).fetchone()
            if row is None:
                if len(self._ids) >= MAX_METRICS:
                    return None
                database.execute("insert or ignore into metric (name) values (?)", (name,))
                row = database.execute("select id from metric where name = ?", (name,)).fetchone()
            identifier = self._ids[name] = int(row[0])
        return identifier

    # -- reading ------------------------------------------------------------------------------------------------------

    async def summary(self, hours: float) -> t.Optional[t.Dict[str, t.Dict[str, float]]]:
        """metric -> min, max, avg, data_points over the last ``hours``, with what is not written yet; None without the
        store."""
        if not self.usable:
            return None
        self.flush()
        step = FINE if hours <= 24 else COARSE
        since = int((self._clock() - 3600 * hours) // step)
        rows = await self._ask(
            lambda db: db.execute(
                "select m.name, min(s.low), max(s.high), sum(s.total), sum(s.count) from sample s join metric m on m.id"
                " = s.metric where s.step = ? and s.slot > ? group by m.name",
                (step, since),
            )
        )
        return {
            name: {"min": low, "max": high, "avg": total / count if count else 0.0, "data_points": count}
            for name, low, high, total, count in rows
        }

    async def series(
        self, metrics: t.List[str], hours: float
    ) -> t.Dict[str, t.List[t.Tuple[float, float, float, float]]]:
        """metric -> [(time of the slot, mean, lowest, highest)] over the last ``hours``; empty without the store."""
        if not self.usable:
            return {}
        self.flush()
        step = FINE if hours <= 24 else COARSE
        since = int((self._clock() - 3600 * hours) // step)
        marks = ",".join("?" * len(metrics))
        rows = await self._ask(
            lambda db: db.execute(
                "select m.name, s.slot * s.step, s.total / s.count, s.low, s.high from sample s join metric m on m.id"
                f" = s.metric where s.step = ? and s.slot > ? and m.name in ({marks}) order by s.slot",
                (step, since, *metrics),
            )
        )
        series: t.Dict[str, t.List[t.Tuple[float, float, float, float]]] = {}
        for name, at, mean, low, high in rows:
            series.setdefault(name, []).append((float(at), mean, low, high))
        return series

    async def starts(self, hours: float) -> t.List[float]:
        """When the service was started in the last ``hours``; workers that started together are one start."""
        if not self.usable:
            return []
        since = self._clock() - 3600 * hours
        rows = await self._ask(
            lambda db: db.execute("select started from life where started >= ? order by started", (since,))
        )
        starts: t.List[float] = []
        for (at,) in rows:
            if not starts or at - starts[-1] > TOGETHER:
                starts.append(float(at))
        return starts

    async def alerts(self, hours: float) -> t.Dict[str, int]:
        """level -> how many alerts were raised in the last ``hours``."""
        if not self.usable:
            return {}
        since = self._clock() - 3600 * hours
        return dict(
            await self._ask(
                lambda db: db.execute("select level, count(*) from alert where at >= ? group by level", (since,))
            )
        )

    async def stability(self, hours: float = 24) -> t.Dict[str, t.Any]:
        """``restarts`` (starts that no orderly stop came before), ``crash_loops`` and ``uptime_percent`` of the last
        ``hours``."""
        if not self.usable:
            return {}
        now = self._clock()
        since = now - 3600 * hours
        rows = await self._ask(
            lambda db: [
                (float(started), now if not clean and _is_alive(worker) else float(seen), bool(clean))
                for started, seen, clean, worker in db.execute(
                    "select started, coalesce(stopped, started), clean, worker from life where coalesce(stopped,"
                    " started) >= ?",
                    (since,),
                ).fetchall()
            ]
        )
        return stability_of(sorted(rows), since, now, installed_at())


def _process(pid: int) -> str:
    """A process so that a later one with the same number is told apart: its number and its start in clock ticks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{pid}:{text.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return f"{pid}:"


def _is_alive(worker: str) -> bool:
    pid = worker.partition(":")[0]
    return pid.isdigit() and not worker.endswith(":") and _process(int(pid)) == worker


def installed_at() -> float:
    """Since when this package has been here without a break: a rollback removes it, an update leaves this file."""
    try:
        return Path(__file__).with_name("__init__.py").stat().st_mtime
    except OSError:
        return 0.0


def stability_of(
    lives: t.List[t.Tuple[float, float, bool]], since: float, now: float, installed: float = 0.0
) -> t.Dict[str, t.Any]:
    """Restarts, crash loops and uptime from (started, last seen, clean) of every worker, oldest first.

    A start is unplanned where a worker ended without an orderly stop since the start before it. Uptime counts from the
    first start known in the window; a gap shorter than the time between two signs of life cannot be seen and counts as
    up. The gap before ``installed`` is the time in which somebody else's release ran, after a rollback: it counts
    neither way.
    """
    starts: t.List[t.Tuple[float, bool]] = []
    covered: t.List[t.List[float]] = []
    for started, seen, _ignored in lives:
        previous = starts[-1][0] if starts else float("-inf")
        crashed = any(not clean and previous <= begun < started and last <= started for begun, last, clean in lives)
        if not starts or crashed or started - previous > TOGETHER:
            ended = any(not clean and previous <= last <= started and begun < started for begun, last, clean in lives)
            starts.append((started, crashed or ended))
        if covered and started <= covered[-1][1] + FLUSH_SECONDS:
            covered[-1][1] = max(covered[-1][1], seen)
        else:
            covered.append([started, max(seen, started)])
    if covered and now - covered[-1][1] <= 2 * FLUSH_SECONDS:
        covered[-1][1] = now  # alive: the next sign of life is not due yet
    unplanned = [at for at, crashed in starts if crashed and at >= since]
    loops, index = 0, 0
    while index + LOOP_STARTS <= len(unplanned):
        if unplanned[index + LOOP_STARTS - 1] - unplanned[index] <= LOOP_WINDOW:
            loops += 1
            index += LOOP_STARTS
        else:
            index += 1
    uptime = None
    if covered:
        begin = max(since, covered[0][0])
        up = sum(max(0.0, end - max(start, begin)) for start, end in covered)
        gaps = [(max(end, begin), start) for (_ignored, end), (start, _also) in zip(covered, covered[1:])]
        elsewhere = sum(max(0.0, installed - end) for end, start in gaps if end < installed <= start)
        known = now - begin - elsewhere
        uptime = round(min(100.0, 100.0 * up / known), 3) if known > 1 else 100.0
    return {"restarts": len(unplanned), "crash_loops": loops, "uptime_percent": uptime}
