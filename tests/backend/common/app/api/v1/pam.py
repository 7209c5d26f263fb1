# SPDX-License-Identifier: MIT
"""PAM: chat over HTTP and over a socket."""

from __future__ import annotations

import json
import time
import typing as t
import uuid

import jwt
from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field

from app.api.deps import Claims, decode_token, verify_jwt_token
from app.core.config import get_settings
from app.core.cors_config import cors_config
from app.core.logging import get_logger
from app.core.websocket_keepalive import websocket_keepalive
from app.core.websocket_manager import manager
from app.services.cache_manager import cache_manager
from app.services.database import database_service
from app.services.pam import connection_context, history
from app.services.tts.enhanced_tts_service import enhanced_tts_service

logger = get_logger(__name__)
router = APIRouter(prefix="/pam", tags=["PAM"])

UNAUTHORISED, BLOCKED, TOO_FAST, TOO_LARGE = 4001, 4002, 4008, 4009
_LARGEST_MESSAGE = 65_536
_MESSAGES_PER_SECOND = 50


class ChatRequest(BaseModel):
    message: str = Field(min_length=1, max_length=10_000)
    context: t.Dict[str, t.Any] = {}


def _answer(message: str) -> t.Dict[str, t.Any]:
    return {"response": f"PAM heard: {message}", "timestamp": time.time()}


@router.get("/chat")
async def describe() -> t.Dict[str, str]:
    return {"service": "pam", "status": "available"}


@router.post("/chat")
async def chat(body: ChatRequest, claims: Claims = Depends(verify_jwt_token)) -> t.Dict[str, t.Any]:  # noqa: B008 - FastAPI's way
    user_id = str(claims["sub"])
    cached = await cache_manager.get(user_id, body.message)
    if cached:
        return {**cached, "cached": True}
    answer = _answer(body.message)
    await cache_manager.put(user_id, body.message, answer)
    await database_service.log_agent(claims, "chat")
    return {**answer, "cached": False}


@router.options("/chat")
@router.options("/voice")
async def options(request: Request) -> Response:
    return cors_config.create_options_response(origin=request.headers.get("origin"), cache_bust=True)


@router.get("/history")
async def conversation_history(
    megabytes: int = Query(default=16, ge=1, le=512),
    claims: Claims = Depends(verify_jwt_token),  # noqa: B008 - FastAPI's way
) -> t.Dict[str, t.Any]:
    user_id = str(claims["sub"])
    return {"user_id": user_id, "messages": await history.build(user_id, megabytes)}


@router.get("/voice/health")
async def voice_health() -> t.Dict[str, t.Any]:
    status = await enhanced_tts_service.get_health_status()
    return {
        **status,
        "primary_engine": get_settings().TTS_PRIMARY_ENGINE,
        "fallback_enabled": get_settings().TTS_FALLBACK_ENABLED,
    }


def _ip_blocked(websocket: WebSocket) -> bool:
    monitor = getattr(websocket.app.state, "security_monitor", None)
    return bool(monitor and websocket.client and websocket.client.host in monitor.blocked_ips)


@router.websocket("/ws")
async def socket(websocket: WebSocket, token: t.Optional[str] = None) -> None:
    await serve(websocket, token)


async def serve(websocket: WebSocket, token: t.Optional[str], owner: t.Optional[str] = None) -> None:
    """One socket from the handshake to its end; ``owner`` is who the token must belong to."""
    await websocket.accept()
    if _ip_blocked(websocket):
        await websocket.close(BLOCKED, "IP address blocked")
        return
    try:
        claims = decode_token(token or "")
    except jwt.PyJWTError:
        await websocket.close(UNAUTHORISED, "Invalid or missing token")
        return
    user_id = str(claims["sub"])
    if owner is not None and user_id != owner:
        await websocket.close(UNAUTHORISED, "The token belongs to someone else")
        return
    connection_id = str(uuid.uuid4())
    await manager.connect(websocket, user_id, connection_id)
    websocket_keepalive.start(connection_id, websocket)
    try:
        await manager.send_personal_message(
            {"type": "connection", "status": "connected", "connection_id": connection_id}, websocket
        )
        await connection_loop(websocket, connection_id)
    except WebSocketDisconnect:
        logger.info("WebSocket disconnected", user_id=user_id)
    except Exception as error:
        logger.error("WebSocket failed", user_id=user_id, error=str(error))
    finally:
        websocket_keepalive.stop(connection_id)
        manager.disconnect(user_id, connection_id)


class Conversation:
    """What is read from one socket, message by message."""

    def __init__(self, websocket: WebSocket, connection_id: str) -> None:
        self.websocket, self.connection_id = websocket, connection_id
        self.second, self.in_second = 0, 0

    async def turn(self) -> bool:
        """Answers the next message; False when the socket was closed because of it."""
        websocket = self.websocket
        text = await websocket.receive_text()
        if len(text) > _LARGEST_MESSAGE:
            await websocket.close(TOO_LARGE, "Message too large")
            return False
        now = int(time.monotonic())
        self.second, self.in_second = (now, 1) if now != self.second else (now, self.in_second + 1)
        if self.in_second > _MESSAGES_PER_SECOND:
            await websocket.close(TOO_FAST, "Too many messages")
            return False
        try:
            data = json.loads(text)
        except ValueError:
            await manager.send_personal_message({"type": "error", "message": "Invalid JSON"}, websocket)
            return True
        if not isinstance(data, dict):
            data = {"type": "chat", "message": data}
        kind = data.get("type", "chat")
        if kind == "ping":
            await manager.send_personal_message({"type": "pong", "timestamp": time.time()}, websocket)
        elif kind == "pong":
            await manager.handle_pong(self.connection_id)
        elif kind == "context":
            await connection_context.remember(self.connection_id, data.get("context") or {})
        else:
            answer = {"type": "chat_response", **_answer(str(data.get("message", "")))}
            context = connection_context.recall(self.connection_id)
            if context:
                answer["context"] = context
            await manager.send_personal_message(answer, websocket)
        return True


async def connection_loop(websocket: WebSocket, connection_id: str) -> None:
    conversation = Conversation(websocket, connection_id)
    while await conversation.turn():
        continue
