# SPDX-License-Identifier: MIT
"""The older chat API."""

from __future__ import annotations

import typing as t

from fastapi import APIRouter
from pydantic import BaseModel

from app.core.websocket_manager import manager

router = APIRouter()


class ChatMessage(BaseModel):
    user_id: str
    message: str


@router.post("/chat")
async def chat(message: ChatMessage) -> t.Dict[str, t.Any]:
    answer = {"type": "chat_response", "message": f"You said: {message.message}"}
    delivered = await manager.send_personal_message(answer, message.user_id)
    return {"response": answer["message"], "delivered": bool(delivered)}
