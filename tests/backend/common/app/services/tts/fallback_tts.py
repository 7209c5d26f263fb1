# SPDX-License-Identifier: MIT
"""The operating system's own voice."""

from __future__ import annotations

import platform
import subprocess
import tempfile
import typing as t

from app.core.logging import get_logger

from .base_tts import AudioChunk, AudioFormat, BaseTTSEngine, TTSEngine, TTSRequest, TTSResponse, VoiceProfile

logger = get_logger(__name__)


class FallbackTTSService:
    def __init__(self) -> None:
        self.is_initialized = False
        self.available_engines: t.List[str] = []

    async def initialize(self) -> bool:
        if platform.system() == "Darwin":
            self.available_engines.append("macos_say")
        elif platform.system() == "Windows":
            self.available_engines.append("powershell_tts")
        else:
            try:
                subprocess.run(["espeak", "--version"], capture_output=True, check=True)
                self.available_engines.append("espeak")
            except Exception:
                logger.warning("eSpeak not installed")
        self.available_engines.append("text_only")
        self.is_initialized = True
        return True

    async def synthesize_speech(self, text: str, user_id: t.Optional[str] = None) -> t.Dict[str, t.Any]:
        if "espeak" in self.available_engines:
            with tempfile.NamedTemporaryFile(suffix=".wav", delete=False) as target:
                name = target.name
            done = subprocess.run(["espeak", "-w", name, text], capture_output=True, timeout=30, check=False)
            if done.returncode == 0:
                with open(name, "rb") as audio:
                    return {
                        "audio_data": audio.read(),
                        "format": "wav",
                        "duration": len(text.split()) / 2.5,
                        "engine": "espeak",
                        "success": True,
                    }
        return {
            "audio_data": None,
            "format": "text",
            "duration": 0,
            "engine": "text_only",
            "success": True,
            "text_response": text,
            "message": "Speech is not available",
        }

    async def shutdown(self) -> None:
        self.is_initialized = False


class SystemTTS(BaseTTSEngine):
    """The fallback service in the shape of an engine."""

    def __init__(self) -> None:
        super().__init__(TTSEngine.AZURE)
        self.fallback_service = FallbackTTSService()

    def is_available(self) -> bool:
        return True

    async def initialize(self) -> bool:
        self.is_initialized = await self.fallback_service.initialize()
        self.available_voices = [
            VoiceProfile("system", "System voice", "neutral", "adult", "en", "en", TTSEngine.AZURE)
        ]
        return self.is_initialized

    async def synthesize(self, request: TTSRequest) -> TTSResponse:
        made = await self.fallback_service.synthesize_speech(request.text, request.user_id)
        duration = int(1000 * float(made["duration"]))
        return TTSResponse(
            request=request,
            audio_data=made["audio_data"],
            duration_ms=duration,
            engine_used=self.engine_type,
            success=made["success"],
        )

    async def synthesize_stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]:
        response = await self.synthesize(request)
        yield AudioChunk(response.audio_data or b"", 22050, AudioFormat.WAV, 0, is_final=True)

    async def health_check(self) -> t.Dict[str, t.Any]:
        engines = self.fallback_service.available_engines
        return {
            "status": "healthy" if self.is_initialized else "unhealthy",
            "engine_available": bool(engines),
            "available_engines": engines,
            "available_voices": len(self.available_voices),
            "supports_streaming": True,
        }

    def supports_streaming(self) -> bool:
        return True

    def get_supported_formats(self) -> t.List[AudioFormat]:
        return [AudioFormat.WAV]

    def get_max_text_length(self) -> int:
        return 5000


fallback_tts_service = FallbackTTSService()
