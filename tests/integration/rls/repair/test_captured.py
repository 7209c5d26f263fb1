# SPDX-License-Identifier: GPL-3.0-or-later
"""Captured columns: refused, with the column that was probably meant and the rows that each text lets through; qualified
where that is asked for.
"""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

ONE, TWO, THREE, FOUR = db.PEOPLE[:4]

#: A trip's guest is meant to see the trips that he is a guest of, and sees all as soon as he is a guest of any.
SHARED = f"""
create table public.trips(id int primary key, owner uuid, guest uuid);
alter table trips enable row level security;
create policy "guests read" on trips for select to authenticated
  using (owner = auth.uid() or auth.uid() in (select guest from public.trips where id = trips.id));
insert into trips values (1, '{ONE}', '{TWO}'), (2, '{TWO}', null), (3, '{THREE}', '{ONE}'), (4, '{FOUR}', null);
"""
MEANT = {ONE: [1, 3], TWO: [1, 2], THREE: [3], FOUR: [4]}

#: The inner table has no column of that name around it, but a foreign key.
BY_KEY = f"""
create table public.trips(id int primary key, owner uuid);
create table public.seats(id int primary key, trip_id int references trips, person uuid);
alter table trips enable row level security; alter table seats enable row level security;
create policy t on trips for select to authenticated
  using (owner = auth.uid() or exists (select 1 from seats s where s.trip_id = trip_id and s.person = auth.uid()));
create policy s on seats for select to authenticated
  using (person = auth.uid() or trip_id in (select t.id from trips t where t.owner = auth.uid()));
insert into trips values (1, '{ONE}'), (2, '{TWO}'), (3, '{THREE}'), (4, '{FOUR}');
insert into seats values (1, 1, '{TWO}'), (2, 3, '{ONE}');
"""


def see_all(connection: t.Any, table: str) -> t.Dict[str, t.List[int]]:
    return {
        person: [row for (row,) in db.see(connection, f"select id from {table} order by id", user=person)]
        for person in MEANT
    }


@pytest.mark.parametrize(
    ("sql", "meant", "policy"), [(SHARED, "trips.id", "guests read"), (BY_KEY, "trips.id", "t")], ids=["name", "key"]
)
def test_proposed_and_then_qualified(
    server: servers.Postgres, tmp_path: Path, sql: str, meant: str, policy: str
) -> None:
    with db.database(server, sql) as connection:
        before = db.snapshot(connection)
        refused = rls.plan(connection, rls.audit(connection))
        assert refused.empty
        (proposal,) = refused.needs_review[0]["proposals"]
        assert (proposal["table"], proposal["policy"], proposal["meant"]) == ("public.trips", policy, [meant])
        assert "--fix captured" in refused.needs_review[0]["advice"]
        # What it says of each user is what he sees under either text.
        told = {row["user"]: (row["written"], row["qualified"], row["of"]) for row in proposal["rows"]}
        accepted = rls.plan(connection, rls.audit(connection), accept_captured_columns=True, allow_unbounded=True)
        rls.apply(connection, accepted, undo_path=tmp_path / "first.sql")
        written = see_all(connection, "trips")
        rls.undo(connection, tmp_path / "first.sql")
        plan = rls.plan(connection, rls.audit(connection), fix=["captured"])
        assert plan.needs_review == []
        checked = rls.apply(connection, plan, check_mode=True)
        assert db.snapshot(connection) == before
        done = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert done["changed"] is checked["changed"] is True
        qualified = see_all(connection, "trips")
        assert qualified == MEANT
        assert told == {
            f"sub={person}": (len(written[person]), len(rows), 4)
            for person, rows in qualified.items()
            if written[person] != rows
        }
        assert told, "nothing would be told apart"
        present = rls.audit(connection)
        assert present.failing == [] and not [f for f in present.findings if f.kind == "captured_column"]
        assert rls.plan(connection, present, fix=["captured"]).empty
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


