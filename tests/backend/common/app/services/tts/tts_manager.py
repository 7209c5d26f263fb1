# SPDX-License-Identifier: MIT
"""A second manager of engines, used by the voice pipeline only."""

from __future__ import annotations

import typing as t

from app.core.logging import get_logger

from .base_tts import AudioFormat, BaseTTSEngine, TTSRequest, TTSResponse
from .voice_manager import voice_manager

logger = get_logger(__name__)


class TTSManager:
    def __init__(self) -> None:
        self.engines: t.List[BaseTTSEngine] = []

    @property
    def is_initialized(self) -> bool:
        return bool(self.engines)

    async def initialize(self) -> bool:
        from .edge_tts import EdgeTTS
        from .fallback_tts import SystemTTS

        for kind in (EdgeTTS, SystemTTS):
            try:
                engine: t.Any = kind()
                if engine.is_available() and await engine.initialize():
                    self.engines.append(engine)
            except Exception as error:
                logger.error("TTS engine failed to register", engine=kind.__name__, error=str(error))
        return self.is_initialized

    async def synthesize_for_pam(
        self, text: str, user_id: t.Optional[str] = None, context: str = "general", stream: bool = False
    ) -> t.Optional[TTSResponse]:
        request = TTSRequest(text, voice_manager.voice_for(user_id, context), AudioFormat.WAV, user_id=user_id)
        for engine in self.engines:
            response = await engine.synthesize(request)
            if response.success:
                return response
        return None

    def get_health_status(self) -> t.Dict[str, t.Any]:
        return {"initialized": self.is_initialized, "engines": [type(engine).__name__ for engine in self.engines]}


_manager: t.Optional[TTSManager] = None


async def get_tts_manager() -> TTSManager:
    global _manager
    if _manager is None:
        _manager = TTSManager()
        await _manager.initialize()
    return _manager
