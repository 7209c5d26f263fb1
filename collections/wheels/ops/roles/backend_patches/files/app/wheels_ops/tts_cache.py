# SPDX-License-Identifier: MIT
"""What has been spoken before."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
import typing as t
from collections import OrderedDict
from pathlib import Path

from app.core.logging import get_logger
from app.services.tts.base_tts import AudioFormat
from app.services.tts.fallback_tts import Audio, SpeechError, Voice, container_of, wav_facts

from .tts_engines import flag, setting

logger = get_logger(__name__)

CACHE_BYTES, CACHE_DISK_BYTES = 32 * 1024 * 1024, 256 * 1024 * 1024


class Cache:
    """Spoken texts, least recently used first out: 32 MB of memory and, where ``TTS_CACHE_DIR`` is set, 256 MB of disk.

    The disk is not used unless asked for, as what PAM says to a user may be private. Files are readable by the service only.
    """

    def __init__(self) -> None:
        self.entries: OrderedDict[str, t.Tuple[float, Audio]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0
        self.enabled, self.lifetime = True, 3600.0
        self.directory: t.Optional[Path] = None

    def configure(self) -> None:
        self.enabled = flag("TTS_CACHE_ENABLED", True)
        with contextlib.suppress(TypeError, ValueError):
            self.lifetime = max(1.0, float(setting("TTS_CACHE_TTL", 3600)))
        wanted = os.environ.get("TTS_CACHE_DIR")
        self.directory = None
        if wanted:
            try:
                Path(wanted).mkdir(mode=0o700, parents=True, exist_ok=True)
                if os.stat(wanted).st_uid == os.geteuid():
                    self.directory = Path(wanted)
            except OSError as error:
                logger.warning("TTS cache directory cannot be used", error=str(error))

    @staticmethod
    def key(engine: str, voice: Voice, wanted: str, text: str) -> str:
        return hashlib.sha256(repr((engine, voice, wanted, text)).encode("utf-8", "replace")).hexdigest()

    def get(self, key: str) -> t.Optional[Audio]:
        found = self.entries.get(key)
        if found is None:
            return None
        if time.time() - found[0] > self.lifetime:
            self._drop(key)
            return None
        self.entries.move_to_end(key)
        return found[1]

    def put(self, key: str, audio: Audio, made: t.Optional[float] = None) -> None:
        if not self.enabled or len(audio.data) > CACHE_BYTES // 4:
            return
        self._drop(key)
        self.entries[key] = (time.time() if made is None else made, audio)
        self.bytes += len(audio.data)
        while self.bytes > CACHE_BYTES:
            self._drop(next(iter(self.entries)))

    def _drop(self, key: str) -> int:
        found = self.entries.pop(key, None)
        if found is None:
            return 0
        self.bytes -= len(found[1].data)
        return len(found[1].data)

    def shrink(self) -> int:
        """Gives all its memory back; the number of bytes."""
        freed, self.bytes = self.bytes, 0
        self.entries.clear()
        return freed

    def clear(self, older_than_seconds: float = 0.0) -> int:
        """Forgets what is older; the number of entries, in memory and on disk."""
        limit = time.time() - older_than_seconds
        old = [key for key, (made, _ignored) in self.entries.items() if made <= limit]
        for key in old:
            self._drop(key)
        gone = set(old)
        for path in self._files():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    gone.add(path.stem)
        return len(gone)

    def _files(self) -> t.List[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self.directory.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.(mp3|wav)", path.name)] if self.directory else []
        return []

    def load(self, key: str, engine: str) -> t.Optional[Audio]:
        """From the disk; blocks, so it runs in a thread."""
        for kind in (AudioFormat.MP3, AudioFormat.WAV):
            path = self.directory / f"{key}.{kind.value}" if self.directory else None
            with contextlib.suppress(OSError, SpeechError):
                if path is None or time.time() - path.stat().st_mtime > self.lifetime:
                    continue
                data = path.read_bytes()
                if container_of(data) is kind:
                    rate, duration = wav_facts(data) if kind is AudioFormat.WAV else (24_000, int(len(data) * 8 / 48))
                    return Audio(data, kind, rate, duration, engine)
        return None

    def save(self, key: str, audio: Audio) -> None:
        """To the disk, all or nothing, within its bound; blocks, so it runs in a thread."""
        if self.directory is None:
            return
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(audio.data)
            os.replace(temporary, self.directory / f"{key}.{audio.format.value}")
            files = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in self._files()), reverse=True)
            used = 0
            for _ignored, size, path in files:
                used += size
                if used > CACHE_DISK_BYTES:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("TTS cache cannot be written", error=str(error))
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def stats(self) -> t.Dict[str, t.Any]:
        asked = self.hits + self.misses
        return {
            "entries": len(self.entries), "bytes": self.bytes, "max_bytes": CACHE_BYTES, "hits": self.hits, "misses": self.misses,
            "hit_rate_percent": round(100 * self.hits / asked, 1) if asked else 0.0, "disk": str(self.directory or ""),
        }  # fmt: skip
