# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts below a Celery that has work to do: real Redis, worker and beat under supervisord; redis-cli counts the
tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox import binaries
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.checks import services as services_check
from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services import gates
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services
from wheels_ops.state import restarts

APP = """
import os
from celery import Celery
app = Celery("demo", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True, task_acks_late=True, worker_prefetch_multiplier=1)
app.conf.beat_schedule = {"tick": {"task": "demo.tick", "schedule": 3600.0}}
@app.task(name="demo.tick")
def tick():
    return 1
"""


class Host:
    """Redis, a worker and a beat under one supervisord, and tasks in a queue that nobody consumes."""

    def __init__(self, daemon: Supervisord, directory: Path, port: int) -> None:
        self.daemon, self.directory, self.port = daemon, directory, port
        self.url = f"redis://127.0.0.1:{port}/0"

    def cli(self, *words: str) -> str:
        programs = binaries.redis()
        done = subprocess.run(
            [programs.path("redis-cli"), "-p", str(self.port), *words],
            capture_output=True,
            text=True,
            env=programs.environ(),
            check=True,
        )
        return done.stdout.strip()

    def queue(self, count: int) -> None:
        for number in range(count):
            self.cli("RPUSH", "email", f"task {number}")
        self.cli("RPUSH", "email\x06\x163", "an urgent task")

    def waiting(self) -> int:
        return int(self.cli("LLEN", "email")) + int(self.cli("LLEN", "email\x06\x163"))

    def services(self) -> t.List[t.Dict[str, t.Any]]:
        return [
            {"name": "redis", "gate": {"type": "redis", "url": self.url}},
            {"name": "worker", "depends_on": ["redis"], "gate": {"type": "celery", "url": self.url}},
            {
                "name": "beat",
                "depends_on": ["worker"],
                "gate": {"type": "beat", "app": "demo", "schedule_file": str(self.directory / "schedule")},
            },
        ]

    def run(self, *, check_mode: bool = False, **options: t.Any) -> Result:
        settings: t.Dict[str, t.Any] = {
            "wait_timeout": 30,
            "wait_sleep": 0.1,
            "min_healthy_time": 0.5,
            "healthy_deadline": 30,
            "max_restarts": 0,
        }
        settings.update(state_dir=str(self.directory / "state"), **options)
        return service_restart.run(
            parse_services(self.services()),
            open_manager("supervisor", self.daemon.socket),
            Options(**settings),
            check_mode=check_mode,
        )

    def beats(self) -> t.List[int]:
        """The beats of this host's broker, found by pgrep."""
        found = subprocess.run(
            ["pgrep", "-f", f"celery -A demo beat -s {self.directory}/"], capture_output=True, text=True, check=False
        ).stdout.split()
        return [int(pid) for pid in found]

    def pids(self) -> t.List[int]:
        return [self.daemon.pid(name) for name in ("redis", "worker", "beat")]


