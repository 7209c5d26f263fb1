# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity that is no ``auth.uid()``: the caller evaluates it and hands it to the function, which then needs no
``allow_unbounded``. What each user sees is compared with the policy's meaning, written out and evaluated by a superuser.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from pglast import parse_sql

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.model import tree

TABLE = """
create schema app; grant usage on schema app to anon, authenticated, service_role;
create table public.tenants(id int primary key, slug text unique); grant select on tenants to anon, authenticated;
create table public.staff(id int primary key, tenant int, person uuid, login name, mail text, boss boolean, deputy uuid);
insert into tenants values (1, 'one'), (2, 'two'), (3, 'three');
insert into staff values
  (1, 1, '00000000-0000-0000-0000-000000000001', 'authenticated', 'A@x', true, null),
  (2, 1, '00000000-0000-0000-0000-000000000002', 'anon', 'b@x', false, null),
  (3, 2, '00000000-0000-0000-0000-000000000003', 'authenticated', 'c@x', false, null),
  (4, 2, '00000000-0000-0000-0000-000000000001', 'nobody', 'd@x', false, null),
  (5, 3, '00000000-0000-0000-0000-000000000002', 'authenticated', null, true, '00000000-0000-0000-0000-000000000001');
alter table staff enable row level security;
grant select, insert, update, delete on staff to anon, authenticated;
"""

