# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers that answer no remote control: at work in their own process, or told not to.

Real Redis and Celery; redis-cli says what became of tasks.
"""

from __future__ import annotations

import os
import re
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
from wheels_ops.checks import celery as celery_check
from wheels_ops.checks import services as services_check
from wheels_ops.core.results import Result
from wheels_ops.host import processes
from wheels_ops.remedies import service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services import broker, celery_workers
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

APP = """
import os, time
import redis
from celery import Celery
url = os.environ["REDIS_URL"]
app = Celery("quiet", broker=url, backend=url)
app.conf.worker_enable_remote_control = os.environ["REMOTE"] == "on"
app.conf.broker_transport_options = {"global_keyprefix": os.environ["PREFIX"]}
@app.task(name="quiet.nap")
def nap(name):
    client = redis.Redis.from_url(url)
    client.incr(f"begun:{name}")
    while not client.exists(f"wake:{name}"):
        time.sleep(0.05)
    client.incr(f"done:{name}")
"""


class Host:
    """One Redis; ``solo`` runs tasks in its own process (database 0), ``quiet`` has no remote control (1), ``shop`` a
    key prefix (2).
    """

    DATABASES: t.ClassVar[t.Dict[str, int]] = {"solo": 0, "quiet": 1, "shop": 2}

    def __init__(self, daemon: Supervisord, directory: Path, port: int) -> None:
        self.daemon, self.directory, self.port = daemon, directory, port

    def url(self, name: str) -> str:
        return f"redis://127.0.0.1:{self.port}/{self.DATABASES[name]}"

    def cli(self, name: str, *words: str) -> str:
        programs = binaries.redis()
        command = [programs.path("redis-cli"), "-p", str(self.port), "-n", str(self.DATABASES[name]), *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=programs.environ(), check=True
        ).stdout.strip()

    def services(self, *names: str) -> t.List[t.Dict[str, t.Any]]:
        return [{"name": name, "gate": {"type": "celery", "url": self.url(name), "timeout": 1}} for name in names]

    def run(self, name: str, *, check_mode: bool = False, **options: t.Any) -> Result:
        settings: t.Dict[str, t.Any] = {
            "wait_timeout": 30,
            "wait_sleep": 0.1,
            "min_healthy_time": 0.3,
            "healthy_deadline": 30,
            "max_restarts": 0,
        }
        settings.update(state_dir=str(self.directory / "state"), **options)
        return service_restart.run(
            parse_services(self.services(name)),
            open_manager("supervisor", self.daemon.socket),
            Options(**settings),
            check_mode=check_mode,
        )

    def send(self, name: str, task: str) -> None:
        """By Celery itself."""
        code = f"import quiet; quiet.nap.delay({task!r})"
        subprocess.run(
            [str(BACKEND_PYTHON), "-c", code],
            cwd=self.directory,
            env={**os.environ, **variables(self.url(name))},
            check=True,
            timeout=60,
        )


def variables(url: str, remote: str = "on", prefix: str = "") -> t.Dict[str, str]:
    return {"REDIS_URL": url, "REMOTE": remote, "PREFIX": prefix}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Host]:
    directory, port, programs = tmp_path_factory.mktemp("quiet"), free_port(), binaries.redis()
    (directory / "quiet.py").write_text(APP)
    redis = " ".join(
        [
            programs.path("redis-server"),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "''",
            "--dir",
            str(directory),
        ]
    )
    sections = {
        "redis": Program(
            redis, environment={"LD_LIBRARY_PATH": programs.env.get("LD_LIBRARY_PATH", "")}, options={"priority": "1"}
        )
    }
    for name, remote, prefix in (("solo", "on", ""), ("quiet", "off", ""), ("shop", "on", "shop:")):
        command = f"{BACKEND_PYTHON} -m celery -A quiet worker --pool=solo -n {name}@%%h --loglevel=warning"
        environment = variables(f"redis://127.0.0.1:{port}/{Host.DATABASES[name]}", remote, prefix)
        sections[name] = Program(command, environment=environment, options={"directory": str(directory)})
    with supervisord(sections) as daemon:
        found = Host(daemon, directory, port)
        for number in Host.DATABASES.values():
            wait_until(lambda n=number: f"db={n} " in _pollers(found), timeout=60, what="the workers")  # type: ignore[misc]  # bound at once
        yield found
        daemon.ctl("signal", "KILL", *sections)


def _pollers(host: Host) -> str:
    return "\n".join(line for line in host.cli("solo", "CLIENT", "LIST").splitlines() if "cmd=brpop" in line)


def _poller(host: Host, database: int) -> str:
    return next((line for line in _pollers(host).splitlines() if f" db={database} " in line), "")


def check(host: Host, name: str) -> t.Any:
    return celery_check.check(host.url(name), timeout=1.0, expect_beat=False)


def services(host: Host, name: str) -> t.Any:
    return services_check.check(host.services(name), manager="supervisor", supervisor_socket=host.daemon.socket)


def test_a_worker_at_work_in_its_own_process_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.daemon.pid("solo")
    host.send("solo", "long")
    wait_until(lambda: host.cli("solo", "GET", "begun:long") == "1", timeout=30)
    for sign in ("deliveries are unfinished", "pool solo"):
        done = host.run("solo", only_if=("unhealthy",))
        assert not done.changed and not done.actions
        for found in (check(host, "solo"), services(host, "solo")):
            assert found.status == "ok" and not found.remedy, f"busy is not unhealthy: {found}"
            assert sign in found.message and re.search(r"busy since \d+ s", found.message), found
        host.cli(
            "solo", "DEL", "unacked", "unacked_index"
        )  # as where the delivery is acknowledged before the task begins
    monkeypatch.setattr(celery_workers, "TASK_LIMIT", -1.0)
    for found in (check(host, "solo"), services(host, "solo")):
        assert found.status == "warning" and "longer than a task may take" in found.message and not found.remedy
    assert not host.run("solo", only_if=("unhealthy",)).changed
    assert host.daemon.pid("solo") == before and host.cli("solo", "GET", "done:long") == ""

    host.cli("solo", "SET", "wake:long", "1")
    wait_until(lambda: host.cli("solo", "GET", "done:long") == "1", timeout=30, what="the task")
    wait_until(lambda: check(host, "solo").status == "ok", timeout=30)
    assert host.cli("solo", "GET", "begun:long") == "1"


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (["--time-limit=30"], 30.0),
        (["--time-limit", "45.5"], 45.5),
        (["--soft-time-limit=9"], celery_workers.TASK_LIMIT),
        (["--time-limit"], celery_workers.TASK_LIMIT),
        ([], celery_workers.TASK_LIMIT),
    ],
)
def test_the_time_that_a_task_may_take_stands_on_the_command_line(options: t.List[str], limit: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", *options], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: "-c" in processes.command_line(process.pid))
        assert celery_workers.task_limit(process.pid) == limit
    finally:
        process.communicate()


def test_a_worker_without_remote_control_is_healthy_and_the_setting_is_named(host: Host) -> None:
    for found in (check(host, "quiet"), services(host, "quiet")):
        assert found.status == "ok" and "worker_enable_remote_control" in found.message and not found.remedy, found
    before = host.daemon.pid("quiet")
    assert not host.run("quiet", only_if=("unhealthy",)).changed
    assert host.daemon.pid("quiet") == before

    done = host.run("quiet")
    assert done.changed and host.daemon.pid("quiet") not in (0, before)
    assert done.actions[0]["answer"]["silent"][0]["verdict"] == "consuming"


def test_a_worker_with_a_prefix_of_its_keys_answers(host: Host) -> None:
    assert check(host, "shop").status == "ok"
    assert services(host, "shop").status == "ok"
    keys = host.cli("shop", "KEYS", "*reply*")
    assert keys == "", "what was asked with is taken away again"


def test_a_worker_that_was_stopped_by_a_signal_is_restarted(host: Host) -> None:
    before = host.daemon.pid("solo")
    os.kill(before, signal.SIGSTOP)
    found = check(host, "solo")
    assert found.status == "critical" and found.remedy == "service_restart" and "stopped" in found.message
    found = services(host, "solo")
    assert found.status == "critical" and found.remedy == "service_restart" and "stopped" in found.message
    assert host.run("solo", only_if=("unhealthy",)).changed
    assert host.daemon.pid("solo") not in (0, before)


def test_without_the_right_to_list_clients_nobody_is_restarted_for_silence(host: Host) -> None:
    host.cli("quiet", "ACL", "SETUSER", "ops", "reset", "on", ">word", "~*", "&*", "+@all", "-client|list")
    url = host.url("quiet").replace("//", "//ops:word@")
    client = broker.connect(url)
    (silence,) = celery_workers.Watch(client, host.port, [host.daemon.pid("quiet")]).silent()
    client.close()
    assert silence.unfinished and not silence.works and "+client|list" in silence.why


def test_deliveries_that_are_unfinished_keep_a_silent_process(host: Host) -> None:
    host.cli("quiet", "HSET", "unacked", "tag", "message")
    process = subprocess.Popen(["sleep", "600"])
    client = broker.connect(host.url("quiet"))
    try:
        (silence,) = celery_workers.Watch(client, host.port, [process.pid]).silent()
        assert silence.verdict == "busy" and silence.unfinished and not silence.works, (
            "it never asked for tasks: a start that hangs is no success"
        )
        host.cli("quiet", "DEL", "unacked")
        (silence,) = celery_workers.Watch(client, host.port, [process.pid]).silent()
        assert silence.verdict == "hung" and not silence.unfinished
    finally:
        client.close()
        process.kill()
        process.wait()


def test_a_process_that_computes_is_at_work(host: Host) -> None:
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    client = broker.connect(host.url("quiet"))
    try:
        watch = celery_workers.Watch(client, host.port, [process.pid])
        watch.wait(0.5)
        (silence,) = watch.silent()
        assert silence.verdict == "busy" and "% of a CPU" in silence.why
    finally:
        client.close()
        process.kill()
        process.wait()


def test_a_frozen_worker_is_continued_before_it_is_ended(host: Host) -> None:
    """Redis gives a task to the worker that waits for one; it is in the socket of a process that cannot read it."""
    wait_until(lambda: "db=0 " in _pollers(host), timeout=60, what="the worker")
    frozen = host.daemon.pid("solo")
    host.cli("solo", "SET", "wake:frozen", "1")
    os.kill(frozen, signal.SIGSTOP)
    wait_until(lambda: "flags=b" not in _poller(host, 0), what="the end of its question")
    host.send("solo", "frozen")
    message = host.cli("solo", "RPOP", "celery")
    os.kill(frozen, signal.SIGCONT)

    def given() -> bool:
        """It asks for a second at a time: only within one the task goes to it while it is stopped."""
        os.kill(frozen, signal.SIGSTOP)
        waits = "flags=b" in _poller(host, 0)
        if waits and host.cli("solo", "LPUSH", "celery", message) and not host.cli("solo", "RPOP", "celery"):
            return True
        os.kill(frozen, signal.SIGCONT)
        return False

    wait_until(given, what="Redis to give the task away")
    predicted = host.run("solo", check_mode=True)
    assert "process" in predicted.warnings[0] and "SIGSTOP" in predicted.warnings[0]
    assert processes.is_stopped(frozen)
    done = host.run("solo")
    actions = [[entry["action"] for entry in result.actions] for result in (predicted, done)]
    assert actions == [["continue", "restart"]] * 2
    assert host.daemon.pid("solo") not in (0, frozen)
    wait_until(lambda: host.cli("solo", "GET", "done:frozen") == "1", what="the task")
    assert set(done.extra["queued_tasks"]["solo"]) == {"before", "after"}
    assert done.extra["queued_tasks"]["solo"]["after"] is not None
