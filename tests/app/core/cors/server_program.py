# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the backend's interpreter: every vector's application behind the CORS layer, under uvicorn.

Arguments: port, file of vectors, ``ours`` or ``starlette`` (its own middleware, for comparison).
The header ``x-vector`` says which one a request is for; the layer does not get to see it.
"""

from __future__ import annotations

import json
import sys
import typing as t

import uvicorn
from app.core.cors_config import CORSMiddleware, CORSPolicy
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware as StarletteCORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class Broken:
    """An inner middleware with a bug."""

    def __init__(self, app: t.Any) -> None:
        self.app = app

    async def __call__(self, scope: t.Any, receive: t.Any, send: t.Any) -> None:
        raise RuntimeError("inner")


class Limiter(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: t.Any) -> Response:
        return PlainTextResponse("slow down", 429, {"Retry-After": "7"})


class Verbose:
    """An inner middleware that writes CORS headers and Vary of its own, in capitals and more than once, and an early
    end of its own.
    """

    def __init__(self, app: t.Any) -> None:
        self.app = app

    async def __call__(self, scope: t.Any, receive: t.Any, send: t.Any) -> None:
        async def louder(message: t.Any) -> None:
            if message["type"] == "http.response.start":
                origin = next((value for name, value in scope["headers"] if name == b"origin"), b"*")
                own = [
                    (b"Access-Control-Allow-Origin", origin),
                    (b"ACCESS-CONTROL-ALLOW-ORIGIN", b"*"),
                    (b"Access-Control-Max-Age", b"1"),
                    (b"Access-Control-Allow-Credentials", b"true"),
                    (b"Access-Control-Expose-Headers", b"*"),
                    (b"Access-Control-Allow-Methods", b"*"),
                    (b"Vary", b"Accept-Encoding"),
                    (b"VARY", b" cookie ,, ORIGIN,"),
                    (b"vary", b""),
                ]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, louder)


class LateError:
    """Fails when the response has begun: nothing can be said about it any more."""

    def __init__(self, app: t.Any) -> None:
        self.app = app

    async def __call__(self, scope: t.Any, receive: t.Any, send: t.Any) -> None:
        await self.app(scope, receive, send)
        raise RuntimeError("after the response")


class Passing(BaseHTTPMiddleware):
    """What the backend's own middlewares are: the response goes through a queue."""

    async def dispatch(self, request: Request, call_next: t.Any) -> Response:
        response = t.cast(Response, await call_next(request))
        response.headers["X-Request-ID"] = "2"
        return response


async def _events() -> t.AsyncIterator[bytes]:
    for number in range(3):
        yield b"id: %d\ndata: {}\n\n" % number


async def _chunks() -> t.AsyncIterator[bytes]:
    for number in range(3):
        yield b"chunk %d\n" % number


def application(kind: str) -> t.Any:
    async def endpoint(request: Request) -> Response:
        if kind == "boom":
            raise RuntimeError("boom")
        if kind == "needauth":
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        if kind == "notmod":
            return Response(status_code=304, headers={"ETag": '"1"'})
        if kind == "redir":
            return RedirectResponse("/elsewhere", 307)
        if kind == "stream":
            return StreamingResponse(_chunks())
        if kind == "sse":
            return StreamingResponse(_events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        if kind == "invalid":
            return JSONResponse({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422)
        extra = {
            "vary": {"Vary": "Accept-Encoding"},
            "varystar": {"Vary": "*"},
            "varyorigin": {"Vary": "origin, Cookie"},
            "ownacao": {
                "Access-Control-Allow-Origin": "*",
                "Access-Control-Allow-Credentials": "true",
                "Access-Control-Expose-Headers": "X-Other",
            },
        }.get(kind, {})
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": "GET, POST"})
        return JSONResponse({"ok": True}, headers={"X-Request-ID": "1", **extra})

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    methods = ["GET"] if kind == "getonly" else [*METHODS, "OPTIONS"] if kind == "optroute" else METHODS
    routes = [] if kind == "notfound" else [Route("/{path:path}", endpoint, methods=methods)]
    middleware = {
        "inner500": [Middleware(Broken)],
        "limited": [Middleware(Limiter)],
        "verbose": [Middleware(Verbose)],
        "late500": [Middleware(LateError)],
        "passing": [Middleware(Passing)],
        "mounted": [
            Middleware(
                StarletteCORSMiddleware,
                allow_origins=["*"],
                allow_credentials=True,
                allow_methods=["*"],
                allow_headers=["*"],
                max_age=5,
            )
        ],
    }.get(kind, [])
    made = Starlette(routes=[WebSocketRoute("/ws", socket), *routes], middleware=middleware)
    return Starlette(routes=[Mount("/api", made)]) if kind == "mounted" else made


def dispatcher(data: t.Mapping[str, t.Any], layer: str) -> t.Any:
    def wrapped(kind: str, policy: t.Mapping[str, t.Any]) -> t.Any:
        made = CORSPolicy.from_mapping(policy)
        if layer == "ours":
            return CORSMiddleware(application(kind), made)
        app = application(kind)
        app.add_middleware(StarletteCORSMiddleware, **made.starlette_arguments())
        return app

    layers = {
        vector["id"]: wrapped(vector["app"], {**data["policy"], **vector["policy_override"]})
        for vector in data["vectors"]
    }
    layers["ws"] = wrapped("ok", data["policy"])

    async def serve(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        chosen = [value.decode() for name, value in scope["headers"] if name == b"x-vector"]
        scope["headers"] = [
            pair for pair in scope["headers"] if pair[0] not in (b"x-vector", b"host", b"accept-encoding")
        ]
        await layers[chosen[0]](scope, receive, send)

    return serve


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        uvicorn.run(
            dispatcher(json.load(file), sys.argv[3]),
            host="127.0.0.1",
            port=int(sys.argv[1]),
            log_level="critical",
            lifespan="off",
            h11_max_incomplete_event_size=1 << 20,
        )
