# SPDX-License-Identifier: GPL-3.0-or-later
"""One set of options for the service manager: in the modules, their documentation, the roles and the library."""

from __future__ import annotations

import typing as t

import pytest
import yaml

from tests.support.collection import COLLECTION
from wheels_ops.core.redaction import is_secret
from wheels_ops.core.results import OpsError
from wheels_ops.services import arguments, manager

OPTIONS = {"service_manager", "supervisor_socket", "supervisor_username", "supervisor_password"}


def tasks_of(node: t.Any) -> t.Iterator[t.Dict[str, t.Any]]:
    """Every dictionary below a YAML document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from tasks_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from tasks_of(value)


def test_the_specification_is_the_fragment() -> None:
    source = (COLLECTION / "plugins/doc_fragments/service_manager.py").read_text()
    fragment = yaml.safe_load(source.split('r"""')[1].split('"""')[0])["options"]
    words = ("type", "choices", "default", "aliases")
    documented = {name: {word: option[word] for word in words if word in option} for name, option in fragment.items()}
    spec = {
        name: {word: option[word] for word in words if word in option} for name, option in arguments.MANAGER.items()
    }
    assert documented == spec and set(spec) == OPTIONS
    assert arguments.MANAGER["supervisor_password"]["no_log"] and is_secret("supervisor_password")


def test_a_module_that_opens_the_manager_takes_all_of_its_options() -> None:
    users = []
    for path in sorted((COLLECTION / "plugins/modules").glob("*.py")):
        text = path.read_text()
        if "arguments.MANAGER" in text or "supervisor_socket" in text or "wheels.ops.service_manager" in text:
            users.append(path.stem)
            assert "**arguments.MANAGER" in text and "- wheels.ops.service_manager\n" in text, path.stem
    assert users == ["backend_info", "cpu_relief", "health_info", "managed_files", "memory_trim", "service_restart"]


def test_a_role_that_names_the_socket_names_the_account() -> None:
    count = 0
    for path in sorted((COLLECTION / "roles").glob("*/*/*.yml")):
        for node in tasks_of(yaml.safe_load(path.read_text())):
            if "supervisor_socket" in node:
                count += 1
                assert set(node) >= OPTIONS, path
    assert count == 8
    for path in sorted((COLLECTION / "roles").glob("*/meta/argument_specs.yml")):
        for node in tasks_of(yaml.safe_load(path.read_text())):
            for name in [name for name in node if str(name).endswith("_supervisor_socket")]:
                prefix = name[: -len("socket")]
                assert f"{prefix}username" in node, path
                assert node[f"{prefix}password"]["no_log"] is True, path


def test_from_params_hands_on_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: t.List[t.Tuple[t.Any, ...]] = []
    monkeypatch.setattr(manager, "Supervisor", lambda *words, **account: calls.append((*words, account)))
    account = {"supervisor_username": "ops", "supervisor_password": "s3cret"}
    manager.from_params({"service_manager": "supervisor", "supervisor_socket": "/run/s.sock", **account})
    manager.from_params({"service_manager": "supervisor", "supervisor_socket": "/run/s.sock"})
    assert calls == [
        ("/run/s.sock", {"username": "ops", "password": "s3cret"}),
        ("/run/s.sock", {"username": "", "password": ""}),
    ]


def test_a_manager_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        OpsError, match="service_manager must be one of auto, systemd, systemd_user, supervisor, compose, got 'runit'"
    ):
        manager.open_manager("runit")
