# SPDX-License-Identifier: GPL-3.0-or-later
"""What is not repaired, with the reason and what a person should do; the rest is."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.core.results import OpsError

#: A second, harmless recursion, which must be repaired whatever becomes of the first.
OTHER = """
create table public.other(id int primary key, user_id uuid); alter table other enable row level security;
create policy o on other for select to authenticated using (id in (select x.id from other x where x.user_id = auth.uid()));
"""


def function_case(body: str, volatility: str = "stable", extra: str = "") -> str:
    return f"""
    create table public.members(org int, user_id uuid);
    create function public.mine() returns setof int language plpgsql {volatility} {extra} as $$ {body} $$;
    alter table members enable row level security;
    create policy s on members for select to authenticated using (org in (select mine()));
    """


@pytest.mark.parametrize(
    ("sql", "reason", "options"),
    [
        (
            function_case(
                "begin return query select m.org from members m where m.user_id = auth.uid(); end", "volatile"
            ),
            "VOLATILE",
            {},
        ),
        (
            function_case("begin perform 1 from members; return query execute 'select org from members'; end"),
            "dynamic SQL",
            {},
        ),
        (
            function_case("begin return query select m.org from members m where pg_has_role('x', 'usage'); end"),
            "pg_has_role",
            {},
        ),
        (
            function_case("begin return query select m.org from members m where m.user_id = auth.uid(); end")
            + "create function public.mine(variadic more int[]) returns setof int language sql stable as 'select 1';",
            "same number of arguments",
            {},
        ),
        (
            (
                "create table public.t(id int primary key, a int); alter table t enable row level security;"
                "create policy p on t for select to authenticated using (exists (select 1 from t x where x.a > t.a));"
            ),
            "every row",
            {"allow_unbounded": True},
        ),
        (
            (
                "create table public.t(id int primary key, l int, u uuid); alter table t enable row level"
                " security;create policy p on t for select to authenticated using (exists (select 1 from t x where x.l"
                " = l and x.u = auth.uid()));"
            ),
            "compared with itself",
            {"accept_captured_columns": True},
        ),
        (
            (
                "create table public.t(id int primary key, u uuid); alter table t enable row level security;create"
                " policy p on t for select to authenticated using (exists (select 1 from t x where x.u = auth.uid() and"
                " x.ctid is not null));"
            ),
            "system column",
            {},
        ),
        (
            (
                "create table public.t(id int primary key, u uuid); alter table t enable row level security;create"
                " policy p on t for select to authenticated using (exists (select 1 from t x tablesample system (50)"
                " where x.u = auth.uid()));"
            ),
            "TABLESAMPLE",
            {},
        ),
    ],
    ids=["volatile", "dynamic", "identity", "overloaded", "unbounded", "captured", "system column", "tablesample"],
)
def test_refused_with_reason_and_the_rest_repaired(
    postgres: servers.Postgres, tmp_path: Path, sql: str, reason: str, options: t.Dict[str, t.Any]
) -> None:
    with db.database(postgres, sql + OTHER) as connection:
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        assert reason in " ".join(review["reason"] for review in plan.needs_review)
        assert all(review["advice"] for review in plan.needs_review)
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert {failure.relation for failure in rls.audit(connection).failing} == (
            {"public.t"} if "public.t" in sql else set()
        )
        assert [row for row in db.snapshot(connection) if row[0] != "public.other"] == [
            row for row in before if row[0] != "public.other"
        ]
        if options:
            allowed = rls.plan(connection, rls.audit(connection), **options)
            assert allowed.needs_review == []
            rls.apply(connection, allowed, undo_path=tmp_path / "second.sql")
            assert rls.audit(connection).failing == []


def test_nothing_is_changed_that_would_mend_nothing(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Two cycles through the same table, one of which needs a person: cutting the other alone would leave every access
    as it is.
    """
    sql = """
    create table public.nodes(id int primary key, parent int, u uuid); create table public.shares(node int, u uuid);
    alter table nodes enable row level security; alter table shares enable row level security;
    create policy n on nodes for select to authenticated using (
      u = auth.uid() or id in (select s.node from shares s where s.u = auth.uid()) or exists (select 1 from nodes x where x.parent > nodes.id));
    create policy s on shares for select to authenticated using (u = auth.uid() or exists (select 1 from nodes y where y.id = shares.node and y.u=auth.uid()));
    """
    with db.database(postgres, sql + OTHER) as connection:
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        assert {review["object"] for review in plan.needs_review} == {"public.nodes", "public.shares"}
        assert [change.relation.qualified for change in plan.changes] == ["public.other"]
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert [row for row in db.snapshot(connection) if row[0] != "public.other"] == [
            row for row in before if row[0] != "public.other"
        ]
        allowed = rls.plan(connection, rls.audit(connection), allow_unbounded=True)
        rls.apply(connection, allowed, undo_path=tmp_path / "second.sql")
        assert rls.audit(connection).failing == []


