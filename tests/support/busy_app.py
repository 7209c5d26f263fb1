# SPDX-License-Identifier: MIT
"""An ASGI application that needs about five milliseconds of CPU for every answer."""

from __future__ import annotations

import hashlib
import typing as t


async def app(
    scope: t.Dict[str, t.Any], receive: t.Callable[[], t.Any], send: t.Callable[[t.Dict[str, t.Any]], t.Any]
) -> None:
    if scope["type"] != "http":
        return
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 10_000)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
