# SPDX-License-Identifier: GPL-3.0-or-later
"""A repair that is killed leaves the old or the new policies, never a mixture; writers wait no longer than lock_timeout
and lose nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from tests.support.waiting import wait_until
from wheels_ops import rls
from wheels_ops.core.results import OpsError

REPOSITORY = Path(__file__).resolve().parents[4]
CASE = next(case for case in db.CASES if case.stem.startswith("08_")).read_text()
WAITING = "select true from pg_locks where not granted and mode = 'AccessExclusiveLock'"
#: The repair is in its transaction, whether it waits for a lock just now or lets others pass.
AT_WORK = "select pid from pg_locks where locktype = 'advisory' and granted"
ALONE = (
    "select not exists (select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid())"
)
REPAIR = """
import pathlib, sys, psycopg2
from wheels_ops import rls
connection = psycopg2.connect(sys.argv[1])
plan = rls.plan(connection, rls.audit(connection))
print("ready", flush=True); sys.stdin.readline()
rls.apply(connection, plan, undo_path=pathlib.Path(sys.argv[2]), lock_timeout_ms=20_000)
print("done", flush=True)
"""


def start(dsn: str, undo: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", REPAIR, dsn, str(undo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def new_state(tmp_path: Path, server: servers.Postgres) -> t.List[t.Tuple[t.Any, ...]]:
    with db.database(server, CASE) as connection:
        rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "model.sql")
        return db.snapshot(connection)


def test_killed_client(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Killed while it waits for a lock with half of its statements done, and at moments spread over the whole run."""
    new = new_state(tmp_path, postgres)
    outcomes = set()
    for delay in (None, 0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.5):
        with db.database(postgres, CASE) as connection:
            old = db.snapshot(connection)
            blocker = psycopg2.connect(connection.dsn)
            process = start(connection.dsn, tmp_path / "undo.sql")
            try:
                if delay is None:
                    with blocker.cursor() as cursor:
                        cursor.execute("select from docs")  # holds what ALTER POLICY waits for
                    go(process)
                    wait_until(functools.partial(one, connection, WAITING), what="the repair waits for the lock")
                    assert (
                        (tmp_path / "undo.sql").read_text().startswith("-- wheels.ops rls undo")
                    )  # kept before anything is applied
                else:
                    go(process)
                    time.sleep(delay)  # the moment of the kill is the subject, not a condition
                process.kill()
                process.wait()
            finally:
                blocker.close()
                process.kill()
                process.communicate()
            wait_until(functools.partial(one, connection, ALONE), what="the killed session is gone")
            state = db.snapshot(connection)
            assert state in (old, new)
            outcomes.add(state == new)
            if state == new:
                rls.undo(connection, tmp_path / "undo.sql", force=True)
                assert db.snapshot(connection) == old
            # Whatever was left, the next run finishes the work.
            rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "next.sql")
            assert db.snapshot(connection) == new
    assert False in outcomes


def one(connection: t.Any, query: str) -> t.Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        found = cursor.fetchone()
        return found and found[0]


def ended(session: t.Any) -> bool:
    """Whether the server has dropped the session."""
    try:
        with session.cursor() as cursor:
            cursor.execute("select")
    except psycopg2.OperationalError:
        return True
    return False


class Fatal(psycopg2.extensions.cursor):
    """A cursor whose session ends before the statement of that number; without one it counts."""

    at: t.Optional[int] = None
    number = 0
    kill: t.Callable[[int], None]

    def execute(self, *positional: t.Any, **named: t.Any) -> None:
        Fatal.number += 1
        if Fatal.number == Fatal.at:
            Fatal.kill(self.connection.info.backend_pid)
        super().execute(*positional, **named)


