# SPDX-License-Identifier: MIT
"""Speech of the voice pipeline."""

from __future__ import annotations

import typing as t

from .tts_manager import get_tts_manager


class EnhancedTTSService:
    def __init__(self) -> None:
        self.is_initialized = False

    async def initialize(self) -> bool:
        self.is_initialized = (await get_tts_manager()).is_initialized
        return self.is_initialized

    async def get_health_status(self) -> t.Dict[str, t.Any]:
        manager = await get_tts_manager()
        return {"status": "healthy" if manager.is_initialized else "unhealthy", **manager.get_health_status()}


enhanced_tts_service = EnhancedTTSService()
