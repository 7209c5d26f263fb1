# SPDX-License-Identifier: MIT
"""What PAM asks for speech."""

from __future__ import annotations

import typing as t

from app.core.config import get_settings
from app.core.logging import get_logger

from .base_tts import AudioFormat, TTSEngine, VoiceProfile, VoiceSettings, VoiceStyle
from .streaming_tts import streaming_tts_service

logger = get_logger(__name__)


class TTSService:
    def __init__(self) -> None:
        self.streaming_service = streaming_tts_service
        self.is_initialized = False

    async def initialize(self) -> bool:
        if not get_settings().TTS_ENABLED:
            return False
        self.is_initialized = await self.streaming_service.initialize()
        return self.is_initialized

    async def synthesize_for_pam(
        self,
        text: str,
        user_id: t.Optional[str] = None,
        context: str = "general_conversation",
        voice_preference: t.Optional[t.Any] = None,
        stream: bool = False,
    ) -> t.Any:
        if not self.is_initialized:
            return None
        voice = self._voice(voice_preference) if isinstance(voice_preference, dict) else None
        if voice is None and user_id:
            try:
                voice = await self.streaming_service.get_user_voice_preference(user_id, context)  # type: ignore[attr-defined]  # as the release has it
            except Exception as error:
                logger.warning("Voice preference lookup failed", error=str(error))
        return await self.streaming_service.synthesize_text(
            text=text, user_id=user_id, context=context, voice_preference=voice, format=AudioFormat.MP3, stream=stream
        )

    def _voice(self, data: t.Dict[str, t.Any]) -> VoiceProfile:
        return VoiceProfile(
            str(data.get("voice_id", "")),
            str(data.get("name", "")),
            str(data.get("gender", "neutral")),
            str(data.get("age", "adult")),
            str(data.get("accent", "")),
            str(data.get("language", "en")),
            TTSEngine(data.get("engine", "edge")),
        )

    async def get_available_voices(self, user_id: t.Optional[str] = None) -> t.List[t.Dict[str, t.Any]]:
        voices = await self.streaming_service.get_recommended_voices(user_id, limit=50)
        return [self._describe(voice) for voice in voices]

    def _describe(self, voice: VoiceProfile) -> t.Dict[str, t.Any]:
        settings = voice.settings or VoiceSettings()
        style = settings.style.value if isinstance(settings.style, VoiceStyle) else settings.style
        return {
            "voice_id": voice.voice_id,
            "name": voice.name,
            "gender": voice.gender,
            "age": voice.age,
            "accent": voice.accent,
            "language": voice.language,
            "engine": voice.engine.value,
            "settings": {
                "stability": settings.stability,
                "similarity_boost": settings.similarity_boost,
                "speed": settings.speed,
                "pitch": settings.pitch,
                "volume": settings.volume,
                "style": style,
            },
        }

    async def set_user_voice_preference(
        self, user_id: str, voice_data: t.Dict[str, t.Any], context: t.Optional[str] = None, is_default: bool = False
    ) -> bool:
        return await self.streaming_service.set_user_voice_preference(
            user_id, self._voice(voice_data), context, is_default
        )

    async def rate_voice(
        self, user_id: str, voice_data: t.Dict[str, t.Any], rating: float, feedback: t.Optional[str] = None
    ) -> bool:
        return await self.streaming_service.rate_voice_interaction(user_id, self._voice(voice_data), rating, feedback)

    async def get_service_status(self) -> t.Dict[str, t.Any]:
        if not self.is_initialized:
            return {"status": "not_initialized", "initialized": False, "engines": {}}
        return {**await self.streaming_service.get_service_health(), "initialized": True}

    async def get_user_analytics(self, user_id: str) -> t.Dict[str, t.Any]:
        return await self.streaming_service.get_user_analytics(user_id)

    async def clear_cache(self, older_than_hours: t.Optional[int] = None) -> t.Dict[str, t.Any]:
        try:
            cleared = await self.streaming_service.cache.clear_cache(older_than_hours)
        except Exception as error:
            return {"error": str(error)}
        return {"success": True, "cleared_entries": cleared, "older_than_hours": older_than_hours}

    async def shutdown(self) -> None:
        await self.streaming_service.shutdown()
        self.is_initialized = False


tts_service = TTSService()
