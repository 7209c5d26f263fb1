# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether bytes are audio that can be played: WAV is read frame by frame, MP3 by its frame headers."""

from __future__ import annotations

import io
import typing as t
import wave

from ..core.results import OpsError

#: kbit/s by bitrate index, layer III: MPEG 1, and MPEG 2 and 2.5 (ISO/IEC 11172-3 2.4.2.3, ISO/IEC 13818-3).
_BITRATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def describe(data: bytes) -> t.Dict[str, t.Any]:
    """``format`` (wav, mp3), ``sample_rate`` in Hz, ``duration_ms``, ``silent``.

    Raises ``OpsError`` for what does not play.
    """
    if data[:4] == b"RIFF":
        return _wav(data)
    return _mp3(data)


def _wav(data: bytes) -> t.Dict[str, t.Any]:
    try:
        with wave.open(io.BytesIO(data)) as file:
            frames = file.readframes(file.getnframes())
            size = file.getnframes() * file.getsampwidth() * file.getnchannels()
            rate, count = file.getframerate(), file.getnframes()
    except (wave.Error, EOFError) as error:
        raise OpsError(f"the WAV file does not decode: {error}") from error
    if not count or len(frames) != size:
        raise OpsError(f"truncated WAV: header declares {size} bytes, found {len(frames)}")
    return {"format": "wav", "sample_rate": rate, "duration_ms": int(1000 * count / rate), "silent": not any(frames)}


def _mp3(data: bytes) -> t.Dict[str, t.Any]:
    """Follows the chain of layer III frames from the first to the last byte; what is cut off in the last frame is let
    pass.
    """
    position = 0
    if data[:3] == b"ID3" and len(data) > 10:
        position = 10 + ((data[6] & 127) << 21 | (data[7] & 127) << 14 | (data[8] & 127) << 7 | data[9] & 127)
    frames, duration, rate = 0, 0.0, 0
    while position + 4 <= len(data):
        if data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
            break
        version, layer = data[position + 1] >> 3 & 3, data[position + 1] >> 1 & 3
        index, step, padding = data[position + 2] >> 4, data[position + 2] >> 2 & 3, data[position + 2] >> 1 & 1
        if version == 1 or layer != 1 or index in (0, 15) or step == 3:
            break
        bitrate, rate = _BITRATES[3 if version == 3 else 2][index], _RATES[version][step]
        samples = 1152 if version == 3 else 576
        position += samples // 8 * bitrate * 1000 // rate + padding
        frames, duration = frames + 1, duration + 1000 * samples / rate
    if frames < 2 or position < len(data) - 128 - 1:
        raise OpsError(
            f"the data is neither WAV nor MP3: {frames} frames, {len(data) - min(position, len(data))} bytes that"
            " belong to none"
        )
    return {"format": "mp3", "sample_rate": rate, "duration_ms": int(duration), "silent": False}
