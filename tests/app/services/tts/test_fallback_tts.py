# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's own engines: the text cannot become an option, a path or code; nothing is left behind; text only is
said to be so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.tts_backend import Tree, path_with
from wheels_ops.host.audio import describe

#: Options of espeak, paths, shells, substitutions, control characters, markup, phoneme input, and texts that are merely
#: long or strange.
CORPUS = [
    "-f/etc/passwd",
    "-f /etc/passwd",
    "--path=/tmp",
    "--stdout",
    "--compile=en",
    "-w/tmp/out.wav",
    "-w /tmp/out.wav",
    "--phonout=/tmp/x",
    "-x",
    "-q",
    "-v whisper",
    "--version",
    "--help",
    "--",
    "-- -f /etc/passwd",
    "-m <audio src='/etc/passwd'/>",
    '<audio src="/etc/passwd"/>',
    "<speak>hi</speak>",
    "$(touch /tmp/pwned)",
    "`touch /tmp/pwned`",
    "; touch /tmp/pwned",
    "| cat /etc/passwd",
    "&& id",
    "> /tmp/pwned",
    "< /etc/passwd",
    '"; id; "',
    "'; id; '",
    "%s%s%s%n",
    "{0.__class__}",
    "{{7*7}}",
    "${HOME}",
    "$PATH",
    "~root",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "/etc/passwd",
    "@/etc/passwd",
    "hello\nworld",
    "tab\there",
    "a\\nb",
    "\\x00",
    "quote \" and ' and \\",
    "日本語のテスト",
    "Привет мир",
    "emoji 🎉 party",
    "naïve café",
    "RIFF WAVE data",
    "C:\\Windows\\System32",
    "'); Invoke-Expression calc; ('",
    "one, two; three: four.",
]
VOICE = ["-b", "1", "-v", "en-us+f3", "-s", "175", "-p", "50", "-a", "100"]


@pytest.fixture
def tree(tree: Tree) -> Tree:
    """No test here waits for a limit of the service, so a busy machine may take as long as it likes."""
    return dataclasses.replace(tree, patience=60)


def with_sizes(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:40] + struct.pack("<I", len(data) - 44) + data[44:]


def test_fifty_injections_are_spoken_as_they_stand_and_read_nothing(tree: Tree, tmp_path: Path) -> None:
    """The witness: espeak-ng reading the same text from a file.

    Its arguments are recorded by a program in its place.
    """
    assert len(CORPUS) == len(set(CORPUS)) == 50
    real = shutil.which("espeak-ng")
    record = tmp_path / "arguments"
    path = path_with(tmp_path / "bin", espeak_ng=f'echo "$@" >> {record}\nexec {real} "$@"')
    found = tree.run("corpus", texts=CORPUS, env={"PATH": f"{path}:/usr/bin:/bin"})
    for number, (text, spoken) in enumerate(zip(CORPUS, found)):
        source = tmp_path / f"{number}.txt"
        source.write_bytes(text.encode())
        said = subprocess.run(
            ["espeak-ng", *VOICE, "-f", str(source), "--stdout"], capture_output=True, check=True
        ).stdout
        if not any(said[44:]):
            assert (spoken["engine"], spoken["kind"]) == ("text_only", "no_audio"), "nobody can say that"
            continue
        assert spoken["engine"] == "espeak", text
        assert spoken["sha"] == hashlib.sha256(with_sizes(said)).hexdigest(), text
    assert set(record.read_text().splitlines()) == {f"--stdin --stdout {' '.join(VOICE)}"}
    assert not Path("/tmp/pwned").exists() and not Path("/tmp/out.wav").exists()


@pytest.mark.parametrize(("text", "kind"), [("", "empty"), (" \n\t\0 ", "empty"), ("x" * 10_001, "too_long")])
def test_what_cannot_be_spoken_is_refused_before_a_program_starts(tree: Tree, text: str, kind: str) -> None:
    assert tree.run("corpus", texts=[text])[0] == {"sha": None, "engine": "text_only", "kind": kind}


def test_phoneme_input_is_not_interpreted(tree: Tree) -> None:
    spoken = tree.run("corpus", texts=["Say [[h@loU]] now", "Say [ [h@loU]] now"])
    assert spoken[0]["sha"] == spoken[1]["sha"]


def test_local_service_keeps_its_contract(tree: Tree) -> None:
    found = tree.run("fallback", text="Hello.")
    assert found["started"] == [True, True]
    assert found["engines"] == ["espeak", "pyttsx3", "text_only"], "initialized twice, listed once"
    answer = found["answer"]
    assert (
        answer["success"]
        and answer["engine"] == "espeak"
        and answer["format"] == "wav"
        and answer["audio_data"] > 1000
        and answer["duration"] > 0.2
    )
    assert found["ready"] and found["available"]
    assert found["response"]["engine"] == "system" and found["response"]["rate"] == 22050
    assert found["health"] == {
        "status": "healthy",
        "engine_available": True,
        "available_engines": ["espeak", "pyttsx3", "text_only"],
        "available_voices": 2,
        "supports_streaming": True,
    }
    assert sum(found["chunks"]) > 1000


