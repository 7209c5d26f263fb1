# SPDX-License-Identifier: GPL-3.0-or-later
"""discover on a whole backend under supervisord, and what verify makes of the inventory that it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.playbooks.conftest import Run, Stage
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Facts

pytestmark = pytest.mark.slow


def play(stage: Stage, name: str, *words: str) -> Run:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, f"playbooks/{name}.yml", *words],
        cwd=REPOSITORY,
        env={**stage.environment(), "PWD": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def discover(stage: Stage, inventory: Path, *words: str) -> Run:
    return play(
        stage,
        "discover",
        *("-e", "wheels_ops_address=localhost", "-e", f"wheels_ops_inventory={inventory}"),
        *("-e", f"wheels_ops_supervisor_socket={stage.sandbox.socket}"),
        *words,
    )


def secrets(facts: Facts) -> t.List[str]:
    return [facts.database_password, facts.app_database_password, facts.redis_password, facts.secret_key]


def test_inventory_of_a_host_makes_verify_work_at_once(stage: Stage, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    predicted = discover(stage, inventory, "--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert not inventory.exists()
    assert f"wheels_ops_redis_url: file://{stage.sandbox.supervisor_conf}#REDIS_URL" in predicted.output
    done = discover(stage, inventory)
    assert (done.status, done.changed) == (0, predicted.changed), done.output
    assert "Not found: the origins of the front ends." in done.text
    files = [path for path in inventory.rglob("*") if path.is_file()]
    assert len(files) == 2
    text = done.output + predicted.output + "".join(path.read_text() for path in files)
    assert [word for word in secrets(stage.facts) if word in text] == []

    extra = ["-e", f"wheels_ops_venv={sys.prefix}", "-e", f"wheels_ops_state_dir={tmp_path}/state"]
    extra += ["-e", "wheels_ops_scope=services", "-e", "ansible_python_interpreter=" + sys.executable]
    checked = play(stage, "verify", "-i", str(inventory), *extra)
    # What is broken in the sandbox is measured: through the references the database and Redis answered.
    assert "Missing tables: affiliate_sales" in checked.text, checked.output
    assert "Infinite recursion (42P17)" in checked.text
    assert "services:" not in checked.text
    assert [word for word in secrets(stage.facts) if word in checked.output] == []


def test_address_that_is_none_is_refused(stage: Stage, tmp_path: Path) -> None:
    done = play(stage, "discover", "-e", "wheels_ops_address='a b'", "-e", f"wheels_ops_inventory={tmp_path}/i")
    assert done.status != 0
    assert "wheels_ops_address must be HOST, USER@HOST or USER@HOST:PORT" in done.text
    assert not os.path.exists(tmp_path / "i")