def test_captured_column_behind_someone_elses_cycle(postgres: servers.Postgres, tmp_path: Path) -> None:
    """Cutting the cheap reference elsewhere would take the error, and with it the protection, from the
    captured column.
    """
    sql = """
    create table public.a(id int primary key, u uuid, b_id int); create table public.b(id int primary key, a_id int, u uuid);
    alter table a enable row level security; alter table b enable row level security;
    create policy pa on a for select to authenticated using (id in (select x.a_id from b x where x.u = auth.uid()));
    create policy pb on b for select to authenticated using (exists (select 1 from a y where y.b_id = b_id and y.u = auth.uid()));
    """
    with db.database(postgres, sql + OTHER) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert {failure.relation for failure in rls.audit(connection).failing} == {"public.a", "public.b"}
        assert plan.needs_review


def test_search_path_in_which_anybody_may_create(postgres: servers.Postgres) -> None:
    sql = (
        function_case("begin return query select m.org from members m where m.user_id = auth.uid(); end")
        + "grant create on schema public to authenticated;"
    )
    with db.database(postgres, sql) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.empty
        assert (
            "may create objects" in plan.needs_review[0]["reason"] and "REVOKE CREATE" in plan.needs_review[0]["reason"]
        )


def test_owner_that_row_level_security_binds(postgres: servers.Postgres) -> None:
    with db.database(postgres, OTHER) as connection:
        found = rls.audit(connection)
        with pytest.raises(OpsError, match="would bind"):
            rls.plan(connection, found, owner="authenticated")
        with pytest.raises(OpsError, match="no role"):
            rls.plan(connection, found, owner="nobody at all")


def test_exposed_helper_schema(postgres: servers.Postgres) -> None:
    with db.database(postgres, OTHER) as connection, pytest.raises(OpsError, match="is open to"):
        rls.plan(connection, rls.audit(connection), helper_schema="public")


def test_plan_of_yesterday(postgres: servers.Postgres) -> None:
    with db.database(postgres, OTHER) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        with connection.cursor() as cursor:
            cursor.execute(
                "alter policy o on other using (id in (select x.id from other x where x.user_id = auth.uid() and x.id"
                " > 3))"
            )
        before = db.snapshot(connection)
        with pytest.raises(OpsError, match="changed since the plan"):
            rls.apply(connection, plan)
        assert db.snapshot(connection) == before


def test_undo_after_someone_else_changed_a_policy(postgres: servers.Postgres, tmp_path: Path) -> None:
    with db.database(postgres, OTHER) as connection:
        before = db.snapshot(connection)
        rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "undo.sql")
        with connection.cursor() as cursor:
            cursor.execute("create policy more on other for select to anon using (false)")
        with pytest.raises(OpsError, match="not as the repair left them"):
            rls.undo(connection, tmp_path / "undo.sql")
        rls.undo(connection, tmp_path / "undo.sql", force=True)
        assert [row for row in db.snapshot(connection) if row[1] != "more"] == before


def test_unknown_names(postgres: servers.Postgres, tmp_path: Path) -> None:
    with db.database(postgres, OTHER) as connection:
        with pytest.raises(OpsError, match="no role"):
            rls.audit(connection, roles=["nobody at all"])
        with pytest.raises(OpsError, match="no fix"):
            rls.plan(connection, rls.audit(connection), fix=["everything"])
        with pytest.raises(OpsError, match="Cannot read"):
            rls.undo(connection, tmp_path / "absent.sql")
        (tmp_path / "other.sql").write_text("select 1;\n")
        with pytest.raises(OpsError, match="not an undo script"):
            rls.undo(connection, tmp_path / "other.sql")


def test_connection_inside_a_transaction(postgres: servers.Postgres) -> None:
    with db.database(postgres, OTHER) as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        with pytest.raises(OpsError, match="inside a transaction"):
            rls.audit(connection)
        connection.rollback()
        assert rls.audit(connection).failing