def test_killed_before_each_statement(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Of a repair, and of its undo: the old policies or the new ones, and nothing beside them."""
    script = tmp_path / "undo.sql"
    with db.database(postgres, CASE) as connection:
        old = db.snapshot(connection)

        def kill(backend: int) -> None:
            with connection.cursor() as cursor:
                cursor.execute("select pg_terminate_backend(%s, 5000)", (backend,))

        def run(call: t.Callable[[t.Any], t.Any], at: t.Optional[int]) -> int:
            with contextlib.closing(psycopg2.connect(connection.dsn, cursor_factory=Fatal)) as session:
                session.autocommit = True
                Fatal.at, Fatal.number, Fatal.kill = at, 0, staticmethod(kill)
                # What only ends a transaction is not missed.
                with contextlib.suppress(*(() if at is None else (OpsError, psycopg2.Error))):
                    call(session)
            return Fatal.number

        plan = rls.plan(connection, rls.audit(connection))
        repair = functools.partial(rls.apply, plan=plan, undo_path=script, retries=0)
        total = run(repair, None)
        new, helpers = db.snapshot(connection), db.helpers(connection)
        kept = script.read_text()
        undo = functools.partial(rls.undo, path=script, retries=0)
        # The last one of an undo reads what is there, after COMMIT.
        for call, other, first, then in (
            (lambda session: undo(session), lambda: rls.apply(connection, plan, undo_path=script), new, old),
            (lambda session: repair(session), lambda: rls.undo(connection, script), old, new),
        ):
            count = total if first is old else run(call, None)
            if first is new:
                other()
            # Every one from the locks on; of the verification before, which changes nothing, one of ten.
            for at in sorted({*range(1, count, 10), *range(max(1, count - 24), count + 1)}):
                run(call, at)
                state = db.snapshot(connection)
                assert state in (old, new), at
                assert db.helpers(connection) == (helpers if state == new else []), at
                if state == then:
                    other()
                    assert db.snapshot(connection) == first
            run(call, None)
            assert db.snapshot(connection) == then
        assert kept.splitlines()[1:] == script.read_text().splitlines()[1:]


def test_killed_server(tmp_path: Path) -> None:
    """The server dies (SIGQUIT, as a crash: no checkpoint) while the repair holds half of its changes; recovery gives
    the old policies.
    """
    # What was committed before the crash must survive it, which the fast settings of the other tests do not promise.
    durable = ["fsync=on", "synchronous_commit=on", "full_page_writes=on"]
    with servers.postgres(settings=durable) as server, db.database(server, CASE) as connection:
        old = db.snapshot(connection)
        blocker = psycopg2.connect(connection.dsn)
        with blocker.cursor() as cursor:
            cursor.execute("select from docs")
        process = start(connection.dsn, tmp_path / "undo.sql")
        go(process)
        wait_until(lambda: one(connection, WAITING), what="the repair waits")
        backend = int(one(connection, AT_WORK))
        os.kill(backend, signal.SIGKILL)  # PostgreSQL takes every session down with it and recovers
        process.communicate()
        assert process.returncode != 0
        # The client hears of it before the postmaster does. Once the bystander is thrown out, whoever gets in is past
        # the recovery.
        wait_until(lambda: ended(blocker), what="the crash has reached every session")
        again = wait_until(lambda: psycopg2.connect(connection.dsn), what="the server has recovered")
        again.autocommit = True
        try:
            assert db.snapshot(again) == old
            rls.apply(again, rls.plan(again, rls.audit(again)), undo_path=tmp_path / "next.sql")
            assert rls.audit(again).failing == []
        finally:
            again.close()
            blocker.close()


def test_concurrent_readers_and_writers(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Writers insert and readers select all the time, during check mode, repair and undo: no row is lost, nobody waits
    longer than lock_timeout, and the comparison is not disturbed.
    """
    with db.database(postgres, CASE) as connection:
        db.fill(connection)
        stop = threading.Event()
        written: t.List[int] = []
        waits: t.List[float] = []
        errors: t.List[Exception] = []

        def write(first: int) -> None:
            with contextlib.closing(psycopg2.connect(connection.dsn)) as writer:
                writer.autocommit = True
                number = first
                while not stop.is_set():
                    started = time.monotonic()
                    try:
                        with writer.cursor() as cursor:
                            cursor.execute("insert into docs values (%s, 1, %s, 0)", (number, db.PEOPLE[0]))
                    except Exception as error:
                        errors.append(error)
                        return
                    waits.append(time.monotonic() - started)
                    written.append(number)
                    number += 2

        def read(table: str) -> None:
            with contextlib.closing(psycopg2.connect(connection.dsn)) as reader:
                reader.autocommit = True
                while not stop.is_set():
                    started = time.monotonic()
                    try:
                        with reader.cursor() as cursor:
                            cursor.execute(f"select from {table}")
                    except Exception as error:
                        errors.append(error)
                        return
                    waits.append(time.monotonic() - started)

        touched = {change.relation.qualified for change in rls.plan(connection, rls.audit(connection)).changes}
        threads = [threading.Thread(target=write, args=(1000 + number,)) for number in range(2)]
        threads += [threading.Thread(target=read, args=(table,)) for table in sorted(touched)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(written) > 50)
            for _ in range(3):
                plan = rls.plan(connection, rls.audit(connection))
                checked = rls.apply(connection, plan, check_mode=True)
                assert checked["changed"] and checked["after"]["comparisons"]
                result = rls.apply(
                    connection,
                    plan,
                    undo_path=tmp_path / "undo.sql",
                    lock_timeout_ms=5_000,
                )
                assert result["changed"] and result["after"]["comparisons"]
                rls.undo(connection, tmp_path / "undo.sql")
            count = len(written)
            wait_until(lambda: len(written) > count + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert one(connection, "select count(*) from docs where id >= 1000") == len(written)
        assert max(waits) < 5.0  # lock_timeout, with which the transaction ends whatever happens


def test_lock_that_is_not_given(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Tried again, later each time, then given up with nothing changed and no undo script left."""
    with db.database(postgres, CASE) as connection:
        old = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        blocker = psycopg2.connect(connection.dsn)
        pauses: t.List[float] = []
        try:
            with blocker.cursor() as cursor:
                cursor.execute("select from docs")
            with pytest.raises(OpsError, match="holds a lock"):
                rls.apply(
                    connection,
                    plan,
                    undo_path=tmp_path / "undo.sql",
                    lock_timeout_ms=50,
                    retries=3,
                    sleep=pauses.append,
                )
            assert pauses == sorted(pauses) and len(pauses) == 3
            assert db.snapshot(connection) == old and not (tmp_path / "undo.sql").exists()

            def let_go(_: float) -> None:
                blocker.rollback()

            assert rls.apply(connection, plan, undo_path=tmp_path / "undo.sql", lock_timeout_ms=2_000, sleep=let_go)[
                "changed"
            ]
        finally:
            blocker.close()


def test_two_repairs_at_once(postgres: servers.Postgres, tmp_path: Path) -> None:
    with db.database(postgres, CASE) as connection:
        processes = [start(connection.dsn, tmp_path / f"undo{number}.sql") for number in range(2)]
        for process in processes:
            go(process)
        codes = [process.wait() for process in processes]
        for process in processes:
            process.communicate()
        # The second finds that the policies are not those that it planned for.
        assert sorted(codes) in ([0, 1], [0, 0]) and rls.audit(connection).failing == []
        assert len(db.helpers(connection)) == len(set(db.helpers(connection)))


def test_two_databases_of_one_server_at_once(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Both need the same role; an undo takes its rights in that database away while the other one keeps it."""
    rights = (
        "select count(*) from pg_attribute a, aclexplode(a.attacl) g, pg_roles r"
        " where r.oid = g.grantee and r.rolname = 'rls_definer'"
    )
    with db.database(postgres, CASE) as first, db.database(postgres, CASE) as second:
        old = db.snapshot(first)
        processes = [start(database.dsn, tmp_path / f"{number}.sql") for number, database in enumerate((first, second))]
        for process in processes:
            go(process)
        assert [process.wait() for process in processes] == [0, 0]
        for process in processes:
            process.communicate()
        assert [one(connection, rights) > 0 for connection in (first, second)] == [True, True]
        for number, connection in enumerate((first, second)):
            assert rls.audit(connection).failing == []
            rls.undo(connection, tmp_path / f"{number}.sql")
            assert [row[:4] for row in db.snapshot(connection)] == [row[:4] for row in old]
            assert one(connection, rights) == 0 and db.helpers(connection) == []
        assert not one(first, "select true from pg_roles where rolname = 'rls_definer'")


def test_undo_script_that_cannot_be_kept(postgres: servers.Postgres, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with db.database(postgres, CASE) as connection:
        old = db.snapshot(connection)
        with pytest.raises(OpsError, match="Cannot keep the undo script"):
            rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "file" / "undo.sql")
        assert db.snapshot(connection) == old
