# SPDX-License-Identifier: MIT
"""Types of the speech services, the base of an engine, and the manager that chooses one."""

from __future__ import annotations

import time
import typing as t
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum

from app.core.logging import get_logger

logger = get_logger(__name__)


class TTSEngine(Enum):
    ELEVENLABS = "elevenlabs"
    OPENAI = "openai"
    COQUI = "coqui"
    AZURE = "azure"
    GOOGLE = "google"
    EDGE = "edge"


class AudioFormat(Enum):
    WAV = "wav"
    MP3 = "mp3"
    OGG = "ogg"
    WEBM = "webm"
    PCM = "pcm"


class VoiceStyle(Enum):
    FRIENDLY = "friendly"
    PROFESSIONAL = "professional"
    CASUAL = "casual"
    ENERGETIC = "energetic"
    CALM = "calm"
    AUTHORITATIVE = "authoritative"


@dataclass
class VoiceSettings:
    stability: float = 0.75
    similarity_boost: float = 0.75
    speed: float = 1.0
    pitch: float = 1.0
    volume: float = 1.0
    style: VoiceStyle = VoiceStyle.FRIENDLY


@dataclass
class VoiceProfile:
    voice_id: str
    name: str
    gender: str
    age: str
    accent: str
    language: str = "en"
    engine: TTSEngine = TTSEngine.ELEVENLABS
    settings: t.Optional[VoiceSettings] = None

    def __post_init__(self) -> None:
        if self.settings is None:
            self.settings = VoiceSettings()


@dataclass
class AudioChunk:
    data: bytes
    sample_rate: int
    format: AudioFormat
    chunk_index: int
    is_final: bool = False
    metadata: t.Optional[t.Dict[str, t.Any]] = None


@dataclass
class TTSRequest:
    text: str
    voice_profile: VoiceProfile
    format: AudioFormat = AudioFormat.WAV
    sample_rate: int = 22050
    stream: bool = False
    cache_key: t.Optional[str] = None
    priority: int = 1
    user_id: t.Optional[str] = None
    session_id: t.Optional[str] = None


@dataclass
class TTSResponse:
    request: TTSRequest
    audio_data: t.Optional[bytes] = None
    chunks: t.Optional[t.List[AudioChunk]] = None
    duration_ms: t.Optional[int] = None
    generation_time_ms: t.Optional[int] = None
    cache_hit: bool = False
    engine_used: t.Optional[TTSEngine] = None
    error: t.Optional[str] = None
    success: bool = True


class BaseTTSEngine(ABC):
    def __init__(self, engine_type: TTSEngine) -> None:
        self.engine_type = engine_type
        self.is_initialized = False
        self.available_voices: t.List[VoiceProfile] = []
        self.rate_limit_delay = 0.1

    @abstractmethod
    async def initialize(self) -> bool: ...

    @abstractmethod
    async def synthesize(self, request: TTSRequest) -> TTSResponse: ...

    @abstractmethod
    def synthesize_stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]: ...

    async def get_available_voices(self) -> t.List[VoiceProfile]:
        return self.available_voices

    async def health_check(self) -> t.Dict[str, t.Any]:
        return {"status": "healthy" if self.is_initialized else "unhealthy", "engine": self.engine_type.value}

    async def close(self) -> None:
        self.is_initialized = False

    def supports_streaming(self) -> bool:
        return False

    def supports_voice_cloning(self) -> bool:
        return False

    def get_supported_formats(self) -> t.List[AudioFormat]:
        return [AudioFormat.WAV]

    def get_max_text_length(self) -> int:
        return 1000

    def estimate_duration(self, text: str) -> int:
        """Milliseconds, at 150 words a minute."""
        return int(len(text.split()) / 150 * 60_000)

    def validate_request(self, request: TTSRequest) -> bool:
        if not request.text or len(request.text) > self.get_max_text_length():
            return False
        return request.format in self.get_supported_formats()

    def prepare_text(self, text: str) -> str:
        return " ".join(text.split())


@dataclass
class TTSEngineManager:
    engines: t.Dict[TTSEngine, BaseTTSEngine] = field(default_factory=dict)
    primary_engine: t.Optional[TTSEngine] = None
    fallback_engines: t.List[TTSEngine] = field(default_factory=list)

    def register_engine(self, engine: BaseTTSEngine, is_primary: bool = False) -> None:
        self.engines[engine.engine_type] = engine
        if is_primary:
            self.primary_engine = engine.engine_type
        elif engine.engine_type not in self.fallback_engines:
            self.fallback_engines.append(engine.engine_type)

    async def initialize_all(self) -> t.Dict[str, bool]:
        results = {}
        for kind, engine in self.engines.items():
            try:
                results[kind.value] = await engine.initialize()
            except Exception as error:
                logger.error("TTS engine failed to start", engine=kind.value, error=str(error))
                results[kind.value] = False
        return results

    def _candidates(self) -> t.List[TTSEngine]:
        return ([self.primary_engine] if self.primary_engine else []) + self.fallback_engines

    async def get_best_engine(self, request: TTSRequest) -> t.Optional[BaseTTSEngine]:
        for kind in self._candidates():
            engine = self.engines.get(kind)
            if engine and engine.is_initialized and engine.validate_request(request):
                return engine
        return None

    async def synthesize_with_fallback(self, request: TTSRequest) -> TTSResponse:
        started = time.monotonic()
        engine = await self.get_best_engine(request)
        if engine is None:
            return TTSResponse(request=request, error="No suitable TTS engine available", success=False)
        response = await engine.synthesize(request)
        response.generation_time_ms = int(1000 * (time.monotonic() - started))
        return response

    async def health_check_all(self) -> t.Dict[str, t.Any]:
        engines = {kind.value: await engine.health_check() for kind, engine in self.engines.items()}
        healthy = sum(1 for state in engines.values() if state.get("status") == "healthy")
        return {
            "overall_status": "healthy" if healthy else "unhealthy",
            "engines": engines,
            "healthy_engines": healthy,
            "total_engines": len(engines),
        }

    async def close_all(self) -> None:
        for engine in self.engines.values():
            await engine.close()


tts_manager = TTSEngineManager()
