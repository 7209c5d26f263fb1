# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults for a deployed sandbox: how each is made, what has to be said of it, and what becomes of it.

``Bench`` makes them, restores the sandbox between them, and counts what no recovery may lose.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import redis as redis_client
import requests

from tests.sandbox import supervisor
from tests.sandbox.layout import PROGRAMS, Sandbox
from tests.support.waiting import wait_until
from wheels_ops.health.subjects import NAMES

#: ``refused``: nothing is measured or changed before a person has had a look; the exit status says unknown.
#: ``treated``: a remedy works, and takes longer than a run.
HEALED, TREATED, ESCALATED, REFUSED = "healed", "treated", "escalated", "refused"
#: A list that only this file writes, in the place of tasks that wait.
QUEUE = "witness:tasks"
WAITING = 40


def _remembered(_directory: str, names: t.List[str]) -> t.List[str]:
    """Earlier restarts and recoveries, which count towards budgets."""
    return [name for name in names if name.startswith(("restarts", "history", "problems", ".history", "metrics"))]


@dataclass(frozen=True)
class Fault:
    """``make`` breaks the bench. ``subjects`` have to fail for it, ``words`` have to be said, ``end`` is what has to
    become of it. ``variables`` are those of the playbook.
    """

    name: str
    make: t.Callable[[Bench], None]
    subjects: t.Tuple[str, ...]
    words: t.Tuple[str, ...] = ()
    end: str = HEALED
    variables: t.Callable[[Bench], t.Dict[str, t.Any]] = lambda bench: {}


