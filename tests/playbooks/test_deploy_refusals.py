# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments that are refused, before anything is changed or with nothing of it left; on the broken backend."""

from __future__ import annotations

import contextlib
import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK, fingerprint, tree

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def read_only(directory: Path) -> t.Iterator[None]:
    """For its owner by its mode; for root, whom no mode stops, by a mount."""
    if os.geteuid():
        directory.chmod(0o555)
        try:
            yield
        finally:
            directory.chmod(0o755)
        return
    if subprocess.run(
        ["mount", "--bind", "-o", "ro", str(directory), str(directory)], capture_output=True, check=False
    ).returncode:
        pytest.skip("root may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('{"wheels_ops_backend_dir": "/nowhere"}', "There is no app/main.py in /nowhere"),
        (
            '{"prerequisites_free_bytes": 900000000000000}',
            "are needed for the new files and the originals. Nothing was changed.",
        ),
        ('{"wheels_ops_hosts": "nobody"}', "No host matches nobody."),
        ('{"wheels_ops_state_dir": "/proc/nowhere"}', "The state directory /proc/nowhere cannot be written"),
        ('{"wheels_ops_environment_extra": {"BAD": "it\'s"}}', "a value with a quote or a line break"),
        (
            '{"services_of_the_report": [{"name": "no-such-service"}]}',
            "The service manager does not know no-such-service",
        ),
        ('{"wheels_ops_database_dsn": "host=127.0.0.1 port=1 dbname=x user=x"}', "Nothing listens there"),
        ('{"database_scripts": [{"path": "/nowhere/missing.sql"}]}', "/nowhere/missing.sql: No such file or directory"),
        ('{"wheels_ops_environment_extra": {"DATABASE_POOL_SIZE": "many"}}', "cannot be imported with the new files"),
        ("read-only directory", "app/core cannot be written, so app/core/cors_config.py cannot be installed"),
    ],
)
def test_bad_input_is_found_before_anything_is_changed(stage: Stage, extra: str, message: str) -> None:
    """On the broken backend, where there is much to change: no file, no log, no table, no process is touched."""
    before = fingerprint(stage)
    with contextlib.ExitStack() as stack:
        if not extra.startswith("{"):
            stack.enter_context(read_only(stage.sandbox.backend / "app/core"))
            extra = "{}"
        run = stage.playbook("deploy", "-e", extra, *LOOK)
    assert run.status != 0
    assert message in run.text, run.output[-3000:]
    assert run.changed == 0
    assert fingerprint(stage) == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            '{"database_scripts": [{"name": "no/such/place.sql", "content": "select 1"}]}',
            "sql/no/such/place.sql: No such file or directory",
        ),
    ],
)
def test_what_only_a_step_can_find_replaces_no_file(stage: Stage, extra: str, message: str) -> None:
    before = tree(stage.sandbox.backend)
    run = stage.playbook("deploy", "-e", extra, *LOOK)
    assert run.status != 0
    assert message in run.text, run.output[-3000:]
    assert tree(stage.sandbox.backend) == before


def test_a_host_that_no_proxy_lets_go_is_not_restarted(stage: Stage) -> None:
    """It serves the old release undisturbed, and is in the rotation again although nobody knows how far the drain came."""
    before = tree(stage.sandbox.backend)
    processes = {name: pid for name, pid in fingerprint(stage).items() if name.startswith("process ")}
    run = stage.playbook("deploy", "-e", '{"wheels_ops_drain_command": ["sh", "-c", "echo gone >&2; exit 3"]}', *LOOK)
    assert run.status != 0
    assert "Take this host out of the proxies' rotation" in run.text, run.output[-3000:]
    assert stage.proxy_requests() == ["restore 200"]
    assert tree(stage.sandbox.backend) == before
    assert {name: pid for name, pid in fingerprint(stage).items() if name.startswith("process ")} == processes


def test_a_drain_without_a_restore_is_refused(stage: Stage) -> None:
    run = stage.playbook("deploy", "-e", '{"wheels_ops_restore_command": []}', *LOOK)
    assert run.status != 0
    assert "wheels_ops_restore_command must be set as well" in run.text, run.output[-3000:]
    assert stage.proxy_requests() == []
