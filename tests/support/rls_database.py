# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases with Supabase's roles and schema for the tests of the policy engine, on servers with and without contrib
modules.
"""

from __future__ import annotations

import contextlib
import random
import typing as t
import uuid
from pathlib import Path

import psycopg2

from tests.support import servers

CASES = sorted((Path(__file__).parents[1] / "integration" / "rls" / "cases").glob("*.sql"))
#: The people in the filled tables.
PEOPLE = [str(uuid.UUID(int=number)) for number in range(1, 6)]
OUTSIDER = str(uuid.UUID(int=0xFFFF))

Connection = t.Any


def shim(*, contrib: bool) -> str:
    """The stand-in for Supabase; without its extensions for a server that does not have them (no case needs one)."""
    lines = servers.SHIM.read_text().splitlines()
    return "\n".join(line for line in lines if contrib or not line.startswith("create extension"))


@contextlib.contextmanager
def database(server: servers.Postgres, sql: str = "", *, user: str = "postgres") -> t.Iterator[Connection]:
    """A connection (autocommit) to a new database with Supabase's roles and ``sql``; roles that a repair makes are
    dropped afterwards.
    """
    dsn = server.database()
    name = dsn.split("dbname=")[1].split()[0]
    with contextlib.closing(psycopg2.connect(dsn)) as admin:
        admin.autocommit = True
        with admin.cursor() as cursor:
            cursor.execute("select count(*) from pg_available_extensions where name = 'pgcrypto'")
            cursor.execute(shim(contrib=cursor.fetchone() != (0,)))
            # As PostgreSQL 15 does by itself: what is refused where anybody may create has a test of its own.
            cursor.execute("revoke create on schema public from public")
            if sql:
                cursor.execute(sql)
    connection = psycopg2.connect(dsn.replace("user=postgres", f"user={user}"))
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
        with contextlib.closing(psycopg2.connect(server.dsn())) as admin:
            admin.autocommit = True
            with admin.cursor() as cursor:
                cursor.execute(f'drop database "{name}" with (force)')
                with contextlib.suppress(
                    psycopg2.errors.DependentObjectsStillExist
                ):  # another test's database needs it still
                    cursor.execute("drop role if exists rls_definer")


def snapshot(connection: Connection) -> t.List[t.Tuple[t.Any, ...]]:
    """``pg_policy`` as it is: table, name, command, permissive, roles, both expressions, comment; read without the
    library's help.
    """
    with connection.cursor() as cursor:
        cursor.execute("select set_config('search_path', '', false)")
        cursor.execute(
            "select polrelid::regclass::text, polname, polcmd, polpermissive, polroles::regrole[]::text,"
            " pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid), obj_description(oid, 'pg_policy')"
            " from pg_policy order by 1, 2"
        )
        found = list(cursor.fetchall())
        cursor.execute("reset search_path")
    return found


def helpers(connection: Connection) -> t.List[str]:
    """The functions in the helper schema."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = pronamespace where nspname"
            " = 'rls_ops' order by 1"
        )
        return [name for (name,) in cursor.fetchall()]


def fill(connection: Connection, *, rows: int = 30, seed: int = 7) -> None:
    """Random rows in every table of schema public; the same seed gives the same rows."""
    chance = random.Random(seed)
    values: t.Dict[str, t.Callable[[], t.Any]] = {
        "uuid": lambda: chance.choice(PEOPLE),
        "integer": lambda: chance.randrange(1, 12),
        "boolean": lambda: chance.random() < 0.4,
        "text": lambda: chance.choice(["admin", "boss", "member", "public", "organizer"]),
    }
    with connection.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")  # foreign keys are not the subject
        cursor.execute(
            "select c.oid::regclass::text, array_agg(quote_ident(a.attname) order by attnum),"
            " array_agg(format_type(atttypid, null) order by attnum) from pg_class c join pg_attribute a on attrelid ="
            " c.oid and attnum > 0 and not attisdropped and attgenerated = '' where relnamespace ="
            " 'public'::regnamespace and relkind = 'r' group by 1 order by 1"
        )
        for table, columns, types in cursor.fetchall():
            for _ in range(rows):
                row = [values.get(kind, lambda: None)() for kind in types]
                cursor.execute(
                    f"insert into {table} ({', '.join(columns)}) values ({', '.join(['%s'] * len(row))}) on conflict do"
                    " nothing",
                    row,
                )
        cursor.execute("reset session_replication_role")


def see(
    connection: Connection, query: str, *, role: str = "authenticated", user: str = ""
) -> t.List[t.Tuple[t.Any, ...]]:
    """What a user of the API gets; raises what PostgreSQL raises. Nothing that it does stays."""
    was, connection.autocommit = connection.autocommit, False
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select set_config('request.jwt.claims', json_build_object('sub', %s, 'role', %s)::text, true)",
                (user or None, role),
            )
            cursor.execute("select set_config('role', %s, true)", (role,))
            cursor.execute(query)
            return list(cursor.fetchall()) if cursor.description else [(cursor.rowcount,)]
    finally:
        connection.rollback()
        connection.autocommit = was
