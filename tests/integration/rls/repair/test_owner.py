# SPDX-License-Identifier: GPL-3.0-or-later
"""Who repairs: a superuser, the role that hosted Supabase calls postgres, the tables' owner; and with what rights the
functions run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from tests.support.waiting import free_port, wait_until
from wheels_ops import rls
from wheels_ops.checks import rls as check

TABLES = """
create table public.trips(id int primary key, created_by uuid, title text);
create table public.parts(id int primary key, trip_id int, user_id uuid, secret text);
alter table trips enable row level security; alter table parts enable row level security;
create policy t on trips for select to authenticated using (created_by = auth.uid()
  or exists (select 1 from parts p where p.trip_id = trips.id and p.user_id = auth.uid()));
create policy p on parts for select to authenticated using (exists (select 1 from trips t where t.id = parts.trip_id));
"""
OWNER = """
do $$ begin
  if not exists (select from pg_roles where rolname = '{name}') then create role {name} login {attributes}; end if;
end $$;
grant anon, authenticated, service_role to {name};
do $$ begin execute format('grant create, connect on database %I to {name}', current_database()); end $$;
grant usage, create on schema public to {name}; grant usage on schema auth to {name};
alter table trips owner to {name}; alter table parts owner to {name};
grant all on trips, parts to anon, authenticated;
"""


def one_value(connection: t.Any, query: str) -> t.Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def test_superuser_makes_a_role_that_may_read_those_columns_only(server: servers.Postgres, tmp_path: Path) -> None:
    with db.database(server, TABLES) as connection:
        # Another database of this server may have it already, and keeps it then.
        roles = one_value(connection, "select count(*) from pg_roles where rolname = 'rls_definer'")
        db.fill(connection)
        plan = rls.plan(connection, rls.audit(connection))
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        with connection.cursor() as cursor:
            cursor.execute(
                "select rolcanlogin, rolinherit, rolbypassrls, rolsuper from pg_roles where rolname = 'rls_definer'"
            )
            assert cursor.fetchall() == [(False, False, True, False)]
            cursor.execute(
                "select attname from pg_attribute where attrelid = 'parts'::regclass and attnum > 0"
                " and has_column_privilege('rls_definer', attrelid, attnum, 'SELECT')"
            )
            assert sorted(name for (name,) in cursor.fetchall()) == ["trip_id", "user_id"]
            cursor.execute(
                "select proowner::regrole::text, prosecdef, provolatile, proconfig, proacl::text from pg_proc where"
                " pronamespace = 'rls_ops'::regnamespace"
            )
            ((owner, definer, volatility, settings, acl),) = cursor.fetchall()
        assert (owner, definer, volatility, settings) == ("rls_definer", True, "s", ['search_path=""'])
        assert "authenticated=X" in acl and "anon" not in acl and "{=X" not in acl and ",=X" not in acl
        name = db.helpers(connection)[0]
        with pytest.raises(Exception, match="permission denied for schema rls_ops"):
            db.see(connection, f"select {name}", user=db.PEOPLE[0])
        with pytest.raises(Exception, match="permission denied"):
            db.see(connection, "select * from parts", role="rls_definer")
        rls.undo(connection, tmp_path / "undo.sql")
        assert one_value(connection, "select count(*) from pg_roles where rolname = 'rls_definer'") == roles
        assert one_value(connection, "select count(*) from pg_namespace where nspname = 'rls_ops'") == 0


@pytest.mark.parametrize(("name", "attributes"), [("rls_hosted", "createrole createdb bypassrls"), ("rls_owner", "")])
@pytest.mark.parametrize("forced", [False, True], ids=["plain", "forced"])
def test_without_superuser(server: servers.Postgres, tmp_path: Path, name: str, attributes: str, forced: bool) -> None:
    force = "alter table trips force row level security; alter table parts force row level security;" if forced else ""
    with db.database(server, TABLES + OWNER.format(name=name, attributes=attributes) + force) as admin:
        db.fill(admin)
        before = db.snapshot(admin)
        connection = psycopg2.connect(admin.dsn.replace("user=postgres", f"user={name}"))
        connection.autocommit = True
        try:
            found = rls.audit(connection)
            assert found.failing
            plan = rls.plan(connection, found)
            if forced and not attributes:
                # Row-level security would bind the functions: the recursion would stay.
                assert plan.empty and "would bind" in plan.needs_review[0]["reason"]
                return
            result = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
            assert result["after"]["failing"] == 0
            assert (
                one_value(
                    admin,
                    "select distinct proowner::regrole::text from pg_proc where pronamespace = 'rls_ops'::regnamespace",
                )
                == name
            )
            assert [failure for failure in rls.audit(admin).failing] == []
            mine = db.see(admin, "select count(*) from trips", user=db.PEOPLE[0])[0][0]
            assert 0 < mine < one_value(admin, "select count(*) from trips")
            assert rls.apply(connection, rls.plan(connection, rls.audit(connection)))["changed"] is False
            rls.undo(connection, tmp_path / "undo.sql")
            assert db.snapshot(admin) == before
        finally:
            connection.close()
            with admin.cursor() as cursor:
                cursor.execute(f"drop owned by {name} cascade")
                cursor.execute(f"drop role {name}")


@contextlib.contextmanager
def pooler(dsn: str) -> t.Iterator[str]:
    """The DSN of a pgbouncer in transaction mode before that database."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parts = psycopg2.extensions.parse_dsn(dsn)
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        (folder / "users").write_text(f'"{parts["user"]}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n{parts['dbname']} = host={parts['host']} port={parts['port']}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder / 'users'}\npool_mode = transaction\n"
        )
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen([program, "-q", *user, str(folder / "ini")], stderr=subprocess.DEVNULL)
        try:
            pooled = f"host=127.0.0.1 port={port} dbname={parts['dbname']} user={parts['user']}"
            wait_until(lambda: psycopg2.connect(pooled), what="pgbouncer answers")
            yield pooled
        finally:
            process.terminate()
            process.wait()