@contextlib.contextmanager
def running(directory: Path, *options: str) -> t.Iterator[Host]:
    """Everything up and ready; ``options`` are those of redis-server."""
    port, programs = free_port(), binaries.redis()
    (directory / "demo.py").write_text(APP)
    environment = {"LD_LIBRARY_PATH": programs.env.get("LD_LIBRARY_PATH", "")}
    redis = " ".join(
        [programs.path("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), *options]
    )
    celery = f"{BACKEND_PYTHON} -m celery -A demo"
    here = {"directory": str(directory), "stopasgroup": "false"}
    url = {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    sections = {
        # Killed where it is stopped: what it keeps was on disk before.
        "redis": Program(redis, environment=environment, options={"priority": "1", "stopsignal": "KILL"}),
        "worker": Program(
            f"{celery} worker --pool=solo --queues=celery -n demo@%%h --loglevel=warning", environment=url, options=here
        ),
        "beat": Program(f"{celery} beat -s {directory}/schedule --loglevel=warning", environment=url, options=here),
    }
    with supervisord(sections) as daemon:
        host = Host(daemon, directory, port)
        wait_until(
            lambda: "demo" in host.cli("SMEMBERS", "_kombu.binding.celery.pidbox"), timeout=40, what="the worker"
        )
        wait_until(lambda: len(host.beats()) == 1, timeout=40, what="beat")
        yield host
        daemon.ctl("signal", "KILL", "worker", "beat", "redis")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Host]:
    with running(tmp_path_factory.mktemp("aof"), "--appendonly", "yes") as host:
        yield host


@pytest.fixture
def host(shared: Host) -> Host:
    """The host with an append-only file, its queue emptied; every test leaves it running."""
    shared.cli("DEL", "email", "email\x06\x163")
    assert 0 not in shared.pids()
    return shared


def test_the_whole_graph_in_order_and_every_task_kept(host: Host) -> None:
    host.queue(25)
    before = host.pids()

    predicted = host.run(check_mode=True)
    assert host.pids() == before
    assert host.waiting() == 26

    done = host.run()
    verbs = [(entry["action"], entry["target"]) for entry in done.actions]
    assert verbs == [
        ("pause", "beat"),
        ("pause", "worker"),
        ("restart", "redis"),
        ("start", "worker"),
        ("start", "beat"),
    ]
    assert verbs == [(entry["action"], entry["target"]) for entry in predicted.actions]
    after = host.pids()
    assert 0 not in after
    assert not set(after) & set(before)
    assert host.waiting() == 26
    assert done.extra["queued_tasks"]["redis"]["before"]["email"] == 26
    assert done.extra["queued_tasks"]["redis"]["after"]["email"] == 26
    assert len(host.beats()) == 1
    assert not host.run(state="started").changed

    check = services_check.check(host.services(), manager="supervisor", supervisor_socket=host.daemon.socket)
    assert check.status == "ok", check.message


def test_a_redis_that_saves_by_schedule_saves_first_and_one_that_would_forget_stays(tmp_path: Path) -> None:
    with running(tmp_path, "--save", "900", "1") as host:
        host.queue(25)
        done = host.run(only=("redis",), with_dependents=False)
        restart = next(entry for entry in done.actions if entry["action"] == "restart")
        assert restart["persisted"]["method"] == "rdb"
        assert host.waiting() == 26

        host.cli("CONFIG", "SET", "save", "")
        before = host.pids()
        for check_mode in (True, False):
            with pytest.raises(OpsError, match="would lose 26 queued tasks") as caught:
                host.run(check_mode=check_mode)
            assert caught.value.details["blocked_reason"]
            assert host.pids() == before
            assert host.waiting() == 26
        (tmp_path / "dump.rdb").unlink()
        done = host.run(allow_task_loss=True)
        assert done.changed
        assert done.extra["queued_tasks"]["redis"]["after"].get("email", 0) == 0


def test_a_worker_that_hangs_and_a_second_beat(host: Host) -> None:
    # A stopped worker is RUNNING for its manager and answers no ping.
    worker = host.daemon.pid("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        check = services_check.check(host.services(), manager="supervisor", supervisor_socket=host.daemon.socket)
        assert check.status == "critical"
        assert "no worker answered" in check.message
        assert check.remedy == "service_restart"
    finally:
        os.kill(worker, signal.SIGCONT)

    second = subprocess.Popen(
        [str(BACKEND_PYTHON), "-m", "celery", "-A", "demo", "beat", "-s", str(host.directory / "other"), "--pidfile="],
        cwd=host.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "REDIS_URL": host.url},
    )
    try:
        before = host.pids()
        with pytest.raises(OpsError, match=f"process {second.pid}"):
            host.run()
        assert host.pids() == before
        check = services_check.check(host.services(), manager="supervisor", supervisor_socket=host.daemon.socket)
        assert "beat runs 2 times" in check.message
    finally:
        second.kill()
        second.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_beat_of_another_user_is_of_another_installation(host: Host) -> None:
    """Two people's sandboxes on one machine: neither may read the other's environment, nor stop the other's beat."""
    (service,) = parse_services([{"name": "beat", "gate": {"type": "beat", "app": "demo", "url": host.url}}])
    assert host.daemon.pid("beat") in gates.foreign_beats(service, ())
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os._exit(len(gates.foreign_beats(service, ())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_was_paused_runs_again_after_a_failure(host: Host) -> None:
    before = host.pids()
    # Whatever loads the data fails now: the new Redis cannot start.
    manifest = host.directory / "appendonlydir" / "appendonly.aof.manifest"
    good = manifest.read_text()
    manifest.write_text("broken\n")
    begun = len(restarts.Ledger(host.directory / "state").read())
    with pytest.raises(OpsError) as caught:
        host.run()
    manifest.write_text(good)
    details = caught.value.details
    assert details["service"] == "redis"
    assert details["resumed"] == ["worker", "beat"]
    assert details["log"]
    assert details["actions"][0]["action"] == "pause"
    assert host.daemon.pid("worker") not in (0, before[1])
    assert host.daemon.pid("beat") not in (0, before[2])
    assert [entry["event"] for entry in restarts.Ledger(host.directory / "state").read()[begun:]] == ["begin", "end"]
    assert host.run(only_if=("stopped", "failed")).changed
    assert 0 not in host.pids()


def test_killed_in_the_middle_and_run_again(host: Host) -> None:
    host.queue(5)
    script = (
        "from wheels_ops.remedies import service_restart as s; from wheels_ops.services.manager import open_manager; "
        "from wheels_ops.services.model import parse_services; import json, sys; "
        "s.run(parse_services(json.loads(sys.argv[1])), open_manager('supervisor', sys.argv[2]), "
        "s.Options(state_dir=sys.argv[3], max_restarts=0, min_healthy_time=60, healthy_deadline=100))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(host.services()), host.daemon.socket, str(host.directory / "state")],
        env={**os.environ, "PYTHONPATH": "src"},
    )
    wait_until(lambda: host.daemon.pid("beat") == 0 and host.daemon.pid("worker") == 0, timeout=30)
    process.kill()
    process.wait()
    done = host.run()
    assert done.changed
    assert 0 not in host.pids()
    assert host.waiting() == 6
    assert len(host.beats()) == 1
