# SPDX-License-Identifier: GPL-3.0-or-later
"""``wheels-ops rls audit`` in a pipeline: exit status, baseline, formats, where the DSN comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.rls.test_migration import RECURSION, TABLES, command
from tests.support import servers


@pytest.fixture
def broken(postgres: servers.Postgres) -> str:
    dsn = postgres.database(supabase=True)
    postgres.psql(dsn, sql=TABLES + RECURSION)
    return dsn


@pytest.mark.parametrize("variable", ["DATABASE_URL", "SUPABASE_DB_URL"])
def test_audit_takes_the_dsn_of_the_environment(broken: str, tmp_path: Path, variable: str) -> None:
    completed = command(tmp_path, "audit", "--quiet", **{variable: broken})
    assert completed.returncode == 1
    assert completed.stdout.count("\n") == 1 and "accesses fail" in completed.stdout


def test_audit_takes_libpq_variables(postgres: servers.Postgres, broken: str, tmp_path: Path) -> None:
    words = dict(word.split("=", 1) for word in broken.split())
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
    completed = command(tmp_path, "audit", "--quiet", **{names[key]: value for key, value in words.items()})
    assert (completed.returncode, "accesses fail" in completed.stdout) == (1, True), completed.stderr


def test_audit_with_a_baseline_fails_for_new_findings_only(
    postgres: servers.Postgres, broken: str, tmp_path: Path
) -> None:
    assert command(tmp_path, "audit", "--dsn", broken, "--format", "json", "--output", "old.json").returncode == 1
    same = command(tmp_path, "audit", "--dsn", broken, "--baseline", "old.json")
    assert same.returncode == 0
    assert "in the baseline" in same.stdout and "Infinite" not in same.stdout
    postgres.psql(
        broken,
        sql="create table public.fresh (id int, boss int); alter table public.fresh enable row level security;"
        " create policy p on public.fresh using (boss in (select f.id from public.fresh f))",
    )
    new = command(tmp_path, "audit", "--dsn", broken, "--baseline", "old.json")
    assert new.returncode == 1
    assert "public.fresh" in new.stdout and "public.members:" not in new.stdout


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"findings": [1]}'])
def test_audit_refuses_a_baseline_that_is_none(broken: str, tmp_path: Path, content: str) -> None:
    """A file that cannot be read must not hide a finding."""
    (tmp_path / "old.json").write_text(content)
    completed = command(tmp_path, "audit", "--dsn", broken, "--baseline", "old.json")
    assert completed.returncode == 2
    assert "is not a report of rls audit" in completed.stderr


def test_audit_reports_only_the_kinds_that_are_named(broken: str, tmp_path: Path) -> None:
    completed = command(tmp_path, "audit", "--dsn", broken, "--only", "unindexed_column", "--format", "json")
    assert {finding["kind"] for finding in json.loads(completed.stdout)["findings"]} == {"unindexed_column"}
    assert completed.returncode == 0
    assert command(tmp_path, "audit", "--dsn", broken, "--only", "nonsense").returncode == 2


def test_audit_for_github_and_gitlab(broken: str, tmp_path: Path) -> None:
    lines = command(tmp_path, "audit", "--dsn", broken, "--format", "github").stdout.splitlines()
    assert any(line.startswith("::error title=Infinite recursion in a policy%3A public.members::") for line in lines)
    issues = json.loads(command(tmp_path, "audit", "--dsn", broken, "--format", "gitlab").stdout)
    assert {"description", "check_name", "fingerprint", "severity", "location"} <= set(issues[0])
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)
    again = json.loads(command(tmp_path, "audit", "--dsn", broken, "--format", "gitlab").stdout)
    assert again == issues
