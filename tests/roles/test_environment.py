# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment role where the backend runs as a user of its own, as in production: it reaches what is its own, and
nothing else.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest

from tests.support.backend_env import REPOSITORY

USER = "nobody"
PLAY = """
- hosts: localhost
  gather_facts: false
  vars: {{ansible_python_interpreter: "{python}"}}
  tasks:
    - wheels.ops.deployment: &journal
        state: begun
        state_dir: "{{{{ environment_state_dir }}}}"
        deployment_id: "{{{{ environment_deployment_id }}}}"
        holder: "{{{{ lookup('wheels.ops.controller_process') }}}}"
    - ansible.builtin.include_role: {{name: wheels.ops.environment}}
    - wheels.ops.deployment: {{<<: *journal, state: finished}}
"""
#: What the backend does there, by a program that shares no code with it.
WITNESS = """
import json, os, sqlite3, sys
state = sys.argv[1]
found = {}
def attempt(name, call):
    try:
        found[name] = call()
    except Exception as error:
        found[name] = type(error).__name__
def metrics():
    with sqlite3.connect(state + "/metrics/metrics.sqlite") as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table one (two)")
    return True
def request():
    with open(state + "/requests/.a.tmp", "w") as file:
        file.write("{}")
    os.replace(state + "/requests/.a.tmp", state + "/requests/a.json")
    return True
attempt("metrics", metrics)
attempt("request", request)
attempt("history", lambda: open(state + "/history.jsonl").read())
attempt("token", lambda: bool(open(os.path.dirname(state) + "/ops-token").read()))
attempt("list", lambda: os.listdir(state))
attempt("write", lambda: open(state + "/history.jsonl", "a"))
attempt("others", lambda: open(state + "/restarts.jsonl").read())
print(json.dumps(found))
"""


@pytest.fixture
def host() -> t.Iterator[Path]:
    """A directory that every user can enter; pytest's own is closed to others."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to be another user")
    directory = Path(tempfile.mkdtemp(prefix="wops-owner-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def play(host: Path, deployment: str, *words: str) -> str:
    (host / "play.yml").write_text(PLAY.format(python=sys.executable))
    given = {
        "environment_state_dir": str(host / "state"),
        "environment_file": str(host / "etc/backend.env"),
        "environment_token_file": str(host / "ops-token"),
        "environment_python": sys.executable,
        "environment_service_manager": "supervisor",
        "environment_owner": USER,
        "environment_deployment_id": deployment,
    }
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "localhost,",
        "-c",
        "local",
        str(host / "play.yml"),
        "-e",
        json.dumps(given),
    ]
    done = subprocess.run(
        [*command, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_the_backends_user_reaches_what_is_its_own_and_nothing_else(host: Path) -> None:
    state = host / "state"
    state.mkdir(mode=0o700)  # as the deployment makes it
    (state / "history.jsonl").write_text("{}\n")
    (state / "restarts.jsonl").write_text("{}\n")
    (state / "restarts.jsonl").chmod(0o640)
    play(host, "one", "--check")
    assert state.stat().st_mode & 0o777 == 0o700 and not (state / "metrics").exists()
    play(host, "one")
    assert "changed=0" in play(host, "two")
    lines = (host / "etc/backend.env").read_text().splitlines()
    assert f"WHEELS_OPS_METRICS_DIR='{state}/metrics'" in lines and f"WHEELS_OPS_STATE_DIR='{state}'" in lines
    account = pwd.getpwnam(USER)
    words = [
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        WITNESS,
        str(state),
    ]
    found = json.loads(subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout)
    assert found == {
        "metrics": True,
        "request": True,
        "history": "{}\n",
        "token": True,
        "list": "PermissionError",
        "write": "PermissionError",
        "others": "PermissionError",
    }