class Bench:
    """A sandbox that was deployed and is healthy, and what was done to it since."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.facts = sandbox.facts()
        self.undo = contextlib.ExitStack()
        self.original = sandbox.directory / "original"
        self.redis = redis_client.Redis.from_url(self.facts.redis_url)
        if not self.original.exists():
            for directory in (sandbox.backend, sandbox.etc, sandbox.state):
                shutil.copytree(directory, self.original / directory.name, symlinks=True, ignore=_remembered)
            self._dump()

    def _dump(self) -> None:
        """The database as it is deployed, as another of its server: the quickest copy that there is."""
        self._copy("pam", "original")

    def _copy(self, source: str, copy: str) -> None:
        connection = psycopg2.connect(self.facts.database_dsn.replace("dbname=pam", "dbname=postgres"))
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname in ('pam', 'original')"
            )
            cursor.execute(f"drop database if exists {copy} with (force)")
            cursor.execute(f"create database {copy} template {source} strategy file_copy")

    def rpc(self) -> t.Any:
        return supervisor.rpc(self.sandbox)

    def state_of(self, name: str) -> str:
        return str(self.rpc().getProcessInfo(name)["statename"])

    def pids(self, name: str) -> t.List[int]:
        first = int(self.rpc().getProcessInfo(name)["pid"])
        with contextlib.suppress(psutil.Error):
            return [first, *(child.pid for child in psutil.Process(first).children(recursive=True))]
        return []

    def stop(self, name: str) -> None:
        if self.state_of(name) in ("RUNNING", "STARTING", "BACKOFF"):
            self.rpc().stopProcess(name, True)

    def freeze(self, name: str) -> None:
        for pid in self.pids(name):
            os.kill(pid, signal.SIGSTOP)

    def kill(self, name: str) -> None:
        """supervisord starts it again by itself."""
        (pid, *_rest) = self.pids(name)
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: self.state_of(name) == "RUNNING" and self.rpc().getProcessInfo(name)["pid"] != pid, what=name
        )

    def restart(self, name: str) -> None:
        """Without waiting for it to work."""
        self.stop(name)
        with contextlib.suppress(Exception):
            self.rpc().startProcess(name, False)
        wait_until(lambda: self.state_of(name) in ("RUNNING", "FATAL", "EXITED"), timeout=40, what=name)

    def sql(self, statement: str) -> t.List[t.Tuple[t.Any, ...]]:
        connection = psycopg2.connect(self.facts.database_dsn)
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def change(self, statement: str) -> None:
        """A statement that the next ``restore`` undoes."""
        self.sql(statement)
        self.undo.callback(self._copy, "original", "pam")

    def edit(self, name: str, change: t.Callable[[str], str]) -> None:
        path = self.sandbox.backend / name
        path.write_text(change(path.read_text()))

    def keys(self, number: int) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for each in range(number):
            pipe.set(f"user_profile:{each}", "1")
        pipe.execute()

    def tasks(self, number: int) -> None:
        """Real ones, which the worker knows and which would be done, each with an id of its own."""
        body = base64.b64encode(json.dumps([[], {}, {}]).encode()).decode()
        name = "app.workers.tasks.notification_tasks.send_daily_digest"
        pipe = self.redis.pipeline(transaction=False)
        for each in range(number):
            ids = {"correlation_id": f"task-{each}", "delivery_tag": f"tag-{each}"}
            properties = {**ids, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"}}
            message = {
                "body": body,
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "headers": {"lang": "py", "task": name, "id": f"task-{each}", "root_id": f"task-{each}"},
                "properties": {**properties, "priority": 0, "body_encoding": "base64"},
            }
            pipe.lpush("celery", json.dumps(message))
        pipe.execute()

    def occupy(self, port: int) -> None:
        taken = self.undo.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()

    def connections(self) -> None:
        """As many as the server takes, its reserved ones included."""
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                self.undo.callback(psycopg2.connect(self.facts.database_dsn).close)

    def counts(self) -> t.Dict[str, int]:
        """Rows, tasks that wait and lines of logs: what no recovery may lose."""
        counts = {"log lines": sum(self._lines(path) for path in self.sandbox.log.glob("*.log*"))}
        with contextlib.suppress(psycopg2.OperationalError):
            counts["rows"] = sum(
                self.sql(f"select count(*) from public.{table}")[0][0]
                for (table,) in self.sql("select tablename from pg_tables where schemaname = 'public'")
            )
        with contextlib.suppress(redis_client.RedisError):
            counts["tasks"] = self.redis.llen(QUEUE)
        return counts

    @staticmethod
    def _lines(path: Path) -> int:
        if path.suffix == ".gz":
            done = subprocess.run(["zcat", str(path)], capture_output=True, check=False)
            return done.stdout.count(b"\n")
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def restore(self) -> None:
        """The deployed, healthy sandbox, whatever was made of it."""
        self.undo.close()
        for name in PROGRAMS:
            for pid in self.pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        changed = self._restore_files()
        for name in PROGRAMS:
            if name == "pam-backend":
                self._restore_servers()
            if self.state_of(name) not in ("RUNNING", "STARTING") or (changed and name not in ("postgres", "redis")):
                self.restart(name)
        # Only as many automatic restarts count as its own log says.
        (self.sandbox.log / "supervisord.log").write_text("")
        wait_until(
            lambda: requests.get(f"{self.facts.base_url}/health", timeout=5).status_code == 200,
            timeout=60,
            what="the backend",
        )
        self.redis.lpush(QUEUE, *(["task"] * WAITING))
        self.redis.expire(QUEUE, 86_400)

    def _restore_files(self) -> bool:
        """Whether the backend or its environment was changed."""
        changed = False
        for directory in (self.sandbox.backend, self.sandbox.etc, self.sandbox.state):
            original = self.original / directory.name
            wanted = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
            for path in [each for each in directory.rglob("*") if each.is_file()]:
                if path.relative_to(directory) not in wanted:
                    path.unlink()
            for name in wanted:
                path = directory / name
                if not path.exists() or path.read_bytes() != (original / name).read_bytes():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(original / name, path)
                    changed |= directory != self.sandbox.state
        shutil.rmtree(self.sandbox.tmp, ignore_errors=True)
        self.sandbox.tmp.mkdir(mode=0o700)
        return changed

    def _restore_servers(self) -> None:
        wait_until(lambda: self.sql("select 1"), timeout=60, what="PostgreSQL")
        wait_until(self.redis.ping, timeout=60, what="Redis")
        self.redis.config_set("maxmemory", 0)
        self.redis.flushall()
        self.sql(f"alter role authenticator login password '{self.facts.app_database_password}'")


@dataclass(frozen=True)
class Outcome:
    """What a recovery said. ``changed``: whether it changed anything; ``failing_after`` is None where it does not
    say.
    """

    status: int
    text: str
    changed: bool
    failing: t.Tuple[str, ...] = ()
    escalated: t.Tuple[str, ...] = ()


def script(bench: Bench) -> Outcome:
    """``automated_recovery.py`` with the configuration that the role ``monitoring`` wrote."""
    values = json.loads((bench.sandbox.etc / "monitor.json").read_text())
    values["recovery"].update(confirm_after=0.5, min_healthy_time=1.0, healthy_deadline=15.0, repair_database=True)
    # How soon a dead peer is noticed is no fault of this file.
    values["checks"].update(websocket_dead_peer_within=0.0, websocket_heartbeat_within=0.0)
    own = bench.sandbox.run / "faults.json"
    with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(values, file)
    program = bench.sandbox.directory / "programs/scripts/automated_recovery.py"
    words = [sys.executable, str(program), "--config", str(own)]
    output = bench.sandbox.run / "report.json"
    output.unlink(missing_ok=True)
    done = subprocess.run([*words, "--output", str(output)], capture_output=True, text=True, check=False)
    report = json.loads(output.read_text()) if output.exists() else {}
    return Outcome(
        done.returncode,
        " ".join((done.stdout + done.stderr).split()),
        bool(report.get("recovery_actions_taken")),
        tuple(report.get("before", {}).get("failing", ())),
        escalated(bench),
    )


def alarms(bench: Bench) -> t.List[str]:
    """What one run of ``production_health_monitor.py`` finds wrong, in its words."""
    program = bench.sandbox.directory / "programs/production_health_monitor.py"
    words = [sys.executable, str(program), "--config", str(bench.sandbox.etc / "monitor.json"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    checks = json.loads(done.stdout)["checks"]
    return [f"{check['name']}: {check['message']}" for check in checks if check["status"] not in ("ok", "skipped")]


def escalated(bench: Bench) -> t.Tuple[str, ...]:
    """The subjects of problems that wait for a person, by the file."""
    try:
        problems = json.loads((bench.sandbox.state / "problems.json").read_text())["problems"]
    except (OSError, ValueError):
        return ()
    return tuple(problem["subject"] for problem in problems if problem["state"] == "escalated")


def _policy(bench: Bench) -> None:
    bench.change(
        "create policy broken on group_trip_participants for select to authenticated using (exists (select 1 from"
        " group_trip_participants other where other.trip_id = group_trip_participants.trip_id))"
    )


def _flap(bench: Bench) -> None:
    for _time in range(3):
        bench.kill("celery-worker")


def _long_queue(bench: Bench) -> None:
    bench.freeze("celery-worker")
    bench.tasks(100_000)


def _drop_table(bench: Bench) -> None:
    bench.change("drop table user_wishlists cascade")


def _drop_column(bench: Bench) -> None:
    bench.change("alter table user_wishlists drop column category cascade")


def _fill(bench: Bench) -> None:
    path = bench.sandbox.tmp / "upload.part"
    path.write_bytes(b"x" * 160_000_000)
    os.utime(path, (time.time() - 7 * 86_400,) * 2)


def _full_redis(bench: Bench) -> None:
    bench.keys(2000)
    bench.redis.config_set("maxmemory", int(bench.redis.info("memory")["used_memory"]))


def _wrong_password(bench: Bench) -> None:
    bench.sql("alter role authenticator login password 'another'")
    bench.restart("pam-backend")


def _another_password(bench: Bench) -> str:
    return bench.facts.database_dsn.replace(bench.facts.database_password, "another")


def _wrong_dsn(bench: Bench) -> None:
    path = bench.sandbox.etc / "monitor.json"
    values = json.loads(path.read_text())
    values["checks"]["database_dsn"] = _another_password(bench)
    path.write_text(json.dumps(values))


def _broken_file(name: str, change: t.Optional[t.Callable[[str], str]]) -> t.Callable[[Bench], None]:
    def make(bench: Bench) -> None:
        if change is None:
            (bench.sandbox.backend / name).unlink()
        else:
            bench.edit(name, change)
        bench.restart("pam-backend")

    return make


def _taken_port(bench: Bench) -> None:
    bench.stop("pam-backend")
    bench.occupy(bench.facts.http_port)


def _environment(bench: Bench) -> None:
    with bench.sandbox.env_file.open("a") as file:
        file.write("BROKEN='\n")
    bench.restart("pam-backend")


def _future(bench: Bench) -> None:
    """What a clock that was ahead for a day leaves behind."""
    later = time.time() + 86_400
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(later))
    with (bench.sandbox.state / "restarts.jsonl").open("a") as file:
        file.write(json.dumps({"service": "celery-beat", "at": later, "reason": "", "outcome": "healthy"}) + "\n")
    with (bench.sandbox.state / "history.jsonl").open("a") as file:
        file.write(json.dumps({"run_id": "recover-x", "at": at, "action": "recover", "results": []}) + "\n")
    bench.stop("celery-beat")


def _damaged(*names: str) -> t.Callable[[Bench], None]:
    def make(bench: Bench) -> None:
        for name in names:
            (bench.sandbox.state / name).write_text("{ damaged")
        bench.stop("celery-beat")

    return make


def _token(content: str) -> t.Callable[[Bench], None]:
    def make(bench: Bench) -> None:
        path = bench.sandbox.etc / "ops-token"
        if content:
            path.write_text(content + "\n")
        else:
            path.unlink()
        bench.keys(50)

    return make


CACHE = "app/services/cache_service.py"
FAULTS: t.Tuple[Fault, ...] = (
    Fault("celery-beat stopped", lambda bench: bench.stop("celery-beat"), ("services",), ("celery-beat",)),
    Fault("celery-worker stopped", lambda bench: bench.stop("celery-worker"), ("services",), ("celery-worker",)),
    Fault("backend stopped", lambda bench: bench.stop("pam-backend"), ("services", "http"), ("pam-backend",)),
    Fault("Redis stopped", lambda bench: bench.stop("redis"), ("services", "redis"), ("redis",)),
    Fault("PostgreSQL stopped", lambda bench: bench.stop("postgres"), ("database",), ("refused",), ESCALATED),
    Fault("celery-beat frozen", lambda bench: bench.freeze("celery-beat"), ("services",), ("celery-beat",)),
    Fault("celery-worker frozen", lambda bench: bench.freeze("celery-worker"), ("services",), ("celery-worker",)),
    Fault("backend frozen", lambda bench: bench.freeze("pam-backend"), ("services", "http"), ("pam-backend",)),
    Fault("Redis frozen", lambda bench: bench.freeze("redis"), ("services", "redis"), ("redis",)),
    Fault("Redis killed", lambda bench: bench.kill("redis"), (), ()),
    Fault(
        "celery-worker flapping",
        _flap,
        ("services",),
        ("had to start it again 3 times",),
        ESCALATED,
    ),
    Fault("port taken", _taken_port, ("services", "http"), ("is taken by",), ESCALATED),
    Fault("patched file deleted", _broken_file(CACHE, None), ("services",), ("cache_service.py",), ESCALATED),
    Fault(
        "patched file edited",
        _broken_file(CACHE, lambda text: text + "\nraise ImportError('edited')\n"),
        ("services",),
        ("cache_service.py", "edited"),
        ESCALATED,
    ),
    Fault(
        "syntax error in a patched file",
        _broken_file(CACHE, lambda text: text + "\ndef broken(:\n"),
        ("services",),
        ("cache_service.py", "SyntaxError"),
        ESCALATED,
    ),
    Fault("environment file damaged", _environment, ("services",), ("backend.env",), ESCALATED),
    Fault("disk full by bytes", _fill, ("disk",), ("disk_cleanup",)),
    Fault("recursive policy", _policy, ("rls",), ("group_trip_participants",)),
    Fault("table dropped", _drop_table, ("database",), ("user_wishlists",)),
    Fault(
        "column dropped",
        _drop_column,
        ("database",),
        ("category",),
    ),
    Fault("Redis full", _full_redis, ("redis",), ("OOM",), ESCALATED),
    Fault("100,000 keys without expiry", lambda bench: bench.keys(100_000), ("redis",), ("never expire",)),
    Fault(
        "100,000 queued tasks",
        _long_queue,
        ("celery", "services"),
        ("tasks wait",),
        TREATED,
    ),
    Fault("connections exhausted", lambda bench: bench.connections(), ("database",), ("connection",), ESCALATED),
    Fault("password of the application wrong", _wrong_password, ("http",), ("DATABASE_URL",), ESCALATED),
    Fault(
        "password of the checks wrong",
        _wrong_dsn,
        ("database",),
        ("password",),
        ESCALATED,
        lambda bench: {"wheels_ops_database_dsn": _another_password(bench)},
    ),
    Fault("ops token wrong", _token("another-token-of-this-test"), ("redis",), ()),
    Fault("ops token missing", _token(""), ("redis",), ("ops token",), ESCALATED),
    Fault("clock was ahead for a day", _future, ("services",), ("celery-beat",)),
    Fault("lock damaged", _damaged("deploy.lock"), (), ("deploy.lock is damaged", "remove the file"), REFUSED),
    Fault("state damaged", _damaged("history.jsonl", "restarts.jsonl", "problems.json"), ("services",), ("damaged",)),
)


def pair(first: str, second: str) -> Fault:
    """Two faults at once: everything that holds for either has to hold."""
    table = {fault.name: fault for fault in FAULTS}
    one, two = table[first], table[second]

    def make(bench: Bench) -> None:
        one.make(bench)
        two.make(bench)

    return Fault(
        f"{first} + {second}",
        make,
        tuple(dict.fromkeys((*one.subjects, *two.subjects))),
        one.words if one.end == REFUSED else (*one.words, *two.words),
        max(one.end, two.end, key=(HEALED, TREATED, ESCALATED, REFUSED).index),
        lambda bench: {**one.variables(bench), **two.variables(bench)},
    )


PAIRS: t.Tuple[Fault, ...] = (
    pair("celery-beat stopped", "100,000 keys without expiry"),
    pair("recursive policy", "celery-worker frozen"),
    pair("Redis stopped", "disk full by bytes"),
    pair("table dropped", "recursive policy"),
    pair("disk full by bytes", "backend stopped"),
    pair("patched file deleted", "celery-beat stopped"),
    pair("lock damaged", "recursive policy"),
    pair("ops token missing", "celery-worker stopped"),
    pair("state damaged", "celery-worker frozen"),
    pair("port taken", "disk full by bytes"),
)


def meet(bench: Bench, fault: Fault, recover: t.Callable[[], Outcome]) -> t.Tuple[str, str, str, str]:
    """Makes the fault, recovers twice, and fails where what has to be said or to become of it is not so.

    Gives the row of ``page`` without who recovered.
    """
    bench.restore()
    fault.make(bench)
    before = bench.counts()
    first, second = recover(), recover()
    after = bench.counts()
    said = f"{first.text} {second.text}"
    assert fault.end == REFUSED or set(fault.subjects) <= set(first.failing), said
    for words in fault.words:
        assert words in said, said
    if fault.end == ESCALATED:
        assert second.status in (1, 2, 3), said
        assert set(second.escalated) & set(fault.subjects), said
        assert "What to do next" in said, said
    elif fault.end == TREATED:
        assert first.changed and second.status > 0 and not set(second.escalated) & set(fault.subjects), said
    elif fault.end == REFUSED:
        assert first.status == second.status and first.status > 0 and not (first.changed or second.changed), said
    else:
        assert (first.status, second.status) == (0, 0), said
        assert second.escalated == () and not second.changed, said
    for name, count in before.items():
        assert after.get(name, count) >= count, name
    return fault.name, ", ".join(first.failing) or "nothing", fault.end, str(first.status)


def failing(text: str) -> t.Tuple[str, ...]:
    """The subjects that the text of a recovery names as wrong before it."""
    head = next((part for part in ("What was wrong", "What is wrong") if part in text), "")
    said = text.partition(head)[2].partition("What was done")[0] if head else ""
    return tuple(name for name in NAMES if f"{name}: " in said)


def page(rows: t.Sequence[t.Tuple[str, ...]]) -> str:
    """``docs/fault-matrix.md``, out of what a whole run of the matrix has met."""
    lines = [
        "# Fault matrix",
        "",
        "What a recovery does about each fault, by the playbook `recover` and the program `automated_recovery.py` on the",
        "sandbox. `make faults` runs them and writes this page. What is healed is healed in one run, and a second one",
        "changes nothing. Rows, tasks that wait and lines of logs are counted before and after.",
        "",
        "| fault | what failed | end | exit status | by |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])
