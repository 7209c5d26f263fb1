# SPDX-License-Identifier: MIT
"""Background work that slows down under load, and returns to its full rate by itself.

The signal is one hash in Redis, ``pam:throttle``, with an expiry: level (0 to 3), classes, source, reason. The backend's
performance monitor writes it (``LoadPublisher``), an operator may (``wheels.ops.celery_throttle``), and beat does where
nobody else measures. It is read by

- beat (``LoadAwareScheduler``): periodic tasks of the throttled classes come 2, 4 or 8 times as rarely, bounded by a
  largest delay; all others come when they are due;
- the workers (``ThrottleStep``): at level 3 they stop taking from the queues of the throttled classes, so that what
  already waits does not run either. It stays in its queue and is taken up again.

Whoever writes must go on writing: a hash that is gone, expired or unreadable means full rate. Email and notifications
belong to no class that can be throttled. ``install(app)`` puts all this into a Celery application.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import queue
import socket
import threading
import time
import typing as t
from dataclasses import dataclass, field
from datetime import timedelta

from celery import bootsteps
from celery.beat import PersistentScheduler, event_t
from celery.utils.log import get_logger

logger = get_logger("app.wheels_ops.celery_throttle")

KEY = "pam:throttle"
#: Says that a performance monitor measures, so that beat need not.
OBSERVER_KEY = "pam:throttle:observer"
BEAT_KEY = "pam:beat:heartbeat"
WORKER_KEY = "pam:worker:heartbeat:"
#: Seconds after which a throttle ends when nobody renews it, and between two renewals.
EXPIRES, RENEW = 90, 15
#: How much rarer by level.
FACTORS: t.Tuple[int, ...] = (1, 2, 4, 8)
#: Seconds a periodic task of the class may be late by our doing: an hourly one comes at least every four hours, and the
#: digest, which people wait for, at most half an hour late. A class that is not here cannot be throttled.
MAX_DELAY: t.Dict[str, float] = {"cleanup": 3 * 3600.0, "analytics": 3 * 3600.0, "digest": 1800.0}
AUTOMATIC: t.Tuple[str, ...] = ("cleanup", "analytics", "digest")
#: The queues that a worker leaves alone at level 3, by class. The digest shares its queue with the notifications.
QUEUES: t.Dict[str, str] = {"cleanup": "cleanup", "analytics": "analytics"}
#: Seconds between two looks at the hash (beat; worker), and between two heartbeats.
LOOK_BEAT, LOOK_WORKER, HEARTBEAT = 1.0, 5.0, 5.0
#: Periodic tasks of a throttled class expire after this share of their interval: one of them waits, never a pile.
EXPIRES_SHARE = 0.9
#: CPU in percent at which level 1, 2 and 3 begin: the report's warning and critical, and what leaves nothing for requests.
RAISE: t.Tuple[float, ...] = (70.0, 85.0, 95.0)
#: A level ends when the load has been this far below its beginning for HOLD seconds.
BELOW, HOLD = 10.0, 15.0
#: Time constant of the average in seconds: 2-core machine busy from one moment to the next is at level 2 after 6 s.
TAU = 3.0
#: PSI cpu ``some avg10`` in percent, and event-loop lag in ms, that mean as much as RAISE.
PSI_RAISE: t.Tuple[float, ...] = (50.0, 70.0, 90.0)
LAG_RAISE: t.Tuple[float, ...] = (100.0, 250.0, 1000.0)

#: Writes unless an operator's throttle is in force: 1 written, 0 left alone. Deletes at level 0.
_WRITE = """
if redis.call('HGET', KEYS[1], 'source') == 'operator' then return 0 end
if ARGV[1] == '0' then redis.call('DEL', KEYS[1]) return 1 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'level', ARGV[1], 'classes', ARGV[2], 'source', ARGV[3], 'reason', ARGV[4], 'since', ARGV[5])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return 1
"""


def client_for(url: str) -> t.Any:
    """A client that never keeps its caller waiting for long: a slow Redis means full rate."""
    import redis

    return redis.Redis.from_url(str(url), socket_timeout=0.5, socket_connect_timeout=0.5, decode_responses=True, health_check_interval=30)


@dataclass(frozen=True)
class Throttle:
    """What is in force: ``classes`` come ``FACTORS[level]`` times as rarely."""

    level: int = 0
    classes: t.FrozenSet[str] = frozenset()
    source: str = ""
    reason: str = ""

    @staticmethod
    def of(fields: t.Mapping[str, str]) -> Throttle:
        """From the hash; anything that cannot be understood is full rate."""
        try:
            level = min(len(FACTORS) - 1, max(0, int(fields.get("level", "0"))))
        except ValueError:
            level = 0
        classes = frozenset(name for name in fields.get("classes", "").split(",") if name in MAX_DELAY)
        return Throttle(level, classes, fields.get("source", ""), fields.get("reason", "")) if level and classes else Throttle()

    def factor(self, kind: str) -> int:
        return FACTORS[self.level] if kind in self.classes else 1


def class_of(name: str, task: str, queue_name: str = "") -> str:
    """The class of a periodic task; empty for what is never throttled. By its queue first, then by its module."""
    if "digest" in name.lower() or "digest" in task.lower():
        return "digest"
    if queue_name:
        return queue_name if queue_name in QUEUES.values() else ""
    for kind in QUEUES:
        if f".{kind}_tasks." in f".{task}" or task.startswith(f"{kind}."):
            return kind
    return ""


def queue_of(app: t.Any, entry: t.Any) -> str:
    """Where an entry's task goes; empty when that is not known."""
    options = getattr(entry, "options", None) or {}
    found = options.get("queue")
    if not found:
        try:
            found = app.amqp.router.route({}, entry.task, args=(), kwargs={}).get("queue")
        except Exception as error:  # a router of the application's own may want more than we know
            logger.debug("Queue of %s is not known: %s", entry.task, error)
    name = getattr(found, "name", found) or ""
    return "" if name == app.conf.task_default_queue else str(name)


