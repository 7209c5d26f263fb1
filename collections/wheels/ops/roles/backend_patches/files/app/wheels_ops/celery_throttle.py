# SPDX-License-Identifier: MIT
"""Background work that slows down under load, and returns to its full rate by itself.

The signal is one hash in Redis, ``pam:throttle``, with an expiry: level (0 to 3), classes, source, reason. The
backend's performance monitor writes it (``LoadPublisher``), an operator may (``wheels.ops.celery_throttle``), and beat
does where nobody else measures. It is read by

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
import socket
import time
import typing as t
from dataclasses import dataclass, field
from datetime import timedelta

from celery import bootsteps
from celery.beat import PersistentScheduler, event_t
from celery.utils.log import get_logger

from . import env
from .load import (
    EXPIRES,
    KEY,
    OBSERVER_KEY,
    LoadPublisher,
    ProcessorSampler,
    client_for,
    observer_key,
    on_current_server,
    publish,
    publish_level,
)
from .redis_url import default_url

__all__ = [
    "EXPIRES",
    "LoadAwareScheduler",
    "LoadPublisher",
    "Reader",
    "Throttle",
    "ThrottleStep",
    "class_of",
    "client_for",
    "default_url",
    "install",
    "period_of",
    "publish",
    "publish_level",
    "queue_of",
]
logger = get_logger("app.wheels_ops.celery_throttle")

BEAT_KEY = "pam:beat:heartbeat"
WORKER_KEY = "pam:worker:heartbeat:"
#: The last heartbeat of any worker. It outlives them all, so that a backend that starts later knows of their end.
WORKERS_KEY = "pam:workers:heartbeat"
#: Seconds that the last heartbeat of all is kept.
REMEMBERED = 86_400
#: How much rarer by level.
FACTORS: t.Tuple[int, ...] = (1, 2, 4, 8)
#: Seconds a periodic task of the class may be late by our doing: an hourly one comes at least every four hours, and the
#: digest, which people wait for, at most half an hour late. A class that is not here cannot be throttled.
MAX_DELAY: t.Dict[str, float] = {"cleanup": 3 * 3600.0, "analytics": 3 * 3600.0, "digest": 1800.0}
#: The queues that a worker leaves alone at level 3, by class. The digest shares its queue with the notifications.
QUEUES: t.Dict[str, str] = {"cleanup": "cleanup", "analytics": "analytics"}
#: Seconds between two looks at the hash (beat; worker), and between two heartbeats.
LOOK_BEAT, LOOK_WORKER, HEARTBEAT = 1.0, 5.0, 5.0
#: Periodic tasks of a throttled class expire after this share of their interval: one of them waits, never a pile.
EXPIRES_SHARE = 0.9


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
        return (
            Throttle(level, classes, fields.get("source", ""), fields.get("reason", ""))
            if level and classes
            else Throttle()
        )

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
    queue = options.get("queue")
    if not queue:
        try:
            queue = app.amqp.router.route({}, entry.task, args=(), kwargs={}).get("queue")
        except Exception as error:  # a router of the application's own may want more than we know
            logger.debug("Queue of %s is not known: %s", entry.task, error)
    name = getattr(queue, "name", queue) or ""
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
            fields, observed = on_current_server(self.client, self._read)
            throttle, self.observed, self._failing = Throttle.of(fields), bool(observed), False
        except Exception as error:  # whatever is wrong with Redis, background work goes on at its full rate
            throttle = Throttle()
            self._next = now + max(self.every, 5.0)
            if not self._failing:
                logger.warning("Throttle cannot be read, full rate: %s", type(error).__name__)
            self._failing = True
        changed = throttle != self.throttle
        if throttle.level != self.throttle.level:
            logger.warning(
                "Background work: level %s -> %s (%s, %s): %s",
                self.throttle.level,
                throttle.level,
                throttle.source or "expired",
                ",".join(sorted(throttle.classes)) or "-",
                throttle.reason or "full rate",
            )
        self.throttle = throttle
        return changed

    @staticmethod
    def _read(client: t.Any) -> t.Any:
        pipe = client.pipeline(transaction=False)
        pipe.hgetall(KEY)
        pipe.exists(OBSERVER_KEY, observer_key())
        return pipe.execute()

    def show(self, key: str, facts: t.Mapping[str, t.Any], expires: int = 60) -> None:
        """Writes a heartbeat, which expires after that many seconds."""
        on_current_server(self.client, lambda client: client.set(key, json.dumps(facts), ex=expires))


# Beat ----------------------------------------------------------------------------------------------------------------


class LoadAwareScheduler(PersistentScheduler):
    """Celery's own scheduler with its own schedule file, in which entries of throttled classes fall due later.

    The entries stay plain Celery entries, so that the file can be read without us after a rollback.
    """

    #: Beat looks at the signal at least this often, in seconds.
    max_interval = 2
    _heap: t.Any = None

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
        """As Celery's, later by ``delay``. The second number must be right: beat looks at nothing before its first
        entry."""
        due, wait = entry.is_due()
        late = self.delay(entry)
        if not late:
            return due, wait
        if not due:
            return False, wait + late
        overdue = -entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
        return (True, wait + late) if overdue >= late else (False, max(0.05, late - max(0.0, overdue)))

    def populate_heap(
        self, event_t: t.Any = event_t, heapify: t.Callable[[t.List[t.Any]], None] = heapq.heapify
    ) -> None:
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
            "at": round(time.time(), 1),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "factor": FACTORS[throttle.level],
            "classes": sorted(throttle.classes),
            "last_sent": self._last_sent,
        }
        try:
            self._reader.show(BEAT_KEY, facts)
        except Exception as error:  # a heartbeat that cannot be given is seen by whoever looks for it
            logger.debug("Heartbeat cannot be written: %s", type(error).__name__)

    def close(self) -> None:
        self._publisher.close()
        with contextlib.suppress(Exception):
            self._reader.client.delete(BEAT_KEY)
            self._reader.client.close()
        super().close()


def period_of(schedule: t.Any) -> float:
    """Seconds between two runs, on average; 0 for a schedule that has no period we understand, which is then not
    throttled."""
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
    """Part of a worker's consumer: leaves queues alone at level 3, takes them up again below it, and shows that it
    lives."""

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
        queues = {QUEUES[kind] for kind in throttle.classes if kind in QUEUES} if throttle.level >= 3 else set()
        consumer = parent.task_consumer
        if consumer is None:
            return
        for name in sorted(queues - self._left):
            # A worker that consumes from nothing else would be idle and look dead.
            if consumer.consuming_from(name) and len(consumer._queues) > 1:
                parent.cancel_task_queue(name)
                self._left.add(name)
                self._next_heartbeat = 0.0
                logger.warning("Queue %s is left alone while the load is high", name)
        for name in sorted(self._left - queues):
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
            self._reader.show(WORKER_KEY + str(parent.hostname), facts)
            # A worker that runs tasks in this very process shows nothing while it runs one.
            solo = type(getattr(parent, "pool", None)).__module__ == "celery.concurrency.solo"
            self._reader.show(WORKERS_KEY, {"at": facts["at"], "solo": solo}, expires=REMEMBERED)
        except Exception as error:  # as above
            logger.debug("Heartbeat cannot be written: %s", type(error).__name__)


# Installation --------------------------------------------------------------------------------------------------------


@dataclass
class Installed:
    """What ``install`` changed, for the log."""

    changes: t.List[str] = field(default_factory=list)


def install(app: t.Any) -> Installed:
    """Puts everything into a Celery application, once. Settings that the application made itself are kept where they
    work."""
    outcome = Installed()
    if getattr(app, "_wheels_ops_throttle", False):
        return outcome
    app._wheels_ops_throttle = True
    conf = app.conf
    _plain_urls(conf, outcome)
    if env.flag("CELERY_THROTTLE_ENABLED", True):
        if conf.beat_scheduler == "celery.beat:PersistentScheduler":
            conf.beat_scheduler = f"{__name__}:{LoadAwareScheduler.__name__}"
            outcome.changes.append("beat is load-aware")
        else:
            logger.warning("Beat keeps its own scheduler %s, periodic tasks are not throttled", conf.beat_scheduler)
        app.steps["consumer"].add(ThrottleStep)
        _expire(app, outcome)
    _consume_default(app, outcome)
    _recycle(conf, outcome)
    logger.info("Celery: %s", "; ".join(outcome.changes))
    return outcome


def _plain_urls(conf: t.Any, outcome: Installed) -> None:
    """In one release the URLs are objects of pydantic, which Celery cannot use."""
    for name in ("broker_url", "result_backend", "broker_read_url", "broker_write_url"):
        value = conf.get(name)
        if value is not None and not isinstance(value, (str, list, tuple)):
            conf[name] = str(value)
            outcome.changes.append(f"{name} is text")


def _expire(app: t.Any, outcome: Installed) -> None:
    schedule = dict(app.conf.beat_schedule or {})
    for name, entry in schedule.items():
        options = dict(entry.get("options") or {})
        route = options.get("queue") or ""
        kind = class_of(name, str(entry.get("task", "")), str(getattr(route, "name", route)))
        every = entry.get("schedule")
        seconds = (
            every.total_seconds()
            if isinstance(every, timedelta)
            else every
            if isinstance(every, (int, float))
            else period_of(every)
        )
        if kind not in QUEUES or "expires" in options or not seconds:
            continue
        schedule[name] = {**entry, "options": {**options, "expires": EXPIRES_SHARE * float(seconds)}}
        outcome.changes.append(f"{name} expires")
    app.conf.beat_schedule = schedule


def _consume_default(app: t.Any, outcome: Installed) -> None:
    """Tasks without a route went to the queue ``celery``, which no worker took from. Now they go to ``default``, and
    what is already in ``celery``, or still sent there by an old process, is taken from there."""
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
    outcome.changes.append(f"default queue {old} -> default, {old} is consumed too")


def _recycle(conf: t.Any, outcome: Installed) -> None:
    """A child is replaced after its task when it has grown too big, and after a number of tasks in any case."""
    if not conf.worker_max_memory_per_child:
        limit = max(64, env.integer("CELERY_MAX_MEMORY_PER_CHILD_MB", 400))
        conf.worker_max_memory_per_child = limit * 1024
        outcome.changes.append(f"children are replaced above {limit} MB")
    if not conf.worker_max_tasks_per_child:
        conf.worker_max_tasks_per_child = 1000
        outcome.changes.append("children are replaced after 1000 tasks")
