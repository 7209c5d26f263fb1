# SPDX-License-Identifier: GPL-3.0-or-later
"""A supervisord that asks for a user and a password: each module and both programs take them under the same names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.collection import COLLECTION
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import wait_until

PASSWORD = "hunter2-of-supervisord"
ACCOUNT = {"supervisor_username": "ops", "supervisor_password": PASSWORD}
SERVICES = [{"name": "web", "unit": "web", "gate": {"type": "state"}}]
BACKEND = Path(__file__).parents[2] / "backend"


@pytest.fixture(scope="module")
def daemon() -> t.Iterator[Supervisord]:
    with supervisord({"web": Program("sleep 600")}, username="ops", password=PASSWORD) as running:
        wait_until(lambda: "RUNNING" in running.ctl("status", "web"), what="web")
        yield running


def arguments_of(place: Path) -> t.Dict[str, t.Dict[str, t.Any]]:
    """What each module that talks to the service manager is called with, so that it has to."""
    root = place / "production"
    (root / "app").mkdir(parents=True, exist_ok=True)
    state = {"state_dir": str(place / "state")}
    return {
        "health_info": {"subjects": ["services"], "services": SERVICES},
        "service_restart": {"services": SERVICES, "state": "started", **state},
        "memory_trim": {"services": SERVICES, "scope": "services", "memory_limits_mb": {"web": 512}, **state},
        "cpu_relief": {"services": SERVICES, "sample_s": 0.2, **state},
        "managed_files": {
            "deployment_id": "d1",
            "root": str(root),
            "environment_of_service": "web",
            "import_module": "app",
            **state,
        },
    }


MODULES = ("health_info", "service_restart", "memory_trim", "cpu_relief", "managed_files")


def options_of(name: str) -> t.Set[str]:
    """The options in the documentation of a module, with those of the fragments that it names."""
    fragments = COLLECTION / "plugins/doc_fragments"
    text = (COLLECTION / f"plugins/modules/{name}.py").read_text()
    documentation = yaml.safe_load(text.split('r"""')[1].split('"""')[0])
    names = set(documentation["options"])
    for fragment in documentation["extends_documentation_fragment"]:
        source = (fragments / f"{fragment.split('.')[2]}.py").read_text()
        names |= set((yaml.safe_load(source.split('r"""')[1].split('"""')[0]) or {}).get("options", {}))
    return names


def call(name: str, arguments: t.Mapping[str, t.Any]) -> t.Tuple[t.Dict[str, t.Any], str]:
    """Result and output of a module that Ansible runs in check mode."""
    words = {**arguments, "_ansible_check_mode": True, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
    done = subprocess.run(
        [sys.executable, str(COLLECTION / f"plugins/modules/{name}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": words}),
        env={**os.environ, "PYTHONPATH": str(COLLECTION.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip().startswith("{"), done.stderr
    return json.loads(done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_module_answers_with_the_password_and_names_its_options_without(
    daemon: Supervisord, tmp_path: Path, name: str
) -> None:
    arguments = {**arguments_of(tmp_path)[name], "service_manager": "supervisor", "supervisor_socket": daemon.socket}
    _result, output = call(name, arguments)
    assert "supervisord answers 401" in output
    assert "Set supervisor_username and supervisor_password" in output
    assert {"service_manager", "supervisor_socket", *ACCOUNT} <= options_of(name)
    result, output = call(name, {**arguments, **ACCOUNT})
    assert "answers 401" not in output and PASSWORD not in output
    assert not result.get("failed"), result["msg"]
    if name == "health_info":
        assert result["status"] == "ok", result["msg"]


def test_a_wrong_password_is_not_shown(daemon: Supervisord, tmp_path: Path) -> None:
    arguments = {**arguments_of(tmp_path)["health_info"], "supervisor_socket": daemon.socket}
    account = {"supervisor_username": "ops", "supervisor_password": "wrong-word-of-mine"}
    result, output = call("health_info", {**arguments, **account})
    assert "401" in result["checks"][0]["message"]
    assert "wrong-word-of-mine" not in output


def test_the_former_name_of_the_option_still_works(daemon: Supervisord, tmp_path: Path) -> None:
    arguments = {**arguments_of(tmp_path)["service_restart"], "manager": "supervisor"}
    result, _output = call("service_restart", {**arguments, "supervisor_socket": daemon.socket, **ACCOUNT})
    assert result["manager"] == "supervisor"


def test_the_programs_read_the_account_from_their_configuration(daemon: Supervisord, tmp_path: Path) -> None:
    checks = {"subjects": ["services"], "services": SERVICES, "supervisor_socket": daemon.socket}
    environment = {
        **os.environ,
        "WHEELS_OPS_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": str(COLLECTION.parents[1]),
    }
    path = tmp_path / "monitor.json"

    def run(program: str, **account: str) -> subprocess.CompletedProcess[str]:
        path.touch(0o600)
        path.write_text(json.dumps({"checks": {**checks, **account}}))
        code = f"import sys; from wheels_ops.standalone.{program} import run; sys.exit(run(sys.argv[1:]))"
        words = [sys.executable, "-c", code, "--config", str(path), "--json"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)

    for program in ("monitor", "recovery"):
        done = run(program, **ACCOUNT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        refused = run(program, supervisor_username="ops", supervisor_password=f"not-{PASSWORD}")
        assert refused.returncode != 0 and "Set supervisor_username and supervisor_password" in refused.stdout
        assert PASSWORD not in refused.stdout + refused.stderr
    written = [entry.read_text() for entry in (tmp_path / "state").rglob("*") if entry.is_file()]
    assert written and not [text for text in written if PASSWORD in text]
