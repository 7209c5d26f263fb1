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
grant select, insert, update, delete on all tables in schema public to authenticated;
revoke all on public.closed_table, public.hidden_view from authenticated;
grant select on public.open_table, public.all_notes, public.claims to anon;
"""
EXPECTED = {
    ("table_without_rls", "public.open_table"),
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