@pytest.mark.parametrize(
    ("tables", "condition"),
    [
        # Both the policy's table and the sub-select between have such a column.
        (
            "create table public.b(k int, u uuid); create table public.c(k int);",
            "exists (select 1 from c where exists (select 1 from b x where x.k = k and x.u = auth.uid()))",
        ),
        # A key says something else than the name does.
        (
            "create table public.b(id int primary key, u uuid); alter table a add b_id int references b;",
            "exists (select 1 from b x where x.id = id and x.u = auth.uid())",
        ),
        # What stands around is no table.
        (
            "create table public.b(k int, u uuid);",
            "exists (select 1 from (values (1)) v(n) where exists (select 1 from b x where x.k = k))",
        ),
        # Nothing around has such a column.
        ("create table public.b(z int, u uuid);", "exists (select 1 from b x where x.z = z)"),
        # The same name, and another type.
        ("create table public.b(u text);", "exists (select 1 from b x where x.u = u)"),
    ],
    ids=["two candidates", "key against name", "no table", "no candidate", "another type"],
)
def test_no_proposal_where_it_cannot_be_told(postgres: servers.Postgres, tables: str, condition: str) -> None:
    sql = f"""
    create table public.a(id int primary key, k int, u uuid); {tables}
    alter table a enable row level security;
    create policy p on a for select to authenticated
      using ({condition} or id in (select y.id from a y where y.u = auth.uid()));
    """
    with db.database(postgres, sql) as connection:
        for fix in (["recursion"], ["captured"]):
            plan = rls.plan(connection, rls.audit(connection), fix=fix)
            assert plan.empty
            assert plan.needs_review[0]["proposals"] == [] and "--fix" not in plan.needs_review[0]["advice"]


def test_policy_that_works_is_narrowed_on_request_only(postgres: servers.Postgres, tmp_path: Path) -> None:
    """No recursion hides it: the table is open today, and the comparison of rows knows what is meant to change."""
    sql = f"""
    create table public.notes(id int primary key, author uuid);
    create table public.readers(id int primary key, person uuid);
    alter table notes enable row level security;
    create policy r on notes for select to authenticated
      using (exists (select 1 from readers x where x.id = id and x.person = auth.uid()));
    create policy w on notes for insert to authenticated
      with check (exists (select 1 from readers x where x.id = id and x.person = auth.uid()));
    insert into notes values (1, '{ONE}'), (2, '{TWO}'); insert into readers values (1, '{TWO}');
    grant select, insert on notes, readers to authenticated;
    """
    with db.database(postgres, sql) as connection:
        assert rls.plan(connection, rls.audit(connection)).empty
        assert see_all(connection, "notes")[TWO] == [1, 2]
        db.see(connection, f"insert into notes values (3, '{ONE}')", user=TWO)
        done = rls.apply(
            connection, rls.plan(connection, rls.audit(connection), fix=["captured"]), undo_path=tmp_path / "undo.sql"
        )
        assert see_all(connection, "notes")[TWO] == [1]
        assert done["after"]["reworded"]["public.notes"]["before"] > done["after"]["reworded"]["public.notes"]["after"]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            db.see(connection, f"insert into notes values (3, '{ONE}')", user=TWO)
        rls.undo(connection, tmp_path / "undo.sql")
        assert see_all(connection, "notes")[TWO] == [1, 2]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wheels_ops.command_line", "rls", *words], capture_output=True, text=True, check=False
    )


def test_command_line(postgres: servers.Postgres, tmp_path: Path) -> None:
    with db.database(postgres, SHARED) as connection:
        refused = command("repair", "--dsn", connection.dsn, "--check")
        assert refused.returncode == 1
        assert f"authenticated (sub={ONE}): 4 of 4 rows as written, 2 qualified" in refused.stdout
        assert "(trips_1.id = trips_1.id)" in refused.stdout and "trips_1.id = trips.id" in refused.stdout
        done = command("repair", "--dsn", connection.dsn, "--fix", "captured", "--undo-dir", str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        assert see_all(connection, "trips") == MEANT


def test_as_a_migration(postgres: servers.Postgres, tmp_path: Path) -> None:
    """A change without any function: the file may run twice as well."""
    source, target = tmp_path / "1.sql", tmp_path / "2.sql"
    source.write_text(
        "create table public.notes(id int primary key); create table public.readers(id int, person uuid);"
        "alter table notes enable row level security; create policy r on notes for select to authenticated"
        " using (exists (select 1 from readers x where x.id = id and x.person = auth.uid()));"
    )
    words = ["--dsn", postgres.dsn(), "--supabase", "--sql", str(source), "--fix", "captured", "--write", str(target)]
    done = command("repair", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    again = command("audit", "--dsn", postgres.dsn(), "--supabase", "--sql", str(source), str(target))
    assert "captured" not in again.stdout