def test_through_a_pooler_in_transaction_mode(postgres: servers.Postgres, tmp_path: Path) -> None:
    """As the role of a hosted Supabase: nothing is needed that lasts longer than a transaction."""
    name = "rls_pooled"
    with db.database(postgres, TABLES + OWNER.format(name=name, attributes="bypassrls")) as admin:
        db.fill(admin)
        before = db.snapshot(admin)
        try:
            direct = f"{admin.dsn} host=127.0.0.1".replace("user=postgres", f"user={name}")
            with pooler(direct) as dsn, contextlib.closing(psycopg2.connect(dsn)) as connection:
                plan = rls.plan(connection, rls.audit(connection))
                checked = rls.apply(connection, plan, check_mode=True)
                assert db.snapshot(admin) == before
                done = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
                assert done["after"] == checked["after"] and rls.audit(admin).failing == []
                mine = db.see(admin, "select count(*) from trips", user=db.PEOPLE[0])[0][0]
                assert 0 < mine < one_value(admin, "select count(*) from trips")
                rls.undo(connection, tmp_path / "undo.sql")
                assert db.snapshot(admin) == before and db.helpers(admin) == []
        finally:
            with admin.cursor() as cursor:
                cursor.execute(f"drop owned by {name} cascade; drop role {name}")


def test_a_role_that_may_not_become_others_is_told_so(postgres: servers.Postgres) -> None:
    sql = (
        TABLES
        + "do $$ begin if not exists (select from pg_roles where rolname = 'rls_guest') then create role rls_guest"
        " login; end if; end $$;"
    )
    with db.database(postgres, sql) as admin:
        connection = psycopg2.connect(admin.dsn.replace("user=postgres", "user=rls_guest"))
        try:
            found = rls.audit(connection)
            assert "authenticated" in found.unasked
            assert {failure.role for failure in found.failing} == {"authenticated"}
            assert "predicted" in found.failing[0].message
            probed = rls.probe(connection)
            assert probed.unasked == found.unasked and probed.failing == []
            health = check.check(connection.dsn)
            assert health.status == "unknown" and "authenticated" in health.message, (
                "what could not be asked is not clean"
            )
            assert check.check(admin.dsn).status == "critical"
        finally:
            connection.close()
            with admin.cursor() as cursor:
                cursor.execute("drop role rls_guest")


