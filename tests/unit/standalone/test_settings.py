# SPDX-License-Identifier: GPL-3.0-or-later
"""What the standalone programs take from their file, the environment and the host, and that no secret
of it is shown.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.collection import COLLECTION
from wheels_ops.checks import suite
from wheels_ops.core.results import OpsError
from wheels_ops.standalone import settings
from wheels_ops.standalone.settings import Settings, load


def written(path: Path, content: t.Any, mode: int = 0o600) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return str(path)


def refused(path: str) -> str:
    with pytest.raises(OpsError) as caught:
        load(path, {})
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"checks": {"redis_url": "redis://:hunter2@h/0"', "is no JSON"),
        ("[1]", "holds no object"),
        ({"cheks": {}}, "unknown keys: cheks"),
        ({"checks": {"redis": "x"}}, "checks in the configuration has unknown keys: redis"),
        ({"checks": []}, "checks in the configuration must be an object"),
        ({"checks": {"redis_url": ["redis://:hunter2@h/0"]}}, "checks.redis_url in the configuration must be a text"),
        ({"checks": {"logs": "/var/log/*.log"}}, "checks.logs in the configuration must be a list"),
        ({"recovery": {"allow_restart": "yes"}}, "recovery.allow_restart in the configuration must be true or false"),
        ({"recovery": {"max_restarts": 1.5}}, "recovery.max_restarts in the configuration must be a whole number"),
        (
            {"recovery": {"cooldown": -1}},
            "recovery.cooldown in the configuration must be a number that is not negative",
        ),
        ({"checks": {"thresholds": {"memory": {"warning": 90, "critical": 80}}}}, "must be in ascending order"),
        ({"deadline": 1}, "deadline must be between"),
        ({"state_dir": "relative"}, "state_dir"),
    ],
)
def test_a_bad_configuration_is_refused_in_words_and_without_its_secrets(
    tmp_path: Path, content: t.Any, words: str
) -> None:
    message = refused(written(tmp_path / "monitor.json", content))
    assert words in message
    assert "hunter2" not in message


def test_a_configuration_that_others_can_change_is_refused(tmp_path: Path) -> None:
    assert "can be changed by others" in refused(written(tmp_path / "monitor.json", {}, 0o666))


def test_a_configuration_that_others_can_read_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "monitor.json", {}, 0o644)
    assert any("can be read by others" in note for note in load(path, {}).notes)
    os.chmod(path, 0o600)
    assert load(path, {}).notes == ()


def test_a_missing_file_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    assert "No such file" in refused(str(tmp_path / "nowhere.json"))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no regular file" in refused(str(tmp_path / "pipe"))


def test_the_environment_takes_the_place_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "monitor.json", {"checks": {"redis_url": "redis://file/0", "base_url": "http://file"}})
    found = load(path, {"REDIS_URL": "redis://environment/0", "WHEELS_OPS_STATE_DIR": str(tmp_path / "state")})
    assert (found.checks.redis_url, found.checks.base_url) == ("redis://environment/0", "http://file")
    assert found.state_dir == tmp_path / "state"
    assert load("", {"WHEELS_OPS_CONFIG": path}).source == path


def test_a_dotenv_of_the_backend_is_found_and_one_of_others_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "CONFIG", str(tmp_path / "none.json"))
    written(
        tmp_path / ".env",
        "# DATABASE_URL=postgresql://commented/x\nexport DATABASE_URL='postgresql+asyncpg://u:p@h/d'\nOTHER=1\n",
    )
    assert load("", {}).checks.database_dsn == "postgresql+asyncpg://u:p@h/d"
    (tmp_path / ".env").chmod(0o602)
    assert load("", {}).checks.database_dsn == ""


@pytest.mark.parametrize("trap", ["pipe", "link", "hard link", "device"])
def test_a_dotenv_that_is_a_trap_is_passed_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """Root may stand in a directory of the backend's user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "CONFIG", str(tmp_path / "none.json"))
    written(tmp_path / "of-root", "DATABASE_URL=postgresql://u:p@h/d\n")
    dotenv = tmp_path / ".env"
    if trap == "pipe":
        os.mkfifo(dotenv, 0o600)
    elif trap == "hard link":
        os.link(tmp_path / "of-root", dotenv)
    else:
        dotenv.symlink_to(tmp_path / "of-root" if trap == "link" else "/dev/zero")
    assert load("", {}).checks.database_dsn == ""


