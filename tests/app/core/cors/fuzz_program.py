# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the backend's interpreter with a number and a seed: invented origins against the CORS layer; prints what came
back as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import typing as t

from app.core.cors_config import CORSMiddleware, cors_config

COUNT, SEED = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(SEED)
OWN = [origin.encode() for origin in cors_config.origins] + [
    b"https://deploy-preview-5--wheels-wins-landing-page.netlify.app"
]
# Independent of the layer: what may be named at all.
LEGITIMATE = re.compile(
    b"("
    + b"|".join(map(re.escape, OWN[:-1]))
    + rb"|https://deploy-preview-[0-9]{1,6}--wheels-wins-landing-page\.netlify\.app)"
)
PIECES = [
    b"https://",
    b"http://",
    b"wheelsandwins.com",
    b".evil.example",
    b"evil",
    b"www.",
    b":443",
    b"/",
    b"@",
    b"\\",
    b"null",
    b"*",
    b".",
    b"--",
    b"%00",
    b"#",
    b"?",
    b" ",
    b"\t",
    b"deploy-preview-",
    b"12",
    b"--wheels-wins-landing-page.netlify.app",
    b"wheelz-wins.com",
    b"lovable.app",
    b",",
    b"\xc3\xa9",
    b"file://",
    b"localhost:3000",
    b"[::1]",
]
counts = {"foreign": 0, "named": 0, "leaked": 0, "wrong": 0}


async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
    """Sets headers of its own that must not get through."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"access-control-allow-origin", b"*"), (b"vary", b"Cookie")],
        }
    )
    await send({"type": "http.response.body", "body": b""})


async def nothing() -> t.Any:
    return {"type": "http.request", "body": b"", "more_body": False}


layer = CORSMiddleware(application)


def invented() -> bytes:
    kind = rng.random()
    if kind < 0.35:
        return b"".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 6)))
    if kind < 0.85:
        text = bytearray(rng.choice(OWN))
        for _ in range(rng.randrange(1, 4)):
            at, action = rng.randrange(len(text) + 1), rng.random()
            if action < 0.4:
                text[at:at] = bytes([rng.randrange(256)])
            elif at < len(text) and action < 0.7:
                text[at] = rng.randrange(256)
            elif at < len(text):
                del text[at]
        return bytes(text)
    if kind < 0.95:
        return rng.randbytes(rng.randrange(0, 60))
    return rng.choice(OWN) + rng.choice(PIECES) * rng.randrange(1, 400)


async def ask(origin: bytes, preflight: bool) -> None:
    sent: t.List[t.Any] = []

    async def send(message: t.Any) -> None:
        sent.append(message)

    headers = [(b"origin", origin)]
    if preflight:
        headers.append((b"access-control-request-method", rng.choice([b"GET", b"PUT", b"TRACE"])))
        headers.append((b"access-control-request-headers", rng.choice([b"apikey", b"", b"x-evil", origin])))
    await layer(
        {"type": "http", "method": "OPTIONS" if preflight else "GET", "path": "/", "headers": headers}, nothing, send
    )
    back = sent[0]["headers"]
    stripped = origin.strip(b" \t")
    good = LEGITIMATE.fullmatch(stripped) is not None
    allowed = [value for name, value in back if name == b"access-control-allow-origin"]
    counts["foreign"] += not good
    counts["named"] += bool(allowed)
    counts["wrong"] += bool(allowed) and (not good or allowed != [stripped])
    counts["wrong"] += sent[0]["status"] not in (200, 403) or not any(
        name == b"vary" and b"Origin" in value for name, value in back
    )
    counts["leaked"] += not good and any(name.startswith(b"access-control-") for name, _ in back)
    counts["leaked"] += not allowed and len(origin) > 8 and any(origin in value for _, value in back)


async def main() -> None:
    for number in range(COUNT):
        await ask(invented(), number % 3 == 0)


asyncio.run(main())
snapshot = cors_config.debug_snapshot()
print(json.dumps({**counts, "kept": len(snapshot["denied_origins"]), "size": len(json.dumps(snapshot))}))
