# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX sees of a project of this repository, and what it gets of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import CACHE, REPOSITORY
from tests.support.waiting import free_port

#: AWX lists a YAML file as a playbook by a line like these (awx/main/utils/ansible.py), whatever else is in it.
LISTED = re.compile(r"^\s*-?\s*(hosts|include|import_playbook):")
#: Files below directories of these names, or of names that begin with a dot, are not looked at; nor are links followed.
LEFT_OUT = {"roles", "tasks", "group_vars", "host_vars"}


def tracked() -> t.List[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [Path(name) for name in done.stdout.splitlines()]


def is_listed(path: Path) -> bool:
    directories = path.parts[:-1]
    if path.suffix not in (".yml", ".yaml") or LEFT_OUT.intersection(directories):
        return False
    if any(name.startswith(".") for name in directories) or (REPOSITORY / path).is_symlink():
        return False
    return any(LISTED.match(line) for line in (REPOSITORY / path).read_text().splitlines())


def test_discovery_lists_our_playbooks_and_nothing_else() -> None:
    """Where a file is listed that is not to be: write its key as ``"hosts":``, which is the same YAML."""
    listed = {str(path) for path in tracked() if is_listed(path)}
    playbooks = {str(path) for path in tracked() if path.parts[0] == "playbooks"}
    assert len(playbooks) >= 8
    assert listed == playbooks


def health(directory: Path, venv: Path = Path(sys.prefix), **variables: t.Any) -> t.Tuple[int, str]:
    """Runs ``health`` with what a virtual environment has, on this machine, with a backend that is not there; gives its
    status and what it printed.
    """
    everything = {
        "wheels_ops_hosts": "all",
        "ansible_python_interpreter": str(venv / "bin/python"),
        "wheels_ops_venv": str(venv),
        "wheels_ops_state_dir": str(directory / "state"),
        "wheels_ops_report_dir": str(directory / "reports"),
        "monitoring_subjects": ["http"],
        "wheels_ops_base_url": f"http://127.0.0.1:{free_port()}",
        **variables,
    }
    words = ["-i", "here,", "-c", "local", "playbooks/health.yml", "-e", json.dumps(everything)]
    done = subprocess.run(
        [str(venv / "bin/ansible-playbook"), *words],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PATH": f"{venv}/bin:/usr/bin:/bin",
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_scheduled_health_fails_and_gives_its_artifacts(tmp_path: Path) -> None:
    status, output = health(tmp_path, wheels_ops_health_must_pass=True)
    assert status != 0, output
    assert "Require all checks to pass" in output
    artifacts = re.sub(r"\s+", " ", output.partition("CUSTOM STATS")[2])
    for words in ("ops_status: critical", "hosts_failing: 1", "failing: - http", "health.html"):
        assert words in artifacts, output


def test_health_of_a_person_reports_and_succeeds(tmp_path: Path) -> None:
    status, output = health(tmp_path)
    assert status == 0, output
    assert "ops_status: critical" in output


AWX_COLLECTION = CACHE / "awx/ansible_collections/awx/awx"
#: In place of what asks the server of AWX: a fake at the network boundary. The modules are real, and so is the check of
#: their arguments, which AnsibleModule makes against the specification that each hands over.
NETWORK = """
import json, os
from ansible.module_utils.basic import AnsibleModule

class ControllerAPIModule(AnsibleModule):
    def __init__(self, argument_spec, **kwargs):
        super().__init__(argument_spec=argument_spec, supports_check_mode=True, **kwargs)
        with open(os.environ["AWX_RECORD"], "a") as record:
            record.write(json.dumps([self._name, {key: value for key, value in self.params.items() if value is not None}]))
            record.write("\\n")
        self.exit_json(changed=True)
"""


@pytest.mark.skipif(not AWX_COLLECTION.is_dir(), reason="awx.awx is not there (tests/awx-collection)")
def test_modules_of_awx_take_every_argument(tmp_path: Path) -> None:
    """What is made refers to what is made before it, to playbooks that are there, and holds every secret once."""
    collection = tmp_path / "collections/ansible_collections/awx/awx"
    shutil.copytree(AWX_COLLECTION, collection)
    (collection / "plugins/module_utils/controller_api.py").write_text(NETWORK)
    record = tmp_path / "record"
    variables = {
        "awx_scm_url": "https://git.example.com/wheels-ops.git",
        "awx_execution_environment_image": "registry.example.com/wheels-ops:1",
        "awx_notification_url": "https://hook.example.com/",
        "awx_database_dsn": "host=db password=marked-secret",
        "awx_redis_url": "redis://:marked-secret@cache/0",
        "awx_websocket_token": "marked-secret",
    }
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}"),
            *("awx/apply.yml", "-e", json.dumps(variables)),
        ],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": f"{tmp_path}/collections:{REPOSITORY}/collections",
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "AWX_RECORD": str(record),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "marked-secret" not in done.stdout + done.stderr
    objects: t.Dict[str, t.List[t.Dict[str, t.Any]]] = {}
    for line in record.read_text().splitlines():
        module, arguments = json.loads(line)
        objects.setdefault(module.rpartition(".")[2], []).append(arguments)
    templates = {entry["name"]: entry for entry in objects["job_template"]}
    # discover writes an inventory into the directory of whoever runs it: a job's is gone with the job.
    assert {entry["playbook"] for entry in templates.values()} == {
        str(path) for path in tracked() if path.parts[0] == "playbooks" and path.name != "discover.yml"
    }
    assert templates["wheels.ops health"]["extra_vars"] == {"wheels_ops_health_must_pass": True}
    credentials = {entry["name"]: entry for entry in objects["credential"]}
    types = {entry["name"]: entry for entry in objects["credential_type"]}
    assert types["wheels.ops database"]["injectors"]["extra_vars"]["wheels_ops_database_dsn"] == "{{ dsn }}"
    for name, credential in credentials.items():
        fields = {field["id"]: field for field in types[credential["credential_type"]]["inputs"]["fields"]}
        assert set(credential["inputs"]) <= set(fields) and all(field["secret"] for field in fields.values())
        assert all(name in template["credentials"] for template in templates.values())
    (workflow,) = objects["workflow_job_template"]
    nodes = {node["identifier"]: node for node in workflow["workflow_nodes"]}
    assert {node["unified_job_template"]["name"] for node in nodes.values()} <= set(templates)
    assert nodes["health"]["related"] == {"failure_nodes": [{"identifier": "recover"}]}
    assert nodes["recover"]["related"] == {"success_nodes": [{"identifier": "verify"}]}
    schedules = {entry["name"].partition(" ")[2]: entry for entry in objects["schedule"]}
    assert "FREQ=MINUTELY;INTERVAL=15" in schedules["health every 15 minutes"]["rrule"]
    assert {entry["unified_job_template"] for entry in schedules.values()} <= set(templates)
    assert {entry.get("job_tags") for entry in schedules.values()} == {None, "weekly", "monthly"}
    (notification,) = objects["notification_template"]
    assert "{{ job.status }}" in notification["messages"]["error"]["body"]


