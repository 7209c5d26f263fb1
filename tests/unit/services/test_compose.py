# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two engines say of a container, as a state: what ``inspect`` of Docker 27 and of Podman 4 and 5 prints."""

from __future__ import annotations

import os
import stat
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.services import compose, manager

NOW = 1_790_000_000.0
STARTED = "2026-09-21T14:12:20.5Z"  # 60 s before


def container(**changes: t.Any) -> t.Dict[str, t.Any]:
    state = {"Status": "running", "Running": True, "Pid": 4711, "ExitCode": 0, "StartedAt": STARTED, "Error": ""}
    state.update(changes.pop("State", {}))
    return {
        "Id": "0123456789abcdef" * 4,
        "Name": "/shop-api-1",
        "RestartCount": 0,
        "State": state,
        "Config": {"Cmd": ["uvicorn", "app.main:app"], "Entrypoint": None, "Labels": {}, "Hostname": "0123456789ab"},
        "NetworkSettings": {"Ports": {"8000/tcp": [{"HostIp": "", "HostPort": "8080"}], "9000/tcp": None}},
        **changes,
    }


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("2026-09-21T14:12:20.5Z", NOW - 59.5),
        ("2026-09-21T14:12:20.500000000Z", NOW - 59.5),
        ("2026-09-21T16:12:20.5+02:00", NOW - 59.5),
        ("2026-09-21T12:42:20-01:30", NOW - 60),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
    ],
)
def test_times_of_both_engines_are_read(text: str, seconds: t.Optional[float]) -> None:
    assert compose.moment(text) == seconds


def test_running_container_is_as_the_engine_says() -> None:
    state = compose.state_of("api", "docker", container(), NOW)
    assert (state.exists, state.running, state.settled, state.state, state.pid) == (True, True, True, "running", 4711)
    assert state.uptime_s == 59.5 and state.instance.startswith("0123456789ab@") and not state.failed
    assert state.details["published_ports"] == [8080] and state.details["command"] == ["uvicorn", "app.main:app"]


@pytest.mark.parametrize(
    "changes, running, failed, text",
    [
        ({"Status": "exited", "Pid": 0, "ExitCode": 143}, False, False, "exited"),
        ({"Status": "exited", "Pid": 0, "ExitCode": 3}, False, True, "failed/exited, exit status 3"),
        ({"Status": "exited", "Pid": 0, "ExitCode": 0, "OOMKilled": True}, False, True, "failed/exited, exit status 0"),
        ({"Status": "restarting", "Pid": 0, "ExitCode": 1}, False, False, "restarting"),
        ({"Status": "created", "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z"}, False, False, "created"),
        ({"Status": "paused"}, False, False, "paused"),
        ({"Health": {"Status": "healthy"}}, True, False, "running"),
        ({"Health": {"Status": "unhealthy"}}, False, False, "running (unhealthy)"),
        ({"Healthcheck": {"Status": "unhealthy"}}, False, False, "running (unhealthy)"),
    ],
)
def test_container_that_does_not_serve_is_not_running(
    changes: t.Dict[str, t.Any], running: bool, failed: bool, text: str
) -> None:
    state = compose.state_of("api", "podman", container(State=changes), NOW)
    assert (state.running, state.failed, state.state) == (running, failed, text)
    if "unhealthy" in text:
        assert state.up  # only a restart replaces it


def test_service_of_several_containers_runs_where_all_of_them_do() -> None:
    parts = [
        compose.state_of("api", "docker", container(State=changes), NOW)
        for changes in ({}, {"Status": "exited", "Pid": 0, "ExitCode": 1})
    ]
    state = compose.combined("api", parts)
    assert not state.running and state.partly_up and state.failed and state.details["pids"] == [4711]
    assert compose.combined("api", parts[:1] * 2).running


def engine(place: Path, name: str, text: str) -> None:
    program = place / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OpsError, match="Neither docker nor podman is installed"):
        manager.open_manager("compose")
    engine(tmp_path, "docker", "echo 'permission denied while trying to connect' >&2; exit 1")
    control = manager.open_manager("compose")
    with pytest.raises(OpsError, match=r"docker ps ended with 1: permission denied .*group docker"):
        control.states(["api"])
    # The other engine has none of Compose's containers: whether docker has them is still not known.
    engine(tmp_path, "podman", "exit 0")
    with pytest.raises(OpsError, match="permission denied"):
        manager.open_manager("compose").states(["api"])
    assert not compose.available()
    engine(tmp_path, "docker", "exit 0")
    state = manager.open_manager("compose").states(["api"])["api"]
    assert not state.exists and state.state == "not-found"
    engine(tmp_path, "docker", 'case "$1" in ps) echo abc;; *) echo no-json;; esac')
    with pytest.raises(OpsError, match="docker inspect gave no JSON"):
        manager.open_manager("compose").states(["api"])
    assert os.environ["PATH"] == str(tmp_path)
