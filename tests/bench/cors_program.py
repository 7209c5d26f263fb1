# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the backend's interpreter: CPU per request of a CORS layer. Reads ``layer case`` lines, answers each with
microseconds.

Layers: ``none``, ``ours``, ``starlette`` (of this interpreter's path) and ``original``: the incident's stack, written
from the description of its defects (Starlette's middleware under two BaseHTTPMiddlewares, one of which keeps answers by
origin and path).
"""

from __future__ import annotations

import asyncio
import sys
import time
import typing as t

from app.core.cors_config import CORSMiddleware, CORSPolicy
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware as StarletteCORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

OWN, FOREIGN = b"https://wheelsandwins.com", b"https://evil.example"
POLICY = CORSPolicy.from_mapping(
    {
        "allow_origins": [
            "https://wheelsandwins.com",
            "https://www.wheelsandwins.com",
            "https://wheels-wins-landing-page.netlify.app",
        ],
        "allow_origin_patterns": [r"https://deploy-preview-[0-9]{1,6}--wheels-wins-landing-page\.netlify\.app"],
    }
)
# What a browser sends besides.
USUAL = [
    (b"host", b"api.wheelsandwins.com"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"Mozilla/5.0"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"accept-language", b"en"),
    (b"referer", b"https://wheelsandwins.com/"),
    (b"cookie", b"session=1"),
]
ASKED = [
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"apikey,authorization,content-type,x-client-info"),
]
HUGE = [
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b",".join(b"x-%d" % n for n in range(3000))),
]
CASES: t.Dict[str, t.Tuple[str, t.List[t.Tuple[bytes, bytes]]]] = {
    "plain": ("GET", []),
    "allowed": ("GET", [(b"origin", OWN)]),
    "denied": ("GET", [(b"origin", FOREIGN)]),
    "preflight": ("OPTIONS", [(b"origin", OWN), *ASKED]),
    "preflight-denied": ("OPTIONS", [(b"origin", FOREIGN), *ASKED]),
    "huge": ("OPTIONS", [(b"origin", OWN), *HUGE]),
    "pattern": ("GET", [(b"origin", b"https://deploy-preview-12--wheels-wins-landing-page.netlify.app")]),
}
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"x-request-id", b"1")],
}
BODY = {"type": "http.response.body", "body": b"{}"}


async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
    await send({**START, "headers": list(t.cast(t.Any, START["headers"]))})
    await send(BODY)


class Keeping(BaseHTTPMiddleware):
    """Answers preflights from memory by origin and path, sets the headers again on everything else."""

    def __init__(self, app: t.Any) -> None:
        super().__init__(app)
        self.kept: t.Dict[str, Response] = {}

    async def dispatch(self, request: Request, call_next: t.Any) -> Response:
        origin = request.headers.get("origin")
        if request.method == "OPTIONS":
            key = f"{origin}:{request.url.path}"
            if key not in self.kept:
                self.kept[key] = Response("", headers={"Access-Control-Allow-Origin": origin or "*"})
            return self.kept[key]
        response: Response = await call_next(request)
        if origin in POLICY.allow_origins:
            response.headers["Access-Control-Allow-Origin"] = str(origin)
            response.headers["Access-Control-Allow-Credentials"] = "true"
        return response


class Watching(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: t.Any) -> Response:
        response: Response = await call_next(request)
        if request.headers.get("origin"):
            response.headers["X-CORS-Debug"] = request.headers["origin"]
        return response


def layers() -> t.Dict[str, t.Any]:
    arguments = POLICY.starlette_arguments()
    stack = StarletteCORSMiddleware(Watching(Keeping(application)), **arguments)
    return {
        "none": application,
        "ours": CORSMiddleware(application, POLICY),
        "starlette": StarletteCORSMiddleware(application, **arguments),
        "original": stack,
    }


async def nothing() -> t.Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def swallow(message: t.Any) -> None:
    return None


async def measure(layer: t.Any, case: str) -> float:
    """CPU microseconds per request; the least of several rounds, which is what the machine's other work
    disturbs least.
    """
    method, more = CASES[case]
    scope = {
        "type": "http",
        "method": method,
        "path": "/api/v1/x",
        "query_string": b"",
        "headers": USUAL + more,
        "http_version": "1.1",
        "server": ("a", 80),
        "scheme": "http",
    }
    number, rounds = 50, []
    for _ in range(9):
        start = time.thread_time_ns()
        for _ in range(number):
            await layer(dict(scope), nothing, swallow)
        took = (time.thread_time_ns() - start) / 1000
        if took < 8000:
            number *= 2
        rounds.append(took / number if took >= 8000 else took / (number / 2))
    return min(rounds)


async def main() -> None:
    made = layers()
    for line in sys.stdin:
        layer, case = line.split()
        print(await measure(made[layer], case), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
