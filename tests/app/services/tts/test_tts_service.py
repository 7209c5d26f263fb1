# SPDX-License-Identifier: GPL-3.0-or-later
"""The service as its callers use it, in all three releases, and its switches."""

from __future__ import annotations

import typing as t

import pytest

from tests.backend.materialise import RELEASES
from tests.support import servers
from tests.support.backend_env import running_backend
from tests.support.tts_backend import PATCHED, FakeEdge, Tree
from tests.support.tts_backend import tree as make_tree
from wheels_ops.checks import tts

LOCAL: t.Dict[str, t.Optional[str]] = {"TTS_PRIMARY_ENGINE": "fallback"}


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_every_release_gets_the_whole_surface(release: str) -> None:
    with make_tree(release, patience=4) as made:
        found = made.run("surface", env=LOCAL)
    assert found["early"] == {
        "status": "not_initialized",
        "service_status": "not_initialized",
        "initialized": False,
        "is_initialized": False,
        "engines": {},
    }
    assert found["nothing"] is None and found["is"]
    status = found["status"]
    assert {
        "status",
        "service_status",
        "initialized",
        "is_initialized",
        "engines",
        "cache",
        "performance",
        "quality",
    } <= set(status)
    assert status["status"] == "healthy" and status["initialized"] is status["is_initialized"] is True
    assert {"overall_status", "engines", "healthy_engines", "total_engines"} == set(status["engines"])
    assert {"total_requests", "success_rate_percent", "avg_generation_time_ms", "engine_usage"} <= set(
        status["performance"]
    )
    assert set(found["voices"][0]) == {"voice_id", "name", "gender", "age", "accent", "language", "engine", "settings"}
    assert set(found["voices"][0]["settings"]) == {"stability", "similarity_boost", "speed", "pitch", "volume", "style"}
    assert found["preferred"] and found["voice"] == ["en-GB-RyanNeural", "male"]
    assert found["rated"] and found["analytics"]["total_ratings"] == 1
    assert found["answer"]["success"] and found["answer"]["engine"] == "system"
    assert found["cleared"] == {"success": True, "cleared_entries": 1, "older_than_hours": None}
    assert found["off"] == "not_initialized"
    # The August release's own streaming service names a class that is gone; that must not matter.
    assert found["streaming"] is (release != "august")


def test_functions_without_an_engine(tree: Tree) -> None:
    found = tree.run("pure")
    assert max(found["parts"]) <= 300 and found["joined"] and found["endings"]
    assert found["word"] == [1000, 1000, 500]
    assert found["broken"] == {"empty": "garbage", "html": "garbage", "header only": "no_audio", "no data": "no_audio"}
    assert found["genders"] == ["female", "male", "male"]
    assert found["voices"] == ["de-DE-ConradNeural", "en-US-AriaNeural", "en-GB-RyanNeural", "en-US-AriaNeural"]
    assert found["espeak"] == ["en-us+m3", "de+m3", "en-us+m3", "en-us+m3", "pt-br+m3"]
    assert found["asked"] == ["cmn+f3", "nb+f3", "nb+f3", "en-us+f3"]


def test_primary_engine_fallback_leaves_the_network_alone(tree: Tree, edge: FakeEdge) -> None:
    found = tree.run("speak", text="Local only.", env={**edge.env, **LOCAL})
    assert found["answers"][0]["engine"] == "system" and not found["answers"][0]["degraded"]
    assert found["status"]["chain"] == ["system", "text_only"]
    assert not edge.seen("connect")


@pytest.mark.parametrize("stream", [False, True])
def test_texts_without_a_sound_do_not_take_the_speech_of_others_away(tree: Tree, stream: bool) -> None:
    found = tree.run("speak", text="... ?!", times=6, stream=stream, env=LOCAL)
    if not stream:
        assert {
            (answer["success"], answer["engine"], answer["bytes"], answer["text"]) for answer in found["answers"]
        } == {(True, "text_only", 0, "... ?!")}
    engine = found["status"]["engines"]["engines"]["system"]
    assert (engine["breaker"], engine["status"]) == ("closed", "healthy"), engine


