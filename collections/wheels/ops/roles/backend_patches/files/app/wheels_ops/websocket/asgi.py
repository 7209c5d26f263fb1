# SPDX-License-Identifier: MIT
"""What the guard and the poll share: a scope's headers, its secrets, and a JSON answer to an HTTP request."""

from __future__ import annotations

import re
import typing as t

from app.core.websocket_manager import Send, encode

Scope = t.MutableMapping[str, t.Any]

_SECRET_IN_QUERY = re.compile(rb"(^|&)((?:access_|refresh_)?token|session|apikey)=[^&]*", re.IGNORECASE)


def header(scope: t.Mapping[str, t.Any], name: bytes) -> t.Optional[str]:
    return next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key.lower() == name), None)


def hide_secrets(scope: Scope) -> None:
    """Replaces tokens and session ids in the scope's query string.

    A browser can send its token in the address only, and servers log addresses: uvicorn writes the path out of this
    very object, with the query in it, when it accepts a WebSocket or answers a request. The application has a copy of
    its own.
    """
    query = scope.get("query_string", b"")
    if b"=" in query:
        scope["query_string"] = _SECRET_IN_QUERY.sub(rb"\1\2=***", query)


async def respond(
    send: Send, status: int, body: t.Mapping[str, t.Any], *, etag: str = "", retry_after: int = 0, length: bool = True
) -> None:
    """One JSON answer to an HTTP request."""
    payload = encode(body).encode()
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if length:
        headers.append((b"content-length", str(len(payload)).encode()))
    if etag:
        headers.append((b"etag", f'"{etag}"'.encode()))
    if retry_after:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
