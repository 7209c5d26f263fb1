# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit says beyond recursion, and that it is true: psql, as the role, does what the finding says; and what is
alike but in order has no finding."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t

import psycopg2
import pytest

from tests.support import servers
from wheels_ops.rls.audit.audits import audit

PERSON = "00000000-0000-0000-0000-000000000001"
SCHEMA = f"""
create table public.open_table (id int); insert into public.open_table values (1);
create table public.closed_table (id int); revoke all on public.closed_table from anon, authenticated;
create table public.notes (id int, owner uuid); alter table public.notes enable row level security;
create policy own on public.notes for select to authenticated using (owner = (select auth.uid()));
insert into public.notes values (1, '{PERSON}'), (2, gen_random_uuid());
create view public.all_notes as select id from public.notes;
create view public.all_notes_again as select id from public.all_notes;
create view public.hidden_view as select id from public.notes; revoke all on public.hidden_view from anon, authenticated;
create table public.claims (id int); alter table public.claims enable row level security;
create policy trusting on public.claims for select using ((auth.jwt() -> 'user_metadata' ->> 'role') = 'admin');
insert into public.claims values (1);
create table public.granted (id int); alter table public.granted enable row level security;
create policy trusting on public.granted for select using ((auth.jwt() -> 'app_metadata' ->> 'role') = 'admin');
create table public.letters (id int, owner uuid default auth.uid()); alter table public.letters enable row level security;
create policy writes on public.letters for insert to authenticated with check (owner = auth.uid());
create table public.posts (id int, owner uuid, deleted_at timestamptz); alter table public.posts enable row level security;
create policy reads on public.posts for select to authenticated using (owner = auth.uid() and deleted_at is null);
create policy writes on public.posts for update to authenticated using (owner = auth.uid()) with check (owner = auth.uid());
insert into public.posts values (1, '{PERSON}');
create table public.drafts (id int, owner uuid, deleted_at timestamptz); alter table public.drafts enable row level security;
create policy reads on public.drafts for select to authenticated using (owner = auth.uid() or deleted_at is null);
create policy writes on public.drafts for update to authenticated using (owner = auth.uid());
insert into public.drafts values (1, '{PERSON}');
create table public.files (id int, owner uuid, is_deleted boolean default false); alter table public.files enable row level security;
create policy reads on public.files to authenticated using (owner = auth.uid() and not is_deleted) with check (owner = auth.uid());
insert into public.files values (1, '{PERSON}');
create policy listing on storage.objects for select using (bucket_id = 'photos');
create policy mine on storage.objects for select to authenticated using (bucket_id = 'mine' and owner = auth.uid());
create materialized view public.totals as select count(*) as number from public.open_table;
create materialized view public.note_copy as select id from public.notes;
create materialized view public.hidden_copy as select id from public.notes;
create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere;
create foreign table public.far (id int) server elsewhere;
create view public.people as select id, email from auth.users;
create view public.people_again as select id from public.people;
create view public.part_of_closed as select id from public.closed_table;
create function public.all_ids() returns setof int language sql stable security definer set search_path = '' as
  $$ select id from public.notes $$;
create view public.by_function with (security_barrier) as select * from public.all_ids() as id;
create table public.accounts (id int, password_hash text, name text);
create table public.cards (id int, owner uuid, iban text, name text); alter table public.cards enable row level security;
create policy own on public.cards using (owner = (select auth.uid()));
create table public.broadcast (id int); alter publication supabase_realtime add table public.broadcast, public.notes;
create function public.leaky(int) returns boolean language sql immutable leakproof as $$ select true $$;
create table public.admins (person uuid);
create function public.is_admin() returns boolean language sql stable as
  $$ select exists (select 1 from admins where person = auth.uid()) $$;
create function public.is_admin_there() returns boolean language sql stable as
  $$ select exists (select 1 from public.admins where person = auth.uid()) $$;
create function public.frozen_uid() returns uuid language sql immutable as $$ select auth.uid() $$;
create function public.now_and_then() returns boolean language plpgsql as $$ begin return true; end $$;
create function public.with_path() returns int language sql security definer set search_path = public as
  $$ select count(*)::int from notes $$;
create function public.with_path_end() returns int language sql security definer set search_path = public, pg_temp as
  $$ select count(*)::int from notes $$;
create table public.called (id int); alter table public.called enable row level security;
create policy a on public.called for select using (is_admin());
create policy b on public.called for update using (is_admin_there() and frozen_uid() is not null);
create policy c on public.called for delete using (now_and_then());
create policy d on public.called for insert with check (random() < 0.5);
grant select, insert, update, delete on all tables in schema public to authenticated;
revoke all on public.hidden_copy, public.cards, public.admins from authenticated, anon;
grant select (id, iban) on public.cards to authenticated;
revoke all on public.closed_table, public.hidden_view from authenticated;
grant select on public.open_table, public.all_notes, public.claims to anon;
"""
EXPECTED = {
    ("table_without_rls", "public.open_table"),
    ("table_without_rls", "public.accounts"),
    ("table_without_rls", "public.broadcast"),
    ("materialized_view_exposed", "public.totals"),
    ("materialized_view_exposed", "public.note_copy"),
    ("foreign_table_exposed", "public.far"),
    ("auth_users_exposed", "public.people"),
    ("auth_users_exposed", "public.people_again"),
    ("view_as_owner", "public.part_of_closed"),
    ("view_calls_definer", "public.by_function"),
    ("sensitive_column", "public.accounts"),
    ("sensitive_column", "public.cards"),
    ("realtime_without_rls", "public.broadcast"),
    ("leakproof_function", "public.leaky(integer)"),
    ("function_search_path", "public.is_admin()"),
    ("immutable_identity", "public.frozen_uid()"),
    ("volatile_function", "public.now_and_then()"),
    ("volatile_function", "pg_catalog.random()"),
    ("definer_search_path", "public.with_path()"),
    ("view_bypasses_rls", "public.all_notes"),
    ("view_bypasses_rls", "public.all_notes_again"),
    ("user_metadata", "public.claims: trusting"),
    ("no_select_policy", "public.letters"),
    ("soft_delete_hidden", "public.posts"),
    ("soft_delete_hidden", "public.files"),
    ("bucket_listing", "storage.objects: listing"),
}