def test_fallback_switched_off_means_an_error_and_no_other_voice(tree: Tree, edge: FakeEdge) -> None:
    edge.mode("unavailable")
    answer = tree.run("speak", text="Edge or nothing.", env={**edge.env, "TTS_FALLBACK_ENABLED": "false"})["answers"][0]
    assert not answer["success"] and answer["bytes"] == 0 and "not available" in answer["error"]


def test_switched_off(tree: Tree) -> None:
    found = tree.run("speak", text="Nothing.", env={**LOCAL, "TTS_ENABLED": "false"})
    assert found["answers"] == [None] and found["status"]["status"] == "not_initialized"


def test_second_time_comes_from_the_cache_and_the_test_route_never_does(tree: Tree) -> None:
    assert [answer["cache_hit"] for answer in tree.run("speak", text="Twice.", times=2, env=LOCAL)["answers"]] == [
        False,
        True,
    ]
    assert [
        answer["cache_hit"]
        for answer in tree.run("speak", text="Twice.", times=2, user_id="test", env=LOCAL)["answers"]
    ] == [False, False]
    assert [
        answer["cache_hit"]
        for answer in tree.run("speak", text="Twice.", times=2, env={**LOCAL, "TTS_CACHE_ENABLED": "false"})["answers"]
    ] == [
        False,
        False,
    ]


def test_disk_cache_survives_a_restart_and_is_private(tree: Tree) -> None:
    directory = tree.directory / "cache"
    found = tree.run("disk_cache", env={**LOCAL, "TTS_CACHE_DIR": str(directory)})
    assert found["one"]["sha"] == found["two"]["sha"] and found["mode"] == "0o700"
    assert found["successes"] == 1, "only the proof at the start was synthesised"
    assert found["cleared"]["success"] and found["left"] == 0


def test_coqui_interface_with_a_fake_coqui_engine(tree: Tree, edge: FakeEdge) -> None:
    """There is no Coqui model here: what is tested is that the chain uses the application's engine class, whatever it
    is called.
    """
    package = tree.directory / "fakes" / "TTS"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    module = tree.directory / "app/services/tts/coqui_tts_engine.py"
    kept = module.read_text()
    module.write_text(
        "import io, wave\nfrom .base_tts import TTSResponse\nclass CoquiTTS:\n    async def initialize(self): return"
        " True\n    async def synthesize(self, request):\n        file = io.BytesIO()\n        with wave.open(file,"
        " 'wb') as sound:\n            sound.setnchannels(1); sound.setsampwidth(2); sound.setframerate(16000);"
        " sound.writeframes(b'\\x10\\x20' * 8000)\n        return TTSResponse(request=request,"
        " audio_data=file.getvalue())\n"
    )
    edge.mode("unavailable")
    try:
        env = {**edge.patient, "PYTHONPATH": f"{edge.env['PYTHONPATH']}:{package.parent}"}
        found = tree.run("speak", text="Who speaks?", env=env)
        assert found["answers"][0]["engine"] == "coqui", found["status"]
        assert found["answers"][0]["rate"] == 16000
        assert found["status"]["speaks_now"] == {"engine": "coqui", "not": {"edge": "refused"}}
        primary = tree.run("speak", text="Who speaks?", env={**env, "TTS_PRIMARY_ENGINE": "coqui"})
        assert not primary["answers"][0]["degraded"]
    finally:
        module.write_text(kept)


def test_check_sees_the_backend_before_and_after(postgres: servers.Postgres) -> None:
    dsn = postgres.database(supabase=True)
    with running_backend("incident", dsn, None) as broken:
        before = tts.check(broken.url)
    assert before.status == "critical" and before.remedy == "tts_engine"
    with running_backend("incident", dsn, None, patched=PATCHED, seed=False, TTS_PRIMARY_ENGINE="fallback") as backend:
        after = tts.check(backend.url)
        heard = tts.check(backend.url, token=backend.jwt("00000000-0000-0000-0000-000000000001"))
        health = backend.request("GET", "/api/v1/tts/health").json()
    assert (after.status, after.details["engine"]) == ("ok", "system") and after.value > 1000
    assert heard.status == "ok" and heard.details["format"] == "wav" and heard.details["duration_ms"] > 300
    assert health["status"] == "healthy"
