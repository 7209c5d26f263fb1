# SPDX-License-Identifier: MIT
"""Turns answers into a stream of audio."""

from __future__ import annotations

import typing as t


class AudioProcessor:
    async def speak(self, user_id: str, text: str) -> t.AsyncIterator[bytes]:
        from app.services.tts.tts_service import tts_service

        if not tts_service.is_initialized:
            await tts_service.initialize()
        chunks = await tts_service.synthesize_for_pam(text=text, user_id=user_id, stream=True)
        if chunks is not None:
            async for chunk in chunks:
                yield chunk.data
                if chunk.is_final:
                    return


audio_processor = AudioProcessor()
