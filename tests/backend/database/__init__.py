# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads the stand-in production database, and any later generation of its policies."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

HERE = Path(__file__).resolve().parent
SHIM = HERE.parents[1] / "support" / "supabase_shim.sql"
GENERATIONS = tuple(sorted(path.stem for path in (HERE / "generations").glob("*.sql")))
#: Users of the seed, by first name.
USERS: t.Mapping[str, str] = {
    "anna": "a0000000-0000-4000-8000-000000000001",
    "ben": "a0000000-0000-4000-8000-000000000002",
    "carla": "a0000000-0000-4000-8000-000000000003",
    "dan": "a0000000-0000-4000-8000-000000000004",
    "admin": "a0000000-0000-4000-8000-000000000009",
}
TRIPS: t.Mapping[str, str] = {
    "great_ocean_road": "b0000000-0000-4000-8000-000000000001",
    "red_centre": "b0000000-0000-4000-8000-000000000002",
    "tasmania": "b0000000-0000-4000-8000-000000000003",
}


@contextlib.contextmanager
def _cursor(dsn: str) -> t.Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def seeded(dsn: str) -> bool:
    """Whether the database holds the seed already."""
    with _cursor(dsn) as cursor:
        cursor.execute("select to_regclass('public.group_trips') is not null")
        return bool((cursor.fetchone() or (False,))[0])


def seed(dsn: str) -> None:
    """Loads the shim of Supabase, where it is missing, and the seed; does nothing to a seeded database.

    Superuser needed.
    """
    if seeded(dsn):
        return
    with _cursor(dsn) as cursor:
        cursor.execute("select to_regclass('auth.users') is not null")
        if not (cursor.fetchone() or (False,))[0]:
            cursor.execute(SHIM.read_text())
        cursor.execute((HERE / "seed.sql").read_text())


def apply_generation(dsn: str, name: str) -> None:
    """Drops every policy of both trip tables and creates those of a later generation (one of ``GENERATIONS``)."""
    with _cursor(dsn) as cursor:
        cursor.execute(
            "select policyname, tablename from pg_policies where schemaname = 'public' and tablename in ('group_trips',"
            " 'group_trip_participants')"
        )
        for policy, table in cursor.fetchall():
            cursor.execute(sql.SQL("drop policy {} on public.{}").format(sql.Identifier(policy), sql.Identifier(table)))
        cursor.execute((HERE / "generations" / f"{name}.sql").read_text())
