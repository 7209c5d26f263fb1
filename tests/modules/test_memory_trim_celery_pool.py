# SPDX-License-Identifier: GPL-3.0-or-later
"""A real worker's idle children are replaced by its own remote control: a child at work finishes its task, and no task
is lost.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import redis as redis_client

from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.supervised import Program, supervisord
from tests.support.waiting import wait_until
from wheels_ops.remedies.memory import steps, trim
from wheels_ops.services import broker
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

APP = """
import os, time, celery, redis
app = celery.Celery("fat", broker=os.environ["BROKER"])
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True, task_default_queue="celery")
client = redis.Redis.from_url(os.environ["BROKER"])
KEPT = []

@app.task
def waste():
    # Held until every child has one: the waste lies in each, not in whichever was the fastest.
    KEPT.append([str(number) * 4 for number in range(300_000)])
    client.sadd("wasted", os.getpid())
    while client.scard("wasted") < 3:
        time.sleep(0.05)
    client.incr("ended")

@app.task
def work(number):
    client.rpush("begun", os.getpid())
    while not client.exists("go"):
        time.sleep(0.05)
    client.rpush("done", number)
"""


def test_idle_children_are_replaced_and_no_task_is_lost(redis: servers.Redis, tmp_path: Path) -> None:
    (tmp_path / "fat.py").write_text(APP)
    command = f"{BACKEND_PYTHON} -m celery -A fat worker --concurrency=3 -n fat@test --loglevel=info"
    program = Program(
        command,
        environment={"BROKER": redis.url, "C_FORCE_ROOT": "1"},
        options={"directory": str(tmp_path), "stopasgroup": "true"},
    )
    client: t.Any = redis_client.Redis.from_url(redis.url, decode_responses=True)

    def send(name: str, *arguments: t.Any) -> None:
        import subprocess

        call = f"import fat; fat.{name}.delay(*{arguments!r})"
        subprocess.run([str(BACKEND_PYTHON), "-c", call], cwd=tmp_path, env={"BROKER": redis.url}, check=True)

    with supervisord({"worker": program}) as daemon:
        control = open_manager("supervisor", daemon.socket)
        services = parse_services([{"name": "worker", "gate": {"type": "celery", "url": redis.url}}])
        with broker.connect(redis.url) as asked:
            wait_until(lambda: broker.workers(asked, timeout=2, wanted=bool), timeout=60, what="a worker")
        context = steps.Context(services=services, control=control, redis_url=redis.url)
        for _ in range(3):
            send("waste")
        wait_until(lambda: int(client.get("ended") or 0) == 3)
        send("work", 1)
        wait_until(lambda: client.llen("begun") == 1)
        busy = int(client.lindex("begun", 0))
        before = context.pids("worker")
        used = trim.resident_bytes(before)
        given = {
            "services": [{"name": "worker", "gate": {"type": "celery", "url": redis.url}}],
            "service_manager": "supervisor",
            "supervisor_socket": daemon.socket,
            "scope": "services",
            "memory_limits_mb": {"worker": used / 0.8 / trim.MEBIBYTE},
            "redis_url": redis.url,
            "actions": ["celery"],
            "min_gain": "1M",
            "state_dir": str(tmp_path / "state"),
        }
        foreseen = trim.run_with(given, check_mode=True)
        assert context.pids("worker") == before and foreseen.actions[0]["predicted_bytes"] > 20 * trim.MEBIBYTE
        result = trim.run_with(given)
        after = context.pids("worker")
        assert result.changed and result.actions[0]["action"] == "celery", result.actions
        assert result.actions[0]["predicted_bytes"] == pytest.approx(foreseen.actions[0]["predicted_bytes"], rel=0.1)
        replaced = set(result.actions[0]["replaced"])
        assert replaced and busy not in replaced and busy in after and not replaced & after
        assert result.actions[0]["bytes_freed"] > 10 * trim.MEBIBYTE
        assert len(after) == len(before)
        client.set("go", 1)
        for number in range(2, 8):
            send("work", number)
        wait_until(lambda: client.llen("done") == 7)
        assert sorted(map(int, client.lrange("done", 0, -1))) == list(range(1, 8))

        def above() -> t.Dict[str, t.Any]:
            """With a limit that it is above, whatever it gave back."""
            return {
                **given,
                "memory_limits_mb": {"worker": trim.resident_bytes(context.pids("worker")) / 0.95 / trim.MEBIBYTE},
            }

        # What was at work is replaced by the next run. Then nothing is replaced in vain, as check mode says.
        before = context.pids("worker")
        second = trim.run_with(above())
        assert (
            second.changed and len(second.actions[0]["replaced"]) == 3 and len(context.pids("worker") & before) == 1
        ), "all but the parent"
        children = context.pids("worker")
        assert busy not in children
        for check_mode in (True, False):
            last = trim.run_with(above(), check_mode=check_mode)
            assert not last.changed and "its idle children were replaced at" in last.actions[0]["skipped"], last.actions
        assert context.pids("worker") == children
