# SPDX-License-Identifier: GPL-3.0-or-later
"""A voice or language that an engine cannot speak: its own user still hears something, and so does everybody else."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.app.services.tts.test_fallback_tts import without_module
from tests.support.tts_backend import Tree, path_with

ESPEAK_ALONE = {"TTS_PRIMARY_ENGINE": "fallback"}
PATIENT = {"TTS_HEDGE_SECONDS": "30", "TTS_FIRST_AUDIO_SECONDS": "30"}


@pytest.fixture(scope="module")
def espeak_alone(tmp_path_factory: pytest.TempPathFactory) -> t.Dict[str, t.Optional[str]]:
    """A machine whose only engine is espeak-ng: no other one hides what it refuses."""
    return {**ESPEAK_ALONE, "PYTHONPATH": str(without_module(tmp_path_factory.mktemp("hidden"), "pyttsx3"))}


def test_languages_that_the_machine_does_not_know_by_that_name_are_heard_and_silence_nobody(
    tree: Tree, espeak_alone: t.Dict[str, t.Optional[str]]
) -> None:
    wishes = [
        name for name in ("zh-CN-XiaoxiaoNeural", "th-TH-PremwadeeNeural", "xx-XX-NobodyNeural") for _ in range(3)
    ]
    found = tree.run("voices", wishes=wishes, env=espeak_alone)
    assert found["engines"] == ["system"] * 10
    assert found["status"]["system"]["failures"] == {}


def test_language_is_asked_of_espeak_by_the_name_that_espeak_gives_it(
    tree: Tree, tmp_path: Path, espeak_alone: t.Dict[str, t.Optional[str]]
) -> None:
    record = tmp_path / "arguments"
    path = path_with(tmp_path / "bin", espeak_ng=f'echo "$@" >> {record}\nexec /usr/bin/espeak-ng "$@"')
    tree.run(
        "voices",
        wishes=["zh-CN-XiaoxiaoNeural", "zh-TW-HsiaoChenNeural"],
        env={**espeak_alone, "PATH": f"{path}:/usr/bin:/bin"},
    )
    calls = [line.split() for line in record.read_text().splitlines()]
    assert [call for call in calls if call == ["--voices"]] == [["--voices"]], "asked once"
    names = [call[call.index("-v") + 1] for call in calls if "-v" in call]
    assert names == ["en-us+f3", "cmn+f3", "cmn+f3", "en-us+f3"]


def test_voice_that_espeak_refuses_is_replaced_and_left_aside_for_a_while(
    tree: Tree, tmp_path: Path, espeak_alone: t.Dict[str, t.Optional[str]]
) -> None:
    record = tmp_path / "arguments"
    script = f'case "$*" in *de+f3*) echo refused >> {record}; exit 1;; esac\nexec /usr/bin/espeak-ng "$@"'
    path = path_with(tmp_path / "bin", espeak_ng=script)
    found = tree.run("voices", wishes=["de-DE-KatjaNeural"] * 4, env={**espeak_alone, "PATH": f"{path}:/usr/bin:/bin"})
    assert found["engines"] == ["system"] * 5
    assert record.read_text() == "refused\n"


@pytest.mark.parametrize("kind", ["NoAudioReceived", "UnexpectedResponse", "ValueError"])
def test_one_voice_that_is_blocked_at_edge_is_replaced_and_takes_edge_from_nobody(tree: Tree, kind: str) -> None:
    blocked = "zh-CN-XiaochenNeural"
    found = tree.run("voices", wishes=[blocked] * 4, blocked=[blocked], kind=kind, env=PATIENT)
    assert found["engines"] == ["edge"] * 5
    assert found["asked"].count(blocked) == 1, "left aside after it failed"
    assert found["status"]["edge"]["failures"] == {}


def test_default_voice_that_is_blocked_does_not_silence_edge(tree: Tree) -> None:
    found = tree.run("voices", wishes=[None] * 4, blocked=["en-US-AriaNeural"], env=PATIENT)
    assert found["engines"] == ["edge"] * 5


def test_edge_without_any_voice_is_left_alone(tree: Tree) -> None:
    names = ["de-DE-KatjaNeural", "en-US-AriaNeural", "en-US-GuyNeural"]
    found = tree.run("voices", wishes=["de-DE-KatjaNeural"] * 3, blocked=names, env=PATIENT)
    assert set(found["engines"]) == {"system"}
    assert found["status"]["edge"]["breaker"] != "closed"


@pytest.mark.parametrize(("alive", "state"), [(True, "closed"), (False, "open")])
def test_failures_of_one_voice_have_the_engine_probed_before_it_is_left_alone(
    tree: Tree, alive: bool, state: str
) -> None:
    found = tree.run("breaker_of_one_voice", alive=alive, env=PATIENT)
    assert found == {"state": state}
