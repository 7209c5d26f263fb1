# SPDX-License-Identifier: MIT
"""Speech: thirteen routes under ``/api/v1/tts``."""

from __future__ import annotations

import typing as t
from datetime import datetime

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from app.api.deps import CurrentUser, get_current_user
from app.core.logging import get_logger
from app.services.tts.quality_monitor import quality_monitor
from app.services.tts.tts_service import tts_service

logger = get_logger(__name__)
router = APIRouter(prefix="/tts", tags=["TTS"])

User = t.Annotated[CurrentUser, Depends(get_current_user)]
Answer = t.Dict[str, t.Any]
_MEDIA = {"wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "webm": "audio/webm", "pcm": "audio/pcm"}


class SynthesizeRequest(BaseModel):
    text: str = Field(min_length=1, max_length=5000)
    context: str = "general_conversation"
    voice_preference: t.Optional[str] = None


class VoicePreference(BaseModel):
    voice_data: t.Dict[str, t.Any]
    context: t.Optional[str] = None
    is_default: bool = False


class VoiceRating(BaseModel):
    voice_data: t.Dict[str, t.Any]
    rating: float = Field(ge=1, le=5)
    feedback: t.Optional[str] = None


def _initialised() -> None:
    if not tts_service.is_initialized:
        raise HTTPException(503, "TTS service is not available")


@router.post("/synthesize")
async def synthesize(body: SynthesizeRequest, user: User) -> Response:
    _initialised()
    answer = await tts_service.synthesize_for_pam(
        text=body.text, user_id=user.user_id, context=body.context, voice_preference=body.voice_preference, stream=False
    )
    if answer is None or not answer.success or not answer.audio_data:
        raise HTTPException(500, f"TTS synthesis failed: {getattr(answer, 'error', None) or 'no audio'}")
    kind = getattr(answer.request.format, "value", "wav") if answer.request else "wav"
    headers = {
        "X-TTS-Engine": answer.engine_used.value if answer.engine_used else "unknown",
        "X-TTS-Duration-Ms": str(answer.duration_ms or 0),
        "X-TTS-Generation-Time-Ms": str(answer.generation_time_ms or 0),
        "X-TTS-Cache-Hit": str(answer.cache_hit).lower(),
    }
    return Response(answer.audio_data, media_type=_MEDIA.get(kind, "application/octet-stream"), headers=headers)


@router.post("/synthesize/stream")
async def synthesize_stream(body: SynthesizeRequest, user: User) -> StreamingResponse:
    _initialised()
    chunks = await tts_service.synthesize_for_pam(
        text=body.text, user_id=user.user_id, context=body.context, voice_preference=body.voice_preference, stream=True
    )
    if chunks is None:
        raise HTTPException(500, "TTS streaming failed")

    async def body_of() -> t.AsyncIterator[bytes]:
        async for chunk in chunks:
            if chunk.data:
                yield chunk.data
            if chunk.is_final:
                break

    return StreamingResponse(body_of(), media_type="audio/wav")


@router.get("/voices")
async def voices(user: User) -> Answer:
    _initialised()
    found = await tts_service.get_available_voices(user_id=user.user_id)
    return {"voices": found, "total": len(found)}


@router.post("/voices/preference")
async def preference(body: VoicePreference, user: User) -> Answer:
    _initialised()
    done = await tts_service.set_user_voice_preference(
        user.user_id, body.voice_data, context=body.context, is_default=body.is_default
    )
    if not done:
        raise HTTPException(500, "Failed to set voice preference")
    return {"message": "Voice preference set", "is_default": body.is_default}


@router.post("/voices/rate")
async def rate(body: VoiceRating, user: User) -> Answer:
    _initialised()
    done = await tts_service.rate_voice(user.user_id, body.voice_data, body.rating, feedback=body.feedback)
    if not done:
        raise HTTPException(500, "Failed to rate voice")
    return {"message": "Voice rated", "rating": body.rating}


@router.get("/status")
async def status() -> Answer:
    return dict(await tts_service.get_service_status())


@router.get("/health")
async def health() -> Answer:
    found = await tts_service.get_service_status()
    engines = found.get("engines") or {}
    return {
        "status": "healthy" if found.get("initialized") and engines.get("healthy_engines") else "unhealthy",
        "engines": engines,
        "timestamp": datetime.utcnow().isoformat(),
    }


@router.post("/recovery/trigger")
async def recover(user: User) -> Answer:
    done = await tts_service.initialize()
    return {"message": "TTS recovery triggered", "initialized": bool(done)}


@router.post("/recovery/test_error")
async def test_error(user: User) -> Answer:
    logger.error("TTS test error", user_id=user.user_id)
    return {"message": "Test error recorded"}


@router.get("/analytics")
async def analytics(user: User) -> Answer:
    _initialised()
    return dict(await tts_service.get_user_analytics(user.user_id))


@router.post("/cache/clear")
async def clear_cache(user: User, older_than_hours: t.Optional[int] = None) -> Answer:
    return dict(await tts_service.clear_cache(older_than_hours))


@router.get("/quality/report")
async def quality_report(user: User) -> Answer:
    return dict(await quality_monitor.get_quality_report())


@router.get("/test")
async def test() -> Answer:
    if not tts_service.is_initialized:
        await tts_service.initialize()
    if not tts_service.is_initialized:
        return {"status": "not_available", "message": "TTS service is not initialized"}
    try:
        answer = await tts_service.synthesize_for_pam(
            text="Hello from PAM.", user_id="test", context="general_conversation", stream=False
        )
    except Exception as error:
        return {"status": "error", "message": str(error)}
    if answer is None or not answer.success or not answer.audio_data:
        return {"status": "unhealthy", "message": getattr(answer, "error", None) or "no audio was made"}
    return {
        "status": "healthy",
        "message": "TTS works",
        "generation_time_ms": answer.generation_time_ms,
        "engine_used": answer.engine_used.value if answer.engine_used else None,
        "audio_size_bytes": len(answer.audio_data),
    }
