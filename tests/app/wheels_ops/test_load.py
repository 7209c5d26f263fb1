# SPDX-License-Identifier: GPL-3.0-or-later
"""From measurements to a level, and from a task to its class: functions of the patched file, under the backend's
interpreter.
"""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support import servers
from tests.support.celery_backend import CeleryBackend, celery_backend


@pytest.fixture(scope="module")
def backend(redis_server: servers.Redis) -> t.Iterator[CeleryBackend]:
    with celery_backend(redis_server.url) as made:
        yield made


def levels(
    backend: CeleryBackend,
    samples: t.Sequence[t.Tuple[float, t.Optional[float], t.Optional[float]]],
    every: float = 1.0,
) -> t.List[int]:
    """The level after each sample, ``every`` seconds apart."""
    code = (
        "import json; from app.wheels_ops.load import Load; load = Load()\nprint(json.dumps([load.observe(*s,"
        f" now={every} * n) for n, s in enumerate(json.loads({json.dumps(json.dumps(samples))}))]))"
    )
    return [int(level) for level in json.loads(backend.python(code))]


def test_a_busy_machine_is_at_level_two_within_ten_seconds_and_calm_again_after_the_hold(
    backend: CeleryBackend,
) -> None:
    found = levels(backend, [(5.0, None, None)] * 5 + [(100.0, None, None)] * 30 + [(5.0, None, None)] * 40)
    assert found[:5] == [0] * 5
    assert found[5 + 9] >= 2
    assert max(found) == 3
    assert found[35 + 10] > 0, "held for a while"
    assert found[-1] == 0


@pytest.mark.parametrize("every", [0.5, 1.0, 5.0])
def test_the_interval_of_the_samples_does_not_matter(backend: CeleryBackend, every: float) -> None:
    assert levels(backend, [(100.0, None, None)] * int(10 / every), every=every)[-1] >= 2
    assert levels(backend, [(60.0, None, None)] * 40, every=every)[-1] == 0


def test_no_flapping_on_an_oscillation_around_the_threshold(backend: CeleryBackend) -> None:
    found = levels(backend, [(70.0 + (-1) ** number, None, None) for number in range(120)])
    assert sum(left != right for left, right in zip(found, found[1:])) <= 1


def test_pressure_and_a_late_event_loop_count_as_load(backend: CeleryBackend) -> None:
    assert levels(backend, [(10.0, 75.0, None)])[-1] == 2
    assert levels(backend, [(10.0, None, 300.0)])[-1] == 2
    assert levels(backend, [(10.0, 95.0, None)])[-1] == 3
    assert levels(backend, [(10.0, 20.0, 30.0)])[-1] == 0


def test_classes_of_the_backends_tasks(backend: CeleryBackend) -> None:
    code = (
        "import json; from app.workers.celery import celery_app as a; from app.wheels_ops import celery_throttle as"
        " c\nentries = a.conf.beat_schedule\nclass E:\n    def __init__(self, n, e): self.name, self.task, self.options"
        " = n, e['task'], e.get('options', {})\nprint(json.dumps({n: c.class_of(n, e['task'], c.queue_of(a, E(n, e)))"
        " for n, e in entries.items()} |\n {'mail': c.class_of('x', 'app.workers.tasks.email_tasks.cleanup', 'email'),"
        " 'odd': c.class_of('x', 'y.cleanup_tasks.z', 'notifications')}))"
    )
    assert json.loads(backend.python(code)) == {
        "maintenance-check-daily": "",
        "cleanup-expired-data": "cleanup",
        "process-analytics-hourly": "analytics",
        "send-daily-digest": "digest",
        "mail": "",
        "odd": "",
    }


