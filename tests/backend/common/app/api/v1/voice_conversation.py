# SPDX-License-Identifier: MIT
"""Spoken conversations."""

from __future__ import annotations

import typing as t

from fastapi import APIRouter

from app.services.tts.tts_service import tts_service
from app.services.voice.conversation_manager import conversation_manager

router = APIRouter(prefix="/voice-conversation", tags=["Voice"])


@router.get("/status")
async def status() -> t.Dict[str, t.Any]:
    tts = await tts_service.get_service_status()
    return {"tts_status": tts.get("status", "unknown"), "conversations": conversation_manager.count()}
