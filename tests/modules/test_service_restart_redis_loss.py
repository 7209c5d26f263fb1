# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts of a Redis that would forget something: real Redis under supervisord, tasks sent by Celery itself, redis-cli
as the witness.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import typing as t
from pathlib import Path

import pytest
import redis as redis_client

from tests.sandbox import binaries
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.checks import services as services_check
from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

SEND = """
import sys
from celery import Celery
url, options, priority = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
app = Celery("demo", broker=url)
app.conf.broker_transport_options = options
for number in range(25):
    app.send_task("demo.work", args=["a secret payload"], priority=int(priority) if priority else None)
"""


class Host:
    """A Redis under supervisord."""

    def __init__(self, daemon: Supervisord, directory: Path, port: int) -> None:
        self.daemon, self.directory, self.port = daemon, directory, port

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

    def pid(self) -> int:
        """By its own word: supervisorctl takes ten times as long."""
        return int(self.cli("INFO", "server").partition("process_id:")[2].split()[0])

    def services(self, login: str = "", database: int = 0) -> t.List[t.Dict[str, t.Any]]:
        return [{"name": "redis", "gate": {"type": "redis", "url": f"redis://{login}127.0.0.1:{self.port}/{database}"}}]

    def run(self, *, login: str = "", database: int = 0, check_mode: bool = False, **options: t.Any) -> Result:
        settings: t.Dict[str, t.Any] = {
            "wait_timeout": 30,
            "wait_sleep": 0.05,
            "min_healthy_time": 0.1,
            "healthy_deadline": 30,
            "max_restarts": 0,
        }
        settings.update(state_dir=str(self.directory / "state"), **options)
        manager = open_manager("supervisor", self.daemon.socket)
        return service_restart.run(
            parse_services(self.services(login, database)), manager, Options(**settings), check_mode=check_mode
        )

    def refusal(self, **options: t.Any) -> OpsError:
        """The error of a run that check mode predicts; nothing was restarted by either."""
        before, said = self.pid(), []
        for check_mode in (True, False):
            with pytest.raises(OpsError) as caught:
                self.run(check_mode=check_mode, **options)
            said.append(str(caught.value))
        assert said[0] == said[1] and self.pid() == before
        return caught.value


@contextlib.contextmanager
def running(directory: Path, *options: str) -> t.Iterator[Host]:
    port, programs = free_port(), binaries.redis()
    words = [programs.path("redis-server"), *options, "--port", str(port), "--bind", "127.0.0.1"]
    program = Program(
        " ".join(words),
        environment={"LD_LIBRARY_PATH": programs.env.get("LD_LIBRARY_PATH", "")},
        options={"stopsignal": "KILL"},
    )
    with supervisord({"redis": program}) as daemon:
        host = Host(daemon, directory, port)
        wait_until(lambda: redis_client.Redis(port=port).ping(), what="Redis")
        yield host


@pytest.fixture(scope="module")
def forgetful_server(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Host]:
    directory = tmp_path_factory.mktemp("forgetful")
    with running(directory, "--save", "''", "--dir", str(directory)) as host:
        yield host


@pytest.fixture
def forgetful(forgetful_server: Host) -> Host:
    """A Redis that keeps nothing on disk, empty."""
    forgetful_server.cli("FLUSHALL")
    return forgetful_server


@pytest.mark.parametrize(
    ("database", "options", "priority", "key", "shown"),
    [
        (0, {"global_keyprefix": "shop:"}, "", "shop:celery", "shop:celery: 25"),
        (
            0,
            {"priority_steps": list(range(10)), "queue_order_strategy": "priority"},
            "1",
            "celery\x06\x161",
            "celery: 25",
        ),
        (5, {}, "", "celery", "celery (database 5): 25"),
    ],
    ids=["global_keyprefix", "priority_steps", "another database"],
)
def test_tasks_in_every_set_up_of_celery_hold_a_restart_back(
    forgetful: Host, database: int, options: t.Mapping[str, t.Any], priority: str, key: str, shown: str
) -> None:
    url = f"redis://127.0.0.1:{forgetful.port}/{database}"
    subprocess.run([str(BACKEND_PYTHON), "-c", SEND, url, repr(options), priority], check=True, timeout=60)
    assert forgetful.cli("-n", str(database), "LLEN", key) == "25"
    error = forgetful.refusal()
    assert (
        "would lose 25 queued tasks" in error.message
        and shown in error.message
        and "keeps nothing on disk" in error.message
    )
    assert "secret" not in f"{error} {error.details}"
    assert forgetful.cli("-n", str(database), "LLEN", key) == "25"


