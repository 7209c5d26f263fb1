# SPDX-License-Identifier: GPL-3.0-or-later
"""``wheels-ops rls repair --write``: a folder of migrations in, a migration out; psql is the witness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support import servers

TABLES = """
create table public.teams (id int primary key, name text);
create table public.members (team int, person uuid, role text);
create table public.notes (id int primary key, team int, body text);
alter table public.teams enable row level security;
alter table public.members enable row level security;
alter table public.notes enable row level security;
create policy "read teams" on public.teams for select
  using (exists (select 1 from public.members m where m.team = teams.id and m.person = auth.uid()));
"""
RECURSION = """
create policy "read members" on public.members for select
  using (team in (select m.team from public.members m where m.person = auth.uid()));
create policy "all notes" on public.notes
  using (team in (select m.team from public.members m where m.person = auth.uid()));
"""
ROWS = """
insert into public.teams values (1, 'ours'), (2, 'theirs');
insert into public.members values
  (1, '00000000-0000-0000-0000-000000000001', 'admin'), (1, '00000000-0000-0000-0000-000000000002', 'member'),
  (2, '00000000-0000-0000-0000-000000000003', 'admin');
insert into public.notes values (1, 1, 'a'), (2, 2, 'b');
"""
PERSON = "00000000-0000-0000-0000-000000000001"


def command(
    folder: Path, *words: str, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``python -m wheels_ops.command_line rls ...`` in a folder, without the variables of whoever runs the tests."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and name not in ("DATABASE_URL", "SUPABASE_DB_URL")
    }
    return subprocess.run(
        [python, "-m", "wheels_ops.command_line", "rls", *words],
        cwd=folder,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's migrations."""
    path = tmp_path / "migrations"
    path.mkdir()
    (path / "20250101000000_tables.sql").write_text(TABLES)
    (path / "20250202000000_members.sql").write_text(RECURSION)
    return path


@pytest.fixture
def project(server: servers.Postgres, folder: Path) -> t.Tuple[str, str]:
    """(superuser's DSN, DSN of a role with the rights of Supabase's postgres) of a database with those migrations and
    rows.
    """
    dsn = server.database(supabase=True)
    server.psql(
        dsn,
        sql="do $$ begin if to_regrole('migrations') is null then create role migrations login bypassrls createrole;"
        " end if; end $$; grant all on schema public, auth to migrations; grant anon, authenticated, service_role to"
        " migrations; do $$ begin execute format('grant create on database %I to migrations', current_database());"
        " end $$",
    )
    name = dsn.split("dbname=")[1].split()[0]
    theirs = server.dsn(name, user="migrations")
    for path in sorted(folder.iterdir()):
        server.psql(theirs, file=path)
    server.psql(dsn, sql=ROWS + "grant select, insert on all tables in schema public to authenticated")
    return dsn, theirs


def catalog(server: servers.Postgres, dsn: str) -> str:
    """Policies, functions, schemas and grants outside of the system's schemas."""
    return server.psql(
        dsn,
        sql="set search_path = ''; select * from pg_catalog.pg_policies order by 1, 2, 3;"
        " select p.oid::pg_catalog.regprocedure, prosrc, proacl from pg_catalog.pg_proc p where pronamespace not in"
        " (select oid from pg_catalog.pg_namespace where nspname ~ '^(pg_|information_schema)') order by 1;"
        " select nspname, nspacl from pg_catalog.pg_namespace where nspname !~ '^pg_(toast|temp)' order by 1",
    )


def as_person(server: servers.Postgres, dsn: str, query: str) -> str:
    """What a signed-in person's query gives, or the error."""
    completed = subprocess.run(
        [server.programs.path("psql"), "-X", "-A", "-t", "-q", "-d", dsn, "-c", "set role authenticated"]
        + ["-c", f"set request.jwt.claim.sub = '{PERSON}'", "-c", query],
        capture_output=True,
        text=True,
        env=server.programs.environ(),
        check=False,
    )
    return (completed.stdout + completed.stderr).strip()