def test_delays_are_bounded_also_for_crontabs(backend: CeleryBackend) -> None:
    """An hourly task comes within four hours, the daily digest at most half an hour late, whatever the factor."""
    code = (
        "import json, datetime; from celery.schedules import crontab, schedule\nfrom app.workers.celery import"
        " celery_app as a; from app.wheels_ops import celery_throttle as c\nlast = datetime.datetime(2025, 7, 30, 11,"
        " 59, 30, tzinfo=datetime.timezone.utc)\nclass S(c.LoadAwareScheduler):\n    def __init__(self): self._classes"
        " = {}; self.app = a; self._reader = type('R', (), {'throttle': c.Throttle(3, frozenset(c.MAX_DELAY))})\ndef"
        " delay(name, task, when):\n    e = type('E', (), {'name': name, 'task': task, 'options': {}, 'schedule': when,"
        " 'last_run_at': last})\n    return S().delay(e)\nm = 'app.workers.tasks.'\nprint(json.dumps([delay('a', m +"
        " 'cleanup_tasks.x', schedule(3600)), delay('b', m + 'cleanup_tasks.x', schedule(60)),\n delay('digest', m +"
        " 'notification_tasks.send_daily_digest', schedule(86400)), delay('d', m + 'email_tasks.x', schedule(60)),\n"
        " delay('c', m + 'analytics_tasks.x', crontab(minute='*/10', app=a)), delay('e', m + 'notification_tasks.x',"
        " crontab(minute=0, app=a))]))"
    )
    assert json.loads(backend.python(code)) == [10800.0, 420.0, 1800.0, 0.0, 4200.0, 0.0]


def test_a_hash_that_nobody_understands_is_full_rate(backend: CeleryBackend) -> None:
    code = (
        "import json; from app.wheels_ops.celery_throttle import Throttle\ntries = [{}, {'level': 'x', 'classes':"
        " 'cleanup'}, {'level': '2', 'classes': 'email,notifications'}, {'level': '-1', 'classes': 'cleanup'},\n"
        " {'level': '99', 'classes': 'cleanup,email'}, {'level':"
        " '2'}]\nprint(json.dumps([[Throttle.of(f).factor('cleanup'), Throttle.of(f).factor('email')] for f in tries]))"
    )
    assert json.loads(backend.python(code)) == [[1, 1], [1, 1], [1, 1], [1, 1], [8, 1], [1, 1]]


def test_an_operators_throttle_is_not_overwritten_by_a_measurement(backend: CeleryBackend) -> None:
    code = (
        "import asyncio; from app.wheels_ops import load as c\nclient = c.client_for(c.default_url());"
        " client.flushall()\nclient.hset(c.KEY, mapping={'level': '1', 'classes': 'cleanup', 'source': 'operator'});"
        " client.expire(c.KEY, 50)\nprint(asyncio.run(c.publish_level(3, reason='cpu')),"
        " asyncio.run(c.publish_level(0)), client.hget(c.KEY,"
        " 'level'))\nclient.delete(c.KEY)\nprint(asyncio.run(c.publish_level(3, reason='cpu')), client.hget(c.KEY,"
        " 'level'), client.ttl(c.KEY) > 80, client.exists(c.observer_key()))\nprint(asyncio.run(c.publish_level(0)),"
        " client.exists(c.KEY))"
    )
    assert backend.python(code).splitlines() == ["False False 1", "True 3 True 1", "True 0"]


def test_an_idle_machine_does_not_undo_the_throttle_of_a_busy_one(backend: CeleryBackend) -> None:
    code = (
        "import asyncio; from app.wheels_ops import load\nclient = load.client_for(load.default_url());"
        " client.flushall()\nload.WRITER = 'busy:1'; print(asyncio.run(load.publish_level(2)))\nload.WRITER = 'idle:1';"
        " print(asyncio.run(load.publish_level(0)), client.hget(load.KEY, 'level'),"
        " asyncio.run(load.publish_level(3)))\nload.WRITER = 'busy:1'; print(asyncio.run(load.publish_level(0)),"
        " client.hget(load.KEY, 'level'))\n"
    )
    assert backend.python(code).splitlines() == ["True", "False 2 True", "False 3"]


def test_the_writer_needs_no_celery(backend: CeleryBackend) -> None:
    """Importing it would cost every web process 25 MB."""
    assert backend.python("import sys, app.wheels_ops.load; print('celery' in sys.modules)").strip() == "False"
