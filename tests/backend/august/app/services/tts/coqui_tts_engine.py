# SPDX-License-Identifier: MIT
"""Coqui's local voices; needs the ``TTS`` package, which the requirements do not name."""

from __future__ import annotations

import typing as t

from app.core.logging import get_logger

from .base_tts import AudioChunk, AudioFormat, BaseTTSEngine, TTSEngine, TTSRequest, TTSResponse

logger = get_logger(__name__)


class CoquiTTS(BaseTTSEngine):
    def __init__(self) -> None:
        super().__init__(TTSEngine.COQUI)
        self._model: t.Any = None

    async def initialize(self) -> bool:
        try:
            from TTS.api import TTS

            self._model = TTS("tts_models/en/ljspeech/tacotron2-DDC")
            self.is_initialized = True
        except Exception as error:
            logger.error("Coqui TTS initialization failed", error=str(error))
            self.is_initialized = False
        return self.is_initialized

    def get_supported_formats(self) -> t.List[AudioFormat]:
        return [AudioFormat.WAV]

    def get_max_text_length(self) -> int:
        return 5000

    async def synthesize(self, request: TTSRequest) -> TTSResponse:
        if not self.is_initialized:
            return TTSResponse(request=request, error="Coqui TTS is not initialized", success=False)
        samples = self._model.tts(self.prepare_text(request.text))
        audio = b"".join(
            int(max(-1.0, min(1.0, sample)) * 32767).to_bytes(2, "little", signed=True) for sample in samples
        )
        return TTSResponse(
            request=request,
            audio_data=audio,
            duration_ms=self.estimate_duration(request.text),
            engine_used=TTSEngine.COQUI,
        )

    async def synthesize_stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]:
        response = await self.synthesize(request)
        yield AudioChunk(response.audio_data or b"", request.sample_rate, request.format, 0, is_final=True)
