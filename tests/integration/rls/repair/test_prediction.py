# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalog is predicted exactly as the repair leaves it, without a lock on the tables."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.repair import verification

WHOLE_ROW = """
create table public.docs (dropped int, id int primary key, owner uuid, open boolean);
alter table docs drop column dropped;
alter table docs enable row level security;
create function public.shown(docs) returns boolean language sql stable as 'select $1.open';
create policy mine on docs for select to authenticated
  using (public.shown(docs.*) or id in (select d.id from docs d where d.owner = auth.uid()));
"""
#: A split, quoted names, WITH CHECK, several tables.
CHOSEN = ("08_", "10_", "13_", "16_", "17_")


def texts(connection: t.Any) -> t.Dict[t.Tuple[str, str], t.Tuple[t.Any, ...]]:
    """What psql would show, by table and policy."""
    with connection.cursor() as cursor:
        cursor.execute("set search_path = ''")
        cursor.execute(
            "select polrelid::regclass::text, polname, polcmd::text, polpermissive, polroles::bigint[],"
            " pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid), obj_description(oid, 'pg_policy')"
            " from pg_policy"
        )
        found = {(row[0], row[1]): (*row[2:4], sorted(row[4]), *row[5:]) for row in cursor.fetchall()}
        cursor.execute("reset search_path")
    return found


def predicted(verified: verification.Verified) -> t.Dict[t.Tuple[str, str], t.Tuple[t.Any, ...]]:
    return {
        (relation.qualified, policy.name): (
            policy.command,
            policy.permissive,
            sorted(policy.roles),
            policy.using and policy.using.text,
            policy.check and policy.check.text,
            policy.comment,
        )
        for relation in verified.catalog.relations.values()
        for policy in relation.policies
    }


def verify(connection: t.Any) -> t.Tuple[rls.Plan, verification.Verified]:
    plan = rls.plan(connection, rls.audit(connection))
    return plan, verification.verify(connection, plan, statement_timeout_ms=60_000, lock_timeout_ms=1_000)


@pytest.mark.parametrize(
    "case", [case for case in db.CASES if case.stem.startswith(CHOSEN)], ids=lambda case: case.stem
)
def test_predicted_as_it_will_be(server: servers.Postgres, case: Path) -> None:
    with db.database(server, case.read_text()) as connection:
        before = db.snapshot(connection)
        plan, verified = verify(connection)
        assert db.snapshot(connection) == before and db.helpers(connection) == []
        rls.apply(connection, plan)
        assert predicted(verified) == texts(connection)


def test_whole_row_as_an_argument(server: servers.Postgres) -> None:
    """Its type is the real table's: such a policy is read by another way, and repaired all the same."""
    with db.database(server, WHOLE_ROW) as connection:
        plan, verified = verify(connection)
        assert [one for one in verified.told["unmeasured"] if "whole row" in one]
        rls.apply(connection, plan)
        assert rls.audit(connection).failing == []
        (policy,) = (policy for policy in verified.catalog.policies() if policy.oid in verified.inexact)
        assert policy.using is not None and policy.using.has_sublink and policy.using.relations == ()


def test_session_that_may_not_make_temporary_tables(postgres: servers.Postgres) -> None:
    case = next(case for case in db.CASES if case.stem.startswith("01_")).read_text()
    role = "do $$ begin create role predictor login bypassrls; exception when duplicate_object then null; end $$;"
    with db.database(postgres, case + role) as admin:
        with admin.cursor() as cursor:
            cursor.execute(
                "do $$ declare one text; begin"
                " execute format('revoke temporary on database %I from public', current_database());"
                " execute format('grant create on database %I to predictor', current_database());"
                " for one in select oid::regclass from pg_class where relnamespace = 'public'::regnamespace"
                " and relkind = 'r' loop execute format('alter table %s owner to predictor', one); end loop; end $$;"
                "grant all on schema public to predictor; grant usage on schema auth to predictor;"
                "grant anon, authenticated, service_role to predictor"
            )
        with contextlib.closing(psycopg2.connect(admin.dsn.replace("user=postgres", "user=predictor"))) as connection:
            connection.autocommit = True
            dummy, verified = verify(connection)
            assert verified.due
        with admin.cursor() as cursor:
            cursor.execute("select count(*) from pg_namespace where nspname like 'wheels_ops%'")
            assert cursor.fetchone() == (0,)
            cursor.execute("drop owned by predictor cascade; drop role predictor")
