# SPDX-License-Identifier: MIT
"""Microsoft Edge's voices, over the network."""

from __future__ import annotations

import asyncio
import typing as t

from app.core.logging import get_logger

from .base_tts import AudioChunk, AudioFormat, BaseTTSEngine, TTSEngine, TTSRequest, TTSResponse, VoiceProfile

logger = get_logger(__name__)

_START_TIMEOUT = 10


class EdgeTTS(BaseTTSEngine):
    def __init__(self) -> None:
        super().__init__(TTSEngine.EDGE)

    async def initialize(self) -> bool:
        try:
            import edge_tts

            found = await asyncio.wait_for(edge_tts.list_voices(), _START_TIMEOUT)
            self.available_voices = [
                VoiceProfile(
                    voice["ShortName"],
                    voice["FriendlyName"],
                    voice["Gender"].lower(),
                    "adult",
                    voice["Locale"],
                    voice["Locale"][:2],
                    TTSEngine.EDGE,
                )
                for voice in found
                if voice["Locale"].startswith("en")
            ]
            self.is_initialized = True
        except Exception as error:
            logger.error("Edge TTS initialization failed", error=str(error))
            self.is_initialized = False
        return self.is_initialized

    def get_supported_formats(self) -> t.List[AudioFormat]:
        return [AudioFormat.WAV]

    def get_max_text_length(self) -> int:
        return 10_000

    def supports_streaming(self) -> bool:
        return True

    def _ssml(self, request: TTSRequest) -> str:
        voice = request.voice_profile.voice_id
        return (
            f'<speak version="1.0" xml:lang="en-US"><voice name="{voice}"><prosody'
            f' rate="+0%">{self.prepare_text(request.text)}</prosody></voice></speak>'
        )

    async def synthesize(self, request: TTSRequest) -> TTSResponse:
        audio = b"".join([chunk.data async for chunk in self.synthesize_stream(request)])
        return TTSResponse(
            request=request,
            audio_data=audio,
            duration_ms=self.estimate_duration(request.text),
            engine_used=TTSEngine.EDGE,
        )

    async def synthesize_stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]:
        import edge_tts

        index = 0
        async for part in edge_tts.Communicate(self._ssml(request), request.voice_profile.voice_id).stream():
            if part["type"] == "audio":
                yield AudioChunk(part["data"], 24_000, AudioFormat.WAV, index)
                index += 1
        yield AudioChunk(b"", 24_000, AudioFormat.WAV, index, is_final=True)
