# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that outlive an event loop: a test client has one for each request, a script one for each
``asyncio.run``.
"""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.backend.materialise import materialise
from tests.support.backend_env import BACKEND_PYTHON, PATCHES, environment, overlay

PROGRAM = Path(__file__).with_name("loops_program.py")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> t.Callable[..., t.Any]:
    directory = tmp_path_factory.mktemp("loops")
    materialise("first_fix", directory)
    overlay(directory, [path.name for path in PATCHES.iterdir() if path.name != "__pycache__"])
    variables = environment(
        directory, database_url="postgresql://localhost/none", redis_url=None, port=0, PYTHONPATH=str(directory)
    )

    def run(part: str, **env: str) -> t.Any:
        words, known = [str(BACKEND_PYTHON), str(PROGRAM), part], {**variables, **env}
        done = subprocess.run(words, cwd=directory, env=known, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "never retrieved" not in done.stderr and "was never awaited" not in done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_monitoring_is_stopped_and_started_on_another_loop(ask: t.Callable[..., t.Any]) -> None:
    assert ask("monitoring") == {"optimizer": [True, True], "monitor": [True, True]}


def test_speech_on_another_loop(ask: t.Callable[..., t.Any]) -> None:
    found = ask("speech", TTS_PRIMARY_ENGINE="fallback")
    assert found == {
        "service": [True],
        "spoken": [True, True],
        "left": 0,
        "nothing": [False, "Audio is not available: there is nothing to say"],
    }


def test_speech_ends_whatever_happens_at_the_same_moment(ask: t.Callable[..., t.Any]) -> None:
    """Up to Python 3.11 ``asyncio.wait_for`` loses a cancellation that comes together with its result."""
    assert ask("endings", TTS_PRIMARY_ENGINE="edge") == [True] * 4


def test_an_error_of_an_attempt_that_nobody_wants_is_no_noise(ask: t.Callable[..., t.Any]) -> None:
    assert ask("dropped", TTS_PRIMARY_ENGINE="edge") is True


def test_a_check_that_is_ended_while_it_fails_leaves_no_error_behind(ask: t.Callable[..., t.Any]) -> None:
    assert any(ask("cancelled")), "one of them was ended first"


def test_a_package_without_a_spec_is_there(ask: t.Callable[..., t.Any]) -> None:
    found = ask("stub", TTS_PRIMARY_ENGINE="edge")
    assert found["engine"] == "edge" and found["status"] in ("unproven", "healthy")


def test_lives_of_the_whole_installation(ask: t.Callable[..., t.Any]) -> None:
    found = ask("lifespans", WHEELS_OPS_TOKEN="token-of-the-event-loops", TTS_PRIMARY_ENGINE="fallback")
    assert [[live, running, ended] for live, _ignored, running, ended in found] == [[200, True, True]] * 4, found
    assert not {speech for _live, speech, _running, _ended in found} & {
        "warn",
        "fail",
    }, "an engine that has not been tried yet is no failure"


def test_the_router_with_one_event_loop_for_each_request(ask: t.Callable[..., t.Any]) -> None:
    found = ask("api", WHEELS_OPS_TOKEN="token-of-the-event-loops", TTS_PRIMARY_ENGINE="fallback")
    assert [status for _ignored, status, _word in found] == [200] * len(found), found
    assert found[2][2] == "store", "the history answers on a loop that did not open it"
    words = [word for path, _ignored, word in found if path.startswith("monitoring")]
    assert words[0] == "started" and words[2:] == ["stopped", "already_stopped", "started", "stopped"]
