# SPDX-License-Identifier: GPL-3.0-or-later
"""``wheels-ops rls audit`` in a pipeline: exit status, baseline, formats, where the DSN comes from."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
from pathlib import Path

import psycopg2
import pytest

from tests.integration.rls.repair.test_migration import RECURSION, TABLES, command
from tests.support import servers
from tests.support.waiting import wait_until


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


def test_audit_writes_one_paragraph_for_one_cause(broken: str, tmp_path: Path) -> None:
    """Three tables fail for one policy: the cause, the tables and the roles stand once, those of the API first."""
    lines = command(tmp_path, "audit", "--dsn", broken, "--only", "recursion").stdout.splitlines()
    heads = [line for line in lines if line.startswith("ERROR")]
    assert heads == ['ERROR   Infinite recursion in a policy: members (SELECT policy "read members") -> members']
    (fails,) = [line for line in lines if "These fail with 42P17 as" in line]
    assert fails.split(" as ")[1].startswith("anon, authenticated, ")
    assert "          public.notes: delete, insert, select, update" in lines


def test_audit_counts_predicted_accesses(postgres: servers.Postgres, broken: str, tmp_path: Path) -> None:
    """A session that may not become a role predicts: never more accesses fail than there are."""
    postgres.psql(
        broken,
        sql="do $$ begin if to_regrole('onlooker') is null then create role onlooker login; end if; end $$",
    )
    completed = command(tmp_path, "audit", "--quiet", "--dsn", broken.replace("user=postgres", "user=onlooker"))
    failing, checked = (
        int(word) for word in completed.stdout.split(" accesses fail")[0].split()[-3:] if word.isdigit()
    )
    assert 0 < failing <= checked, completed.stdout


def test_repair_says_what_is_visible_where_nothing_could_be_compared(
    postgres: servers.Postgres, tmp_path: Path
) -> None:
    """Every access failed before, and there are rows: the message does not say that there were none."""
    dsn = postgres.database(supabase=True)
    postgres.psql(
        dsn,
        sql="create table public.own (id int, person uuid); alter table public.own enable row level security;"
        " create policy p on public.own to authenticated using (person in (select o.person from public.own o where"
        " o.person = auth.uid())); insert into public.own values (1, '00000000-0000-0000-0000-000000000001');"
        " grant select on public.own to authenticated; revoke all on public.own from anon, service_role",
    )
    completed = command(tmp_path, "repair", "--check", "--dsn", dsn, "--role", "authenticated")
    assert "no access worked before that could be compared" in completed.stdout, completed.stdout
    assert "1 of public.own" in completed.stdout


@pytest.mark.parametrize("first_undone", [0, 1])
def test_undo_leaves_no_right_where_another_database_was_repaired_too(
    postgres: servers.Postgres, tmp_path: Path, first_undone: int
) -> None:
    """The role that both databases share stays until the last undo; in an undone database it has no right left."""
    dsns = [postgres.database(supabase=True) for _number in range(2)]
    for number, dsn in enumerate(dsns):
        postgres.psql(dsn, sql=TABLES + RECURSION)
        completed = command(tmp_path, "repair", "--dsn", dsn, "--undo-dir", str(tmp_path / str(number)))
        assert completed.returncode == 0, completed.stderr
    rights = (
        "select count(*) from pg_class c, aclexplode(c.relacl) a where a.grantee = to_regrole('rls_definer')"
        " union all select count(*) from pg_attribute c, aclexplode(c.attacl) a where a.grantee ="
        " to_regrole('rls_definer') union all select count(*) from pg_namespace n, aclexplode(n.nspacl) a where"
        " a.grantee = to_regrole('rls_definer')"
    )
    for count, number in enumerate((first_undone, 1 - first_undone)):
        (script,) = (tmp_path / str(number)).glob("*.sql")
        assert command(tmp_path, "undo", "--dsn", dsns[number], str(script)).returncode == 0
        assert set(postgres.psql(dsns[number], sql=rights).split()) == {"0"}, f"undo {count}"


def test_repair_while_another_creates_its_role(tmp_path: Path) -> None:
    """A repair of another database of the server creates the role that owns the functions, and commits after ours
    began.
    """
    with servers.postgres() as server, contextlib.closing(psycopg2.connect(server.dsn())) as other:
        dsn = server.database(supabase=True)
        server.psql(dsn, sql=TABLES + RECURSION)
        with other.cursor() as cursor, concurrent.futures.ThreadPoolExecutor(1) as pool:
            cursor.execute("create role rls_definer nologin noinherit bypassrls")
            ours = pool.submit(command, tmp_path, "repair", "--dsn", dsn, "--lock-timeout", "60")
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            wait_until(
                lambda: server.psql(server.dsn(), sql=waiting) == "1",
                what="the repair to wait for the role",
                timeout=120,
            )
            other.commit()
            completed = ours.result()
        assert completed.returncode == 0, completed.stderr
        assert "-> 0" in completed.stdout


def test_audit_leaves_out_a_function_that_is_too_long(postgres: servers.Postgres, tmp_path: Path) -> None:
    """It is named as what could not be followed, and not parsed for minutes."""
    dsn = postgres.database(supabase=True)
    lines = "  perform 1; -- " + "x" * 100 + "\n"
    postgres.psql(
        dsn,
        sql=f"create function public.long() returns boolean language plpgsql stable as $f$ begin\n{lines * 1000}"
        " return true; end $f$; create table public.t (id int); alter table public.t enable row level security;"
        " create policy p on public.t using (public.long())",
    )
    completed = command(tmp_path, "audit", "--dsn", dsn, "--only", "unknown_function")
    assert "public.long()" in completed.stdout and "characters" in completed.stdout, completed.stdout


def test_audit_that_cannot_write_its_report_says_so(broken: str, tmp_path: Path) -> None:
    """A tired person reads one line, not a traceback."""
    completed = command(tmp_path, "audit", "--dsn", broken, "--output", "no/such/place.json", "--format", "json")
    assert completed.returncode == 2
    assert completed.stderr.startswith("wheels-ops: Cannot write no/such/place.json: No such file or directory.")