#: name -> (functions, condition of the sub-select, the same as a superuser can evaluate it for a role and a tenant).
#: {0} is the role, {1} the tenant; the caller is the first person.
CASES: t.Dict[str, t.Tuple[str, str, str]] = {
    "current_user": ("", "x.login = current_user and x.boss", "x.login = '{0}' and x.boss"),
    "session_user": ("", "x.login = session_user", "false"),
    "current_user as text": (
        "",
        "x.login::text = current_user::text and x.tenant = 1",
        "x.login = '{0}' and x.tenant = 1",
    ),
    "sql function": (
        "create function app.tenant() returns int language sql stable as $$ select current_setting('app.tenant', true)::int $$;",
        "x.tenant = app.tenant() and x.boss",
        "x.tenant = {1} and x.boss",
    ),
    "plpgsql function": (
        "create function app.tenant() returns int language plpgsql stable as"
        " $$ begin return nullif(current_setting('app.tenant', true), '')::int; end $$;",
        "x.tenant = app.tenant()",
        "x.tenant = {1}",
    ),
    "function with an argument": (
        "create function app.setting(name text) returns text language sql stable as $$ select current_setting(name, true) $$;",
        "x.tenant = app.setting('app.tenant')::int",
        "x.tenant = {1}",
    ),
    "array of a function": (
        "create function app.tenants() returns int[] language sql stable as"
        " $$ select array[current_setting('app.tenant', true)::int, 3] $$;",
        "x.tenant = any (app.tenants()) and x.person = '00000000-0000-0000-0000-000000000001'",
        "x.tenant in ({1}, 3) and x.person = '00000000-0000-0000-0000-000000000001'",
    ),
    "arrays that share something": (
        "create function app.tenants() returns text[] language sql stable as"
        " $$ select array[current_setting('app.tenant', true), '3'] $$; alter table staff add firms text[];"
        " update staff set firms = array[tenant::text, '9'];",
        "x.firms && app.tenants()",
        "x.tenant in ({1}, 3)",
    ),
    "value in an array of the row": (
        "create function app.tenant() returns text language sql stable as $$ select current_setting('app.tenant', true) $$;"
        " alter table staff add firms text[]; update staff set firms = array[tenant::text, '9'];",
        "app.tenant() = any (x.firms)",
        "x.tenant = {1}",
    ),
    "key of a setting": (
        "",
        "jsonb_build_object(current_setting('app.tenant', true), 1) ? x.tenant::text",
        "x.tenant = {1}",
    ),
    "set of a function": (
        "create function app.tenants() returns setof int language sql stable as"
        " $$ select current_setting('app.tenant', true)::int union select 3 $$;",
        "x.tenant in (select app.tenants())",
        "x.tenant in ({1}, 3)",
    ),
    "array of a setting": (
        "",
        "x.tenant = any (string_to_array(current_setting('app.tenant', true), ',')::int[])",
        "x.tenant = {1}",
    ),
    "table that anybody may read": (
        "",
        "x.tenant in (select t.id from public.tenants t where t.slug = current_setting('app.slug', true))",
        "x.tenant = 2",
    ),
    "scalar sub-select": (
        "",
        "x.tenant = (select t.id from public.tenants t where t.slug = current_setting('app.slug', true))",
        "x.tenant = 2",
    ),
    "claim": (
        "",
        "x.mail = lower(auth.jwt() ->> 'mail') or x.person = (auth.jwt() ->> 'sub')::uuid",
        "x.person = '00000000-0000-0000-0000-000000000001'",
    ),
    "one of two columns": (
        "",
        "auth.uid() in (x.person, x.deputy)",
        "'00000000-0000-0000-0000-000000000001' in (x.person, x.deputy)",
    ),
    "either of two identities": (
        "",
        "x.person = auth.uid() or x.login = current_user",
        "x.person = '00000000-0000-0000-0000-000000000001' or x.login = '{0}'",
    ),
    "identity of a type of its own": (
        "create domain app.tenant_id as int check (value > 0);"
        "create function app.tenant() returns app.tenant_id language sql stable as"
        " $$ select current_setting('app.tenant', true)::app.tenant_id $$;",
        "x.tenant = app.tenant()",
        "x.tenant = {1}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_identity_is_handed_over(postgres: servers.Postgres, tmp_path: Path, name: str) -> None:
    functions, condition, meaning = CASES[name]
    sql = (
        f"{TABLE}{functions}create policy p on staff using (tenant in (select x.tenant from public.staff x where"
        f" {condition}));"
    )
    with db.database(postgres, sql) as connection:
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.needs_review == []
        (function,) = plan.functions
        assert function["bound"] in ("arguments", "caller")
        # Nothing of users runs with the owner's rights, and nothing is asked there that has another answer.
        called = {
            ".".join(tree.function_name(call))
            for statement in parse_sql(function["definition"].partition("BEGIN ATOMIC")[2].rpartition(";")[0])
            for call in tree.of_type(statement.stmt, "FuncCall")
        }
        assert called <= {"auth.uid", "auth.jwt", "current_setting", "lower", "string_to_array", "jsonb_build_object"}
        done = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert rls.audit(connection).failing == []
        if "app.tenant" in functions and "firms" not in functions:
            assert done["after"]["now_visible"]["public.staff"], "the sample holds no user of any tenant"
        for role in ("anon", "authenticated"):
            for tenant in (1, 2):
                query = (
                    f"select set_config('app.tenant', '{tenant}', true), set_config('app.slug', 'two', true);"
                    " select id from staff order by id"
                )
                seen = [row for (row,) in db.see(connection, query, role=role, user=db.PEOPLE[0])]
                with connection.cursor() as cursor:
                    cursor.execute(
                        "select id from staff where tenant in (select x.tenant from staff x where"
                        f" {meaning.format(role, tenant)}) order by id"
                    )
                    assert seen == [row for (row,) in cursor.fetchall()], (role, tenant)
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


@pytest.mark.parametrize(
    ("functions", "condition"),
    [
        ("create type app.rank as enum ('low', 'high'); alter table staff add rank app.rank;", "x.rank = 'low'"),
        ("create domain app.nr as int; alter table staff add nr app.nr;", "x.nr = 5::app.nr"),
        ("create function app.on() returns boolean language sql stable as 'select true';", "x.boss = app.on()"),
        ("create function app.same(n int) returns int language sql stable as 'select n';", "app.same(x.tenant) = 1"),
        ("create function app.same(n int) returns int language sql stable as 'select n';", "x.id = app.same(x.tenant)"),
        ("create function app.roll() returns int language sql as 'select 1';", "x.tenant = app.roll()"),
        ("", "x.tenant = 1 + (random() * 2)::int"),
        ("", "x.person = auth.uid() or x.boss"),
        ("", "x.tenant in (select t.id from public.tenants t where t.id > x.id)"),
        ("", "case when x.boss then x.login = current_user else x.tenant = 1 end"),
        ("", "x.mail > current_user::text"),
        ("", "to_jsonb(x.tenant) @> to_jsonb(nullif(current_user::text, 'anon'))"),
    ],
)
def test_what_ties_the_function_to_nobody_still_needs_permission(
    postgres: servers.Postgres, functions: str, condition: str
) -> None:
    sql = (
        f"{TABLE}{functions}create policy p on staff using (tenant in (select x.tenant from public.staff x where"
        f" {condition}));"
    )
    with db.database(postgres, sql) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.empty
        assert "every row" in plan.needs_review[0]["reason"]
        assert not rls.plan(connection, rls.audit(connection), allow_unbounded=True).needs_review


def test_strict_reading_asks_as_the_caller(postgres: servers.Postgres) -> None:
    """The session that evaluates the policies is not the user whom they name."""
    sql = (
        f"{TABLE}create policy p on staff using (login = current_user or tenant in (select x.tenant from public.staff x"
        " where x.login = current_user));"
    )
    with db.database(postgres, sql) as connection:
        done = rls.apply(connection, rls.plan(connection, rls.audit(connection)), check_mode=True)
        (strict,) = done["after"]["strict_reading"]
        assert strict["extra"] == 0 and strict["visible"] == strict["strict"] > 0
