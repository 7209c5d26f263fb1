# SPDX-License-Identifier: GPL-3.0-or-later
"""The load-aware beat and the workers' throttle, in the stand-in backend, with a real worker, beat and Redis."""

from __future__ import annotations

import collections
import json
import re
import signal
import socket
import time
import typing as t

import pytest

from tests.support import servers
from tests.support.celery_backend import CeleryBackend, celery_backend
from tests.support.waiting import wait_until
from wheels_ops.checks import celery as check
from wheels_ops.remedies import celery_throttle

#: Periodic tasks of every class, so often that a test need not wait for them.
EVERY = 0.3
LOW, OTHER, DIGEST = (
    ("cleanup-expired-data", "process-analytics-hourly"),
    "maintenance-check-daily",
    "send-daily-digest",
)
SCHEDULE = dict.fromkeys((*LOW, OTHER, DIGEST), EVERY)


@pytest.fixture
def backend(redis: servers.Redis) -> t.Iterator[CeleryBackend]:
    with celery_backend(redis.url, schedule=SCHEDULE, look=1.0) as made:
        # Somebody measures: the machine of the test is not what the schedule shall depend on.
        made.redis.set("pam:throttle:observer", "test", ex=3600)
        yield made


def sent(backend: CeleryBackend) -> t.Counter[str]:
    """How often beat has sent each periodic task, as it says itself."""
    return collections.Counter(re.findall(r"Sending due task (\S+)", backend.log("beat")))


def during(backend: CeleryBackend, times: int) -> t.Counter[str]:
    """How often each task was sent while the one that is never throttled was sent so many times: no clock but beat's
    own.
    """
    before = sent(backend)
    wait_until(
        lambda: sent(backend)[OTHER] >= before[OTHER] + times, timeout=60 + 3 * times, what=f"{OTHER}, {times} times"
    )
    after = sent(backend)
    return collections.Counter({name: after[name] - before[name] for name in SCHEDULE})


def test_beat_slows_by_class_and_returns_by_itself(backend: CeleryBackend, redis: servers.Redis) -> None:
    backend.beat()
    wait_until(lambda: sent(backend)[OTHER] >= 2, timeout=40, what="beat sends")
    full = during(backend, 12)
    assert all(full[name] >= 10 for name in LOW), full
    # As an operator would, proved by beat's own heartbeat.
    result = celery_throttle.run(redis.url, level=2, classes=["cleanup", "analytics"], expires_s=10)
    assert result.changed and result.extra["applied"] is True, result.msg
    slow = during(backend, 16)
    assert all(slow[name] <= 5 for name in LOW), slow
    assert slow[DIGEST] >= 14, "not among the classes that were named"
    # The throttle's writer is gone for good: it ends by its expiry alone.
    wait_until(lambda: "full rate" in backend.log("beat"), timeout=30, what="expiry")
    assert not backend.redis.exists("pam:throttle")
    back = during(backend, 12)
    assert all(back[name] >= 10 for name in LOW), back


def test_an_entry_that_waits_does_not_hold_up_those_behind_it(backend: CeleryBackend, redis: servers.Redis) -> None:
    """Celery looks at nothing before the first entry of its heap: with factor 8 a wrong time there would stop
    everything.
    """
    celery_throttle.run(redis.url, level=3, expires_s=60, wait_timeout=0)
    backend.beat()
    wait_until(lambda: "level 0 -> 3" in backend.log("beat"), timeout=40, what="throttle in force")
    counts = during(backend, 16)
    assert counts[OTHER] >= 16 and all(counts[name] <= 4 for name in (*LOW, DIGEST)), counts


def test_beat_measures_when_nobody_does(redis: servers.Redis) -> None:
    with celery_backend(redis.url, schedule={OTHER: 1.0}) as backend:
        code = (
            "import time\n"
            "from app.wheels_ops.celery_throttle import LoadPublisher\n"
            "publisher = LoadPublisher(source='beat')\n"
            "for _ in range(8): level = publisher.observe(99.0, 95.0)\n"
            "time.sleep(0.3); publisher.close(); print(level)\n"
        )
        backend.beat()
        wait_until(lambda: backend.redis.exists("pam:beat:heartbeat"), timeout=30, what="heartbeat")
        assert int(backend.python(code)) >= 2
        fields = backend.redis.hgetall("pam:throttle")
        assert fields["source"] == "beat" and set(fields["classes"].split(",")) == {"cleanup", "analytics", "digest"}
        assert 0 < backend.redis.ttl("pam:throttle") <= 90


