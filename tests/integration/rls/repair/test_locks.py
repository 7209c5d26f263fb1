# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that are not to be had are waited for without a queue behind them; the digest of the catalog tells changes."""

from __future__ import annotations

import contextlib
import threading
import typing as t

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from tests.support.waiting import wait_until
from wheels_ops.rls.model.transactions import transaction
from wheels_ops.rls.repair import locks

TABLES = """
create table public.docs (id int primary key, owner uuid);
alter table docs enable row level security;
create policy mine on docs using (owner = auth.uid());
create view public.titles as select id from docs;
create function public.one() returns int language sql stable as 'select 1';
do $$ begin create role locks_guest; exception when duplicate_object then null; end $$;
"""


def execute(connection: t.Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_readers_pass_while_a_lock_is_waited_for(postgres: servers.Postgres) -> None:
    with db.database(postgres, TABLES) as connection, contextlib.closing(psycopg2.connect(connection.dsn)) as blocker:
        execute(blocker, "select from docs")  # and the transaction stays open
        errors: t.List[BaseException] = []

        def wait() -> None:
            with contextlib.closing(psycopg2.connect(connection.dsn)) as other, other.cursor() as cursor:
                try:
                    locks.acquire(cursor, ["public.docs"], patience_ms=60_000)
                except BaseException as error:
                    errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            waiting = "select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock'"
            wait_until(lambda: db.see(connection, waiting, role="postgres")[0][0], what="the lock is waited for")
            reads = ";".join(["select from docs"] * 20)  # a queue that lasted would hold the first one up for a minute
            execute(connection, f"set statement_timeout = '20s'; {reads}")
            assert thread.is_alive(), "the lock cannot have been had"
        finally:
            blocker.rollback()
            thread.join()
        assert errors == []


def test_a_lock_that_is_not_to_be_had_is_given_up_and_nothing_is_held(postgres: servers.Postgres) -> None:
    tables = TABLES + "create table public.a_first (id int);"
    with db.database(postgres, tables) as connection, contextlib.closing(psycopg2.connect(connection.dsn)) as blocker:
        execute(blocker, "select from docs")
        with contextlib.closing(psycopg2.connect(connection.dsn)) as other, other.cursor() as cursor:
            with pytest.raises((psycopg2.errors.LockNotAvailable, locks.OpsError)):
                locks.acquire(cursor, ["public.docs", "public.a_first"], patience_ms=100)
            held = "select count(*) from pg_locks where relation = 'a_first'::regclass"
            assert db.see(connection, held, role="postgres") == [(0,)]


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("alter policy mine on docs using (false)", True),
        ("drop policy mine on docs", True),
        ("create policy other on docs using (true)", True),
        ("alter table docs force row level security", True),
        ("create or replace view titles as select id + 1 as id from docs", True),
        ("create or replace function one() returns int language sql stable as 'select 2'", True),
        ("alter role locks_guest bypassrls", True),
        ("grant authenticated to locks_guest", True),
        ("grant select on docs to locks_guest", False),  # the repair gives such rights itself
        ("create schema rls_ops; create function rls_ops.f() returns int language sql as 'select 1'", False),
        ("insert into docs values (1, null); analyze docs", False),
    ],
)
def test_digest_of_the_catalog(postgres: servers.Postgres, statement: str, told: bool) -> None:
    with db.database(postgres, TABLES) as connection:
        query = locks.state_query(helper_schema="rls_ops", owner="rls_definer")
        try:
            with transaction(connection, read_only=False, one_moment=False) as cursor:
                cursor.execute(query)
                before = cursor.fetchone()
                cursor.execute("set local search_path = public")
                cursor.execute(statement)
                cursor.execute(query)
                assert (cursor.fetchone() != before) is told
        finally:
            execute(connection, "drop role locks_guest")