def psql_once(server: servers.Postgres, dsn: str, path: Path) -> subprocess.CompletedProcess[str]:
    """``psql -1``, as whoever applies a migration by hand."""
    return subprocess.run(
        [server.programs.path("psql"), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", str(path)],
        capture_output=True,
        text=True,
        env=server.programs.environ(),
        check=False,
    )


def write(server: servers.Postgres, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    files = [path.name for path in sorted(folder.glob("*.sql"))]
    return command(folder, "repair", "--dsn", server.dsn(), "--sql", *files, "--supabase", *words)


def test_write_from_files_is_accepted_twice_and_undone(
    server: servers.Postgres, folder: Path, project: t.Tuple[str, str]
) -> None:
    """The file runs with psql -1 as a role that is no superuser; a second run changes nothing; the undo restores
    everything.
    """
    dsn, theirs = project
    before = catalog(server, dsn)
    assert "42P17" in as_person(server, dsn, "\\set VERBOSITY verbose") or "infinite recursion" in as_person(
        server, dsn, "select count(*) from public.notes"
    )
    completed = write(server, folder, "--write", "STAMP_rls.sql")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (migration,) = folder.glob("2*_rls.sql")
    assert len(migration.name.split("_")[0]) == 14
    assert "20250202000000_members.sql" in migration.read_text()
    assert "0 after" in migration.read_text()
    assert psql_once(server, theirs, migration).stderr == ""
    once = catalog(server, dsn)
    assert as_person(server, dsn, "select string_agg(body, ',') from public.notes") == "a"
    assert as_person(server, dsn, "select count(*) from public.members") == "2"
    assert psql_once(server, theirs, migration).returncode == 0
    assert catalog(server, dsn) == once != before
    undo = migration.with_name(migration.name + ".undo")
    assert psql_once(server, theirs, undo).stderr == ""
    assert catalog(server, dsn) == before


def test_write_leaves_no_scratch_database(server: servers.Postgres, folder: Path) -> None:
    """Neither databases nor roles of the scratch run stay behind."""
    roles = "select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname like 'wheels_ops%'"
    write(server, folder, "--write", "out.sql")
    assert server.psql(server.dsn(), sql="select count(*) from pg_database where datname like 'wheels_ops%'") == "0"
    assert server.psql(server.dsn(), sql=roles) == ""


def test_write_with_the_migration_in_place_finds_nothing(server: servers.Postgres, folder: Path) -> None:
    """The next run reads the repaired policies from the migration itself."""
    assert write(server, folder, "--write", "STAMP_rls.sql").returncode == 0
    count = len(list(folder.iterdir()))
    completed = write(server, folder, "--write", "STAMP_again.sql")
    assert (completed.returncode, "Nothing to repair" in completed.stdout) == (0, True), completed.stdout
    assert len(list(folder.iterdir())) == count


def test_repair_from_files_without_write_changes_nothing(server: servers.Postgres, folder: Path) -> None:
    """It says what it would do, and how to get the file."""
    before = sorted(path.name for path in folder.iterdir())
    completed = write(server, folder)
    assert completed.returncode == 0
    assert "-> 0" in completed.stdout and "--write" in completed.stdout
    assert sorted(path.name for path in folder.iterdir()) == before


def test_write_refuses_a_foreign_file(server: servers.Postgres, folder: Path) -> None:
    (folder / "mine.txt").write_text("select 1;\n")
    completed = write(server, folder, "--write", "mine.txt")
    assert completed.returncode == 2
    assert "was not written by wheels-ops" in completed.stderr
    assert (folder / "mine.txt").read_text() == "select 1;\n"


def test_migration_refuses_a_policy_changed_since(
    server: servers.Postgres, folder: Path, project: t.Tuple[str, str]
) -> None:
    """Somebody's later change is not overwritten: the migration fails as a whole and names the policy."""
    dsn, theirs = project
    assert write(server, folder, "--write", "rls.sql").returncode == 0
    server.psql(dsn, sql='alter policy "read members" on public.members using (false)')
    before = catalog(server, dsn)
    completed = psql_once(server, theirs, folder / "rls.sql")
    assert completed.returncode != 0
    assert '"read members" on public.members' in completed.stderr
    assert catalog(server, dsn) == before


def test_write_from_a_database_only_reads_it(
    server: servers.Postgres, folder: Path, project: t.Tuple[str, str]
) -> None:
    """Transactions that read and write its tables do not stop it, and its file repairs the database."""
    dsn, theirs = project
    before = catalog(server, dsn)
    import psycopg2

    holder = psycopg2.connect(dsn)
    try:
        with holder.cursor() as cursor:
            cursor.execute("lock table public.members, public.notes, public.teams in row exclusive mode")
        completed = command(folder, "repair", "--write", "rls.sql", "--lock-timeout", "1", DATABASE_URL=theirs)
    finally:
        holder.close()
    assert completed.returncode == 0, completed.stderr
    assert catalog(server, dsn) == before
    assert psql_once(server, theirs, folder / "rls.sql").stderr == ""
    assert as_person(server, dsn, "select string_agg(body, ',') from public.notes") == "a"


def test_split_policies_can_be_written(server: servers.Postgres, folder: Path) -> None:
    """A policy that is replaced by several is dropped and created, in either state of the database."""
    (folder / "20250303000000_split.sql").write_text(
        "create table public.flags (id int primary key, owner uuid, open boolean);\n"
        "alter table public.flags enable row level security;\n"
        "create policy everything on public.flags for all using (owner = auth.uid() or exists"
        " (select 1 from public.flags f where f.owner = auth.uid() and f.open)) with check (owner = auth.uid());\n"
    )
    completed = write(server, folder, "--write", "rls.sql", "--format", "json")
    result = json.loads(completed.stdout)
    assert (result["changed"], result["failing_after"]) == (True, 0), completed.stdout


# -- without Ansible, with nothing but the wheel
# -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a new environment in which the wheel is installed; the packages of its extra come from ours."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "src", "collections"):
        subprocess.run(["cp", "-rL" if name == "src" else "-r", str(REPOSITORY / name), str(source / name)], check=True)
    uv = str(REPOSITORY / ".venv/bin/uv")
    quiet: t.Dict[str, t.Any] = {"check": True, "capture_output": True, "cwd": source}
    subprocess.run([uv, "build", "--wheel", "--out-dir", str(place)], **quiet)
    (wheel,) = place.glob("*.whl")
    subprocess.run([uv, "venv", "--python", sys.executable, str(place / "venv")], **quiet)
    python = str(place / "venv/bin/python")
    subprocess.run([uv, "pip", "install", "--python", python, "--no-deps", str(wheel)], **quiet)
    return python


def test_a_stranger_with_the_wheel_gets_a_migration(postgres: servers.Postgres, folder: Path, installed: str) -> None:
    """An empty environment, a folder of migrations, one command: a migration that psql accepts."""
    import psycopg2

    program = str(Path(installed).with_name("wheels-ops"))
    packages = str(Path(psycopg2.__file__).parents[1])
    completed = subprocess.run(
        [program, "rls", "repair", "--sql", *sorted(p.name for p in folder.glob("*.sql")), "--supabase"]
        + ["--write", "STAMP_rls.sql"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": packages, "SUPABASE_DB_URL": postgres.dsn()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert len(list(folder.glob("2*_rls.sql"))) == 1


def test_the_wheel_without_its_extra_says_what_to_install(folder: Path, installed: str) -> None:
    completed = command(folder, "audit", "--dsn", "host=127.0.0.1", python=installed)
    assert completed.returncode == 2
    assert "pip install 'wheels-ops[rls]'" in completed.stderr