@pytest.fixture(scope="module", params=["postgres", "newest_postgres"])
def project(request: pytest.FixtureRequest) -> t.Tuple[servers.Postgres, str]:
    server: servers.Postgres = request.getfixturevalue(request.param)
    dsn = server.database(supabase=True)
    server.psql(dsn, sql=SCHEMA)
    return server, dsn


def test_findings_are_these_and_no_others(project: t.Tuple[servers.Postgres, str]) -> None:
    """Each opening is found; the table without grants, the view nobody may read, app_metadata and the rest are not."""
    with contextlib.closing(psycopg2.connect(project[1])) as connection:
        present = audit(connection)
    kinds = {kind for kind, _object in EXPECTED}
    assert {(f.kind, f.object) for f in present.findings if f.kind in kinds} == EXPECTED


@pytest.mark.parametrize(
    "role, statement, expected",
    [
        ("anon", "select count(*) from public.open_table", "1"),
        ("anon", "select count(*) from public.all_notes", "2"),
        ("authenticated", "select count(*) from public.all_notes_again", "2"),
        ("authenticated", "select count(*) from public.notes", "1"),
        ("authenticated", "select count(*) from public.hidden_view", "permission denied"),
        ("authenticated", "select count(*) from public.note_copy", "2"),
        ("authenticated", "select count(*) from public.people", "0"),
        ("authenticated", "select count(*) from auth.users", "permission denied"),
        ("authenticated", "select count(*) from public.by_function", "2"),
        ("authenticated", "select count(*) from public.closed_table", "permission denied"),
        ("authenticated", "select count(*) from public.part_of_closed", "0"),
        ("authenticated", "select count(iban) from public.cards", "0"),
        ("authenticated", "select count(name) from public.cards", "permission denied"),
        ("authenticated", "insert into public.letters values (1) returning id", "row-level security"),
        ("authenticated", "insert into public.letters values (2)", ""),
        ("authenticated", "update public.posts set deleted_at = now() where id = 1", "row-level security"),
        ("authenticated", "update public.files set is_deleted = true where id = 1", "row-level security"),
        ("authenticated", "update public.drafts set deleted_at = now() where id = 1", ""),
    ],
)
def test_findings_are_true(project: t.Tuple[servers.Postgres, str], role: str, statement: str, expected: str) -> None:
    server, dsn = project
    words = [server.programs.path("psql"), "-X", "-A", "-t", "-q", "-d", dsn, "-c", f"set role {role}"]
    words += ["-c", f"set request.jwt.claim.sub = '{PERSON}'", "-c", statement]
    completed = subprocess.run(words, capture_output=True, text=True, env=server.programs.environ(), check=False)
    output = (completed.stdout + completed.stderr).strip()
    assert expected in output if expected and not expected.isdigit() else output == expected


def test_no_findings_without_roles_of_the_api(postgres: servers.Postgres) -> None:
    """A role that is no role of an API makes no table open."""
    dsn = postgres.database()
    postgres.psql(dsn, sql="create table public.plain (id int); create view public.v as select id from public.plain")
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        assert [f.object for f in audit(connection).findings] == []


@pytest.mark.parametrize(
    "statements, undo, other",
    [
        ("alter role anon bypassrls", "alter role anon nobypassrls", "it"),
        ("grant service_role to authenticated", "revoke service_role from authenticated", "service_role"),
        (
            "create role keeper; alter table public.kept owner to keeper; grant keeper to anon",
            "alter table public.kept owner to postgres; revoke keeper from anon; drop role keeper",
            "keeper",
        ),
    ],
)
def test_roles_of_the_api_that_no_policy_binds(statements: str, undo: str, other: str) -> None:
    """On a server of its own, as roles belong to all its databases."""
    with servers.postgres() as server:
        dsn = server.database(supabase=True)
        server.psql(dsn, sql="create table public.kept (id int); alter table public.kept enable row level security")
        for change, expected in ((statements, 1), (undo, 0)):
            server.psql(dsn, sql=change)
            with contextlib.closing(psycopg2.connect(dsn)) as connection:
                found = [f for f in audit(connection).findings if f.kind == "role_bypasses_rls"]
            assert len(found) == expected
            assert all(other in f.why for f in found)