def test_the_audit_creates_nothing_and_blocks_nobody(server: servers.Postgres) -> None:
    with db.database(server, TABLES) as connection:
        state = "select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_sys_tables"
        counts = (
            "select (select count(*) from pg_class), (select count(*) from pg_proc), (select count(*) from pg_policy),"
            " (select count(*) from pg_roles)"
        )
        with connection.cursor() as cursor:
            cursor.execute(counts)
            before = cursor.fetchone()
            rls.audit(connection)
            cursor.execute(counts)
            assert cursor.fetchone() == before
            cursor.execute(state)
            cursor.execute("select count(*) from pg_prepared_statements")
            assert cursor.fetchone() == (0,)
            cursor.execute("select current_user, current_setting('role')")
            assert cursor.fetchone() == ("postgres", "none")


def test_the_audit_gives_way_to_a_lock(postgres: servers.Postgres) -> None:
    with db.database(postgres, TABLES) as connection:
        other = psycopg2.connect(connection.dsn)
        try:
            with other.cursor() as cursor:
                cursor.execute("lock table trips in access exclusive mode")
            with pytest.raises(rls.OpsError, match="holds a lock"):
                rls.audit(connection, lock_timeout_ms=200)
        finally:
            other.close()
        assert rls.audit(connection).failing


def test_the_check_counts_recursion_only(postgres: servers.Postgres) -> None:
    """A rule that keeps DELETE ... RETURNING from everybody is refused by the rewriter too, with another SQLSTATE."""
    with db.database(
        postgres, "create table kept (id int); create rule keep as on delete to kept do instead nothing"
    ) as connection:
        assert [failure.sqlstate for failure in rls.probe(connection).failing if failure.command == "delete"][:1] == [
            "0A000"
        ]
        health = check.check(connection.dsn)
        assert (health.status, health.value, health.details["failing_total"]) == ("ok", 0, 0)


def test_a_misspelt_schema_is_not_clean(postgres: servers.Postgres) -> None:
    with db.database(postgres, TABLES) as connection:
        with pytest.raises(rls.OpsError, match="There is no schema pubilc"):
            rls.audit(connection, schemas=["public", "pubilc"])
        assert rls.audit(connection, schemas=["public"]).failing


def test_tables_of_others_wait_and_the_rest_is_repaired(server: servers.Postgres, tmp_path: Path) -> None:
    """Only a table's owner may change its policies: what needs that is left to a person, with the reason."""
    others = """
        create table public.others(id int primary key, user_id uuid); alter table others enable row level security;
        create policy o on others for select to authenticated using (id in (select x.id from others x where x.user_id = auth.uid()));"""
    with db.database(server, TABLES + others + OWNER.format(name="rls_owner", attributes="")) as admin:
        db.fill(admin)
        owner = psycopg2.connect(admin.dsn.replace("user=postgres", "user=rls_owner"))
        owner.autocommit = True
        try:
            plan = rls.plan(owner, rls.audit(owner), fix=list(rls.repair.plans.FIXES))
            assert [(one["object"], "may not change its policies" in one["reason"]) for one in plan.needs_review] == [
                ("public.others", True)
            ]
            done = rls.apply(owner, plan, undo_path=tmp_path / "undo.sql")
            assert done["changed"] is True
            assert {failure.relation for failure in rls.audit(admin).failing} == {"public.others"}
        finally:
            owner.close()
            with admin.cursor() as cursor:
                cursor.execute("drop owned by rls_owner cascade")
                cursor.execute("drop role rls_owner")