def test_level_three_leaves_queues_alone_and_takes_them_up_again(backend: CeleryBackend, redis: servers.Redis) -> None:
    backend.worker()
    result = celery_throttle.run(redis.url, level=3, expires_s=600, wait_timeout=0)
    assert result.extra["applied"] is None, "no beat, no heartbeat"
    wait_until(
        lambda: (
            "Queue cleanup is left alone" in backend.log("worker")
            and "Queue analytics is left alone" in backend.log("worker")
        ),
        timeout=30,
    )
    send(backend, "analytics", range(20))
    send(backend, "notifications", range(20))
    wait_until(lambda: len(recorded(backend, "notifications")) == 20, timeout=30, what="what users wait for")
    assert recorded(backend, "analytics") == [] and backend.redis.llen("analytics") == 20
    assert check.check(redis.url, expect_beat=False).details["queues"]["analytics"] == 20
    assert celery_throttle.run(redis.url, state="normal").changed
    wait_until(lambda: len(recorded(backend, "analytics")) == 20, timeout=40, what="the queue that was left alone")


def test_a_lost_connection_while_throttled_loses_no_queue(redis: servers.Redis) -> None:
    """Celery forgets a queue that was cancelled when its consumer is built anew."""
    with celery_backend(redis.url, schedule=SCHEDULE, look=1.0) as backend:
        backend.worker()
        celery_throttle.run(redis.url, level=3, expires_s=600, wait_timeout=0)
        wait_until(lambda: "Queue cleanup is left alone" in backend.log("worker"), timeout=30)
        celery_throttle.run(redis.url, state="normal")
        wait_until(lambda: "Queue cleanup is taken up again" in backend.log("worker"), timeout=30)
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        send(backend, "cleanup", range(5))
        send(backend, "analytics", range(5))
        wait_until(
            lambda: len(recorded(backend, "cleanup")) == 5 and len(recorded(backend, "analytics")) == 5,
            timeout=60,
            what="both queues after the break",
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_tasks_over_throttle_cycles_run_once_each(backend: CeleryBackend, redis: servers.Redis) -> None:
    number = 10_000
    backend.worker("--loglevel=warning", "-Ofair")
    half = number // 2
    send(backend, "analytics", range(half))
    send(backend, "notifications", range(half))

    def done() -> bool:
        return all(len(recorded(backend, kind)) >= half for kind in ("analytics", "notifications"))

    # How many cycles the work lasts is the machine's speed; the rest of it runs after the last one.
    for cycle in range(20):
        if cycle and done():
            break
        celery_throttle.run(redis.url, level=3, expires_s=600, wait_timeout=0)
        wait_until(
            lambda: '"analytics"' in (backend.redis.get("pam:worker:heartbeat:worker@test") or ""),
            timeout=60,
            what="queue left alone",
        )
        celery_throttle.run(redis.url, state="normal", wait_timeout=0)
        wait_until(
            lambda: '"left_alone": []' in (backend.redis.get("pam:worker:heartbeat:worker@test") or ""),
            timeout=60,
            what="queue taken up",
        )
    wait_until(done, timeout=600, every=0.5, what="every task to run")
    wait_until(lambda: backend.redis.hlen("unacked") == 0, timeout=30, what="all acknowledged")
    for kind in ("analytics", "notifications"):
        counts = collections.Counter(recorded(backend, kind))
        assert set(counts) == set(range(half)), "lost"
        assert set(counts.values()) == {1}, "run twice"


def test_unrouted_tasks_are_consumed_old_ones_too(redis: servers.Redis) -> None:
    """As it was: they wait in ``celery`` for a worker that does not come."""
    code = (
        "from app.workers.celery import celery_app as a;"
        " print(a.send_task('app.workers.tasks.notification_tasks.record', [{n}], {more}).id)"
    )
    with celery_backend(redis.url, install=False) as old:
        old.python(code.format(n=1, more="queue='celery'"))
        assert "celery" not in old.python(
            "from app.workers.celery import celery_app as a; print(sorted(a.amqp.queues))"
        ).replace("celery_app", "")
    with celery_backend(redis.url) as new:
        lines = new.python(
            "from app.workers.celery import celery_app as a; print(a.conf.task_default_queue, sorted(a.amqp.queues))"
        )
        assert lines.startswith("default ") and "'celery'" in lines
        new.python("from app.workers.celery import celery_app as a; a.send_task('app.unrouted', [1])")
        assert new.redis.llen("default") == 1 and new.redis.llen("celery") == 1
        new.worker()
        wait_until(lambda: recorded(new, "notifications") == [1], timeout=30, what="the task that waited in celery")
        wait_until(lambda: new.redis.llen("default") == 0, timeout=30, what="default is consumed")


def test_settings_of_the_application_are_kept(redis: servers.Redis) -> None:
    code = (
        "import json; from app.workers.celery import celery_app as a; c = a.conf; s ="
        " c.beat_schedule\nprint(json.dumps({'scheduler': c.beat_scheduler, 'tasks': c.worker_max_tasks_per_child,"
        " 'memory': c.worker_max_memory_per_child,\n 'expires': {n: e.get('options', {}).get('expires') for n, e in"
        " s.items()}, 'broker': type(c.broker_url).__name__}))"
    )
    for release in ("incident", "first_fix", "august"):
        with celery_backend(redis.url, release=release, recorders=False) as backend:
            found = json.loads(backend.python(code))
            assert found["scheduler"] == "app.wheels_ops.celery_throttle:LoadAwareScheduler", release
            assert (found["tasks"], found["memory"], found["broker"]) == (1000, 400 * 1024, "str"), release
            assert found["expires"] == {
                "cleanup-expired-data": 3240.0,
                "process-analytics-hourly": 3240.0,
                "send-daily-digest": None,
                "maintenance-check-daily": None,
            }
    with celery_backend(redis.url, CELERY_THROTTLE_ENABLED="false", CELERY_MAX_MEMORY_PER_CHILD_MB="512") as backend:
        found = json.loads(backend.python(code))
        assert (
            found["scheduler"] == "celery.beat:PersistentScheduler"
            and found["memory"] == 512 * 1024
            and found["expires"]["cleanup-expired-data"] is None
        )


def test_the_august_release_starts_only_with_us(redis: servers.Redis) -> None:
    """Its settings hold the broker's URL as an object, which Celery cannot use."""
    with (
        celery_backend(redis.url, release="august", install=False) as broken,
        pytest.raises((RuntimeError, AssertionError), match="RedisDsn"),
    ):
        broken.python("from app.workers.celery import celery_app as a; a.send_task('x')")
    with celery_backend(redis.url, release="august", schedule={OTHER: EVERY}) as backend:
        backend.beat()
        backend.worker()
        wait_until(
            lambda: int(backend.redis.get("pam:ran:check_maintenance_reminders") or 0) >= 2,
            timeout=40,
            what="a periodic task runs",
        )


def test_schedule_file_is_readable_without_us(backend: CeleryBackend) -> None:
    """After a rollback Celery's own scheduler opens the file that ours wrote; a class of ours in it would stop beat."""
    backend.beat()
    wait_until(lambda: "Sending due task" in backend.log("beat"), timeout=30)
    backend.stop("beat")
    backend.beat("-S", "celery.beat:PersistentScheduler", name="plain")
    wait_until(lambda: "Sending due task" in backend.log("plain"), timeout=30)
    assert "corrupt" not in backend.log("plain") and "Error" not in backend.log("plain")


def test_redis_that_fails_means_full_rate(backend: CeleryBackend) -> None:
    backend.redis.set("pam:throttle", "not a hash")
    backend.beat()
    wait_until(lambda: "full rate" in backend.log("beat"), timeout=40, what="its error is seen")
    counts = during(backend, 10)
    assert all(counts[name] >= 8 for name in LOW), counts


def test_check_tells_workers_beat_and_queues(backend: CeleryBackend, redis: servers.Redis) -> None:
    dead = check.check(redis.url, timeout=0.5)
    assert dead.status == "critical" and dead.remedy == "service_restart"
    backend.worker()
    backend.beat()
    wait_until(lambda: backend.redis.exists("pam:beat:heartbeat"), timeout=30)
    alive = check.check(redis.url)
    assert alive.status == "ok", alive.message
    newest = json.loads(backend.redis.get("pam:workers:heartbeat"))
    assert abs(time.time() - newest["at"]) < 60 and newest["solo"] is False
    assert backend.redis.ttl("pam:workers:heartbeat") > 80_000, "it is to outlive every worker"
    assert alive.details["workers"]["worker@test"]["concurrency"] == 2
    assert (
        alive.details["beat"]["source"] == "heartbeat" and alive.details["beat"]["pid"] == backend.processes["beat"].pid
    )
    backend.stop("beat")
    assert not backend.redis.exists("pam:beat:heartbeat"), "an orderly end takes its sign of life along"
    backend.processes["worker"].send_signal(signal.SIGSTOP)
    try:
        frozen = check.check(redis.url, timeout=0.5)
        assert frozen.status == "critical" and "0 of 1 workers" in frozen.message
    finally:
        backend.processes["worker"].send_signal(signal.SIGCONT)
    backend.stop("worker")
    backend.redis.rpush("email", *["x"] * 1001)
    crowded = check.check(redis.url, timeout=0.5, expect_beat=False, expect_workers=0)
    assert crowded.status == "warning" and crowded.value == 1001 and crowded.remedy == "celery_throttle"


def send(backend: CeleryBackend, kind: str, numbers: t.Iterable[int]) -> None:
    module = {"analytics": "analytics_tasks", "cleanup": "cleanup_tasks", "notifications": "notification_tasks"}[kind]
    backend.python(
        "from app.workers.celery import celery_app as a\nwith a.producer_or_acquire() as p:\n    for n in"
        f" {list(numbers)!r}: a.send_task('app.workers.tasks.{module}.record', [n], producer=p, ignore_result=True)\n"
    )


def recorded(backend: CeleryBackend, kind: str) -> t.List[int]:
    return [int(value) for value in backend.redis.lrange(f"pam:record:{kind}", 0, -1)]


def test_time_is_not_spent_waiting_when_redis_is_a_black_hole(redis: servers.Redis) -> None:
    """The publisher's caller may be an event loop."""
    with celery_backend(redis.url) as backend:
        seconds = float(
            backend.python(
                "import time\n"
                "from app.wheels_ops.celery_throttle import LoadPublisher\n"
                "def seconds():\n"
                "    p = LoadPublisher('redis://192.0.2.1:6379/0')\n"
                "    s = time.monotonic()\n"
                "    for _ in range(20): p.observe(99.0)\n"
                "    return time.monotonic() - s\n"
                # Whoever waits, waits each time; a busy machine holds a process up now and then.
                "print(min(seconds() for _ in range(5)))\n"
            )
        )
    assert seconds < 0.4, "one time-out of its connection would be 0.5 s"


@pytest.mark.parametrize(("host", "measures"), [("", False), ("another-host", True)])
def test_beat_leaves_measuring_to_a_monitor_on_its_own_host(redis: servers.Redis, host: str, measures: bool) -> None:
    """A web host with nothing to do must not keep beat from seeing that the workers' host is busy."""
    with celery_backend(redis.url, schedule={OTHER: 1.0}) as backend:
        backend.redis.set(f"pam:throttle:observer:{host or socket.gethostname()}", "monitor", ex=60)
        code = (
            "import os\nfrom app.workers.celery import celery_app\nfrom app.wheels_ops.celery_throttle import"
            " LoadAwareScheduler\nbeat = LoadAwareScheduler(app=celery_app,"
            " schedule_filename=os.path.join(os.environ['TMPDIR'], 'schedule'), lazy=True)\nbeat._sampler.sample ="
            " lambda: (99.0, 95.0)\nbeat._reader.refresh(); beat._measure();"
            " beat._publisher.close()\nprint(beat._publisher.load.level)\n"
        )
        assert (int(backend.python(code)) > 0) is measures
