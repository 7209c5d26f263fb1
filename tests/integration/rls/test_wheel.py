# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing but the wheel and a folder of migrations: a correct migration on every Python that is here, installed in each
of the ways that docs/rls.md names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.integration.rls.repair.test_migration import PERSON, RECURSION, ROWS, TABLES
from tests.sandbox.binaries import REPOSITORY
from tests.support import servers
from tests.support.wheel import UV, build

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: How each of them puts the wheel ``{wheel}`` for the Python ``{python}`` into the empty directory that it runs in.
WAYS: t.Dict[str, t.List[str]] = {
    "pip": ["{python} -m venv here", "here/bin/pip install -q '{wheel}[rls]'", "here/bin/wheels-ops"],
    "uv pip": ["{uv} venv -q --python {python} here", "{uv} pip install -q --python here '{wheel}[rls]'"]
    + ["here/bin/wheels-ops"],
    "uvx": ["{uv} tool run -q --python {python} --from '{wheel}[rls]' wheels-ops"],
    "pipx": ["{uv} tool run -q pipx install -q --python {python} '{wheel}[rls]'", "here/bin/wheels-ops"],
}


def interpreter(version: str) -> str:
    """A Python of that version: on the path, or pyenv's."""
    places = [
        shutil.which(f"python{version}"),
        *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))),
    ]
    for place in reversed([one for one in places if one]):
        # pyenv's stand-ins are on the path for versions that are not switched on, and fail.
        completed = subprocess.run([place, "-c", "import venv"], capture_output=True, check=False)
        if completed.returncode == 0:
            return place
    pytest.skip(f"no Python {version} here")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def run(place: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a shell, within the minute that a stranger is promised."""
    cache = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache/uv")
    environ = {"PATH": os.environ["PATH"], "HOME": str(place), "UV_CACHE_DIR": cache, "PIPX_HOME": str(place / "pipx")}
    environ.update({name: text for name, text in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))})
    return subprocess.run(
        ["sh", "-c", command],
        cwd=place,
        env={**environ, "PIPX_BIN_DIR": str(place / "here/bin"), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "version, way",
    [("3.10", "uv pip"), ("3.11", "pip"), ("3.12", "pipx"), ("3.13", "uvx"), ("3.14", "uv pip")],
)
def test_a_stranger_gets_a_migration_that_is_right(
    postgres: servers.Postgres, wheel: Path, tmp_path: Path, version: str, way: str
) -> None:
    """psql applies it twice to a database with the same migrations; the person then sees the own team's notes."""
    python = interpreter(version)
    *steps, program = [step.format(python=python, wheel=wheel, uv=UV) for step in WAYS[way]]
    for step in steps:
        completed = run(tmp_path, step)
        if completed.returncode and any(
            word in completed.stderr
            for word in ("resolve host", "resolving DNS", "error sending request", "NewConnectionError")
        ):
            pytest.skip(f"the package index cannot be reached: {completed.stderr.strip().splitlines()[-1]}")
        assert completed.returncode == 0, completed.stderr
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "20250101000000_tables.sql").write_text(TABLES)
    (folder / "20250202000000_members.sql").write_text(RECURSION)
    server = {"SUPABASE_DB_URL": postgres.dsn()}
    written = run(
        tmp_path, f"{program} rls repair --sql migrations --supabase --write migrations/STAMP_rls.sql", **server
    )
    assert written.returncode == 0, written.stderr
    (migration,) = folder.glob("*_rls.sql")
    dsn = postgres.database(supabase=True)
    postgres.psql(dsn, sql=TABLES + RECURSION + ROWS)
    query = f"set role authenticated; set request.jwt.claim.sub = '{PERSON}'; select string_agg(body, ',') from notes"
    psql = [postgres.programs.path("psql"), "-X", "-A", "-t", "-q", "-d", dsn, "-v", "ON_ERROR_STOP=1"]
    quiet: t.Dict[str, t.Any] = {"capture_output": True, "text": True, "env": postgres.programs.environ()}
    assert "infinite recursion" in subprocess.run([*psql, "-c", query], check=False, **quiet).stderr
    for _time in range(2):
        subprocess.run([*psql, "-1", "-f", str(migration)], check=True, **quiet)
    assert subprocess.run([*psql, "-c", query], check=True, **quiet).stdout.split()[-1] == "a"
    assert run(tmp_path, f"{program} rls audit --sql migrations --supabase --only recursion", **server).returncode == 0


def test_the_program_starts_without_what_takes_long_to_import() -> None:
    """--version and --help need no driver, no parser of SQL and no HTTP."""
    program = (
        "import sys, wheels_ops.command_line; print([name for name in ('psycopg2', 'pglast', 'ssl', 'http.client',"
        " 'urllib.request', 'asyncio', 'concurrent.futures', 'yaml', 'requests', 'redis') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": os.environ["PATH"]},
    )
    assert completed.stdout.strip() == "[]"
