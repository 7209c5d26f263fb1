# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's database in each state that production may be in, and questions asked as one of its users."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import psycopg2

from tests.support import servers
from wheels_ops.database import schema_snapshot

REPOSITORY = Path(__file__).resolve().parents[2]
DATABASE = REPOSITORY / "tests/backend/database"
FIXES = REPOSITORY / "sql/critical_database_fixes.sql"
UNDO = REPOSITORY / "sql/critical_database_fixes.undo.sql"

#: ``seed`` is the first generation; the others replace its policies of the two trip tables.
GENERATIONS = ("seed", "20250722", "20250729", "20250731", "20250805")

ANNA, BEN, CARLA, DAN, ADMIN = (f"a0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3, 4, 9))
#: Anna's with Ben (accepted) and Carla (invited); Ben's with Anna; Anna's alone.
OCEAN, CENTRE, TASMANIA = (f"b0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))

_DROP = """do $$ declare p record; begin
  for p in select * from pg_policies where schemaname = 'public' and tablename in ('group_trips', 'group_trip_participants') loop
    execute format('drop policy %I on public.%I', p.policyname, p.tablename);
  end loop; end $$"""


def create(server: servers.Postgres, generation: str = "seed", *, layout: t.Optional[Path] = None) -> str:
    """The DSN of a new database in that state; ``layout`` adds tables of the shop as some migration made them."""
    dsn = server.database(supabase=True)
    server.psql(dsn, file=DATABASE / "seed.sql")
    if generation != "seed":
        server.psql(dsn, sql=_DROP)
        server.psql(dsn, file=DATABASE / f"generations/{generation}.sql")
    if layout:
        server.psql(dsn, file=layout)
    return dsn


def run_file(server: servers.Postgres, dsn: str, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``psql [words] -f file``, as a person would."""
    return subprocess.run(
        [server.programs.path("psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dsn, *words, "-f", str(file)],
        capture_output=True,
        text=True,
        env=server.programs.environ(),
        check=False,
    )


def snapshot(dsn: str) -> schema_snapshot.Snapshot:
    connection = psycopg2.connect(dsn)
    with connection.cursor() as cursor:
        found = schema_snapshot.snapshot(cursor)
    connection.close()
    return found


def policies(dsn: str) -> t.List[t.Tuple[t.Any, ...]]:
    """Every policy as the server writes it out, without our code."""
    return query(
        dsn,
        "select schemaname, tablename, policyname, permissive, roles::text, cmd, qual, with_check from pg_policies"
        " order by 1, 2, 3",
    )


def query(dsn: str, sql: str, values: t.Sequence[t.Any] = ()) -> t.List[t.Tuple[t.Any, ...]]:
    """Rows, as the superuser; committed."""
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def ask(
    dsn: str, person: t.Optional[str], sql: str, *, role: str = "authenticated", keep: bool = False
) -> t.Union[t.List[t.Any], str, int]:
    """A statement as one user of the API: its rows (single columns unpacked), how many rows it touched, or the SQLSTATE
    that refused it.
    """
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select set_config('request.jwt.claims', %s, true)",
                (json.dumps({"sub": person, "role": role}) if person else "",),
            )
            cursor.execute("select set_config('role', %s, true)", (role,))
            try:
                cursor.execute(sql)
            except psycopg2.Error as error:
                return str(error.pgcode)
            if cursor.description:
                return [row[0] if len(row) == 1 else row for row in cursor.fetchall()]
            touched = cursor.rowcount
        if keep:
            connection.commit()
        return touched
    finally:
        connection.close()
