# SPDX-License-Identifier: GPL-3.0-or-later
"""How services are described, what is refused before anything is touched, and what recorded answers of the managers
mean.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import processes
from wheels_ops.remedies import service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services import gates
from wheels_ops.services.model import parse_services
from wheels_ops.state import restarts


@pytest.mark.parametrize(
    "services",
    [
        [],
        [{"name": ""}],
        [{"name": "-a"}],
        [{"name": "a", "unit": "b c"}],
        [{"name": "a", "unit": "../a"}],
        [{"name": "a"}, {"name": "a"}],
        [{"name": "a", "depends_on": ["b"]}],
        [{"name": "a", "gate": {"type": "http"}}],
        [{"name": "a", "gate": {"type": "http", "url": "file:///etc/passwd"}}],
        [{"name": "a", "gate": {"type": "redis", "url": "http://127.0.0.1"}}],
        [{"name": "a", "gate": {"type": "tcp"}}],
        [{"name": "a", "gate": {"type": "tcp", "port": 65536}}],
        [{"name": "a", "gate": {"type": "telnet"}}],
        [{"name": "a", "gate": {"type": "state", "colour": "red"}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://a/", "status": [99]}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://a/", "status": []}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://a/", "body_regex": "("}}],
        [{"name": "a", "gate": {"timeout": -1}}],
        [{"name": "a", "gate": {"timeout": 0}}],
        [{"name": "a", "gate": {"timeout": "soon"}}],
        [{"name": "a", "gate": {"healthy_deadline": 0}}],
        [{"name": "a", "gate": {"min_healthy_time": 9, "healthy_deadline": 8}}],
        [{"name": "a", "gate": {"type": "tcp", "port": "x"}}],
        [{"name": "a", "gate": {"type": "tcp", "port": 80, "host": ""}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://a:99999/"}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://"}}],
        [{"name": "a", "gate": {"type": "http", "url": "http://a/", "headers": {"A": "b\r\nc"}}}],
        [{"name": "a", "gate": {"type": "redis", "url": "redis://127.0.0.1/abc"}}],
        [{"name": "a", "watch_files": ["relative"]}],
        [{"name": "a", "gate": {"type": "beat", "schedule_file": "relative"}}],
        [{"name": "a", "depend_on": ["b"]}],
        [{"name": "a", "gate": {"healthy_deadline": 3601}}],
    ],
)
def test_nonsense_is_refused(services: t.List[t.Dict[str, t.Any]]) -> None:
    with pytest.raises(OpsError):
        parse_services(services)


def test_numbers_of_a_templated_gate_may_be_strings() -> None:
    gate = parse_services([{"name": "a", "gate": {"type": "tcp", "port": "8000", "timeout": "2.5"}}])[0].gate
    assert (gate.port, gate.timeout) == (8000, 2.5)


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(OpsError) as caught:
        parse_services([{"name": "a", "gate": {"type": "redis", "url": "amqp://u:s3cret@h/"}}])
    assert "s3cret" not in str(caught.value)


def test_beat_has_the_broker_of_what_it_depends_on() -> None:
    url = "redis://127.0.0.1:7000/3"
    services: t.List[t.Dict[str, t.Any]] = [
        {"name": "redis", "gate": {"type": "redis", "url": url}},
        {"name": "worker", "depends_on": ["redis"]},
        {"name": "beat", "depends_on": ["worker"], "gate": {"type": "beat"}},
    ]
    assert parse_services(services)[2].gate.url == url


@pytest.mark.parametrize(
    "options",
    [
        Options(wait_timeout=0),
        Options(wait_sleep=0),
        Options(min_healthy_time=-1),
        Options(healthy_deadline=1, min_healthy_time=2),
        Options(max_restarts=-1),
        Options(window=0),
        Options(cooldown=-1),
        Options(state="absent"),
        Options(only_if=("bored",)),
        Options(queues=("",)),
        Options(state_dir="relative"),
    ],
)
def test_options_have_ranges(options: Options, tmp_path: Path) -> None:
    class Untouched:
        """Any call would be one too many."""

    with pytest.raises(OpsError):
        service_restart.run(parse_services([{"name": "a"}]), t.cast(t.Any, Untouched()), options)


@pytest.mark.parametrize(
    ("words", "beat", "app"),
    [
        (
            ["/v/bin/python", "-m", "celery", "-A", "app.workers.celery", "beat", "--loglevel=info"],
            True,
            "app.workers.celery",
        ),
        (["/v/bin/python", "/v/bin/celery", "--app=a.b", "worker", "-B"], True, "a.b"),
        (["/v/bin/celery", "-Aa.b", "beat"], True, "a.b"),
        (["[celery beat] --"], True, ""),
        (["/v/bin/celery", "-A", "a", "worker"], False, "a"),
        (["vi", "beat"], False, ""),
        (["grep", "celery beat"], False, ""),
        ([], False, ""),
    ],
)
def test_which_command_lines_are_a_beat(words: t.List[str], beat: bool, app: str) -> None:
    assert gates.is_beat(words) is beat
    assert gates.application(words) == app


def test_the_budget_over_runs(tmp_path: Path) -> None:
    book = restarts.Ledger(tmp_path)
    limits: t.Dict[str, t.Any] = {"max_restarts": 2, "window": 100.0, "cooldown": 0.0}
    assert book.blocked("web", **limits) == ""
    book.add(event="begin", service="web")
    book.add(event="end", service="web")
    book.add(event="begin", service="other")
    assert book.blocked("web", **limits) == ""
    assert "cool-down" in book.blocked("web", **{**limits, "cooldown": 60.0})
    book.add(event="begin", service="web")
    assert "budget of 2" in book.blocked("web", **limits)
    assert book.blocked("web", **{**limits, "max_restarts": 0}) == ""
    # A line that a crash cut short, and one of an hour ago, count for nothing.
    lines = [f'{{"time": {time.time() - 3600}, "event": "begin", "service": "web"}}\n', '{"time": 1']
    book.path.write_text(lines[0] * 5 + lines[1])
    assert book.blocked("web", **limits) == ""


def test_the_ledger_stays_small_and_is_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_MAX_BYTES", 2000)
    book = restarts.Ledger(tmp_path)
    for number in range(100):
        book.add(event="begin", service="web", number=number)
    assert book.path.stat().st_size < 2500
    assert book.read()[-1]["number"] == 99
    book.path.unlink()
    book.path.symlink_to(tmp_path / "victim")
    with pytest.raises(OpsError):
        book.add(event="begin", service="web")
    assert not (tmp_path / "victim").exists()


def test_two_runs_do_not_overlap_and_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    book = restarts.Ledger(tmp_path)
    with book.locked(), pytest.raises(OpsError, match="Another run"), restarts.Ledger(tmp_path).locked():
        raise AssertionError("both have it")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                f"import fcntl,os,time; d=os.open({str(tmp_path / 'restarts.lock')!r}, os.O_RDWR); fcntl.flock(d, 2);"
                " print(1, flush=True); time.sleep(60)"
            ),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(OpsError, match="Another run"), book.locked():
        raise AssertionError("both have it")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with book.locked():
        pass


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")],
)
def test_who_listens(family: int, address: str) -> None:
    with socket.socket(family) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        assert processes.listeners(port) == []
        server.listen()
        found = processes.listeners(port)
        assert [(entry.address, entry.port) for entry in found] == [(address, port)]
        assert processes.holders([found[0].inode]) == {found[0].inode: {os.getpid()}}
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        assert processes.answering(port, host) == found
    assert processes.listeners(port) == []


def _as_an_ordinary_user(look: t.Callable[[], t.Any]) -> t.Any:
    """What ``look`` gives in a child of ours that is not root."""

    def child(answer: t.Any) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        answer.send(look())

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def test_a_process_that_has_ended_does_not_hide_who_listens() -> None:
    """What a service starts for a moment ends between the look at its processes and the look at their sockets."""

    def look() -> t.Tuple[bool, bool]:
        ended = os.fork()
        if not ended:
            os._exit(0)
        with socket.create_server(("127.0.0.1", 0)) as server:
            [found] = processes.listeners(server.getsockname()[1])
            os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)  # a zombie from here on, until it is waited for below
            try:
                os.listdir(f"/proc/{ended}/fd")
                readable = True
            except PermissionError:
                readable = False
            held = processes.holders([found.inode], [ended, os.getpid()])[found.inode] == {os.getpid()}
            nobody = processes.holders([found.inode], [ended])[found.inode] == set()
        os.waitpid(ended, 0)
        return readable, held and nobody

    assert _as_an_ordinary_user(look) == (False, True)


def test_a_process_of_somebody_else_is_named_where_it_may_hold_the_socket() -> None:
    def look() -> t.Tuple[bool, str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            [found] = processes.listeners(server.getsockname()[1])
            held = processes.holders([found.inode], [1, os.getpid()])[found.inode] == {
                os.getpid()
            }  # process 1 is root's
            try:
                processes.holders([found.inode], [1])
            except OpsError as error:
                return held, str(error)
        return held, ""

    held, error = _as_an_ordinary_user(look)
    assert held
    assert "Which sockets process 1 holds cannot be read" in error


def test_the_process_tree() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess,sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    try:
        members = processes.tree(parent.pid)
        assert len(members) == 2
        assert parent.pid in members
        begun = processes.start_time(parent.pid)
        assert begun is not None
        assert abs(begun - time.time()) < 60
    finally:
        parent.communicate(b"\n")
    assert processes.tree(parent.pid) == set()
