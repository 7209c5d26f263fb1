# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge's engine against the fake edge endpoint: the unchanged client library, TLS, the service's framing; not
Microsoft's service.
"""

from __future__ import annotations

import base64
import dataclasses
import subprocess
import typing as t

import pytest

from tests.support.fake_edge_tts import FAULTS, LATE_FAULTS
from tests.support.tts_backend import FakeEdge, Tree
from wheels_ops.host.audio import describe


def mpg123_decodes(data: bytes) -> bool:
    """The witness that shares no code with ours."""
    done = subprocess.run(
        ["mpg123", "-q", "--no-control", "-w", "-", "-"], input=data, capture_output=True, check=False
    )
    return done.returncode == 0 and len(done.stdout) > 1000 and not done.stderr.strip()


def plays(encoded: str) -> str:
    """The format of audio that decodes as a whole."""
    data = base64.b64decode(encoded)
    found = describe(data)
    assert not found["silent"]
    assert found["format"] == "wav" or mpg123_decodes(data)
    return str(found["format"])


def test_fake_edge_endpoint_speaks_mp3_that_decodes_and_is_called_mp3(tree: Tree, edge: FakeEdge) -> None:
    answer = tree.run("speak", text="The road is clear.", env=edge.patient)["answers"][0]
    assert (answer["engine"], answer["format"], answer["mime"], answer["degraded"]) == (
        "edge",
        "mp3",
        "audio/mpeg",
        False,
    )
    assert plays(answer["audio"]) == "mp3"
    assert abs(answer["duration_ms"] - describe(base64.b64decode(answer["audio"]))["duration_ms"]) < 60
    assert all(found["target"] == "speech.platform.bing.com:443" for found in edge.seen("connect"))


def test_fake_edge_endpoint_hears_plain_text_and_no_markup(tree: Tree, edge: FakeEdge) -> None:
    text = '5 < 6 & <speak>not markup</speak>, it\'s "text".'
    tree.run("speak", text=text, voice_preference={"voice_id": "en-GB-RyanNeural"}, env=edge.patient)
    heard = edge.seen("ssml")[-1]
    assert heard["text"] == text
    assert "en-GB, RyanNeural" in heard["voice"]


def test_fake_edge_endpoint_faults_never_leave_the_user_without_audio(tree: Tree, edge: FakeEdge) -> None:
    # Not so patient that what drips would come in time.
    found = dataclasses.replace(tree, patience=2).run("faults", modes=[*FAULTS, *LATE_FAULTS], env=edge.env)
    for mode in FAULTS:
        complete, stream = found[mode]["complete"], found[mode]["stream"]
        assert (complete["engine"], complete["format"]) == ("system", "wav"), mode
        assert plays(complete["audio"]) == "wav"
        assert stream["engines"] == ["system"] and stream["restarted"] == [False], mode
        assert [plays(part) for part in stream["segments"]] == ["wav"], mode
        assert stream["finals"] == 1
    assert found["stall"]["complete"]["engine"] == "system"
    stalled = found["stall"]["stream"]
    # What was sent stays sent; the sentence is said again, whole, in a segment of its own.
    assert (
        stalled["engines"] == ["edge", "system"]
        and stalled["restarted"] == [False, True]
        and stalled["formats"] == ["mp3", "wav"]
    )
    assert plays(stalled["segments"][1]) == "wav"
    assert found["drip"]["complete"]["engine"] == "system"
    assert found["drip"]["stream"]["engines"] == ["edge"]


@pytest.mark.parametrize(
    ("mode", "opens_after"),
    [("forbidden", 1), ("unavailable", 1), ("proxy_error", 1), ("black_hole", 2), ("no_audio", 3), ("garbage", 3)],
)
def test_fake_edge_endpoint_breaker_opens_by_class_of_error(
    tree: Tree, edge: FakeEdge, mode: str, opens_after: int
) -> None:
    states = tree.run("breaker", mode=mode, requests=opens_after, env=edge.env)["states"]
    assert states == ["closed"] * (opens_after - 1) + ["open"]


def test_fake_edge_endpoint_recovery_is_found_in_the_background_and_a_user_keeps_one_voice(
    tree: Tree, edge: FakeEdge
) -> None:
    found = tree.run("recovery", env=edge.patient)
    assert found["before"]["engine"] == "system" and found["state_down"] == "open"
    assert found["quiet"], "a user's request found out"
    assert found["seconds"] < 20, "the goal: seen within 20 s"
    assert found["sticky"]["engine"] == "system"
    assert found["other"]["engine"] == "edge"


def test_fake_edge_endpoint_two_hundred_who_want_the_same_cost_one_synthesis(tree: Tree, edge: FakeEdge) -> None:
    env: t.Dict[str, t.Optional[str]] = {**edge.patient, "TTS_FALLBACK_ENABLED": "false"}
    found = tree.run("single_flight", count=200, env=env)
    assert found["distinct"] == 1 and found["engine"] == "edge"
    assert len([heard for heard in edge.seen("ssml") if "everybody" in heard["text"]]) == 1
    assert found["again"]["cache_hit"]


@pytest.mark.slow
def test_fake_edge_endpoint_storm_every_request_gets_audio_or_text_and_nothing_is_left(
    tree: Tree, edge: FakeEdge
) -> None:
    modes = [*["ok"] * 10, "slow_ok", *FAULTS, *LATE_FAULTS]
    found = tree.run("storm", requests=1000, seed=7, modes=modes, timeout=240, env=edge.env)
    kinds = found["kinds"]
    assert sum(kinds.values()) == 1000
    assert set(kinds) <= {"audio", "text", "abandoned", "abandoned too late"}, kinds
    assert kinds["audio"] >= 890
    assert found["usage"].get("edge", 0) > 30 and found["usage"].get("system", 0) > 50, found["usage"]
    before, after = found["before"], found["after"]
    assert after["children"] == 0
    assert after["files"] <= before["files"]
    # The event loop, the resolver's threads and probes that are under way may hold a few.
    assert after["fds"] <= before["fds"] + 6, (before, after)
    assert after["tasks"] <= before["tasks"] + 6, (before, after)


def test_fake_edge_endpoint_black_hole_does_not_delay_the_start(tree: Tree, edge: FakeEdge) -> None:
    edge.mode("black_hole")
    found = tree.run("start_time", env=edge.env)
    assert found["ready"] and found["waiting"], "the service was ready while its probe still waited"
    assert found["answer"]["engine"] == "system"


def test_fake_edge_endpoint_streams_segments_of_a_long_text_in_one_voice(tree: Tree, edge: FakeEdge) -> None:
    text = " ".join(f"This is sentence {number} of a long story." for number in range(60))
    answer = tree.run("speak", text=text, stream=True, env=edge.patient)["answers"][0]
    assert set(answer["engines"]) == {"edge"} and len(answer["segments"]) == 3 and answer["finals"] == 1
    assert mpg123_decodes(b"".join(base64.b64decode(part) for part in answer["segments"]))
    assert " ".join(heard["text"] for heard in edge.seen("ssml") if "story" in heard["text"]) == text