def test_waits_that_outlast_the_deadline_are_left_out_and_said(tmp_path: Path) -> None:
    checks = {"websocket_heartbeat_within": 5, "websocket_dead_peer_within": 60, "timeout": 60}
    found = load(written(tmp_path / "monitor.json", {"checks": checks, "deadline": 20}), {})
    assert (found.checks.websocket_heartbeat_within, found.checks.websocket_dead_peer_within) == (5, 0)
    assert found.checks.timeout < found.deadline
    assert [note for note in found.notes if note.startswith("websocket_dead_peer_within is 60 s")]


def test_no_secret_of_the_settings_is_shown() -> None:
    given = Settings(
        checks=suite.Options(
            redis_url="redis://:re%24dis@h:1/0",
            database_dsn="host=h password='da\\'ta base' dbname=x",
            websocket_path="/ws?token=jwt-token",
            services=[
                {
                    "name": "a",
                    "gate": {"url": "redis://u:gate-word@h/0", "headers": {"Authorization": "Bearer head-word"}},
                }
            ],
        )
    )
    said = {
        "a": ["re%24dis re$dis", "da'ta base"],
        "t": "jwt-token",
        "g": "gate-word",
        "b": ("Bearer head-word", 7, None),
    }
    shown = json.dumps(given.scrubbed(said))
    for word in ("re%24dis", "re$dis", "da'ta base", "jwt-token", "gate-word", "head-word"):
        assert word not in shown
    assert shown.count("***") == 6
    short = Settings(checks=suite.Options(database_dsn="host=h password=ok"))
    assert short.scrubbed(["all is ok", "host=h password=ok"]) == ["all is ok", "host=h password=***"]
    url = Settings(checks=suite.Options(database_dsn="postgresql://u:in-url@h/d"))
    assert url.secrets() == ["in-url"]


def test_what_is_found_without_a_configuration_is_what_the_roles_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults of the roles, which a program on the host cannot read."""

    def defaults(role: str) -> t.Dict[str, t.Any]:
        return t.cast(
            "t.Dict[str, t.Any]", yaml.safe_load((COLLECTION / f"roles/{role}/defaults/main.yml").read_text())
        )

    monkeypatch.setattr(sys, "path", [*sys.path, str(COLLECTION.parents[1])])
    monitoring, services, recovery = defaults("monitoring"), defaults("services"), defaults("host_cleanup")
    assert settings.REPORTED["websocket_path"] == monitoring["monitoring_websocket_path"]
    shared = importlib.import_module("ansible_collections.wheels.ops.plugins.plugin_utils.shared_variables").SHARED
    expected: t.Dict[str, t.Any] = {
        "cors_origins": list(settings.REPORTED["cors_origins"]),
        "base_url": settings.BASE_URL,
        "redis_url": settings.REDIS_URL,
    }
    for name, value in expected.items():
        assert f"'wheels_ops_{name}'" in monitoring[f"monitoring_{name}"]
        assert shared[f"wheels_ops_{name}"].default == value
    assert monitoring["monitoring_deadline"] == settings.DEADLINE
    reported = shared["wheels_ops_services"].default
    named = [{"name": entry["name"], "unit": entry["name"]} for entry in reported]
    built = settings._with_gates(named, {})
    assert [(each["name"], each["gate"]["type"]) for each in built] == [
        (each["name"], each["gate"]["type"]) for each in reported
    ]
    assert [each["depends_on"] for each in built] == [each.get("depends_on", []) for each in reported]
    ours = settings.Recovery()
    for key, value in services.items():
        name = key[len("services_") :]
        if hasattr(ours, name) and name != "max_restarts":
            assert getattr(ours, name) == value, key
    compared = set()
    for key, value in recovery.items():
        name = key[len("host_cleanup_") :]
        literal = re.search(r"'recovery_\w+', default=((?!host_cleanup)[^()]+)\) }}$", str(value))
        # A person who runs the playbook asks for the repair; a timer does not. An omitted target is 0 for the program.
        if literal and hasattr(ours, name) and name not in ("repair_database", "memory_target"):
            theirs = yaml.safe_load(literal[1])
            assert getattr(ours, name) == (tuple(theirs) if isinstance(theirs, list) else theirs), key
            compared.add(name)
    assert {"cooldown", "budget", "throttle", "relieve_cpu", "install_speech"} <= compared
    one = (COLLECTION / "playbooks/tasks/recover_one.yml").read_text()
    assert f"'recovery_max_restarts', default={ours.max_restarts})" in one
    assert "services_only_if: [failed, stopped, unhealthy]" in one
