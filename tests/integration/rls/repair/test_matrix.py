# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix of a repair: what it says of each role, table and command is what psql gets, before and after."""

from __future__ import annotations

import subprocess
import typing as t
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.integration.rls.repair.test_migration import PERSON, RECURSION, ROWS, TABLES, command
from tests.support import servers

Table = t.Dict[t.Tuple[str, str, str], str]


@pytest.fixture
def dsn(postgres: servers.Postgres) -> str:
    """Migrations with a recursion, rows, and rights for authenticated alone."""
    name = postgres.database(supabase=True)
    postgres.psql(name, sql=TABLES + RECURSION + ROWS)
    postgres.psql(
        name,
        sql="create table public.free (id int); alter table public.free enable row level security;"
        " create policy own on public.free for select to authenticated using (id > 0);"
        " insert into public.free values (1), (2), (0); revoke delete on public.notes from authenticated;"
        " revoke select on public.teams from anon",
    )
    return name


def sees(server: servers.Postgres, dsn: str, role: str, statement: str) -> str:
    words = [server.programs.path("psql"), "-X", "-A", "-t", "-q", "-d", dsn, "-c", "begin", "-c", f"set role {role}"]
    words += ["-c", f"set request.jwt.claim.sub = '{PERSON}'", "-c", statement, "-c", "rollback"]
    completed = subprocess.run(words, capture_output=True, text=True, env=server.programs.environ(), check=False)
    return (completed.stdout + completed.stderr).strip()


def cells(text: str) -> Table:
    """A matrix as text, read back: (relation, role, command) and the words of the cell."""
    table: Table = {}
    relation, starts = "", [0]
    for line in text.splitlines():
        if line and not line.startswith(" ") and " " not in line:
            relation = line
        elif line.strip().startswith("SELECT"):
            starts = [line.index(command) for command in ("SELECT", "INSERT", "UPDATE", "DELETE")]
        elif line.startswith("  ") and relation:
            for command_name, start, end in zip(("SELECT", "INSERT", "UPDATE", "DELETE"), starts, [*starts[1:], None]):
                for role in line[: starts[0]].replace(",", " ").split():
                    table[relation, role, command_name] = line[start:end].strip()
    return table


def test_matrix_of_a_repair_is_true_before_and_after(postgres: servers.Postgres, dsn: str, tmp_path: Path) -> None:
    """Check mode and the repair write the same; before it PostgreSQL refuses, after it the rows are those."""
    assert "infinite recursion" in sees(postgres, dsn, "authenticated", "select count(*) from public.teams")
    checked = command(tmp_path, "repair", "--dsn", dsn, "--check", "--matrix", "check.txt")
    done = command(tmp_path, "repair", "--dsn", dsn, "--matrix", "done.txt")
    assert (checked.returncode, done.returncode) == (0, 0), checked.stderr + done.stderr
    before_and_after = (tmp_path / "done.txt").read_text()
    assert (tmp_path / "check.txt").read_text() == before_and_after
    table = cells(before_and_after)
    # Of three teams' members each person sees his own team; who is in none, or nobody, sees none.
    assert sees(postgres, dsn, "authenticated", "select count(*) from public.teams") == "1"
    assert sees(postgres, dsn, "authenticated", "select count(*) from public.members") == "2"
    assert table["public.teams", "authenticated", "SELECT"] == "fails -> works, 0 to 1 rows"
    assert table["public.members", "authenticated", "SELECT"] == "fails -> works, 0 to 2 rows"
    assert table["public.teams", "anon", "SELECT"] == "no privilege"
    assert "permission denied" in sees(postgres, dsn, "anon", "select count(*) from public.teams")
    assert table["public.members", "authenticated", "INSERT"] == "fails in part -> no row"
    assert table["public.notes", "authenticated", "DELETE"] == "no privilege"
    assert "permission denied" in sees(postgres, dsn, "authenticated", "delete from public.notes")
    assert table["public.notes", "authenticated", "INSERT"] == "fails -> works"
    assert table["public.free", "authenticated", "SELECT"] == "works, 2 rows"
    assert table["public.free", "anon", "SELECT"] == "no row"
    assert sees(postgres, dsn, "anon", "select count(*) from public.free") == "0"
    first, _unchanged, rest = before_and_after.partition("Unchanged:")
    assert "public.teams" in first and "public.free" not in first and "public.free" in rest
    assert "Every command that worked before does the same after." in first


def test_matrix_of_an_audit_has_one_state(dsn: str, tmp_path: Path) -> None:
    """It goes to standard output, before the report, and nothing is changed."""
    found = command(tmp_path, "audit", "--dsn", dsn, "--quiet", "--matrix", "-")
    assert found.returncode == 1, found.stderr
    table = cells(found.stdout)
    assert table["public.teams", "authenticated", "SELECT"] == "fails"
    assert "->" not in found.stdout
    assert found.stdout.splitlines()[-1].endswith("findings.")


def test_matrix_of_migrations_counts_no_rows(postgres: servers.Postgres, tmp_path: Path) -> None:
    """A scratch database has nobody's rows; what works after is measured there all the same."""
    (tmp_path / "1.sql").write_text(TABLES + RECURSION)
    done = command(
        tmp_path,
        "repair",
        "--sql",
        "1.sql",
        "--supabase",
        "--write",
        "2.sql",
        "--matrix",
        "m.txt",
        "--dsn",
        postgres.dsn(),
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "m.txt").read_text()
    assert cells(text)["public.teams", "authenticated", "SELECT"] == "fails -> works"
    assert "Rows:" not in text


def test_page_is_whole_and_holds_the_same_cells(dsn: str, tmp_path: Path) -> None:
    """One file without a script and without an address that a browser would fetch, which an XML parser accepts."""
    done = command(tmp_path, "repair", "--dsn", dsn, "--check", "--matrix", "m.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "m.html").read_text()
    assert "<script" not in text and "http" not in text and "url(" not in text and "src=" not in text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "@media print" in text
    body = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    (table,) = [one for one in body.iter("table") if one.findtext("caption") == "public.teams"]
    rows = {row.findtext("th"): ["".join(cell.itertext()) for cell in row.iter("td")] for row in table.iter("tr")}
    (authenticated,) = [row for role, row in rows.items() if role and "authenticated" in role]
    assert authenticated[0] == "fails → works, 0 to 1 rows"
    assert any("CREATE POLICY" in (one.text or "") for one in body.iter("pre"))


def test_matrix_that_cannot_be_kept_stops_before_the_repair(dsn: str, tmp_path: Path) -> None:
    refused = command(tmp_path, "repair", "--dsn", dsn, "--matrix", "nowhere/m.html")
    assert refused.returncode == 2 and "Cannot write nowhere/m.html" in refused.stderr
    assert command(tmp_path, "audit", "--dsn", dsn, "--quiet").returncode == 1
