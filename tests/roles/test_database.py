# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ``wheels.ops.database`` as a playbook runs it: check mode first, on a host that has nothing yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

from tests.support import pam_database as pam
from tests.support import servers
from tests.support.pam_database import ANNA, OCEAN, ask

PLAY = """
- hosts: localhost
  gather_facts: false
  roles:
    - role: wheels.ops.database
"""


def play(directory: Path, *words: str, **variables: t.Any) -> t.Tuple[int, str]:
    """Runs the role here; gives the number of changed tasks, and the output."""
    playbook = directory / "play.yml"
    playbook.write_text(PLAY)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "-c",
            "local",
            str(playbook),
            "-e",
            json.dumps(variables),
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(pam.REPOSITORY / "collections"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.rsplit("changed=", 1)[1].split()[0]), done.stdout


def test_check_mode_then_apply_then_nothing_then_undo(postgres: servers.Postgres, tmp_path: Path) -> None:
    dsn = pam.create(postgres, "20250805")
    options = {
        "database_dsn": dsn,
        "database_directory": str(tmp_path / "sql"),
        "database_run_id": "r1",
        "wheels_ops_venv": sys.prefix,
    }
    before, policies = pam.snapshot(dsn), pam.policies(dsn)

    predicted, output = play(tmp_path, "--check", "--diff", **options)
    assert predicted and "policy" in output and "participants_view_trips" in output
    assert pam.snapshot(dsn) == before and not (tmp_path / "sql").exists()
    assert play(tmp_path, **options)[0] == predicted
    assert ask(dsn, ANNA, f"select count(*) from group_trips where id = '{OCEAN}'") == [1]
    assert (tmp_path / "sql/critical_database_fixes.sql").read_bytes() == pam.FIXES.read_bytes()
    assert (tmp_path / "sql/critical_database_fixes.undo.sql").read_bytes() == pam.UNDO.read_bytes()
    assert play(tmp_path, **options)[0] == 0
    assert play(tmp_path, database_state="undone", **options)[0] == 1
    assert pam.policies(dsn) == policies


def test_check_mode_predicts_what_the_scripts_leave_to_the_repair(postgres: servers.Postgres, tmp_path: Path) -> None:
    dsn = pam.create(postgres, "20250805")
    pam.query(
        dsn,
        "create table public.clubs(id int primary key, owner uuid); alter table public.clubs enable row level"
        " security;create policy c on public.clubs for select to authenticated using (id in (select x.id from"
        " public.clubs x where x.owner = auth.uid()))",
    )
    options = {"database_dsn": dsn, "database_directory": str(tmp_path / "sql"), "wheels_ops_venv": sys.prefix}
    before = pam.snapshot(dsn)
    predicted, output = play(tmp_path, "--check", "--diff", **options)
    assert "policies of public.clubs" in output and "policies of public.group_trip" not in output
    assert pam.snapshot(dsn) == before
    try:
        assert play(tmp_path, **options)[0] == predicted
        assert play(tmp_path, **options)[0] == 0
    finally:  # the role that owns the functions belongs to the whole server, which other tests use as well
        pam.query(
            dsn,
            "drop policy c on public.clubs; drop schema rls_ops cascade; drop owned by rls_definer; drop role"
            " rls_definer",
        )
