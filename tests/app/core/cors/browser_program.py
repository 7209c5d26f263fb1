# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the backend's interpreter: an API behind the CORS layer with the production policy, over TLS.

Arguments: port, certificate, key.
"""

from __future__ import annotations

import sys

import uvicorn
from app.core.cors_config import CORSMiddleware
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

calls: list[str] = []


async def endpoint(request: Request) -> Response:
    kind = request.path_params["kind"]
    if kind == "calls":
        return JSONResponse(calls)
    calls.append(f"{request.method} {kind} {request.headers.get('origin')}")
    if kind == "boom":
        raise RuntimeError("boom")
    if kind == "denied":
        raise HTTPException(401, "Not authenticated")
    if kind == "redirect":
        return RedirectResponse("/api/x", 307)
    answer = JSONResponse(
        {"cookie": request.cookies.get("session"), "method": request.method},
        headers={"X-Request-ID": "42", "X-Hidden": "1"},
    )
    if kind == "login":
        # Partitioned: browsers keep no other cookie of another site.
        answer.headers.append("set-cookie", "session=secret; Path=/; Secure; HttpOnly; SameSite=None; Partitioned")
    return answer


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


if __name__ == "__main__":
    routes = [Route("/api/{kind}", endpoint, methods=["GET", "POST", "PUT", "DELETE"]), WebSocketRoute("/ws", socket)]
    uvicorn.run(
        CORSMiddleware(Starlette(routes=routes)),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        ssl_certfile=sys.argv[2],
        ssl_keyfile=sys.argv[3],
        log_level="critical",
    )
