# SPDX-License-Identifier: MIT
"""The HTTP long poll: the same messages for clients that no WebSocket reaches; and the script of the browser's end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import typing as t
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from app.core.websocket_manager import INBOX_MESSAGES, RECONNECT_SPREAD_MS, Connection, Message, Receive, Send
from app.wheels_ops.websocket.asgi import Scope, header, respond
from app.wheels_ops.websocket.session import Session, Sessions, whole_number

POLL_PATH = "/api/v1/pam/poll"
SCRIPT_PATH = "/api/v1/pam/socket.js"  # the browser's end, app/static/pam-socket.js
SOCKET_PATH = "/api/v1/pam/ws/{user_id}"
POLL_HOLD = 25.0  # seconds; load balancers cut silent requests at 30
POLL_BODY = 64 * 1024  # the endpoint's own limit for a message
SCRIPT = Path(__file__).resolve().parents[2] / "static" / "pam-socket.js"


class Virtual:
    """A polling client as the endpoint sees it: a WebSocket whose frames come from POSTs and go into its session."""

    def __init__(self) -> None:
        self.connection: t.Optional[Connection] = None
        self.inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_MESSAGES)
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.outcome: asyncio.Future[t.Tuple[t.Optional[Session], str, int]] = (
            asyncio.get_running_loop().create_future()
        )

    async def receive(self) -> Message:
        return await self.inbox.get()

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.close" and not self.outcome.done():
            self.outcome.set_result((None, "closed", int(message.get("code") or 1000)))
        elif message["type"] == "websocket.http.response.start" and not self.outcome.done():
            self.outcome.set_result((None, "refused", int(message["status"])))

    def attached(self, session: Session, kind: str) -> None:
        """The endpoint has accepted the client; ``kind`` is that of the notice, ``session`` or ``resync``."""
        if not self.outcome.done():
            self.outcome.set_result((session, kind, 0))


#: Runs the application's WebSocket endpoint for a client that has no socket, behind all limits.
OpenSocket = t.Callable[[Scope, Receive, Send, Virtual], t.Coroutine[t.Any, t.Any, None]]


class Poll:
    """One request to ``/api/v1/pam/poll``.

    ``GET ?session=ID&last_seq=N`` waits up to 25 s for messages after N:
    ``{"session","epoch","seq","messages":[...],"resync"?}``; with the last answer's ``ETag`` as ``If-None-Match`` it is
    304 if none came. With ``user_id`` and ``token`` (or ``Authorization: Bearer``) it first opens the very endpoint
    that a WebSocket would reach, with the same authentication, so a client whose proxy blocks WebSockets is served,
    too. ``POST ?session=ID`` sends that endpoint one frame. The id of a session is a secret of 144 bits that only its
    owner knows.
    """

    def __init__(self, sessions: Sessions, open_socket: OpenSocket, scope: Scope, receive: Receive, send: Send) -> None:
        self.sessions, self.manager, self.open_socket = sessions, sessions.manager, open_socket
        self.scope, self.receive, self.send = scope, receive, send
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        self.query = {key: values[-1] for key, values in query.items()}
        self.last_seq = whole_number(self.query.get("last_seq", "0"))
        self.resync = False
        self.hold = True

    async def answer(self) -> None:
        self.manager.totals["polls"] += 1
        if self.manager.draining:
            await respond(
                self.send, 503, {"type": "reconnect", "after_ms": random.randint(0, RECONNECT_SPREAD_MS)}, retry_after=2
            )
        elif self.scope["method"] == "POST":
            await self.post()
        else:
            await self.get()

    async def post(self) -> None:
        virtual = _virtual_of(self.sessions.by_id.get(self.query.get("session", "")))
        body = b""
        more = True
        while more:
            message = await self.receive()
            body += message.get("body", b"")
            more = message.get("more_body", False) and message["type"] == "http.request"
            if len(body) > POLL_BODY:
                await respond(self.send, 413, {"error": "message too large"})
                return
        if virtual is None:
            await respond(self.send, 409, {"error": "no such polling session; GET first"})
            return
        try:
            virtual.inbox.put_nowait({"type": "websocket.receive", "text": body.decode()})
        except UnicodeDecodeError:
            await respond(self.send, 400, {"error": "the body must be UTF-8 text"})
        except asyncio.QueueFull:
            await respond(self.send, 429, {"error": "too many messages"}, retry_after=1)
        else:
            await respond(self.send, 202, {"accepted": True})

    async def get(self) -> None:
        session = self.sessions.by_id.get(self.query.get("session", ""))
        if session is not None and not self.sessions.is_alive(session):
            session = None
        if session is None or session.connection is None or self.looks_dead(session.connection):
            credentials = (
                self.query.get("token") or (header(self.scope, b"authorization") or "").removeprefix("Bearer ").strip()
            )
            if self.query.get("user_id") and credentials:
                session, problem = await self.open(self.query["user_id"], credentials)
                if session is None:
                    await respond(self.send, *problem)
                    return
                self.hold = False  # the client may send from now on: tell it
            elif session is None and not self.query.get("session"):
                await respond(self.send, 401, {"error": "poll with user_id and token"})
                return
            elif session is None:
                await respond(
                    self.send,
                    404,
                    {"type": "resync", "error": "unknown session; connect again, or poll with user_id and token"},
                )
                return
        missed = session.since(self.last_seq)
        if missed is None:
            self.resync = True
            missed = []
            self.last_seq = session.seq
        if not missed and not self.resync and self.hold:
            missed = await self.wait(session)
            if missed is None:
                return  # the client has gone
        session = self.sessions.by_id.get(session.id, session)
        virtual = _virtual_of(session)
        if virtual is not None and virtual.connection is not None:
            virtual.connection.last_inbound = self.manager.now()
        etag = f"{session.epoch}-{session.seq}"
        tags = [tag.strip().removeprefix("W/") for tag in (header(self.scope, b"if-none-match") or "").split(",")]
        if not missed and not self.resync and self.hold and f'"{etag}"' in tags:
            await self.send(
                {
                    "type": "http.response.start",
                    "status": 304,
                    "headers": [(b"etag", f'"{etag}"'.encode()), (b"cache-control", b"no-store")],
                }
            )
            await self.send({"type": "http.response.body", "body": b""})
            return
        await respond(self.send, 200, self.page(session, missed), etag=etag)

    def looks_dead(self, connection: Connection) -> bool:
        """Whether it is a WebSocket whose client has answered no ping for a while.

        If that client polls, its path was lost without the server noticing yet, and what it posts must not have to wait
        for that.
        """
        silence = self.manager.now() - connection.last_inbound
        return connection.virtual is None and silence > max(
            1.5 * self.manager.heartbeat_interval, self.manager.connection_timeout / 2
        )

    async def open(self, user_id: str, token: str) -> t.Tuple[t.Optional[Session], t.Tuple[int, t.Dict[str, t.Any]]]:
        """Runs the application's own WebSocket endpoint for this client; it authenticates as always."""
        if "/" in user_id:
            return None, (400, {"error": "not a user id"})
        virtual = Virtual()
        query = {"token": token, "session": self.query.get("session", ""), "last_seq": str(max(0, self.last_seq))}
        path = SOCKET_PATH.format(user_id=user_id)
        scope = {
            **{key: value for key, value in self.scope.items() if key not in ("method", "state")},
            "state": dict(self.scope.get("state") or {}),
            "type": "websocket",
            "scheme": "ws",
            "path": path,
            "raw_path": SOCKET_PATH.format(user_id=quote(user_id, safe="")).encode(),
            "query_string": urlencode(query).encode(),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        task = self.manager.spawn(self.open_socket(scope, virtual.receive, virtual.send, virtual))
        await asyncio.wait({task, virtual.outcome}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if not virtual.outcome.done():
            task.cancel()
            return None, (504, {"error": "the endpoint did not answer"})
        session, kind, code = virtual.outcome.result()
        if session is not None:
            if kind == "resync" or (kind == "session" and not self.query.get("session")):
                self.resync = kind == "resync"
                self.last_seq = 0
            return session, (200, {})
        if kind == "refused":
            return None, (code, {"error": "refused"})
        status = {4001: 401, 4002: 403, 4003: 403, 1008: 403, 4008: 429, 1013: 503}.get(code, 502)
        return None, (status, {"error": "the endpoint refused", "close_code": code})

    async def wait(self, session: Session) -> t.Optional[t.List[str]]:
        """What comes within the holding time, perhaps nothing; None when the client leaves."""
        loop = asyncio.get_running_loop()
        session.wake()  # an older poll of the same client
        waiter: asyncio.Future[None] = loop.create_future()
        session.waiter = waiter
        disconnect = asyncio.ensure_future(self._disconnected())
        limit = loop.time() + min(POLL_HOLD, self.manager.connection_timeout / 2)
        try:
            await asyncio.wait({waiter, disconnect}, timeout=limit - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if disconnect.done() and not waiter.done():
                return None
            return session.since(self.last_seq) or []
        finally:
            if session.waiter is waiter:
                session.waiter = None
            disconnect.cancel()

    async def _disconnected(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def page(self, session: Session, messages: t.Sequence[str]) -> t.Dict[str, t.Any]:
        frames: t.List[t.Any] = []
        for text in messages:
            try:
                frames.append(json.loads(text))
            except ValueError:  # the application sent something that only looked like JSON
                seq, _ignored, rest = text.removeprefix('{"_seq":').partition(",")
                frames.append({"_seq": int(seq), "type": "message", "data": "{" + rest})
        page: t.Dict[str, t.Any] = {
            "session": session.id,
            "epoch": session.epoch,
            "seq": session.seq,
            "messages": frames,
        }
        if self.resync:
            page["resync"] = True
        if self.manager.draining:
            page["after_ms"] = random.randint(0, RECONNECT_SPREAD_MS)
        return page


def _virtual_of(session: t.Optional[Session]) -> t.Optional[Virtual]:
    """The polling client behind a session, or None when a WebSocket or nobody is there."""
    if session is None or session.connection is None:
        return None
    return t.cast(t.Optional[Virtual], session.connection.virtual)


async def send_script(scope: t.Mapping[str, t.Any], send: Send) -> None:
    """The browser's end of all this, for pages that have no build of their own. Small enough to be read each time."""
    try:
        body = SCRIPT.read_bytes()
    except OSError:
        await respond(send, 404, {"error": "app/static/pam-socket.js is not installed"})
        return
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'.encode()
    is_cached = (header(scope, b"if-none-match") or "").encode() == etag
    headers = [(b"content-type", b"text/javascript; charset=utf-8"), (b"cache-control", b"no-cache"), (b"etag", etag)]
    headers.append((b"content-length", str(0 if is_cached else len(body)).encode()))
    await send({"type": "http.response.start", "status": 304 if is_cached else 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_cached else body})
