# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions without a declared volatility: refused, and repaired on request where they only read."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

ONE, TWO, THREE = db.PEOPLE[:3]
CREW = f"""
create table public.crew(id int primary key, ship int, person uuid, rank text); alter table crew enable row level security;
create function public.captain_of(s int) returns boolean language plpgsql as $$ {{body}} $$;
create policy p on crew for select to authenticated using (person = auth.uid() or public.captain_of(ship));
insert into crew values (1, 1, '{ONE}', 'captain'), (2, 1, '{TWO}', 'mate'), (3, 2, '{THREE}', 'captain');
"""
READS = (
    "declare n int; begin select count(*) into n from public.crew c where c.ship = s and c.person = auth.uid()"
    " and c.rank = 'captain'; if n > 0 then return true; end if; return false; end"
)


def looping(connection: t.Any) -> t.List[str]:
    return [finding.object for finding in rls.audit(connection).findings if finding.kind == "possible_54001"]


def volatility(connection: t.Any) -> t.List[t.Tuple[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select n.nspname, provolatile::text from pg_proc p join pg_namespace n on n.oid = pronamespace where proname"
            " like 'captain_of%' order by 1"
        )
        return list(cursor.fetchall())


def test_copy_of_a_function_that_only_reads(server: servers.Postgres, tmp_path: Path) -> None:
    with db.database(server, CREW.format(body=READS)) as connection:
        before = db.snapshot(connection)
        refused = rls.plan(connection, rls.audit(connection))
        assert refused.empty
        reason = refused.needs_review[0]["reason"]
        assert "captain_of() is VOLATILE" in reason and "--fix volatile" in reason and "sees the data" in reason
        plan = rls.plan(connection, rls.audit(connection), fix=["volatile"])
        assert plan.needs_review == []
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert looping(connection) == []
        assert volatility(connection) == [("public", "v"), ("rls_ops", "s")]
        seen = {
            person: [row for (row,) in db.see(connection, "select id from crew order by id", user=person)]
            for person in (ONE, TWO, THREE, db.OUTSIDER)
        }
        assert seen == {ONE: [1, 2], TWO: [2], THREE: [3], db.OUTSIDER: []}
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("begin perform 1 from crew; perform nextval('public.counter'); return true; end", "calls nextval()"),
        ("begin perform 1 from crew; perform set_config('a.b', 'c', true); return true; end", "calls set_config()"),
        ("begin perform 1 from crew; return random() > 0.5; end", "calls random()"),
        ("begin perform 1 from crew for update; return true; end", "locks rows"),
        ("begin perform 1 from crew; create temporary table seen(n int); return true; end", "no query"),
        ("begin perform 1 from crew; insert into crew values (9, 9, null, null); return true; end", "changes data"),
        ("begin perform 1 from crew; execute 'select 1'; return true; end", "dynamic SQL"),
        (
            "begin perform 1 from crew; perform public.counted(); return true; end",
            "calls counted(): it calls nextval()",
        ),
    ],
)
def test_function_that_does_more_stays_refused(postgres: servers.Postgres, body: str, reason: str) -> None:
    sql = (
        "create sequence public.counter; create function public.counted() returns bigint language sql as"
        " $$ select nextval('public.counter') $$;" + CREW.format(body=body)
    )
    with db.database(postgres, sql) as connection:
        for fix in (["recursion"], ["volatile"]):
            plan = rls.plan(connection, rls.audit(connection), fix=fix)
            assert plan.empty
            assert reason in plan.needs_review[0]["reason"]


@pytest.mark.parametrize(
    ("body", "bound"), [("current_setting('app.ship', true)::int", True), ("(random() * 3)::int", False)]
)
def test_identity_of_a_function_that_only_reads(
    postgres: servers.Postgres, tmp_path: Path, body: str, bound: bool
) -> None:
    sql = f"""
    create table public.crew(id int primary key, ship int, person uuid); alter table crew enable row level security;
    create function public.my_ship() returns int language sql as $$ select {body} $$;
    create policy p on crew for select to authenticated
      using (person in (select c.person from crew c where c.ship = public.my_ship()));
    insert into crew values (1, 1, '{ONE}'), (2, 1, '{TWO}'), (3, 2, '{THREE}');
    """
    with db.database(postgres, sql) as connection:
        refused = rls.plan(connection, rls.audit(connection))
        assert refused.empty and ("--fix volatile" in refused.needs_review[0]["advice"]) is bound
        plan = rls.plan(connection, rls.audit(connection), fix=["volatile"])
        assert plan.empty is not bound
        if bound:
            rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
            query = "select set_config('app.ship', '1', true); select id from crew order by id"
            assert db.see(connection, query, user=ONE) == [(1,), (2,)]
