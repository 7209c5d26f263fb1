# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module ends: its result, its errors, and what it shows of its arguments."""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest

from wheels_ops import _ansible
from wheels_ops.core.results import OpsError, Result
from wheels_ops.services import broker
from wheels_ops.state import deployments, lock

URL = "redis://user:s3cret@127.0.0.1:6379/0"


class Ended(Exception):
    """Raised where AnsibleModule would end the process."""


class Module:
    """Only what ``_ansible.run`` uses of AnsibleModule."""

    def __init__(self) -> None:
        self.check_mode = False
        self.params: t.Dict[str, t.Any] = {
            "url": URL,
            "services": [{"name": "redis", "gate": {"url": URL}}],
            "level": 2,
        }
        self.argument_spec: t.Dict[str, t.Any] = {"password": {"no_log": True}}
        self.no_log_values: t.Set[str] = set()
        self.warnings: t.List[str] = []

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def exit_json(self, **result: t.Any) -> None:
        raise Ended(result)

    fail_json = exit_json


def refused() -> Result:
    raise OpsError("It is refused.")


def broken() -> Result:
    raise KeyError("surprise")


@pytest.mark.parametrize("call", [Result, refused, broken])
def test_arguments_are_shown_without_the_password_of_an_address(call: t.Callable[[], Result]) -> None:
    module = Module()
    with pytest.raises(Ended) as caught:
        _ansible.run(t.cast(t.Any, module), call)
    shown = caught.value.args[0]["invocation"]["module_args"]
    masked = "redis://user:***@127.0.0.1:6379/0"
    assert shown == {"url": masked, "services": [{"name": "redis", "gate": {"url": masked}}], "level": 2}
    assert module.params["url"] == URL


def test_only_headers_that_are_secrets_are_blanked_in_messages() -> None:
    """Ansible blanks a secret wherever its letters stand: with ``http`` that is every address."""
    module = Module()
    headers = {
        "X-Forwarded-Proto": "https",
        "X-Level": 1,
        "Host": "backend.internal",
        "Authorization": "Bearer long-secret",
        "X-Key": "hunter22",
    }
    module.params = {
        "password": "pass",
        "services": [{"gate": {"headers": headers}}, {"gate": {"headers": {"X-Short": "pass"}}}],
    }
    module.no_log_values = {"https", "1", "backend.internal", "Bearer long-secret", "hunter22", "pass"}
    with pytest.raises(Ended) as caught:
        _ansible.run(t.cast(t.Any, module), Result)
    # A short word stays a secret where it is also somebody's password.
    assert module.no_log_values == {"Bearer long-secret", "hunter22", "pass"}
    shown = caught.value.args[0]["invocation"]["module_args"]["services"]
    assert {value for service in shown for value in service["gate"]["headers"].values()} == {
        "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    }
    assert set(shown[0]["gate"]["headers"]) == set(headers)


def test_warnings_are_given_to_ansible() -> None:
    module = Module()
    with pytest.raises(Ended):
        _ansible.run(t.cast(t.Any, module), lambda: Result(warnings=["It may be mistyped."]))
    assert module.warnings == ["It may be mistyped."]


@pytest.mark.parametrize("url", ["redis://127.0.0.1/abc", "rediss://:p@127.0.0.1:6379/0x", "redis://127.0.0.1/-1"])
def test_a_database_that_is_no_number_is_not_taken_for_the_first(url: str) -> None:
    with pytest.raises(OpsError, match="database"):
        broker.connect(url)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1", "redis://127.0.0.1/", "redis://:p@127.0.0.1:6379/15", "unix:///run/redis.sock?db=1"]
)
def test_databases_that_redis_has(url: str) -> None:
    broker.connect(url).close()


def test_a_task_of_a_run_renews_its_lock_and_does_nothing_once_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The playbooks name their run and its state directory in the environment of every task."""
    monkeypatch.setenv(lock.HOLDER_VARIABLE, "one")
    monkeypatch.setenv(lock.DIRECTORY_VARIABLE, str(tmp_path))
    done: t.List[str] = []

    def call() -> Result:
        done.append("done")
        return Result()

    def run(module: Module, **options: t.Any) -> t.Dict[str, t.Any]:
        with pytest.raises(Ended) as caught:
            _ansible.run(t.cast(t.Any, module), call, **options)
        return t.cast("t.Dict[str, t.Any]", caught.value.args[0])

    deployments.hold(str(tmp_path), kind="deploy", holder="one")
    file = tmp_path / "deploy.lock"
    file.write_text(json.dumps({**json.loads(file.read_text()), "since": time.time() - 1700}))
    assert "since" not in run(Module()) and done == ["done"]
    assert time.time() - json.loads(file.read_text())["since"] < 1000
    deployments.hold(str(tmp_path), kind="rollback", holder="two", force="one")
    assert "This run (one) does not hold the lock of this host any more; two does." in run(Module())["msg"]
    assert done == ["done"]
    # In check mode there is no lock to renew, and the lock's own module gives back what is left.
    predicted = Module()
    predicted.check_mode = True
    run(predicted)
    run(Module(), renews_lock=False)
    assert done == ["done"] * 3


def test_a_state_directory_that_others_can_change_ends_every_module(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    module = Module()
    module.params = {"state_dir": str(tmp_path)}
    with pytest.raises(Ended) as caught:
        _ansible.run(t.cast(t.Any, module), Result)
    assert f"The state directory {tmp_path} is refused: it has the mode 0777" in caught.value.args[0]["msg"]


def test_references_are_resolved_and_shown_nowhere(tmp_path: Path) -> None:
    """The secret of a referenced file reaches the call, and neither the arguments nor a message."""
    file = tmp_path / "api.env"
    file.write_text(f"REDIS_URL={URL}\nDATABASE_URL=postgresql://app:hunter2222@db/pam\n")
    module = Module()
    module.argument_spec = {"dsn": {"no_log": True}}
    module.params = {"url": f"file://{file}#REDIS_URL", "dsn": f"file://{file}#DATABASE_URL", "level": 2}

    def call() -> Result:
        assert module.params["url"] == URL
        raise OpsError(f"No answer from {module.params['url']}, with the password s3cret, nor hunter2222.")

    with pytest.raises(Ended) as caught:
        _ansible.run(t.cast(t.Any, module), call)
    shown = json.dumps(caught.value.args[0])
    assert f"file://{file}#REDIS_URL" in shown
    assert "s3cret" not in shown
    assert "hunter2222" not in shown
    assert module.no_log_values == {"postgresql://app:hunter2222@db/pam"}


def test_reference_that_fails_is_one_clear_message(tmp_path: Path) -> None:
    module = Module()
    module.params = {"url": f"file://{tmp_path}/missing#REDIS_URL"}
    with pytest.raises(Ended) as caught:
        _ansible.run(t.cast(t.Any, module), Result)
    assert f"{tmp_path}/missing cannot be read" in caught.value.args[0]["msg"]
