# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and objects that break tools: quotes, dots, unicode, 63 bytes, reserved words, partitions, inheritance, views,
domains.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

NAMES = [
    'say "no"',
    "a.b",
    "semi;colon -- drop",
    "it's",
    "Größe 日本",
    "select",
    "user",
    "x" * 63,
    "é" * 31,
    "back\\slash",
    "{brace} (paren)",
    "per%cent %s",
    "$1",
    "new\nline",
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_hostile_name(server: servers.Postgres, tmp_path: Path, name: str) -> None:
    """The same name for schema, tables' column, table and policy; the table refers to itself by IN and by EXISTS."""
    n = quoted(name)
    with db.database(server) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"create schema {n}; grant usage on schema {n} to anon, authenticated")
            cursor.execute(f"create table {n}.{n} (id int primary key, {n} uuid, grp int)")
            cursor.execute(
                f"grant all on {n}.{n} to anon, authenticated; alter table {n}.{n} enable row level security"
            )
            cursor.execute(
                f"create policy {n} on {n}.{n} for select to authenticated using (grp in (select x.grp from {n}.{n} x"
                f" where x.{n} = auth.uid()))"
            )
            cursor.execute(
                f"create policy w on {n}.{n} for update to authenticated using (exists (select 1 from {n}.{n} a where"
                f" a.grp = {n}.grp and a.{n} = auth.uid()))"
            )
            first, second = db.PEOPLE[:2]
            cursor.execute(f"insert into {n}.{n} values (1, '{first}', 1), (2, '{second}', 1), (3, '{second}', 2)")
        before = db.snapshot(connection)
        found = rls.audit(connection)
        assert found.failing
        plan = rls.plan(connection, found)
        assert not plan.needs_review
        assert rls.apply(connection, plan, check_mode=True)["changed"]
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert rls.audit(connection).failing == []
        assert db.see(connection, f"select id from {n}.{n} order by id", user=db.PEOPLE[0]) == [(1,), (2,)]
        assert db.see(connection, f"select id from {n}.{n} order by id", user=db.PEOPLE[1]) == [(1,), (2,), (3,)]
        assert all(len(helper.split(".")[-1].encode()) <= 70 for helper in db.helpers(connection))
        server.psql(connection.dsn, file=tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


OBJECTS = {
    "partitions": (
        """
        create table public.t(id int, u uuid, grp int, primary key (id, grp)) partition by range (grp);
        create table public.t1 partition of t for values from (0) to (6); create table public.t2 partition of t for values from (6) to (100);
        alter table t enable row level security; alter table t1 enable row level security;
        create policy p on t for select to authenticated using (grp in (select x.grp from t x where x.u = auth.uid()));
        create policy p1 on t1 for select to authenticated using (exists (select 1 from only t1 x where x.grp = t1.grp and x.u = auth.uid()));
    """
    ),
    "inheritance": (
        """
        create table public.t(id int, u uuid, grp int); create table public.child(extra text) inherits (t);
        alter table t enable row level security; alter table child enable row level security;
        create policy p on t for select to authenticated using (grp in (select x.grp from only t x where x.u = auth.uid()));
        create policy c on child for select to authenticated using (grp in (select x.grp from t x where x.u = auth.uid()));
    """
    ),
    "views": (
        """
        create table public.t(id int, u uuid, grp int);
        create view public.plain as select * from t; create view public.invoker with (security_invoker = true) as select * from t where id > 0;
        create view public.above with (security_invoker = true) as select grp, u from invoker; create view public.over_invoker as select grp, u from invoker;
        alter table t enable row level security;
        create policy p on t for select to authenticated using (grp in (select x.grp from above x where x.u = auth.uid()));
        create policy q on t for update to authenticated using (grp in (select x.grp from plain x where x.u = auth.uid()));
        create policy r on t for delete to authenticated using (grp in (select x.grp from over_invoker x where x.u = auth.uid()));
    """
    ),
    "generated columns": (
        """
        create table public.t(id int, u uuid, grp int, twice int generated always as (grp * 2) stored, ident int generated always as identity);
        alter table t enable row level security;
        create policy p on t for all to authenticated using (twice in (select x.twice from t x where x.u = auth.uid() and x.ident > 0));
    """
    ),
    "domains and types": (
        """
        create domain public.short as varchar(40) check (value <> ''); create type public.kind as enum ('a', 'b'); create domain public.person as uuid;
        create table public.t(id int, u public.person, grp int, name public.short default 'n', k public.kind default 'a', tags text[] default '{x}',
          code char(3) default 'abc', amount numeric(10, 2) default 1, j jsonb default '{}');
        alter table t enable row level security;
        create policy p on t for select to authenticated using (grp in (select x.grp from t x where x.u = auth.uid() and x.k = 'a' and x.name = 'n'));
        create policy q on t for update to authenticated using (exists (select 1 from t x where x.name = t.name and x.code = t.code and x.k = t.k and x.u = t.u
          and 'x' = any (x.tags) and x.amount > 0 and x.j = '{}'));
        create policy r on t for delete to authenticated using (exists (select 1 from t x where x.u = auth.uid() and x is not null));
    """
    ),
    "merged columns and laterals": (
        """
        create table public.t(id int, u uuid, grp int); create table public.o(grp int, label text);
        alter table t enable row level security; alter table o enable row level security;
        create policy o on o for select using (true);
        create policy p on t for select to authenticated using (grp in (select grp from t x join o using (grp) where x.u = auth.uid()));
        create policy q on t for update to authenticated using (exists (select 1 from o,
          lateral (select y.grp from t y where y.grp = o.grp and y.u = auth.uid()) z where z.grp = t.grp));
        create policy r on t for delete to authenticated using ((select count(distinct y.u) from t y left join o on o.grp = y.grp
          where y.grp = t.grp group by y.grp having bool_or(y.u = auth.uid()) order by 1 limit 1) > 0);
    """
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object(server: servers.Postgres, tmp_path: Path, name: str) -> None:
    if name == "views":
        server.require(15, "views with security_invoker")
    with db.database(
        server,
        OBJECTS[name] + "grant select, insert, update, delete on all tables in schema public to anon, authenticated;",
    ) as connection:
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from pg_attribute where attrelid = 'public.t'::regclass and attname = 'id'")
            cursor.execute(
                "insert into t(id, u, grp) select n, (%s::uuid[])[1 + n %% 5], n %% 11 from generate_series(1, 60) n",
                (db.PEOPLE,),
            )
            if name == "merged columns and laterals":
                cursor.execute("insert into o select n, 'l' from generate_series(0, 7) n")
        before = db.snapshot(connection)
        found = rls.audit(connection)
        assert found.failing
        plan = rls.plan(connection, found, allow_unbounded=True)
        assert plan.needs_review == []
        result = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert rls.audit(connection).failing == [] and not result["after"]["unmasked"]
        # Evaluated by a superuser, whom no policy filters, the original expression gives the rows that are due.
        with connection.cursor() as cursor:
            text = next(row[5] for row in before if row[0] == "public.t" and row[1] == "p")
            cursor.execute(
                "select set_config('request.jwt.claims', json_build_object('sub', %s)::text, false)", (db.PEOPLE[0],)
            )
            cursor.execute(f"select id from t where {text} order by id")
            due = list(cursor.fetchall())
        assert due and db.see(connection, "select id from t order by id", user=db.PEOPLE[0]) == due
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


def test_audit_finds_a_captured_column_of_any_name(server: servers.Postgres) -> None:
    """The author meant the column of his own table; the inner table has one of the same name, and takes it."""
    with db.database(server) as connection:
        with connection.cursor() as cursor:
            for number, name in enumerate(NAMES):
                n = quoted(name)
                cursor.execute(
                    f"create table outer_{number} ({n} int); create table inner_{number} ({n} int);"
                    f" alter table outer_{number} enable row level security;"
                    f" create policy p on outer_{number} for select to authenticated"
                    f" using (exists (select 1 from inner_{number} i where i.{n} = {n}))"
                )
        captured = {
            finding.details["table"] for finding in rls.audit(connection).findings if finding.kind == "captured_column"
        }
        assert captured == {f"public.outer_{number}" for number in range(len(NAMES))}
