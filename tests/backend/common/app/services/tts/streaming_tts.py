# SPDX-License-Identifier: MIT
"""Speech for PAM: chooses a voice, asks the engines, caches, counts."""

from __future__ import annotations

import typing as t

from app.core.logging import get_logger

from .base_tts import AudioChunk, AudioFormat, TTSRequest, TTSResponse, VoiceProfile, tts_manager
from .coqui_tts_engine import CoquiTTSEngine
from .edge_tts import EdgeTTS
from .quality_monitor import quality_monitor
from .tts_cache import tts_cache
from .voice_manager import voice_manager

logger = get_logger(__name__)


class StreamingTTSService:
    def __init__(self) -> None:
        self.tts_manager = tts_manager
        self.voice_manager = voice_manager
        self.cache = tts_cache
        self.is_initialized = False

    async def initialize(self) -> bool:
        self.tts_manager.register_engine(EdgeTTS(), is_primary=True)
        self.tts_manager.register_engine(CoquiTTSEngine())
        results = await self.tts_manager.initialize_all()
        await quality_monitor.start_monitoring()
        self.is_initialized = any(results.values())
        if not self.is_initialized:
            logger.error("No TTS engine could be started", engines=results)
        return self.is_initialized

    async def synthesize_text(
        self,
        text: str,
        user_id: t.Optional[str] = None,
        context: str = "general_conversation",
        voice_preference: t.Optional[VoiceProfile] = None,
        format: AudioFormat = AudioFormat.WAV,  # noqa: A002 - the name that callers use
        sample_rate: int = 22050,
        use_cache: bool = True,
        stream: bool = False,
    ) -> t.Union[TTSResponse, t.AsyncGenerator[AudioChunk, None]]:
        voice = voice_preference or self.voice_manager.voice_for(user_id, context)
        request = TTSRequest(text, voice, format, sample_rate, stream, user_id=user_id)
        if stream:
            return self._stream(request)
        if use_cache:
            audio = await self.cache.get(text, voice.voice_id, format.value)
            if audio:
                return TTSResponse(
                    request=request, audio_data=audio, cache_hit=True, generation_time_ms=0, engine_used=voice.engine
                )
        response = await self.tts_manager.synthesize_with_fallback(request)
        quality_monitor.record(
            response.success, response.engine_used.value if response.engine_used else None, response.generation_time_ms
        )
        if response.success and response.audio_data and use_cache:
            await self.cache.put(text, voice.voice_id, format.value, response.audio_data)
        return response

    async def _stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]:
        engine = await self.tts_manager.get_best_engine(request)
        if engine is None:
            logger.error("No suitable TTS engine available")
            return
        async for chunk in engine.synthesize_stream(request):
            yield chunk

    async def get_recommended_voices(
        self, user_id: t.Optional[str] = None, context: str = "general_conversation", limit: int = 5
    ) -> t.List[VoiceProfile]:
        found: t.List[VoiceProfile] = []
        for engine in self.tts_manager.engines.values():
            found.extend(await engine.get_available_voices())
        return found[:limit]

    async def set_user_voice_preference(
        self, user_id: str, voice: VoiceProfile, context: t.Optional[str] = None, is_default: bool = False
    ) -> bool:
        self.voice_manager.set_preference(user_id, voice, context, is_default)
        return True

    async def rate_voice_interaction(
        self, user_id: str, voice: VoiceProfile, rating: float, feedback: t.Optional[str] = None
    ) -> bool:
        self.voice_manager.rate(user_id, voice, rating, feedback)
        return True

    async def get_service_health(self) -> t.Dict[str, t.Any]:
        engines = await self.tts_manager.health_check_all()
        return {
            "service_status": engines["overall_status"],
            "engines": engines,
            "cache": self.cache.get_cache_stats(),
            "performance": quality_monitor.performance(),
            "quality": await quality_monitor.get_quality_report(),
        }

    async def get_user_analytics(self, user_id: str) -> t.Dict[str, t.Any]:
        return {
            "user_id": user_id,
            "ratings": [entry for entry in self.voice_manager.ratings if entry["user_id"] == user_id],
        }

    async def shutdown(self) -> None:
        await self.tts_manager.close_all()
        await quality_monitor.stop_monitoring()
        self.is_initialized = False


streaming_tts_service = StreamingTTSService()
