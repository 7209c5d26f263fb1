# SPDX-License-Identifier: GPL-3.0-or-later
"""Each release, served in each of the usual ways: deployed to, verified, rolled back bit for bit."""

from __future__ import annotations

import os
import shutil
import typing as t

import psutil
import pytest
import requests

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import report, statuses, tree
from tests.sandbox import lifecycle, supervisor
from tests.sandbox.layout import Sandbox
from tests.sandbox.lifecycle import NEVER_STARTS

pytestmark = pytest.mark.slow

#: The August release starts neither under gunicorn, which imports it outside of an event loop, nor by itself.
COMBINATIONS = [
    ("incident", "uvicorn:2"),
    ("incident", "gunicorn:4+nginx"),
    ("first_fix", "uvicorn"),
    ("first_fix", "uvicorn:4+nginx"),
    ("first_fix", "gunicorn:2+nginx"),
    ("august", "uvicorn"),
    ("august", "uvicorn:2+nginx"),
    ("august", "uvicorn:4"),
]
#: The one that differs most from the sandbox of the other tests.
CHOSEN = [("august", "uvicorn:2+nginx")]
ALL = bool(os.environ.get("WHEELS_OPS_RELEASES"))


@pytest.fixture(params=COMBINATIONS if ALL else CHOSEN, ids="-".join)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Stage]:
    release, server = request.param
    if server.endswith("+nginx") and not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("no nginx here")
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"), release=release, server=server)
    try:
        lifecycle.up(sandbox)
        lifecycle.break_it(sandbox)
        yield Stage(sandbox)
    finally:
        lifecycle.down(sandbox)


def test_deploy_verify_and_rollback_of_a_release(served: Stage) -> None:
    sandbox = served.sandbox
    before = tree(sandbox.backend)
    run = served.playbook("deploy")
    assert run.status == 0, run.output[-4000:]
    assert set(statuses(report(served, "after.json")).values()) == {"ok"}
    answer = requests.get(f"{served.facts.base_url}/api/v1/system/health", timeout=20)
    assert answer.status_code == 200, answer.text
    assert processes(sandbox) == sandbox.processes
    run = served.playbook("verify")
    assert (run.status, run.changed) == (0, 0), run.output[-4000:]
    run = served.playbook("rollback")
    assert tree(sandbox.backend) == before
    if sandbox.release in NEVER_STARTS:
        assert run.status != 0 and "It was not healthy before that deployment either" in run.text
    else:
        assert run.status == 0, run.output[-4000:]
        assert requests.get(f"{served.facts.base_url}/health", timeout=20).status_code == 200


def processes(sandbox: Sandbox) -> int:
    """How many serve the application: below its service, without those that only look after others."""
    parent = psutil.Process(supervisor.rpc(sandbox).getProcessInfo("pam-backend")["pid"])
    children = [
        child for child in parent.children(recursive=True) if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return len(children) or 1