class Reader:
    """The hash, looked at no more often than every ``every`` seconds. Errors mean full rate and are logged once."""

    def __init__(self, url: str, every: float) -> None:
        self.client = client_for(url)
        self.every = every
        self.throttle = Throttle()
        self.observed = False
        self._next = 0.0
        self._failing = False

    def refresh(self) -> bool:
        """Whether something changed."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.every
        try:
            pipe = self.client.pipeline(transaction=False)
            pipe.hgetall(KEY)
            pipe.exists(OBSERVER_KEY)
            fields, observed = pipe.execute()
            found, self.observed, self._failing = Throttle.of(fields), bool(observed), False
        except Exception as error:  # whatever is wrong with Redis, background work goes on at its full rate
            found = Throttle()
            self._next = now + max(self.every, 5.0)
            if not self._failing:
                logger.warning("Throttle cannot be read, full rate: %s", type(error).__name__)
            self._failing = True
        changed = found != self.throttle
        if found.level != self.throttle.level:
            logger.warning(
                "Background work: level %s -> %s (%s, %s): %s",
                self.throttle.level,
                found.level,
                found.source or "expired",
                ",".join(sorted(found.classes)) or "-",
                found.reason or "full rate",
            )
        self.throttle = found
        return changed


# The writer ----------------------------------------------------------------------------------------------------------


def _score(value: t.Optional[float], limits: t.Sequence[float]) -> float:
    """A measurement on the scale of RAISE, linear between the limits."""
    if value is None or value <= 0:
        return 0.0
    xs, ys = (0.0, *limits), (0.0, *RAISE)
    for left, right, low, high in zip(xs, xs[1:], ys, ys[1:]):
        if value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return 100.0


@dataclass
class Load:
    """From measurements to a level: an average, the worst of three signals, and hysteresis."""

    level: int = 0
    average: float = 0.0
    reason: str = ""
    _last: t.Optional[float] = None
    _below_since: t.Optional[float] = None

    def observe(self, cpu_percent: float, psi: t.Optional[float] = None, loop_lag_ms: t.Optional[float] = None, *, now: t.Optional[float] = None) -> int:
        """One measurement at any interval; ``psi`` is cpu ``some avg10`` in percent. Gives the level."""
        now = time.monotonic() if now is None else now
        # The first measurement is taken as it is, a later one counts by the time since the one before.
        weight = 1.0 if self._last is None else 1.0 - 2.718281828 ** (-max(0.0, now - self._last) / TAU)
        if self._last is None:
            weight = 0.5
        self._last = now
        self.average += weight * (max(0.0, min(100.0, cpu_percent)) - self.average)
        scores = {"cpu": self.average, "psi": _score(psi, PSI_RAISE), "lag": _score(loop_lag_ms, LAG_RAISE)}
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
        shown = {"cpu": f"cpu {self.average:.0f} %", "psi": f"cpu pressure {psi or 0:.0f} %", "lag": f"event loop {loop_lag_ms or 0:.0f} ms late"}
        self.reason = shown[worst]
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

    def observe(self, cpu_percent: float, psi: t.Optional[float] = None, loop_lag_ms: t.Optional[float] = None) -> int:
        """Takes a measurement and gives the level (0 to 3). Cheap, may be called on an event loop."""
        level = self.load.observe(cpu_percent, psi, loop_lag_ms)
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
        while True:
            item = self._queue.get()
            if item is None:
                return
            level, reason = item
            try:
                client = client or client_for(self.url or default_url())
                self._since = (self._since or str(int(time.time()))) if level else ""
                publish(client, level, AUTOMATIC, self.source, reason, since=self._since)
            except Exception as error:  # the hash expires, which is the full rate
                logger.warning("Throttle cannot be written: %s", type(error).__name__)


def publish(client: t.Any, level: int, classes: t.Sequence[str], source: str, reason: str, *, since: str = "", expires: int = EXPIRES) -> bool:
    """Writes the hash, unless an operator's is in force; whether it was written."""
    if source == "monitor":
        client.set(OBSERVER_KEY, source, ex=2 * RENEW)
    return bool(client.eval(_WRITE, 1, KEY, str(level), ",".join(classes), source, reason, since or str(int(time.time())), str(expires)))


