# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies whose condition is true for too many, for nobody, or for the wrong ones: each is found, what is alike but in
order is not, and psql as the role sees what the finding says."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t

import psycopg2
import pytest

from tests.support import servers
from wheels_ops.rls.audit.audits import audit

PERSON, OTHER = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"

#: For each table the policies on it, and the kinds of finding that they have. Columns: id, owner, email, kind, tenant.
TABLES: t.Dict[str, t.Tuple[str, t.Set[str]]] = {
    "signed_out": ("for select using (auth.uid() is null or owner = auth.uid())", {"null_identity"}),
    "signed_out_not": ("for select using (not (auth.uid() is not null) or owner = auth.uid())", {"null_identity"}),
    "signed_out_set": (
        "for select using (nullif(current_setting('app.id', true), '') is null or owner = auth.uid())",
        {"null_identity"},
    ),
    "signed_out_check": (
        "for insert with check ((select auth.uid()) is null or owner = auth.uid())",
        {"null_identity"},
    ),
    "signed_out_and": ("for select using (auth.uid() is null and kind = 'open' or owner = auth.uid())", set()),
    "setting_raises": ("for select using (current_setting('app.id') is null or owner = auth.uid())", set()),
    "column_null": ("for select using (owner is null or owner = auth.uid())", set()),
    "signed_in": ("for select using (auth.uid() is not null)", {"any_user"}),
    "signed_in_role": ("for update using (auth.role() = 'authenticated')", {"any_user"}),
    "signed_in_and": ("for select using (auth.uid() is not null and owner = auth.uid())", set()),
    "or_true": ("for select using (owner = auth.uid() or true)", {"always_true"}),
    "true_column": ("for select using (owner = auth.uid() or kind = 'true')", set()),
    "restricts_nothing": ("as restrictive for select using (true)", {"always_true", "only_restrictive"}),
    "restricts_all": ("as restrictive for select using (owner = auth.uid())", {"only_restrictive"}),
    "nothing": ("for select using (false)", {"always_false"}),
    "no_expression": ("for select", {"always_false"}),
    "no_check": ("for insert to authenticated", {"always_false"}),
    "all_without_using": ("with check (owner = auth.uid())", set()),
    "visitors": ("for insert to anon with check (kind = 'note')", {"anonymous_write"}),
    "visitors_read": ("for select to anon using (kind = 'note')", set()),
    "given_away": ("using (owner = auth.uid()) with check (kind = 'note')", {"check_drops_owner"}),
    "given_back": ("using (owner = auth.uid()) with check (owner = auth.uid() and kind = 'note')", set()),
    "one_person": (f"for select using (owner = auth.uid() or auth.uid() = '{OTHER}')", {"hardcoded_identity"}),
    "one_address": (
        "for select using (auth.email() = 'boss@example.com')",
        {"hardcoded_identity", "email_identity"},
    ),
    "by_address": ("for select using (email = (auth.jwt() ->> 'email'))", {"email_identity"}),
    "like_setting": ("for select using (email ilike current_setting('app.mail', true))", {"pattern_identity"}),
    "like_constant": ("for select using (owner = auth.uid() and kind like 'n%')", set()),
    "role_admin": ("for select using (auth.role() = 'administrator')", {"unknown_role_name"}),
    "role_service": ("for select using (auth.role() = 'service_role')", set()),
    "plain_setting": ("for select using (tenant = current_setting('tenant_id', true))", {"unqualified_setting"}),
    "dotted_setting": ("for select using (tenant = current_setting('app.tenant_id', true))", set()),
    "for_the_server": ("for select to service_role using (true)", {"policy_for_exempt_role"}),
    "cast_column": ("for select using (owner::text = auth.jwt() ->> 'sub')", {"unindexable_comparison"}),
    "cast_varchar": ("for select using (tenant::text = auth.jwt() ->> 'tenant')", set()),
    "lowered": ("for select using (lower(kind) = (auth.jwt() ->> 'kind'))", {"unindexable_comparison"}),
    "own_rows": ("using (owner = (select auth.uid())) with check (owner = (select auth.uid()))", set()),
}
KINDS = set().union(*(kinds for _policies, kinds in TABLES.values()))
COLUMNS = "id int primary key, owner uuid, email text, kind text, tenant varchar(20)"


