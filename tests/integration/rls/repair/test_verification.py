# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode stops no reader and no writer, and a catalog that changes after the verification is not repaired."""

from __future__ import annotations

import contextlib
import threading
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.repair import apply, matrix, verification

CASE = next(case for case in db.CASES if case.stem.startswith("08_")).read_text()
#: The locks that SELECT, INSERT, UPDATE, DELETE and asking for them take; none of them waits for another one.
HARMLESS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
LOCKS = """
select l.mode, l.granted from pg_locks l join pg_class c on c.oid = l.relation
 where l.pid <> pg_backend_pid() and l.database = (select oid from pg_database where datname = current_database())
   and c.relnamespace = 'public'::regnamespace
"""


def busy(dsn: str) -> t.Any:
    """A session with a transaction that has read and written in every table, and has not ended."""
    session = psycopg2.connect(dsn)
    with session.cursor() as cursor:
        cursor.execute(
            "do $$ declare one regclass; begin for one in select oid from pg_class where relkind = 'r' and"
            " relnamespace = 'public'::regnamespace loop execute format('lock %s in row exclusive mode', one);"
            " execute format('select from %s', one); end loop; end $$"
        )
    return session


def test_check_mode_neither_waits_for_writers_nor_makes_them_wait(postgres: servers.Postgres, tmp_path: Path) -> None:
    with db.database(postgres, CASE) as connection:
        db.fill(connection)
        old = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        seen: t.List[t.Tuple[str, bool]] = []
        over = threading.Event()

        def watch() -> None:
            with contextlib.closing(psycopg2.connect(connection.dsn)) as watcher, watcher.cursor() as cursor:
                while True:
                    cursor.execute(LOCKS)
                    seen.extend(cursor.fetchall())
                    if over.is_set():
                        return

        def check(call: t.Callable[[], t.Dict[str, t.Any]]) -> t.Dict[str, t.Any]:
            with contextlib.closing(busy(connection.dsn)):
                seen.clear()
                over.clear()
                thread = threading.Thread(target=watch)
                thread.start()
                try:
                    result = call()
                finally:
                    over.set()
                    thread.join()
            assert {mode for mode, dummy in seen} <= HARMLESS
            assert seen and all(granted for dummy, granted in seen)
            return result

        first = check(lambda: rls.apply(connection, plan, check_mode=True, lock_timeout_ms=500, retries=0))
        assert db.snapshot(connection) == old and db.helpers(connection) == []
        script = tmp_path / "undo.sql"
        real = rls.apply(connection, plan, undo_path=script)
        assert first["before"] == real["before"] and first["after"] == real["after"] and first["diff"] == real["diff"]
        new = db.snapshot(connection)
        undone = check(lambda: rls.undo(connection, script, check_mode=True, lock_timeout_ms=500, retries=0))
        assert undone["changed"] and db.snapshot(connection) == new
        really = rls.undo(connection, script)
        assert (really["before"], really["after"], really["msg"]) == (undone["before"], undone["after"], undone["msg"])
        assert db.snapshot(connection) == old


def test_matrix_of_a_plan_does_not_wait_for_writers(postgres: servers.Postgres) -> None:
    with db.database(postgres, CASE) as connection:
        db.fill(connection)
        present = rls.audit(connection)
        plan = rls.plan(connection, present)
        with contextlib.closing(busy(connection.dsn)):
            told = matrix.of_plan(connection, present, plan, run=True, lock_timeout_ms=500)
        before, users = matrix.before_repair(connection, present)
        rls.apply(connection, plan)
        assert told.after == matrix.of_repair(connection, before, users, present).after


@pytest.mark.parametrize(
    "statement",
    [
        "alter table docs force row level security",
        "create policy late on docs for select to anon using (true)",
        "alter policy {name} on {table} using (false)",
    ],
)
def test_catalog_that_changes_after_the_verification(postgres: servers.Postgres, statement: str) -> None:
    timeouts: t.Dict[str, t.Any] = {"statement_timeout_ms": 60_000, "lock_timeout_ms": 1_000}
    with db.database(postgres, CASE) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        verified = verification.verify(connection, plan, **timeouts)
        change = plan.changes[0]
        with connection.cursor() as cursor:
            cursor.execute(statement.format(name=change.before[0].quoted, table=change.relation.qualified))
        changed = db.snapshot(connection)
        with pytest.raises(verification.ChangedSince, match="was changed while the plan was verified"):
            apply._change(connection, plan, verified, **timeouts)
        assert db.snapshot(connection) == changed and db.helpers(connection) == []


def test_accesses_that_are_too_many_are_asked_for_after_the_locks(
    postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server then refuses one, the repair is undone."""
    monkeypatch.setattr(verification, "ASKED", 0)
    monkeypatch.setattr(verification, "ASKED_BY_POLICY", 0)
    with db.database(postgres, CASE) as connection:
        old = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        verify = apply.verify

        def lying(*positional: t.Any, **named: t.Any) -> verification.Verified:
            verified = verify(*positional, **named)
            assert verified.due == [] and verified.later
            with contextlib.closing(psycopg2.connect(connection.dsn)) as other, other.cursor() as cursor:
                cursor.execute(
                    "create table late (id int); alter table late enable row level security;"
                    "create policy loop on late using (exists (select from late l)); grant all on late to public"
                )
                other.commit()
            verified.later.append(("authenticated", "public.late", "select", "id"))
            verified.state = new_state(connection, plan)
            return verified

        monkeypatch.setattr(apply, "verify", lying)
        with pytest.raises(verification.Broken, match="select of public.late as authenticated"):
            rls.apply(connection, plan, retries=0)
        assert [row for row in db.snapshot(connection) if row[0] != "public.late"] == old
        assert db.helpers(connection) == []


def new_state(connection: t.Any, plan: rls.Plan) -> str:
    with connection.cursor() as cursor:
        cursor.execute(verification.state_query(plan))
        return str(cursor.fetchone()[0])
