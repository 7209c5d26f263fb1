# SPDX-License-Identifier: GPL-3.0-or-later
"""When a beat counts as beating: its schedule is written, or held open, by the process that runs now."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from wheels_ops.checks import celery as celery_check
from wheels_ops.checks import redis as redis_check
from wheels_ops.checks.context import HostContext, Options
from wheels_ops.core.results import OpsError
from wheels_ops.host import processes
from wheels_ops.services import gates
from wheels_ops.services.model import ServiceState, parse_services


class Members:
    """Of a service manager, what the gate asks for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def pids(self, _state: ServiceState) -> t.Set[int]:
        return {self.pid}

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        return {unit: ServiceState(unit, exists=True, running=True, pid=self.pid) for unit in units}


@pytest.mark.parametrize(
    ("suffix", "held", "ready"),
    [
        (".db", True, True),  # Berkeley DB: Debian's Python writes it when beat ends
        ("-wal", True, True),  # SQLite: Python 3.13
        (".dat", False, False),  # nothing but an earlier process's file
    ],
)
def test_a_schedule_that_is_held_open_counts_and_an_old_one_does_not(
    tmp_path: Path, suffix: str, held: bool, ready: bool
) -> None:
    schedule = tmp_path / "schedule"
    file = Path(f"{schedule}{suffix}")
    file.touch()
    os.utime(file, (1_000_000_000, 1_000_000_000))
    program = f"import sys; kept = open({str(file)!r}) if {held} else None; print('up', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, "celery", "-A", "demo", "beat"]
    gate = {"type": "beat", "app": "demo", "schedule_file": str(schedule), "url": "redis://127.0.0.1:1/7"}
    (service,) = parse_services([{"name": "beat", "gate": gate}])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            wait_until(lambda: processes.command_line(process.pid) == words)
            seen = gates._PROBES["beat"](service, ServiceState("beat"), t.cast(t.Any, Members(process.pid)))
        finally:
            process.kill()
    assert seen.ready is ready
    assert ("neither written nor opened" in seen.why) is not ready


PROGRAM = "import os, socket, sys; port = int(os.environ.get('CONNECT', 0)); kept = socket.create_connection(\
('127.0.0.1', port)) if port else None; print('up', flush=True); sys.stdin.read()"
URL = "redis://127.0.0.1:1/7"


@contextlib.contextmanager
def beat(directory: Path, app: str, *words: str, **variables: str) -> t.Iterator[int]:
    """A process that looks like a beat; gives its number."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, "celery", "-A", app, *words, "beat"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=directory, env=variables, **options) as process:  # type: ignore[call-overload]  # options are those of Popen
        try:
            assert process.stdout.readline() == b"up\n"
            wait_until(lambda: processes.command_line(process.pid) == command)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("app", "directory", "url", "second"),
    [
        ("demo", "other", URL, True),  # started by hand, from somewhere
        ("demo.celery:app", "other", URL, True),
        ("demo", "own", "", True),
        ("demo", "own", "redis://127.0.0.1:1/8", False),  # staging beside production
        ("demo", "other", "", False),  # another checkout, whose broker is in a file
        ("shop", "own", "", False),  # another project
        ("shop", "other", URL, False),
    ],
)
def test_a_beat_of_another_project_is_no_second_one(
    tmp_path: Path, app: str, directory: str, url: str, second: bool
) -> None:
    gate = {"type": "beat", "url": URL}
    (service,) = parse_services([{"name": "beat", "gate": gate}])
    variables = {"CELERY_BROKER_URL": url} if url else {}
    with (
        beat(tmp_path / "own", "demo", CELERY_BROKER_URL=URL) as own,
        beat(tmp_path / directory, app, **variables) as other,
    ):
        assert (other in gates.foreign_beats(service, {own})) is second
        seen = gates._PROBES["beat"](service, ServiceState("beat"), t.cast(t.Any, Members(own)))
        assert (f"process {other}" in seen.why and f"process {own}" in seen.why) is second
        # Before the start of ours its definition tells the same.
        definition = (["/usr/bin/celery", "-A", "demo", "beat"], str(tmp_path / "own"))
        assert (other in gates.foreign_beats(service, (), definition)) is second


def test_a_beat_that_nothing_calls_ours_does_not_count(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        url = f"redis://127.0.0.1:{port}/7"
        with (
            beat(tmp_path, "demo") as unknown,
            beat(tmp_path, "demo", "-b", url) as told,
            beat(tmp_path, "demo", CONNECT=str(port)) as connected,
        ):
            found = set(gates.beats_of(url))
            assert found & {unknown, told, connected} == {told, connected}
            assert {unknown, told} & set(gates.beats_of("redis://127.0.0.1:2/7", {unknown})) == {unknown}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("amqp://u:s3cret@h//", "RabbitMQ (amqp://)"),
        ("sqs://k:s3cret@", "Amazon SQS (sqs://)"),
        ("sentinel://:s3cret@h:26379", "Redis Sentinel (sentinel://)"),
        ("sqla+sqlite:///s3cret.db", "an SQL database (sqla+sqlite://)"),
    ],
)
def test_another_broker_is_refused_by_its_name(url: str, name: str) -> None:
    for kind in ("redis", "celery", "beat"):
        with pytest.raises(OpsError, match=re.escape(name)) as caught:
            parse_services([{"name": "a", "gate": {"type": kind, "url": url}}])
        assert "s3cret" not in str(caught.value)
    for call in (redis_check.check, celery_check.check):
        with pytest.raises(OpsError, match=re.escape(name)):
            call(url)


def test_a_worker_with_another_broker_is_not_judged_by_a_redis(tmp_path: Path) -> None:
    services: t.List[t.Dict[str, t.Any]] = [{"name": "celery-worker"}]
    with beat(tmp_path, "demo", CELERY_BROKER_URL="amqp://u:s3cret@h//") as pid:
        context = HostContext(parse_services(services), lambda: t.cast(t.Any, Members(pid)))
        found = celery_check.measure(context, Options(redis_url=URL, services=services))
    assert (found.status, found.remedy) == ("unknown", "")
    assert "RabbitMQ" in found.message and "s3cret" not in found.message
