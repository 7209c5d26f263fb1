# SPDX-License-Identifier: GPL-3.0-or-later
"""What is audio and what only looks like it."""

from __future__ import annotations

import io
import subprocess
import wave

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host.audio import describe


def sound(seconds: float = 0.5, rate: int = 22050, sample: bytes = b"\x10\x20") -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(rate)
        target.writeframes(sample * int(seconds * rate))
    return file.getvalue()


def test_wav() -> None:
    assert describe(sound()) == {"format": "wav", "sample_rate": 22050, "duration_ms": 500, "silent": False}
    assert describe(sound(sample=b"\0\0"))["silent"]


@pytest.mark.parametrize("rate", [16, 24, 44.1])
def test_mp3_as_lame_writes_it(rate: float) -> None:
    mp3 = subprocess.run(
        ["lame", "--quiet", "--resample", str(rate), "--cbr", "-b", "48", "-m", "m", "-", "-"],
        input=sound(2),
        capture_output=True,
        check=True,
    ).stdout
    found = describe(mp3)
    assert found["format"] == "mp3" and found["sample_rate"] == int(rate * 1000) and 1900 < found["duration_ms"] < 2200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"<html>no audio</html>",
        b"RIFF\0\0\0\0WAVE",
        sound()[:-100],
        sound(0),
        b"\xff\xfb" + b"\0" * 4000,
        b"ID3\x03\0\0\0\0\0\0",
        bytes(range(256)) * 40,
    ],
)
def test_what_does_not_play(data: bytes) -> None:
    with pytest.raises(OpsError):
        describe(data)
