# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables are documented: the page and the argument specifications say what the playbooks and roles do."""

from __future__ import annotations

import json
import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests import generate
from tests.support.collection import BIN, COLLECTION, REPOSITORY, run


@pytest.fixture(scope="module")
def outputs() -> t.Dict[Path, str]:
    return generate.outputs()


def test_what_is_generated_is_not_stale(outputs: t.Dict[Path, str]) -> None:
    stale = [str(path.relative_to(REPOSITORY)) for path, text in outputs.items() if path.read_text() != text]
    assert stale == [], "run make docs"


def test_every_variable_is_on_the_page_with_a_reader() -> None:
    """Every ``wheels_ops_*`` that anything of the collection reads, and every option of a role."""
    page = generate.PAGE.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([\w ,]+) \|$", page, re.M))
    sources = [*COLLECTION.glob("playbooks/**/*.yml"), *COLLECTION.glob("roles/*/[dtv]*/*.yml")]
    sources += COLLECTION.glob("extensions/eda/rulebooks/*.yml")
    shared = {name for path in sources for name in re.findall(r"(?:'|\{\{ )(wheels_ops_[a-z_]+)\b", path.read_text())}
    assert len(shared) > 35
    roles = {
        name
        for path in COLLECTION.glob("roles/*/meta/argument_specs.yml")
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values()
        for name in entry.get("options") or {}
    }
    assert len(roles) > 120
    assert (shared | roles) - set(rows) == set()
    unread = {name for name, readers in rows.items() if readers == "none" and name.startswith("wheels_ops_")}
    assert unread == set()


def test_ansible_doc_shows_real_defaults(tmp_path: Path) -> None:
    done = run(
        str(BIN / "ansible-doc"),
        "-t",
        "role",
        "-j",
        "wheels.ops.monitoring",
        "wheels.ops.host_cleanup",
        "wheels.ops.services",
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "collections"),
        ANSIBLE_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    roles = json.loads(done.stdout)
    options = {
        name: option
        for role in roles.values()
        for entry in role["entry_points"].values()
        for name, option in entry["options"].items()
    }
    assert options["monitoring_state_dir"]["default"] == "/var/lib/wheels-ops"
    assert options["host_cleanup_log_max_size"]["default"] == "50MB"
    assert options["monitoring_log_max_bytes"]["default"] == 50_000_000
    assert [service["name"] for service in options["services_list"]["default"]][0] == "redis"
    # Omitted on purpose: the module's own default, and a second health run that there need not be.
    without = {name for name, option in options.items() if option.get("default") is None}
    assert without == {"host_cleanup_memory_target", "host_cleanup_confirmation"}


def play(place: Path, tasks: t.List[t.Dict[str, t.Any]], variables: t.Dict[str, t.Any]) -> t.Tuple[int, str]:
    """Tasks on this machine; what is to be read later they write into a file ``out.json`` of the directory."""
    (place / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    (place / "group_vars").mkdir(exist_ok=True)
    (place / "group_vars/all.json").write_text(json.dumps(variables))
    (place / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"here": {"ansible_connection": "local"}}}}))
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        "hosts.yml",
        "play.yml",
        "-e",
        json.dumps({"ansible_python_interpreter": sys.executable}),
        cwd=place,
        ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "collections"),
        ANSIBLE_HOME=str(place / "home"),
        ANSIBLE_LOCALHOST_WARNING="false",
    )
    return done.returncode, done.stdout + done.stderr


def test_a_role_under_its_former_name_does_the_same_with_its_former_variables(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "app.log").write_bytes(b"line\n" * 2000)
    role = {"ansible.builtin.include_role": {"name": "wheels.ops.recovery", "tasks_from": "disk.yml"}}
    status, said = play(
        tmp_path,
        [role],
        {"recovery_log_directories": [str(logs)], "recovery_log_max_size": "4K", "wheels_ops_python": sys.executable},
    )
    assert status == 0, said
    assert (logs / "app.log").stat().st_size == 0
    assert len(list(logs.iterdir())) == 2


def test_a_module_under_its_former_name_does_the_same_and_says_so(tmp_path: Path) -> None:
    for name, warned in (("backend_patch", True), ("managed_files", False)):
        task = {
            f"wheels.ops.{name}": {"state": "restored", "state_dir": str(tmp_path / "state"), "deployment_id": "one"}
        }
        status, said = play(tmp_path, [task], {})
        assert status != 0 and "There is no deployment one" in said.replace("\n", " "), said
        assert ("managed_files instead" in said) == warned, said


def test_an_unknown_variable_is_named_with_the_one_that_is_likely_meant(tmp_path: Path) -> None:
    variables = {
        "wheels_ops_servcies": [],
        "wheels_ops_colour": "green",
        "wheels_ops_database_host": "db.example.com",
        "wheels_ops_database_dsn": "postgresql://{{ wheels_ops_database_host }}/pam",
        "wheels_ops_site": "eu",
        "wheels_ops_report_dir": "{{ inventory_dir }}/reports-{{ wheels_ops_site }}",
        "wheels_ops_state_dir": str(tmp_path / "state"),
        "wheels_ops_python": sys.executable,
        "wheels_ops_log_directories": [],
        "wheels_ops_thresholds": {"disk": {"warning": 100, "critical": 100}},
        "monitoring_subjects": ["disk"],
        "wheels_ops_hosts": "all",
    }
    play(tmp_path, [], variables)
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        "hosts.yml",
        "wheels.ops.health",
        "-e",
        json.dumps({"ansible_python_interpreter": sys.executable}),
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "collections"),
        ANSIBLE_HOME=str(tmp_path / "home"),
        ANSIBLE_LOCALHOST_WARNING="false",
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert "[WARNING]: Unknown variable wheels_ops_servcies: did you mean wheels_ops_services?" in said
    assert "[WARNING]: Unknown variable wheels_ops_colour: nothing reads it." in said
    for own in ("wheels_ops_site", "wheels_ops_database_host"):
        assert f"Unknown variable {own}" not in said, "a variable of the site's own that another one uses"
    assert (tmp_path / "reports-eu/health.json").exists()
