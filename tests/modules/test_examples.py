# SPDX-License-Identifier: GPL-3.0-or-later
"""Every task of every module's EXAMPLES is one that its module takes as it is written."""

from __future__ import annotations

import importlib
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from tests.support.container_host import MODULES, REPOSITORY

NAMES = sorted(path.stem for path in MODULES.glob("*.py") if path.stem != "__init__")
#: What the examples take from variables and lookups.
VARIABLES: t.Dict[str, t.Any] = {
    "backend.missing": [],
    "backend.variables": [],
    "inventory_hostname": "pam-1",
    "services_list": [{"name": "pam-backend", "gate": {"type": "http", "url": "http://127.0.0.1:8000/readyz"}}],
    "database_dsn": "postgresql://postgres@127.0.0.1/postgres",
    "health.checks": [{"name": "redis", "status": "warning", "remedy": "cache_purge"}],
    "health_before": {"checks": []},
    "health_after": {"checks": []},
    "wheels_ops_run_id": "20250730T0211",
    "rls.undo": "/var/lib/wheels-ops/undo.sql",
    "probe_token": "token",
    "vault_slack_url": "https://hooks.slack.com/services/T0/B0/token",
    "lookup('ansible.builtin.file', 'cors_config.py', rstrip=false)": "content",
    "lookup('ansible.builtin.file', 'indexes.sql', rstrip=false)": "content",
    "(wanted.requests + wanted.refused) | map(attribute='id') | list": ["request-20250730T0211.json"],
    "lookup('wheels.ops.controller_process')": {"host": "controller", "pid": 1},
}


class Stopped(Exception):
    """Raised where a module has said what it takes."""


def module_of(name: str) -> t.Any:
    """A module, by the name that Ansible gives it."""
    if str(REPOSITORY / "collections") not in sys.path:
        sys.path.append(str(REPOSITORY / "collections"))
    return importlib.import_module(f"ansible_collections.wheels.ops.plugins.modules.{name}")


def spec_of(name: str, monkeypatch: pytest.MonkeyPatch) -> t.Dict[str, t.Any]:
    """What a module gives to AnsibleModule."""
    found: t.Dict[str, t.Any] = {}

    def take(**given: t.Any) -> None:
        found.update(given)
        raise Stopped

    module = module_of(name)
    monkeypatch.setattr(module, "AnsibleModule", take)
    with pytest.raises(Stopped):
        module.main()
    return found


def filled(value: t.Any) -> t.Any:
    """A value of an example with its templates replaced; an unknown one is an error of the example or of the table
    above.
    """
    if isinstance(value, dict):
        return {key: filled(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry) for entry in value]
    if isinstance(value, str) and value.startswith("{{"):
        return VARIABLES[value.strip("{} ")]
    return value


def examples(name: str) -> t.List[t.Dict[str, t.Any]]:
    """The arguments of the tasks that call the module."""
    tasks = yaml.safe_load(module_of(name).EXAMPLES)
    return [task[f"wheels.ops.{name}"] or {} for task in tasks if f"wheels.ops.{name}" in task]


def problems(given: t.Dict[str, t.Any], arguments: t.Dict[str, t.Any]) -> t.List[str]:
    rules = {
        key: value
        for key, value in given.items()
        if key in ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
    }
    return list(ArgumentSpecValidator(given["argument_spec"], **rules).validate(filled(arguments)).error_messages)


@pytest.mark.parametrize("name", NAMES)
def test_the_module_takes_its_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = spec_of(name, monkeypatch)
    found = examples(name)
    assert found, "no example calls the module"
    for arguments in found:
        assert problems(given, arguments) == []
        assert problems(given, {**arguments, "no_such_option": 1}), "the check is blind"


def test_every_module_is_looked_at() -> None:
    assert len(NAMES) == len(list(Path(MODULES).glob("[!_]*.py"))) >= 19


@pytest.mark.parametrize("name", ["memory_trim", "service_restart", "health_info", "cpu_relief"])
def test_services_of_examples_are_services(name: str) -> None:
    from wheels_ops.services.model import parse_services

    lists = [filled(arguments["services"]) for arguments in examples(name) if arguments.get("services")]
    assert lists
    for services in lists:
        assert parse_services(services)


def test_sources_and_targets_of_examples_can_be_meant() -> None:
    from wheels_ops.remedies.disk import cleanup

    for arguments in examples("disk_cleanup"):
        assert [cleanup.parse_source(entry) for entry in arguments["sources"]]
        assert all(cleanup.parse_target(entry) for entry in arguments.get("targets", []))