async def publish_level(level: int, *, reason: str = "", redis_url: t.Optional[str] = None, source: str = "monitor") -> bool:
    """Writes a level once, without stopping the event loop; for callers that have their own way of judging the load."""
    import asyncio

    def write() -> bool:
        client = client_for(redis_url or default_url())
        try:
            return publish(client, max(0, min(len(FACTORS) - 1, level)), AUTOMATIC, source, reason)
        finally:
            client.close()

    return await asyncio.to_thread(write)


def default_url() -> str:
    """The broker's URL as the application has it: in one release the settings hold an object instead of text."""
    if os.environ.get("REDIS_URL"):
        return os.environ["REDIS_URL"]
    from app.core import config

    read = getattr(config, "get_settings", None)
    return str(getattr(read() if read else config.settings, "REDIS_URL", "redis://localhost:6379"))


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


# Beat ----------------------------------------------------------------------------------------------------------------


class LoadAwareScheduler(PersistentScheduler):
    """Celery's own scheduler with its own schedule file, in which entries of throttled classes fall due later.

    The entries stay plain Celery entries, so that the file can be read without us after a rollback.
    """

    #: Beat looks at the signal at least this often, in seconds.
    max_interval = 2

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        app = kwargs.get("app") or args[0]
        self._reader = Reader(str(app.conf.broker_url), LOOK_BEAT)
        self._classes: t.Dict[str, str] = {}
        self._sampler, self._publisher = ProcessorSampler(), LoadPublisher(str(app.conf.broker_url), source="beat")
        self._next_sample = self._next_heartbeat = 0.0
        self._last_sent: t.Dict[str, t.Any] = {}
        super().__init__(*args, **kwargs)

    def kind(self, entry: t.Any) -> str:
        if entry.name not in self._classes:
            self._classes[entry.name] = class_of(entry.name, entry.task, queue_of(self.app, entry))
        return self._classes[entry.name]

    def delay(self, entry: t.Any) -> float:
        """Seconds by which the entry comes later than its schedule says."""
        kind = self.kind(entry)
        factor = self._reader.throttle.factor(kind)
        if factor <= 1:
            return 0.0
        return min(MAX_DELAY[kind], (factor - 1) * period_of(entry.schedule))

    def is_due(self, entry: t.Any) -> t.Tuple[bool, float]:
        """As Celery's, later by ``delay``. The second number must be right: beat looks at nothing before its first entry."""
        due, wait = entry.is_due()
        late = self.delay(entry)
        if not late:
            return due, wait
        if not due:
            return False, wait + late
        overdue = -entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
        return (True, wait + late) if overdue >= late else (False, max(0.05, late - max(0.0, overdue)))

    def populate_heap(self, event_t: t.Any = event_t, heapify: t.Callable[[t.List[t.Any]], None] = heapq.heapify) -> None:
        self._heap = []
        for entry in self.schedule.values():
            due, wait = self.is_due(entry)
            self._heap.append(event_t(self._when(entry, 0 if due else wait) or 0, 5, entry))
        heapify(self._heap)

    def tick(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if self._reader.refresh():
            self._heap = None  # every due time is another one now
            self._next_heartbeat = 0.0  # whoever throttled waits to see that it is in force
        self._measure()
        wait = super().tick(*args, **kwargs)
        self._heartbeat()
        return wait

    def apply_entry(self, entry: t.Any, producer: t.Any = None) -> None:
        super().apply_entry(entry, producer=producer)
        self._last_sent = {"name": entry.name, "at": round(time.time(), 1)}

    def _measure(self) -> None:
        """Stands in for the performance monitor where there is none."""
        now = time.monotonic()
        if now < self._next_sample or self._reader.observed:
            return
        self._next_sample = now + 1.0
        cpu, psi = self._sampler.sample()
        if cpu is not None:
            self._publisher.observe(cpu, psi)

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now < self._next_heartbeat:
            return
        self._next_heartbeat = now + HEARTBEAT
        throttle = self._reader.throttle
        facts = {
            "at": round(time.time(), 1), "pid": os.getpid(), "host": socket.gethostname(), "factor": FACTORS[throttle.level],
            "classes": sorted(throttle.classes), "last_sent": self._last_sent,
        }  # fmt: skip
        try:
            self._reader.client.set(BEAT_KEY, json.dumps(facts), ex=60)
        except Exception as error:  # a heartbeat that cannot be given is seen by whoever looks for it
            logger.debug("Heartbeat cannot be written: %s", type(error).__name__)

    def close(self) -> None:
        self._publisher.close()
        with contextlib.suppress(Exception):
            self._reader.client.delete(BEAT_KEY)
            self._reader.client.close()
        super().close()


def period_of(schedule: t.Any) -> float:
    """Seconds between two runs, on average; 0 for a schedule that has no period we understand, which is then not throttled."""
    every = getattr(schedule, "run_every", None)
    if isinstance(every, timedelta):
        return every.total_seconds()
    try:
        seconds = 86_400.0 / (len(schedule.minute) * len(schedule.hour))
        for name, all_of_them in (("day_of_week", 7), ("day_of_month", 31), ("month_of_year", 12)):
            seconds *= all_of_them / len(getattr(schedule, name))
        return seconds
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        logger.debug("Schedule %r has no period: %s", schedule, error)
        return 0.0


# Workers -------------------------------------------------------------------------------------------------------------


class ThrottleStep(bootsteps.StartStopStep):
    """Part of a worker's consumer: leaves queues alone at level 3, takes them up again below it, and shows that it lives."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: t.Any, **kwargs: t.Any) -> None:
        super().__init__(parent, **kwargs)
        self._timer: t.Any = None
        self._left: t.Set[str] = set()
        self._reader: t.Optional[Reader] = None
        self._next_heartbeat = 0.0

    def start(self, parent: t.Any) -> None:
        # Also after a lost connection: the consumer has been built anew and takes from every queue that is selected.
        self._reader = self._reader or Reader(str(parent.app.conf.broker_url), LOOK_WORKER / 2)
        self._timer = parent.timer.call_repeatedly(LOOK_WORKER, self._look, (parent,))
        self._look(parent)

    def stop(self, parent: t.Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The next start may find a calm machine: what was left alone must be among the queues it begins with.
        for name in list(self._left):
            self._select(parent, name)
        self._left.clear()

    def _look(self, parent: t.Any) -> None:
        try:
            if self._reader is None:
                return
            self._reader.refresh()
            self._apply(parent, self._reader.throttle)
            self._heartbeat(parent)
        except Exception as error:  # a worker must not stop working because of its throttle
            logger.error("Throttle step failed: %s", error, exc_info=True)

    def _apply(self, parent: t.Any, throttle: Throttle) -> None:
        wanted = {QUEUES[kind] for kind in throttle.classes if kind in QUEUES} if throttle.level >= 3 else set()
        consumer = parent.task_consumer
        if consumer is None:
            return
        for name in sorted(wanted - self._left):
            # A worker that consumes from nothing else would be idle and look dead.
            if consumer.consuming_from(name) and len(consumer._queues) > 1:
                parent.cancel_task_queue(name)
                self._left.add(name)
                self._next_heartbeat = 0.0
                logger.warning("Queue %s is left alone while the load is high", name)
        for name in sorted(self._left - wanted):
            self._select(parent, name)
            parent.add_task_queue(name)
            self._left.discard(name)
            self._next_heartbeat = 0.0
            logger.warning("Queue %s is taken up again", name)

    @staticmethod
    def _select(parent: t.Any, name: str) -> None:
        """Celery forgets on cancelling that the queue is one to begin with after a lost connection."""
        queues = parent.app.amqp.queues
        if name in queues:
            queues.select_add(queues[name])

    def _heartbeat(self, parent: t.Any) -> None:
        now = time.monotonic()
        if self._reader is None or now < self._next_heartbeat:
            return
        self._next_heartbeat = now + HEARTBEAT
        facts = {"at": round(time.time(), 1), "pid": os.getpid(), "left_alone": sorted(self._left)}
        try:
            self._reader.client.set(WORKER_KEY + str(parent.hostname), json.dumps(facts), ex=60)
        except Exception as error:  # as above
            logger.debug("Heartbeat cannot be written: %s", type(error).__name__)


# Installation --------------------------------------------------------------------------------------------------------


@dataclass
class Installed:
    """What ``install`` changed, for the log."""

    changes: t.List[str] = field(default_factory=list)


def install(app: t.Any) -> Installed:
    """Puts everything into a Celery application, once. Settings that the application made itself are kept where they work."""
    done = Installed()
    if getattr(app, "_wheels_ops_throttle", False):
        return done
    app._wheels_ops_throttle = True
    conf = app.conf
    _plain_urls(conf, done)
    if os.environ.get("CELERY_THROTTLE_ENABLED", "true").strip().lower() not in ("0", "false", "no", "off"):
        if conf.beat_scheduler == "celery.beat:PersistentScheduler":
            conf.beat_scheduler = f"{__name__}:{LoadAwareScheduler.__name__}"
            done.changes.append("beat is load-aware")
        else:
            logger.warning("Beat keeps its own scheduler %s, periodic tasks are not throttled", conf.beat_scheduler)
        app.steps["consumer"].add(ThrottleStep)
        _expire(app, done)
    _consume_default(app, done)
    _recycle(conf, done)
    logger.info("Celery: %s", "; ".join(done.changes))
    return done


def _plain_urls(conf: t.Any, done: Installed) -> None:
    """In one release the URLs are objects of pydantic, which Celery cannot use."""
    for name in ("broker_url", "result_backend", "broker_read_url", "broker_write_url"):
        value = conf.get(name)
        if value is not None and not isinstance(value, (str, list, tuple)):
            conf[name] = str(value)
            done.changes.append(f"{name} is text")


def _expire(app: t.Any, done: Installed) -> None:
    schedule = dict(app.conf.beat_schedule or {})
    for name, entry in schedule.items():
        options = dict(entry.get("options") or {})
        route = options.get("queue") or ""
        kind = class_of(name, str(entry.get("task", "")), str(getattr(route, "name", route)))
        every = entry.get("schedule")
        seconds = every.total_seconds() if isinstance(every, timedelta) else every if isinstance(every, (int, float)) else period_of(every)
        if kind not in QUEUES or "expires" in options or not seconds:
            continue
        schedule[name] = {**entry, "options": {**options, "expires": EXPIRES_SHARE * float(seconds)}}
        done.changes.append(f"{name} expires")
    app.conf.beat_schedule = schedule


def _consume_default(app: t.Any, done: Installed) -> None:
    """Tasks without a route went to the queue ``celery``, which no worker took from. Now they go to ``default``, and what is
    already in ``celery``, or still sent there by an old process, is taken from there."""
    from kombu import Queue

    conf = app.conf
    names = [item.name if hasattr(item, "name") else str(item) for item in conf.task_queues or ()]
    old = conf.task_default_queue
    if not names or old in names or "default" not in names:
        return
    exchange, routing_key = conf.task_default_exchange, conf.task_default_routing_key
    if isinstance(conf.task_queues, t.Mapping):
        conf.task_queues = {**conf.task_queues, old: {}}
    else:
        conf.task_queues = (*conf.task_queues, Queue(old))
    conf.task_default_queue = "default"
    conf.task_default_exchange, conf.task_default_routing_key = exchange, routing_key
    # Made from the old settings if somebody has asked already.
    for name in ("queues", "router", "default_exchange"):
        app.amqp.__dict__.pop(name, None)
    done.changes.append(f"default queue {old} -> default, {old} is consumed too")


def _recycle(conf: t.Any, done: Installed) -> None:
    """A child is replaced after its task when it has grown too big, and after a number of tasks in any case."""
    if not conf.worker_max_memory_per_child:
        try:
            limit = max(64, int(os.environ.get("CELERY_MAX_MEMORY_PER_CHILD_MB", "400")))
        except ValueError:
            limit = 400
        conf.worker_max_memory_per_child = limit * 1024
        done.changes.append(f"children are replaced above {limit} MB")
    if not conf.worker_max_tasks_per_child:
        conf.worker_max_tasks_per_child = 1000
        done.changes.append("children are replaced after 1000 tasks")