def schema() -> str:
    statements = ["create policy any_file on storage.objects for select to authenticated using (owner = auth.uid());"]
    for name, (policy, _kinds) in TABLES.items():
        statements.append(
            f"create table public.{name} ({COLUMNS}); alter table public.{name} enable row level security;"
            f" create policy p on public.{name} {policy}; create index on public.{name} (owner);"
            f" create index on public.{name} (kind); create index on public.{name} (tenant);"
            f" insert into public.{name} values (1, '{PERSON}', 'a@b.c', 'x', 'one'), (2, '{OTHER}', 'd@e.f', 'x', 'two');"
        )
    return "\n".join(statements)


@pytest.fixture(scope="module", params=["postgres", "newest_postgres"])
def project(request: pytest.FixtureRequest) -> t.Tuple[servers.Postgres, str]:
    server: servers.Postgres = request.getfixturevalue(request.param)
    dsn = server.database(supabase=True)
    server.psql(dsn, sql=schema())
    return server, dsn


def test_each_is_found_and_what_is_alike_is_not(project: t.Tuple[servers.Postgres, str]) -> None:
    with contextlib.closing(psycopg2.connect(project[1])) as connection:
        present = audit(connection)
    kinds: t.Dict[str, t.Set[str]] = {name: set() for name in TABLES}
    for finding in present.findings:
        table = str(finding.details.get("table", "")).replace("public.", "")
        if finding.kind in KINDS and table in kinds:
            kinds[table].add(finding.kind)
    assert kinds == {name: expected for name, (_policy, expected) in TABLES.items()}
    assert [f.object for f in present.findings if f.kind == "any_bucket"] == ["storage.objects: any_file"]


@pytest.mark.parametrize(
    "role, person, statement, expected",
    [
        ("anon", "", "select count(*) from public.signed_out", "2"),
        ("anon", "", "select count(*) from public.signed_out_not", "2"),
        ("anon", "", "select count(*) from public.signed_out_set", "2"),
        ("anon", "", "select count(*) from public.signed_out_and", "0"),
        ("authenticated", PERSON, "select count(*) from public.signed_in", "2"),
        ("authenticated", PERSON, "select count(*) from public.signed_in_and", "1"),
        ("authenticated", PERSON, "select count(*) from public.or_true", "2"),
        ("authenticated", PERSON, "select count(*) from public.restricts_nothing", "0"),
        ("authenticated", PERSON, "select count(*) from public.no_expression", "0"),
        ("authenticated", PERSON, "insert into public.no_check values (3)", "row-level security"),
        ("authenticated", PERSON, f"insert into public.all_without_using values (3, '{PERSON}')", ""),
        ("anon", "", "insert into public.visitors values (3, null, null, 'note')", ""),
        ("authenticated", PERSON, f"insert into public.given_away values (3, '{OTHER}', null, 'note')", ""),
        ("authenticated", PERSON, f"insert into public.given_back values (3, '{OTHER}', null, 'note')", "row-level"),
        ("authenticated", PERSON, "select count(*) from public.plain_setting", "0"),
    ],
)
def test_findings_are_true(
    project: t.Tuple[servers.Postgres, str], role: str, person: str, statement: str, expected: str
) -> None:
    server, dsn = project
    words = [server.programs.path("psql"), "-X", "-A", "-t", "-q", "-d", dsn, "-c", "begin", "-c", f"set role {role}"]
    words += ["-c", f"set request.jwt.claim.sub = '{person}'", "-c", statement, "-c", "rollback"]
    completed = subprocess.run(words, capture_output=True, text=True, env=server.programs.environ(), check=False)
    output = (completed.stdout + completed.stderr).strip()
    assert expected in output if expected and not expected.isdigit() else output == expected