@pytest.mark.parametrize(
    "words",
    [
        ("LPUSH", "rq:queue:default", "job"),
        ("XADD", "events", "*", "name", "value"),
        ("ZADD", "arq:queue", "1", "job"),
        ("HSET", "shop:unacked", "tag", "message"),
        ("HSET", "under-work", "tag", '[{"properties": {"delivery_tag": "tag"}}, "", "celery"]'),
        ("HSET", "dramatiq:default.msgs", "id", "message"),
    ],
    ids=["list", "stream", "job set", "unacked of a prefix", "unacked under another name", "messages of dramatiq"],
)
def test_whatever_may_be_work_counts_and_a_cache_does_not(forgetful: Host, words: t.Tuple[str, ...]) -> None:
    forgetful.cli("SET", "cached", "page")
    forgetful.cli("HSET", "profile", "name", "value")
    forgetful.cli("ZADD", "ranking", "1", "player")
    predicted = forgetful.run(check_mode=True)
    assert predicted.extra["queued_tasks"]["redis"]["before"] == {"unacked": 0}
    forgetful.cli("-n", "3", *words)
    error = forgetful.refusal()
    assert f"({words[1]} (database 3): 1)" in error.message


def test_a_redis_behind_another_gate_is_named(forgetful: Host) -> None:
    services = parse_services([{"name": "redis", "gate": {"type": "tcp", "port": forgetful.port}}])
    manager = open_manager("supervisor", forgetful.daemon.socket)
    result = service_restart.run(
        services, manager, Options(state_dir=str(forgetful.directory / "state")), check_mode=True
    )
    (warning,) = result.warnings
    assert "redis runs redis-server behind a gate of type tcp" in warning and "not counted" in warning


def test_an_empty_one_is_restarted_and_comes_back(forgetful: Host) -> None:
    forgetful.cli("SET", "cached", "page")
    before = forgetful.pid()
    done = forgetful.run()
    assert done.changed and forgetful.pid() not in (0, before)


@pytest.mark.parametrize(
    ("rules", "right"),
    [
        (("-info",), "+info"),
        (("-ping",), "+ping"),
        (("-config|get",), "+config|get"),
        (("-select",), "+select"),
        (("-scan",), "+scan"),
        (("-llen",), "+llen"),
        (("resetkeys", "~other:*"), "~*"),
    ],
)
def test_a_right_that_is_missing_is_named_and_nothing_is_restarted(
    forgetful: Host, rules: t.Tuple[str, ...], right: str
) -> None:
    forgetful.cli("-n", "1", "LPUSH", "celery", "task")
    forgetful.cli("ACL", "SETUSER", "ops", "reset", "on", ">word", "~*", "&*", "+@all", *rules)
    error = forgetful.refusal(login="ops:word@")
    assert f"the right {right} is missing" in error.message and "NOPERM" in error.message
    assert "allow_task_loss" not in str(error) and right in error.hint and "word" not in str(error)
    if right == "+info":
        check = services_check.check(
            forgetful.services("ops:word@"), manager="supervisor", supervisor_socket=forgetful.daemon.socket
        )
        assert check.status == "ok", "it answers a PING and its socket is its own: that is what is asked of it"


def configured(directory: Path, *lines: str) -> Path:
    file = directory / "redis.conf"
    file.write_text("\n".join([f"dir {directory}", *lines, ""]))
    return file