def test_execution_environment_has_all_that_a_playbook_needs(tmp_path: Path) -> None:
    """``ansible-builder`` makes the context of the image without a network; with its Python packages and nothing else
    the playbook health measures what needs each of them.
    """
    context = tmp_path / "context"
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-builder")),
            *("create", "-f", "awx/execution-environment.yml", "-c", str(context)),
        ],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ansible-core" in (context / "Containerfile").read_text()
    wanted = (context / "_build/requirements.txt").read_text().splitlines()
    assert wanted == (REPOSITORY / "collections/wheels/ops/meta/ee-requirements.txt").read_text().splitlines()
    assert "openssh-clients" in (context / "_build/bindep.txt").read_text()

    # The versions that are locked, which this machine has in its cache.
    constraints = tmp_path / "constraints.txt"
    locked = (REPOSITORY / "requirements/dev.txt").read_text()
    constraints.write_text("\n".join(re.findall(r"^([^\s]+==[^\\\n]+)", locked, re.M)))
    uv, venv = str(Path(sys.executable).with_name("uv")), tmp_path / "venv"
    packages = [*wanted, "ansible-core", "ansible-runner"]
    for words in (
        ["venv", "--quiet", "--python", sys.executable, str(venv)],
        ["pip", "install", "--quiet", "--python", str(venv / "bin/python"), "-c", str(constraints), *packages],
    ):
        done = subprocess.run([uv, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    port = free_port()
    status, output = health(
        tmp_path,
        venv,
        monitoring_subjects=["memory", "http", "redis", "database", "websocket"],
        wheels_ops_redis_url=f"redis://127.0.0.1:{port}/0",
        wheels_ops_database_dsn=f"host=127.0.0.1 port={port} dbname=pam user=pam",
    )
    assert status == 0, output
    assert "ops_status: critical" in output, output
    for library in ("psutil", "psycopg2", "websocket-client", "not installed", "No module named"):
        assert library not in output, output
