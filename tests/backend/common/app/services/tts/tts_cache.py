# SPDX-License-Identifier: MIT
"""Audio that was made before, in files below the temporary directory."""

from __future__ import annotations

import hashlib
import tempfile
import time
import typing as t
from pathlib import Path


class TTSCache:
    def __init__(self) -> None:
        self.directory = Path(tempfile.gettempdir()) / "pam_tts_cache"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0

    def _path(self, text: str, voice: str, kind: str) -> Path:
        return self.directory / f"{hashlib.sha256(f'{voice}:{kind}:{text}'.encode()).hexdigest()}.audio"

    async def get(self, text: str, voice: str, kind: str) -> t.Optional[bytes]:
        path = self._path(text, voice, kind)
        if path.exists():
            self.hits += 1
            return path.read_bytes()
        self.misses += 1
        return None

    async def put(self, text: str, voice: str, kind: str, audio: bytes) -> None:
        self._path(text, voice, kind).write_bytes(audio)

    def get_cache_stats(self) -> t.Dict[str, t.Any]:
        files = list(self.directory.glob("*.audio"))
        return {
            "entries": len(files),
            "size_bytes": sum(path.stat().st_size for path in files),
            "hits": self.hits,
            "misses": self.misses,
        }

    async def clear_cache(self, older_than_hours: t.Optional[int] = None) -> int:
        limit = time.time() - 3600 * older_than_hours if older_than_hours is not None else None
        removed = 0
        for path in self.directory.glob("*.audio"):
            if limit is None or path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
        return removed


tts_cache = TTSCache()
