# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard and the poll share: headers, secrets in addresses, JSON answers."""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support.websocket_module import load

(asgi,) = load("app.wheels_ops.websocket.asgi")


def test_header() -> None:
    scope = {"headers": [(b"Origin", b"https://a.example"), (b"origin", b"https://b.example")]}
    assert asgi.header(scope, b"origin") == "https://a.example"
    assert asgi.header(scope, b"host") is None and asgi.header({}, b"origin") is None


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"token=a.b.c", b"token=***"),
        (b"user_id=ann&Token=x&last_seq=3", b"user_id=ann&Token=***&last_seq=3"),
        (b"access_token=x&refresh_token=y&apikey=z", b"access_token=***&refresh_token=***&apikey=***"),
        (b"session=&last_seq=0", b"session=***&last_seq=0"),
        (b"mytoken=x&page=token", b"mytoken=x&page=token"),
        (b"", b""),
    ],
)
def test_hide_secrets(query: bytes, shown: bytes) -> None:
    scope = {"query_string": query}
    asgi.hide_secrets(scope)
    assert scope["query_string"] == shown


@pytest.mark.parametrize("length", [True, False])
async def test_respond(length: bool) -> None:
    messages: t.List[t.Dict[str, t.Any]] = []

    async def send(message: t.Dict[str, t.Any]) -> None:
        messages.append(message)

    await asgi.respond(send, 503, {"error": "é"}, etag="e-1", retry_after=2, length=length)
    start, body = messages
    headers = dict(start["headers"])
    assert start["status"] == 503 and json.loads(body["body"]) == {"error": "é"}
    assert headers[b"etag"] == b'"e-1"' and headers[b"retry-after"] == b"2" and headers[b"cache-control"] == b"no-store"
    assert headers.get(b"content-length") == (str(len(body["body"])).encode() if length else None)