def test_without_any_engine_the_text_is_shown_and_no_engine_is_called_healthy(tree: Tree, tmp_path: Path) -> None:
    env = {"PATH": path_with(tmp_path), "PYTHONPATH": str(without_module(tmp_path / "hidden", "pyttsx3"))}
    found = tree.run("fallback", text="Hello.", env=env)
    assert found["engines"] == ["text_only"]
    answer = found["answer"]
    assert answer["success"] and answer["audio_data"] is None and answer["engine"] == "text_only" and answer["degraded"]
    assert answer["text_response"] == "Hello." and answer["message"]
    assert not found["ready"] and not found["response"]["success"] and found["health"]["status"] == "unhealthy"
    spoken = tree.run("speak", text="Hello.", env={**env, "TTS_PRIMARY_ENGINE": "fallback"})
    assert spoken["status"]["status"] == "unhealthy" and spoken["status"]["speaks_now"]["engine"] == "text_only"
    said = spoken["answers"][0]
    assert (said["success"], said["bytes"], said["engine"], said["degraded"], said["text"]) == (
        True,
        0,
        "text_only",
        True,
        "Hello.",
    )


def test_pyttsx3_speaks_where_there_is_no_espeak_program(tree: Tree, tmp_path: Path) -> None:
    found = tree.run(
        "speak", text="Hello from the library.", env={"PATH": path_with(tmp_path), "TTS_PRIMARY_ENGINE": "fallback"}
    )
    assert found["answers"][0]["engine"] == "system" and found["answers"][0]["bytes"] > 1000


@pytest.mark.parametrize(
    "script",
    ["exit 3", "printf ''", "printf 'RIFF....WAVE'", "cat >/dev/null; printf 'not audio at all'", "kill -9 $$"],
)
def test_a_broken_engine_makes_way_for_the_next(tree: Tree, tmp_path: Path, script: str) -> None:
    env = {"PATH": path_with(tmp_path, espeak_ng=script) + ":/usr/bin:/bin", "TTS_PRIMARY_ENGINE": "fallback"}
    said = tree.run("speak", text="Somebody will say it.", env=env)["answers"][0]
    assert said["engine"] == "system" and said["bytes"] > 1000


def test_an_abandoned_or_hanging_engine_is_killed_with_its_children(tree: Tree, tmp_path: Path) -> None:
    seconds = f"9{os.getpid()}"  # no other run on this machine has processes of this name
    script = f'touch "$TMPDIR/started"; sleep {seconds} & sleep {seconds}'
    found = tree.run("cancelled", env={"PATH": path_with(tmp_path, espeak_ng=script) + ":/usr/bin:/bin"})
    (tree.directory / "tmp" / "started").unlink()
    assert found["cancelled"] and found["kind"] == "timeout" and found["children"] == 0
    processes = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\0%s\0" % seconds.encode() not in processes


def test_an_engine_is_bounded_in_processor_time_and_memory(tree: Tree, tmp_path: Path) -> None:
    script = f'sleep 0.2; cat /proc/self/limits > {tmp_path}/limits; exec /usr/bin/espeak-ng "$@"'
    env = {"PATH": path_with(tmp_path / "bin", espeak_ng=script) + ":/usr/bin:/bin", "TTS_PRIMARY_ENGINE": "fallback"}
    tree.run("speak", text="Hello.", env=env)
    limits = (tmp_path / "limits").read_text().splitlines()
    assert any(line.split()[:4] == ["Max", "cpu", "time", "10"] for line in limits)
    assert any(line.split()[:4] == ["Max", "address", "space", str(512 * 1024 * 1024)] for line in limits)


def test_what_is_called_wav_has_a_true_header(tree: Tree) -> None:
    import base64

    said = tree.run("speak", text="Hello.", env={"TTS_PRIMARY_ENGINE": "fallback"})["answers"][0]
    data = base64.b64decode(said["audio"])
    facts = describe(data)
    assert facts["format"] == said["format"] == "wav" and abs(facts["duration_ms"] - said["duration_ms"]) <= 1
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8


def test_an_engine_that_is_installed_later_is_found_without_a_restart(tree: Tree) -> None:
    found = tree.run(
        "installed_later",
        env={"TTS_PRIMARY_ENGINE": "fallback", "PYTHONPATH": str(without_module(tree.directory / "hidden", "pyttsx3"))},
    )
    assert found["first"]["engine"] == "text_only" and found["status"] == "unhealthy"
    assert found["second"]["engine"] == "system" and found["second"]["bytes"] > 1000


def without_module(directory: Path, module: str) -> Path:
    """A directory whose ``sitecustomize`` makes a module impossible to find."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {module!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return directory