def test_the_documented_rights_are_enough(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "collections/wheels/ops/plugins/modules/service_restart.py").read_text()
    rights = re.findall(r"\+[a-z|]+", text.partition("that is restarted it needs")[2].partition("for the gate")[0])
    assert "+info" in rights
    with running(tmp_path, str(configured(tmp_path, "save 900 1", f"user ops on >word ~* {' '.join(rights)}"))) as host:
        host.cli("-n", "1", "HSET", "profile", "name", "value")
        host.cli("LPUSH", "celery", "task")
        done = host.run(login="ops:word@")
        assert done.changed and done.actions[0]["persisted"]["method"] == "rdb" and not done.warnings
        assert host.cli("LLEN", "celery") == "1"


def test_a_file_that_turns_appendonly_on_is_seen_before_the_restart_and_the_dump_is_kept(tmp_path: Path) -> None:
    file = configured(tmp_path, "save 900 1")
    with running(tmp_path, str(file)) as host:
        for number in range(25):
            host.cli("LPUSH", "celery", f"task {number}")
        assert not host.run(check_mode=True).warnings
        with file.open("a") as text:
            text.write("appendonly yes\n")
        error = host.refusal()
        assert "would lose 25 queued tasks (celery: 25)" in error.message and "appendonly" in error.message
        assert host.cli("LLEN", "celery") == "25"

        done = host.run(allow_task_loss=True)
        assert host.cli("LLEN", "celery") == "0", "what was announced"
        persisted = done.actions[0]["persisted"]
        assert persisted["differences"] == {"appendonly": {"running": "no", "file": "yes"}}
        copy, dump = Path(persisted["dump_copy"]), tmp_path / "dump.rdb"
        assert copy.parent == tmp_path and copy.name.startswith("dump.rdb.")
        host.cli("SAVE")  # as its schedule would: the dump in use is replaced by an empty one
        assert copy.read_bytes() != dump.read_bytes()
        assert (copy.stat().st_uid, stat.S_IMODE(copy.stat().st_mode)) == (
            dump.stat().st_uid,
            stat.S_IMODE(dump.stat().st_mode),
        )
        rescue = tmp_path / "rescue"
        rescue.mkdir()
        (rescue / "dump.rdb").write_bytes(copy.read_bytes())
        with running(rescue, "--save", "''", "--dir", str(rescue)) as other:
            assert other.cli("LLEN", "celery") == "25"


def test_what_was_turned_on_while_it_ran_loses_nothing_where_the_file_does_not_know(tmp_path: Path) -> None:
    with running(tmp_path, str(configured(tmp_path, "save ''"))) as host:
        host.cli("CONFIG", "SET", "appendonly", "yes")
        for number in range(25):
            host.cli("LPUSH", "celery", f"task {number}")
        for _ in range(4):
            done = host.run()
            assert host.cli("LLEN", "celery") == "25"
            assert any("appendonly" in warning for warning in done.warnings)
            host.cli("CONFIG", "SET", "appendonly", "yes")
        copies = [path for path in tmp_path.iterdir() if path.name.startswith("dump.rdb.")]
        assert 1 <= len(copies) <= 3


@pytest.mark.parametrize(("name", "value"), [("dir", "{}/elsewhere"), ("dbfilename", "other.rdb")])
def test_a_data_file_that_the_next_start_does_not_look_at(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = configured(tmp_path, "save 900 1", f"include {tmp_path}/more.conf")
    (tmp_path / "more.conf").write_text("# nothing yet\n")
    with running(tmp_path, str(file)) as host:
        host.cli("LPUSH", "celery", "task")
        (tmp_path / "more.conf").write_text(f"{name} {value.format(tmp_path)}\n")
        error = host.refusal()
        assert f"its configuration file says {name} {value.format(tmp_path)}" in error.message
        (tmp_path / "more.conf").write_text("save 60 1000\n")
        assert host.run().changed
        assert host.cli("LLEN", "celery") == "1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_dump_that_cannot_be_set_aside_is_said(tmp_path: Path) -> None:
    with running(tmp_path, str(configured(tmp_path, "save 900 1"))) as host:
        host.cli("LPUSH", "celery", "task")
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(OpsError, match="could not be brought to disk"):
                host.run()
        finally:
            tmp_path.chmod(0o700)
