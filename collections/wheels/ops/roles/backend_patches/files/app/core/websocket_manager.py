# SPDX-License-Identifier: MIT
"""WebSocket connections of PAM: heartbeats, bounded sending, resume, limits, long-poll fallback, orderly shutdown.

A drop-in for the backend's ``app/core/websocket_manager.py``. The endpoint accepts the socket, authenticates the user and calls
``await manager.connect(websocket, user_id, connection_id)``; from then on

* every frame the endpoint or the manager sends goes through one bounded outbox and one writer per connection, so that a client
  that does not read delays nobody but itself, and is closed with 1013 when it stalls;
* every frame that arrives is seen here before the endpoint reads it, so that a peer counts as alive by whatever it sends, even
  while the endpoint is busy, and round trips are timed by the server's own clock;
* a peer that stays silent is closed, and its socket really is.

``WebSocketGuard(app)`` is an optional ASGI layer around the application: it checks the origin and the limits *before* the
handshake is accepted and serves ``/api/v1/pam/poll``. Without it ``connect`` interposes on the ``WebSocket`` object itself, so this
file alone is enough for heartbeats, latency and bounded sending.

Wire format. Ping ``{"type":"ping","timestamp":EPOCH,"connection_id":ID,"seq":N}``, answered by ``{"type":"pong"}`` or, better,
``{"type":"pong","seq":N}``. A client that connects with ``?session=`` (empty: a new one) is given
``{"type":"session","session":ID,"epoch":E,"seq":N,...}``; from then on each message carries ``"_seq"``. It reconnects with
``?session=ID&last_seq=N`` and receives what it missed, once and in order, or one ``{"type":"resync",...}`` when that is no longer
known. ``{"type":"reconnect","after_ms":N}`` announces a shutdown. Clients that know nothing of this are served as before.

Close codes: 1001 peer silent, 1012 server restarts, 1013 client reads too slowly, 4409 replaced by a newer connection.

Environment (read once, at start; what is no number in its range is left out with a warning):
``WEBSOCKET_HEARTBEAT_INTERVAL`` (20 s), ``WEBSOCKET_CONNECTION_TIMEOUT`` (60 s of silence), ``WEBSOCKET_MAX_MISSED_PINGS`` (3);
``WEBSOCKET_MAX_CONNECTIONS`` (10,000 in this process), ``WEBSOCKET_MAX_PER_USER`` (5, the newest win; 0: no limit),
``WEBSOCKET_MAX_PER_ADDRESS`` (50; 0: no limit; an IPv6 client counts with its /64), ``WEBSOCKET_ACCEPT_RATE`` (500 handshakes a second),
``WEBSOCKET_STALL_SECONDS`` (10, a write without progress), ``WEBSOCKET_SESSION_SECONDS`` (120, how long a cut connection can be resumed),
``WEBSOCKET_DRAIN_SECONDS`` (3, over which a shutdown is spread);
``WEBSOCKET_TRUSTED_PROXIES`` (addresses and networks, separated by commas, whose ``X-Forwarded-For`` is believed, or ``none``; without
it: loopback and private networks, and Cloudflare's). Behind a proxy that names no client every connection has the proxy's
address; then the default of ``WEBSOCKET_MAX_PER_ADDRESS`` does not apply to it, and one line in the log says so.

Sessions live in this process: with several workers a reconnect that reaches another worker gets a ``resync``.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import ipaddress
import json
import logging
import math
import os
import random
import re
import secrets
import signal
import threading
import time
import typing as t
from collections import OrderedDict, deque
from collections.abc import Mapping
from urllib.parse import parse_qs

if t.TYPE_CHECKING:
    from app.wheels_ops.ws_poll import Virtual

try:
    from app.core.logging import get_logger

    logger: t.Any = get_logger(__name__)
except Exception:  # outside the backend (a test, a script) the standard logger does
    logger = logging.getLogger(__name__)

Message = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[Message]]
Send = t.Callable[[Message], t.Awaitable[None]]
App = t.Callable[[t.MutableMapping[str, t.Any], Receive, Send], t.Awaitable[None]]

SCOPE_KEY = "wheels_ops.websocket"
POLL_PATH = "/api/v1/pam/poll"
SCRIPT_PATH = "/api/v1/pam/socket.js"  # the browser's end, app/static/pam-socket.js

SLOTS = 200  # of the heartbeat wheel: at 20 s one slot each 0.1 s, so the load is flat
OUTBOX_MESSAGES = 256
OUTBOX_BYTES = 896 * 1024  # with the server's own 64 KiB write buffer a stuck peer costs less than 1 MiB
RESUME_WRITING = 64 * 1024  # above this an endpoint that sends faster than its client reads is made to wait
RESUME_MESSAGES = OUTBOX_MESSAGES // 4  # the same for small ones; the rest of the outbox is for what nobody waits with
INBOX_MESSAGES = 64
INBOX_BYTES = 1024 * 1024  # a server's own limit for one frame is 16 MiB by default
STALL_SECONDS = 10.0  # a write that makes no progress for so long ends the connection, pongs or not
CLOSE_GRACE = 1.0  # for the closing handshake; then the transport is aborted
HICCUP = 0.5  # a tick later than this was the server's own pause, which no peer is blamed for
SESSION_MESSAGES = 256
SESSION_BYTES = 256 * 1024
SESSION_SECONDS = 120.0
MAX_SESSIONS = 20_000
RECONNECT_SPREAD_MS = 8000
DETAILS = 1000  # connections listed by get_connection_stats


def _setting(name: str, default: float, low: float, high: float) -> float:
    """A number from the environment, else from the backend's settings if somebody set it there, else the default."""
    raw: t.Any = os.environ.get(name)
    if raw in (None, ""):
        try:
            from app.core.config import settings

            raw = getattr(settings, name) if name in getattr(settings, "model_fields_set", ()) else None
        except Exception:  # no settings, or a release without that field
            raw = None
    if raw in (None, ""):
        return default
    try:
        value = float(raw)
    except (TypeError, ValueError):
        value = math.nan
    if not low <= value <= high:
        _log("warning", f"🔌 {name} must be a number from {low:g} to {high:g}; using {default:g}")
        return default
    return value


class _Throttle:
    """At most ``burst`` lines of one kind in ten seconds; the next one says how many were left out."""

    def __init__(self, burst: int = 20) -> None:
        self.burst = burst
        self.seen: t.Dict[str, t.List[float]] = {}

    def allows(self, kind: str) -> t.Optional[int]:
        """None to stay silent, else the number of lines suppressed before this one."""
        now = time.monotonic()
        window = self.seen.setdefault(kind, [now, 0, 0])
        if now - window[0] > 10:
            window[0], window[1] = now, 0
        window[1] += 1
        if window[1] > self.burst:
            window[2] += 1
            return None
        left_out, window[2] = int(window[2]), 0
        return left_out


_throttle = _Throttle()


def _log(level: str, event: str, **fields: t.Any) -> None:
    """One structured line; never a message body, a token or a session id."""
    left_out = _throttle.allows(event)
    if left_out is None:
        return
    if left_out:
        fields["suppressed"] = left_out
    try:
        getattr(logger, level)(event, **fields)
    except TypeError:  # a standard logger takes no fields
        getattr(logger, level)(" ".join([event, *(f"{key}={value}" for key, value in fields.items())]))


def encode(message: t.Any) -> str:
    """The text of a message: strings as they are, anything else as JSON that every client can parse (no NaN, no lone surrogate)."""
    if not isinstance(message, str):
        try:
            message = json.dumps(message, default=str, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError:
            message = json.dumps(_finite(message), default=str, ensure_ascii=False, separators=(",", ":"))
    if not message.isascii():
        try:
            message.encode()
        except UnicodeEncodeError:
            message = message.encode("utf-8", "replace").decode()
    return t.cast(str, message)


def _encoded(message: t.Any) -> t.Optional[str]:
    """``encode``, or None with a line in the log for what JSON has no form for (a list that holds itself, keys that are tuples)."""
    try:
        return encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        _log("error", "🔌 WebSocket message cannot be written as JSON", error=type(error).__name__)
        return None


def _finite(value: t.Any) -> t.Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _numbered(text: str, seq: int) -> str:
    """The message with its place in the session; what is not an object is put into one."""
    if text.startswith("{"):
        rest = text[1:].lstrip()
        return f'{{"_seq":{seq}}}' if rest == "}" else f'{{"_seq":{seq},{rest}'
    return f'{{"_seq":{seq},"type":"message","data":{json.dumps(text)}}}'


def _is_heartbeat(text: str) -> t.Optional[str]:
    """ "ping" or "pong" for a heartbeat frame, whoever made it."""
    if len(text) <= 512:
        head = text[:24]
        if '"type"' in head:
            for kind in ("ping", "pong"):
                if f'"{kind}"' in head:
                    return kind
    return None


class Histogram:
    """Latencies in logarithmic buckets, eight to a power of two: 1 us to 67 s with 9 % width, 1 kB."""

    def __init__(self) -> None:
        self.buckets = array.array("Q", bytes(8 * 216))
        self.total = 0

    def add(self, milliseconds: float) -> None:
        index = int(math.log2(max(milliseconds * 1000.0, 1.0)) * 8)
        self.buckets[min(index, 215)] += 1
        self.total += 1

    def quantile(self, share: float) -> t.Optional[float]:
        """Milliseconds at the middle of the bucket that holds this share, or None without samples."""
        if not self.total:
            return None
        wanted = share * self.total
        for index, count in enumerate(self.buckets):
            wanted -= count
            if count and wanted <= 0:
                return round(2 ** ((index + 0.5) / 8) / 1000.0, 3)
        return None


class TokenBucket:
    """``rate`` a second on average, ``burst`` at once; a rate of 0 switches it off."""

    __slots__ = ("burst", "clock", "filled", "rate", "tokens")

    def __init__(self, rate: float, burst: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.tokens, self.filled = burst, clock()

    def take(self) -> float:
        """0 when allowed, else the seconds to wait."""
        if not self.rate:
            return 0.0
        now = self.clock()
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


class Session:
    """What one client was sent, kept so that it can be sent again after a cut; bounded in messages, bytes and time."""

    __slots__ = ("bytes", "connection", "detached_at", "epoch", "id", "reconnects", "ring", "seq", "user_id", "waiter")

    def __init__(self, user_id: str, epoch: str) -> None:
        self.id = secrets.token_urlsafe(18)
        self.user_id = user_id
        self.epoch = epoch
        self.seq = 0
        self.ring: t.Deque[t.Tuple[int, str]] = deque()
        self.bytes = 0
        self.connection: t.Optional[Connection] = None
        self.detached_at: t.Optional[float] = None
        self.reconnects = 0
        self.waiter: t.Optional[asyncio.Future[None]] = None  # of a long poll

    def add(self, text: str) -> bool:
        """Numbers and keeps the message and sends it on if the client is there."""
        self.seq += 1
        text = _numbered(text, self.seq)
        self.ring.append((self.seq, text))
        self.bytes += len(text)
        while len(self.ring) > SESSION_MESSAGES or (self.bytes > SESSION_BYTES and len(self.ring) > 1):
            self.bytes -= len(self.ring.popleft()[1])
        if self.connection is not None:
            self.connection.push(text)
        self.wake()
        return True

    def since(self, last_seq: int) -> t.Optional[t.List[str]]:
        """The messages after ``last_seq``, or None when some of them are no longer kept (or never were)."""
        if not 0 <= last_seq <= self.seq:
            return None
        if last_seq < self.seq and (not self.ring or self.ring[0][0] > last_seq + 1):
            return None
        return [text for seq, text in self.ring if seq > last_seq]

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Rest:
    """Awaits the rest of a coroutine that already ran up to its first suspension, where it yielded ``yielded``."""

    __slots__ = ("coroutine", "yielded")

    def __init__(self, coroutine: t.Coroutine[t.Any, t.Any, None], yielded: t.Any) -> None:
        self.coroutine, self.yielded = coroutine, yielded

    def __await__(self) -> t.Generator[t.Any, t.Any, None]:
        yielded = self.yielded
        while True:
            try:
                value = yield yielded
            except BaseException as error:  # a cancellation belongs to the coroutine, too
                step: t.Callable[[t.Any], t.Any] = self.coroutine.throw
                argument: t.Any = error
            else:
                step, argument = self.coroutine.send, value
            try:
                yielded = step(argument)
            except StopIteration:
                return


class Connection:
    """One socket: its outbox and writer, its inbox and reader, its heartbeat. Times are ``ConnectionManager.now()``."""

    __slots__ = (
        "accepted",
        "blocked_since",
        "close_code",
        "closed",
        "closing",
        "connected_at",
        "context",
        "first_unanswered",
        "id",
        "id_json",
        "inbox",
        "inbox_bytes",
        "jitter",
        "last_inbound",
        "last_latency",
        "last_ping",
        "last_pong",
        "manager",
        "missed",
        "outbox",
        "outbox_bytes",
        "outstanding",
        "ping_seq",
        "pings",
        "pongs",
        "pump",
        "reader",
        "receive",
        "room",
        "rtt_max",
        "rtt_min",
        "rttvar",
        "scope",
        "seen_pongs",
        "send",
        "sending",
        "session",
        "slot",
        "srtt",
        "total_missed",
        "transport",
        "user_id",
        "virtual",
        "wanted",
        "websocket",
        "writable",
    )

    def __init__(
        self, manager: ConnectionManager, send: Send, receive: t.Optional[Receive], scope: t.Mapping[str, t.Any]
    ) -> None:
        now = manager.now()
        self.manager, self.send, self.receive, self.scope = manager, send, receive, scope
        self.websocket: t.Any = None
        self.id = self.id_json = self.user_id = ""
        self.virtual: t.Optional[Virtual] = None  # the long poll behind it, when there is no socket
        self.accepted = self.closing = self.closed = self.sending = False
        self.close_code = 1006
        self.outbox: t.Deque[t.Tuple[Message, int, str]] = deque()
        self.outbox_bytes = 0
        self.blocked_since = now
        self.writable: t.Optional[asyncio.Event] = None
        self.transport: t.Any = None  # what the server writes to, if that can be seen
        self.inbox: t.Deque[Message] = deque()
        self.inbox_bytes = 0
        self.reader: t.Optional[asyncio.Future[None]] = None
        self.room: t.Optional[asyncio.Future[None]] = None
        self.pump: t.Optional[asyncio.Task[None]] = None
        self.session: t.Optional[Session] = None
        self.wanted: t.Optional[t.Tuple[str, int]] = None  # the session asked for before the user was known
        self.slot = -1
        self.connected_at = self.last_inbound = self.last_ping = self.last_pong = now
        self.first_unanswered: t.Optional[float] = None
        self.outstanding: t.List[t.Tuple[t.Optional[int], float]] = []
        self.ping_seq = self.pings = self.pongs = self.missed = self.total_missed = self.seen_pongs = 0
        self.last_latency = self.srtt = self.rttvar = self.jitter = self.rtt_max = 0.0
        self.rtt_min = math.inf
        self.context: t.Dict[str, t.Any] = {}

    # --- sending -------------------------------------------------------------------------------------------------------------

    def deliver(self, text: str) -> bool:
        """Sends a message of the application, through the session if the client has one."""
        return self.push(text) if self.session is None else self.session.add(text)

    def push(self, text: str, *, droppable: str = "") -> bool:
        """Sends or queues one text frame without ever waiting; False when the connection is, or now must be, closed.

        A queued frame with the same ``droppable`` key is replaced: only the latest counts.
        """
        return self.push_message({"type": "websocket.send", "text": text}, len(text), droppable)

    def push_message(self, message: Message, size: int, droppable: str = "") -> bool:
        if self.closed or self.closing:
            return False
        if not self.sending and self.accepted:
            self._write(message)
            if self.transport is not None and not self.sending and self._behind():
                self._hold(self._drained())
            return not self.closed
        if droppable:
            for index, (_ignored, old, key) in enumerate(self.outbox):
                if key == droppable:
                    self.outbox[index] = (message, size, key)
                    self.outbox_bytes += size - old
                    return True
            if self.outbox_bytes > OUTBOX_BYTES // 2 or len(self.outbox) > OUTBOX_MESSAGES // 2:
                self.manager.totals["dropped"] += 1
                return True
        if len(self.outbox) >= OUTBOX_MESSAGES or (self.outbox and self.outbox_bytes + size > OUTBOX_BYTES):
            self.shut(1013, "slow consumer", flush=False)
            return False
        self.outbox.append((message, size, droppable))
        self.outbox_bytes += size
        return True

    def _write(self, message: Message) -> None:
        """Runs the server's ``send`` at once, as far as it goes without waiting; only a send that waits costs a task.

        Servers write to the transport and wait only while its buffer is full. So a healthy peer gets its frame before this
        returns, and one heartbeat costs no task switch. A close, which waits for the peer, never comes through here.
        """
        try:
            coroutine: t.Any = self.send(message)
            rest: t.Awaitable[None] = _Rest(coroutine, coroutine.send(None))
        except StopIteration:
            return
        except AssertionError:
            rest = self._drained()
        except Exception as error:
            self._broken(error)
            return
        self._hold(rest)

    def _behind(self) -> bool:
        """Whether the peer leaves more unread than a server should keep. uvicorn's ``websockets-sansio`` writes whatever it is given and
        never waits: its buffer would grow without bound, and nobody would be found slow."""
        return not self.closed and self.transport.get_write_buffer_size() > RESUME_WRITING

    def _hold(self, rest: t.Awaitable[None]) -> None:
        """From now on frames are queued, until ``rest`` and then they are written."""
        self.sending = True
        self.blocked_since = self.manager.now()
        self.manager.blocked[self] = None
        self.manager.spawn(self._write_rest(rest))

    async def _write_rest(self, rest: t.Awaitable[None]) -> None:
        """The writer of a connection whose peer is behind: ends when everything is written."""
        try:
            while True:
                try:
                    await rest
                except AssertionError:
                    await self._drained()
                if self.transport is not None and self._behind():
                    await self._drained()
                if self.outbox_bytes < RESUME_WRITING // 2:
                    self._writable()
                if not self.outbox:
                    return
                message, size, _ignored = self.outbox.popleft()
                self.outbox_bytes -= size
                self.blocked_since = self.manager.now()
                rest = self.send(message)
        except Exception as error:
            self._broken(error)
        finally:
            self.sending = False
            self.manager.blocked.pop(self, None)
            self._writable()

    async def _drained(self) -> None:
        """Waits for the transport itself. The server's own ping may wait for it already, and ``websockets`` 16 and later lets
        only one wait: the other, with its frame written, gets an ``AssertionError``."""
        transport = _transport(self.send)
        if transport is None:
            raise OSError("the transport is not known")
        while transport.get_write_buffer_size() > RESUME_WRITING // 4:
            if transport.is_closing():
                raise OSError("the transport is closing")
            await asyncio.sleep(0.02)

    def _writable(self) -> None:
        if self.writable is not None:
            self.writable.set()

    async def _until_writable(self) -> None:
        if self.writable is None:
            self.writable = asyncio.Event()
        self.writable.clear()
        await self.writable.wait()

    def _broken(self, error: BaseException) -> None:
        """The transport refused a write: the peer is gone, or the server has closed."""
        self.outbox.clear()
        self.outbox_bytes = 0
        if not self.closed:
            if not isinstance(error, (OSError, RuntimeError)):
                _log("warning", "🔌 WebSocket write failed", connection=self.id[:8], error=type(error).__name__)
            self.gone(1006)
            self.abort()

    async def app_send(self, message: Message) -> None:
        """What the endpoint's ``websocket.send`` calls. Waits only when this very client is behind."""
        kind = message["type"]
        if kind == "websocket.send":
            text = message.get("text")
            if text is None:
                delivered = self.push_message(message, len(message.get("bytes") or b""))
            else:
                heartbeat = _is_heartbeat(text)
                if heartbeat == "ping":  # another keepalive in the process: its pong must not be taken for one of ours
                    self._expect(None)
                delivered = self.push(text) if heartbeat else self.deliver(text)
            if not delivered:
                raise OSError("the WebSocket is closed")
            while (
                self.sending
                and (self.outbox_bytes > RESUME_WRITING or len(self.outbox) > RESUME_MESSAGES)
                and not self.closed
            ):
                await self._until_writable()
            if self.session is not None and self.closed and not self.manager.resumable(self.session):
                raise OSError("the WebSocket is closed")
        elif kind == "websocket.close":
            if self.accepted:
                await self.close(message.get("code", 1000) or 1000, message.get("reason") or "")
            elif not self.closed:
                self.closed = True
                await self.send(message)
        else:
            await self.send(message)
            if kind == "websocket.accept":
                self.accepted = True
                self.last_inbound = self.manager.now()
                self.start_reading()
                if self.outbox:  # the endpoint calls connect() before accept()
                    self._hold(asyncio.sleep(0))

    # --- closing -------------------------------------------------------------------------------------------------------------

    def shut(self, code: int, reason: str = "", *, flush: bool = True) -> None:
        """Closes from synchronous code: at most ``CLOSE_GRACE`` later the socket is gone, whatever the peer does."""
        if self.closed or self.closing:
            return
        if not flush:
            self.outbox.clear()
            self.outbox_bytes = 0
        self.close_code = code
        self.closing = True
        try:
            closing = self.manager.spawn(self._close(code, reason))
        except RuntimeError:  # no running loop: the process is going down
            self.gone(code)
        else:
            self.manager.closings.add(closing)
            closing.add_done_callback(self.manager.closings.discard)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends what is queued, closes, and aborts the transport if the peer does not answer."""
        if self.closed or self.closing:
            return
        self.close_code = code
        self.closing = True
        await self._close(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        async def handshake() -> None:
            while self.sending and not self.closed:
                await self._until_writable()
            if not self.closed:
                await self.send({"type": "websocket.close", "code": code, "reason": reason[:120]})

        try:
            await asyncio.wait_for(handshake(), CLOSE_GRACE)
        except Exception:  # a peer that does not answer, or that is gone already
            self.abort()
            with contextlib.suppress(Exception):
                await self._close_unseen(code)
        finally:
            self.gone(code)

    def gone(self, code: int) -> None:
        """The socket is no more: forget it, and tell the endpoint at its next ``receive``."""
        if self.closed:
            return
        self.closed = True
        self.close_code = code
        self.outbox.clear()
        self.outbox_bytes = 0
        self.inbox.append({"type": "websocket.disconnect", "code": code, "reason": ""})
        self._writable()
        for future in (self.reader, self.room):
            if future is not None and not future.done():
                future.set_result(None)
        self.manager.forget(self)
        if self.pump is not None and self.pump is not _current_task():
            self.pump.cancel()

    def abort(self) -> None:
        """Ends the TCP connection at once. uvicorn's ``send`` belongs to the protocol object, which has the transport."""
        transport = _transport(self.send)
        if transport is not None:
            transport.abort()

    async def _close_unseen(self, code: int) -> None:
        """Of another server than asyncio's, whose transport is out of reach: its own close, beside the write that hangs."""
        if _transport(self.send) is None:
            await asyncio.wait_for(self.send({"type": "websocket.close", "code": code, "reason": ""}), CLOSE_GRACE)

    # --- receiving -----------------------------------------------------------------------------------------------------------

    def start_reading(self) -> None:
        if self.pump is None and self.receive is not None and not self.closed:
            transport = _transport(self.send)
            self.transport = transport if hasattr(transport, "get_write_buffer_size") else None
            self.pump = asyncio.get_running_loop().create_task(self._pump(self.receive))

    async def _pump(self, receive: Receive) -> None:
        """Reads ahead of the endpoint, so that heartbeats count while it is busy; stops reading when its inbox is full."""
        try:
            while not self.closed:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    self.gone(message.get("code") or 1005)
                    return
                if self.heard(message):
                    continue
                while (len(self.inbox) >= INBOX_MESSAGES or self.inbox_bytes > INBOX_BYTES) and not self.closed:
                    self.room = asyncio.get_running_loop().create_future()
                    await self.room
                    self.last_inbound = self.manager.now()  # the endpoint was the slow one
                self.inbox.append(message)
                self.inbox_bytes += _size(message)
                if self.reader is not None and not self.reader.done():
                    self.reader.set_result(None)
        except Exception as error:
            _log("warning", "🔌 WebSocket read failed", connection=self.id[:8], error=type(error).__name__)
            self.gone(1006)

    async def app_receive(self) -> Message:
        """What the endpoint's ``websocket.receive`` calls."""
        if self.pump is None and self.receive is not None and not self.closed:
            return await self.receive()
        while not self.inbox:
            if self.closed:
                return {"type": "websocket.disconnect", "code": self.close_code, "reason": ""}
            self.reader = asyncio.get_running_loop().create_future()
            await self.reader
        message = self.inbox.popleft()
        self.inbox_bytes -= _size(message)
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        return message

    def heard(self, message: Message) -> bool:
        """Notes that the peer lives; True for a frame that is only for us."""
        now = self.manager.now()
        self.last_inbound = now
        self.first_unanswered = None
        self.missed = 0
        text = message.get("text")
        if not text or len(text) > 512:
            return False
        if '"pong"' in text:
            seq = _pong_seq(text)
            if seq is not False:
                self.pong(seq)
                if seq is not None:
                    return True
                self.seen_pongs += 1  # the endpoint will read it, too, and call handle_pong
        elif '"resume"' in text:
            return self.manager.resume_frame(self, text)
        return False

    # --- heartbeat -----------------------------------------------------------------------------------------------------------

    def ping(self, now: float, head: str) -> None:
        """Sends one; ``head`` is the beginning of the frame, the same for all of a slot."""
        self.ping_seq = seq = self.ping_seq + 1
        self.pings += 1
        if self.outstanding:
            self.missed += 1
            self.total_missed += 1
        if self.first_unanswered is None:
            self.first_unanswered = now
        self.last_ping = now
        self._expect(seq)
        text = f"{head}{self.id_json}{seq}}}"
        if self.sending or self.closing or self.closed or not self.accepted:
            self.push(text, droppable="ping")
        else:
            self._write({"type": "websocket.send", "text": text})

    def _expect(self, seq: t.Optional[int]) -> None:
        """Notes a ping that is on its way. Sent times come from the finest clock, never from the client."""
        if len(self.outstanding) >= 8:
            del self.outstanding[0]
        self.outstanding.append((seq, self.manager.clock()))

    def pong(self, seq: t.Optional[int]) -> None:
        """Takes a round-trip sample when it is certain which ping was answered (Karn's rule), and counts the pong."""
        self.pongs += 1
        self.last_pong = self.manager.now()
        sent: t.Optional[float] = None
        if seq is not None:
            for index, (number, at) in enumerate(self.outstanding):
                if number == seq:
                    sent = at
                    del self.outstanding[: index + 1]
                    break
        elif len(self.outstanding) == 1:
            number, at = self.outstanding.pop()
            sent = at
        elif self.outstanding:
            del self.outstanding[0]
        if sent is not None:
            self._sample((self.manager.clock() - sent) * 1000.0)

    def _sample(self, rtt: float) -> None:
        """Smoothed RTT and its variation as in RFC 6298 (1/8, 1/4), jitter as in RFC 3550 (1/16); milliseconds."""
        if self.rtt_min == math.inf:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.jitter += (abs(rtt - self.last_latency) - self.jitter) / 16
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.last_latency = rtt
        self.rtt_min, self.rtt_max = min(self.rtt_min, rtt), max(self.rtt_max, rtt)
        self.manager.latencies.add(rtt)

    def deadline(self) -> float:
        """When the peer counts as dead: silent for the timeout, or so many pings in a row unanswered for an interval each."""
        limit = self.last_inbound + self.manager.connection_timeout
        if self.first_unanswered is not None:
            limit = min(limit, self.first_unanswered + self.manager.max_missed_pings * self.manager.heartbeat_interval)
        return limit

    def stability(self) -> float:
        """0 to 100: unanswered pings cost up to 50, an unsteady latency up to 20, reconnects of the last hour up to 30."""
        missed = self.total_missed / self.pings if self.pings else 0.0
        unsteady = min(1.0, self.rttvar / self.srtt) if self.srtt > 1.0 else 0.0
        reconnects = min(1.0, self.manager.reconnects_of(self.user_id) / 10)
        return round(max(0.0, 100 - 50 * missed - 20 * unsteady - 30 * reconnects), 1)

    def metadata(self) -> t.Dict[str, t.Any]:
        now, epoch = self.manager.now(), time.time()
        return {
            "user_id": self.user_id,
            "connected_at": epoch - (now - self.connected_at),
            "last_ping": epoch - (now - self.last_ping),
            "last_pong": epoch - (now - self.last_pong),
            "is_alive": not self.closed and not self.closing,
            "missed_pings": self.missed,
            "total_pings_sent": self.pings,
            "total_pongs_received": self.pongs,
            "last_latency_ms": round(self.last_latency, 3),
            "smoothed_latency_ms": round(self.srtt, 3),
            "jitter_ms": round(self.jitter, 3),
            "stability_score": self.stability(),
            "context": self.context,
        }


def _size(message: Message) -> int:
    return len(message.get("text") or message.get("bytes") or b"")


def _current_task() -> t.Optional[asyncio.Task[t.Any]]:
    try:
        return asyncio.current_task()
    except RuntimeError:  # called outside of a loop
        return None


def _transport(send: t.Any) -> t.Any:
    """The asyncio transport behind an ASGI ``send``: an attribute of the object it is a method of, at most a few closures away."""
    queue, seen = [send], 0
    while queue and seen < 40:
        item = queue.pop(0)
        seen += 1
        owner = getattr(item, "__self__", None)
        for holder in (owner, item):
            transport = getattr(holder, "transport", None)
            if isinstance(transport, asyncio.BaseTransport) or callable(getattr(type(transport), "abort", None)):
                return transport
        for cell in getattr(item, "__closure__", None) or ():
            try:
                if callable(cell.cell_contents):
                    queue.append(cell.cell_contents)
            except ValueError:  # a cell that is not filled yet
                continue
    return None


def _pong_seq(text: str) -> t.Union[int, None, t.Literal[False]]:
    """The echoed number of a pong, None for a pong without one, False for what is no pong. Nothing else in it is believed."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(frame, dict) or frame.get("type") != "pong":
        return False
    seq = frame.get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None


class ConnectionManager:
    """All connections of this process. Every method may be called from the event loop's thread only."""

    def __init__(self, clock: t.Callable[[], float] = time.monotonic) -> None:
        self.heartbeat_interval = _setting("WEBSOCKET_HEARTBEAT_INTERVAL", 20.0, 0.05, 3600)
        self.connection_timeout = _setting("WEBSOCKET_CONNECTION_TIMEOUT", 60.0, 0.1, 86400)
        self.max_missed_pings = int(_setting("WEBSOCKET_MAX_MISSED_PINGS", 3, 1, 1000))
        self.max_connections = int(_setting("WEBSOCKET_MAX_CONNECTIONS", 10_000, 1, 1_000_000))
        self.max_per_user = int(_setting("WEBSOCKET_MAX_PER_USER", 5, 0, 100_000))
        self.max_per_address = int(_setting("WEBSOCKET_MAX_PER_ADDRESS", 50, 0, 1_000_000))
        self.address_limit_chosen = bool(
            os.environ.get("WEBSOCKET_MAX_PER_ADDRESS")
        )  # by an operator, who knows what is in front
        self.accept_rate = _setting("WEBSOCKET_ACCEPT_RATE", 500.0, 0, 1_000_000)
        self.stall_seconds = _setting("WEBSOCKET_STALL_SECONDS", STALL_SECONDS, 0.05, 3600)
        self.session_seconds = _setting("WEBSOCKET_SESSION_SECONDS", SESSION_SECONDS, 0, 86400)
        self.drain_seconds = _setting("WEBSOCKET_DRAIN_SECONDS", 3.0, 0, 8)
        if self.connection_timeout < self.heartbeat_interval:
            _log("warning", "🔌 WEBSOCKET_CONNECTION_TIMEOUT is shorter than the heartbeat; using three heartbeats")
            self.connection_timeout = 3 * self.heartbeat_interval
        self.clock = clock
        self.paused = 0.0  # seconds this process itself stood still
        self.active_connections: t.Dict[str, t.Any] = {}
        self.user_connections: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.connections: t.Dict[str, Connection] = {}
        self.sockets: t.Dict[int, Connection] = {}  # by id() of a registered socket that has no ASGI scope
        self.blocked: t.Dict[Connection, None] = {}
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.user_sessions: t.Dict[str, t.Dict[str, Session]] = {}
        self.rooms: t.Dict[str, t.Dict[str, None]] = {}
        self.latencies = Histogram()
        self.totals = dict.fromkeys(
            (
                "connected",
                "closed",
                "timed_out",
                "slow",
                "dropped",
                "replaced",
                "resumed",
                "resynced",
                "refused",
                "polls",
            ),
            0,
        )
        self.draining = False
        self.heartbeat_task: t.Optional[asyncio.Task[None]] = None
        self.epoch = secrets.token_hex(4)
        self._slots: t.List[t.Dict[Connection, None]] = [{} for _ignored in range(SLOTS)]
        self._due: t.List[t.List[Connection]] = [[] for _ignored in range(SLOTS)]
        self._cursor = self._next_slot = 0
        self._wheel_time = self._swept = self._reported = self.now()
        self._recent: OrderedDict[str, t.Deque[float]] = OrderedDict()
        self._tasks: t.Set[asyncio.Task[t.Any]] = set()
        self.closings: t.Set[asyncio.Task[t.Any]] = set()
        self._public: t.Tuple[float, t.Dict[str, t.Any]] = (-math.inf, {})
        self._broadcasting: t.Optional[asyncio.Lock] = None
        self._previous_sigterm: t.Any = None

    # --- what the backend calls ----------------------------------------------------------------------------------------------

    @property
    def connection_metadata(self) -> t.Dict[str, t.Dict[str, t.Any]]:
        """What is known of each connection now. Made at each look; the manager does not read it back."""
        return {connection_id: connection.metadata() for connection_id, connection in self.connections.items()}

    async def connect(self, websocket: t.Any, user_id: str, connection_id: str) -> None:
        """Registers an accepted socket of an authenticated user."""
        connection = self._adopt(websocket)
        if connection.closed:
            return  # the peer left while the endpoint authenticated it; the endpoint learns it at its next receive
        earlier = self.connections.get(connection_id)
        if earlier is not None and earlier is not connection:
            earlier.shut(4409, "replaced", flush=False)
            self.forget(earlier)
        elif earlier is None and connection.id:
            self.forget(connection)  # the endpoint gave the socket a new name
        connection.id, connection.user_id, connection.websocket = str(connection_id), str(user_id), websocket
        connection.id_json = f'{json.dumps(connection.id)},"seq":'
        now = self.now()
        connection.connected_at = connection.last_inbound = connection.last_ping = connection.last_pong = now
        self._release_session(connection)
        mine = self.user_connections.setdefault(connection.user_id, {})
        if self.max_per_user and len(mine) >= self.max_per_user:
            oldest = self.connections.get(next(iter(mine)))
            if oldest is not None:
                self.totals["replaced"] += 1
                _log("info", "🔌 WebSocket replaced by a newer one of the same user", connection=oldest.id[:8])
                oldest.shut(4409, "replaced by a newer connection")
                self.forget(oldest)
                mine = self.user_connections.setdefault(connection.user_id, {})
        self.active_connections[connection.id] = mine[connection.id] = websocket
        self.connections[connection.id] = connection
        self._next_slot = (self._next_slot + 1) % SLOTS
        connection.slot = self._next_slot
        self._slots[connection.slot][connection] = None
        self.totals["connected"] += 1
        recent = self._recent.setdefault(connection.user_id, deque(maxlen=16))
        recent.append(now)
        self._recent.move_to_end(connection.user_id)
        if len(self._recent) > 10_000:
            self._recent.popitem(last=False)
        self._start_heartbeat()
        _log("info", "🔗 WebSocket connected", connection=connection.id[:8], connections=len(self.connections))
        self._offer_session(connection)

    def disconnect(self, user_id: str, connection_id: str) -> None:
        """Forgets the connection and closes its socket if that is still open. Calling it again does nothing."""
        connection = self.connections.get(connection_id)
        if connection is None:
            self.active_connections.pop(connection_id, None)
            mine = self.user_connections.get(user_id)
            if mine is not None and mine.pop(connection_id, None) is not None and not mine:
                self.user_connections.pop(user_id, None)
            return
        connection.shut(1000)
        self.forget(connection)

    async def send_personal_message(self, message: t.Any, websocket: t.Any) -> bool:
        """Sends to one socket; whether the message was accepted for delivery."""
        if isinstance(websocket, str):
            # app/api/chat.py gives a user's id here, which it takes from the body of a request: nobody's socket may be reached by it.
            return False
        text = _encoded(message)
        if text is None:
            return False
        connection = self._connection_of(websocket)
        if connection is not None:
            return connection.push(text) if _is_heartbeat(text) else connection.deliver(text)
        try:  # a socket that was never registered
            await asyncio.wait_for(_plain_send(websocket)({"type": "websocket.send", "text": text}), self.stall_seconds)
            return True
        except OSError:
            return False
        except Exception as error:
            _log("warning", "🔌 WebSocket message not sent", error=type(error).__name__)
            return False

    async def send_message_to_user(self, message: t.Any, user_id: str) -> None:
        """Sends to all connections of the user, and to their sessions that are between two connections."""
        text = _encoded(message)
        if text is not None:
            self._send_to_user(text, str(user_id))

    async def broadcast(self, message: t.Any, *, droppable: str = "") -> None:
        """Sends to everybody; encoded once, in slices of 2 ms, so that no peer and no number of peers holds up the event loop.

        ``droppable`` names a kind of message of which a slow client needs only the latest.
        """
        text = _encoded(message)
        if text is None:
            return
        if self._broadcasting is None:
            self._broadcasting = asyncio.Lock()
        async with self._broadcasting:  # two broadcasts must not overtake each other between slices
            targets: t.List[t.Union[Connection, Session]] = list(self.connections.values())
            targets += [session for session in self.sessions.values() if session.connection is None]
            slice_end = time.perf_counter() + 0.002
            for count, target in enumerate(targets):
                if isinstance(target, Session):
                    target.add(text)
                elif target.session is not None:
                    target.session.add(text)
                else:
                    target.push(text, droppable=droppable)
                if count % 8 == 7 and time.perf_counter() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = time.perf_counter() + 0.002

    async def handle_pong(self, connection_id: str, pong_data: t.Optional[t.Dict[str, t.Any]] = None) -> None:
        """Called by the endpoint when it reads a pong; nothing is left to do when that was seen on arrival."""
        connection = self.connections.get(connection_id)
        if connection is None:
            return
        if connection.seen_pongs:
            connection.seen_pongs -= 1
            return
        connection.last_inbound = self.now()
        connection.first_unanswered = None
        connection.missed = 0
        seq = pong_data.get("seq") if isinstance(pong_data, dict) else None
        connection.pong(seq if isinstance(seq, int) and not isinstance(seq, bool) else None)

    async def get_connection_stats(self) -> t.Dict[str, t.Any]:
        """For operators: it names users. At most ``DETAILS`` connections are listed."""
        now = self.now()
        details = []
        for connection in list(self.connections.values())[:DETAILS]:
            details.append(
                {
                    "connection_id": connection.id,
                    "user_id": connection.user_id,
                    "age_seconds": round(now - connection.connected_at, 1),
                    "time_since_ping": round(now - connection.last_ping, 1),
                    "time_since_pong": round(now - connection.last_pong, 1),
                    "is_alive": not connection.closed,
                    "missed_pings": connection.missed,
                    "total_pings_sent": connection.pings,
                    "total_pongs_received": connection.pongs,
                    "last_latency_ms": round(connection.last_latency, 3),
                    "smoothed_latency_ms": round(connection.srtt, 3),
                    "jitter_ms": round(connection.jitter, 3),
                    "stability_score": connection.stability(),
                    "queued_bytes": connection.outbox_bytes,
                }
            )
        return {
            **self.get_public_stats(),
            "unique_users": len(self.user_connections),
            "connections_by_user": {user: len(mine) for user, mine in self.user_connections.items()},
            "connection_details": details,
        }

    def get_public_stats(self) -> t.Dict[str, t.Any]:
        """Counts and latencies without any user, connection or address in them; latencies and score are at most one second old."""
        now = self.now()
        if now - self._public[0] > 1:
            sample = list(self.connections.values())[:DETAILS]
            jitters = sorted(connection.jitter for connection in sample if connection.pongs)
            self._public = (
                now,
                {
                    "latency_ms": {
                        "p50": self.latencies.quantile(0.5),
                        "p95": self.latencies.quantile(0.95),
                        "p99": self.latencies.quantile(0.99),
                        "samples": self.latencies.total,
                        "jitter_p50": round(jitters[len(jitters) // 2], 3) if jitters else None,
                    },
                    "stability_score": (
                        round(sum(connection.stability() for connection in sample) / len(sample), 1)
                        if sample
                        else 100.0
                    ),
                },
            )
        return {
            "total_connections": len(self.connections),
            "unique_users": len(self.user_connections),
            "sessions": len(self.sessions),
            "heartbeat_interval_seconds": self.heartbeat_interval,
            "connection_timeout_seconds": self.connection_timeout,
            **self._public[1],
            "slow_connections": len(self.blocked),
            "draining": self.draining,
            "totals": dict(self.totals),
        }

    async def update_connection_context(self, connection_id: str, context: t.Dict[str, t.Any]) -> None:
        connection = self.connections.get(connection_id)
        if connection is not None and isinstance(context, Mapping):
            connection.context.update(context)

    def get_connection_context(self, connection_id: str) -> t.Optional[t.Dict[str, t.Any]]:
        connection = self.connections.get(connection_id)
        return None if connection is None else connection.context

    async def join_room(self, connection_id: str, room: str) -> bool:
        if connection_id not in self.connections:
            return False
        self.rooms.setdefault(str(room), {})[connection_id] = None
        return True

    async def leave_room(self, connection_id: str, room: str) -> bool:
        members = self.rooms.get(str(room), {})
        found = connection_id in members
        members.pop(connection_id, None)
        if not members:
            self.rooms.pop(str(room), None)
        return found

    async def send_to_room(self, message: t.Any, room: str) -> int:
        text = _encoded(message)
        if text is None:
            return 0
        members = [self.connections[name] for name in list(self.rooms.get(str(room), {})) if name in self.connections]
        return sum(connection.deliver(text) for connection in members)

    # --- connections ---------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds on the monotonic clock, without the time in which this process itself stood still."""
        return self.clock() - self.paused

    def spawn(self, coroutine: t.Coroutine[t.Any, t.Any, t.Any]) -> asyncio.Task[t.Any]:
        try:
            task = asyncio.get_running_loop().create_task(coroutine)
        except RuntimeError:
            coroutine.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _connection_of(self, websocket: t.Any) -> t.Optional[Connection]:
        scope = getattr(websocket, "scope", None)
        found = scope.get(SCOPE_KEY) if isinstance(scope, Mapping) else None
        return found if isinstance(found, Connection) else self.sockets.get(id(websocket))

    def _adopt(self, websocket: t.Any) -> Connection:
        """The guard's connection of this socket, or a new one that interposes on the ``WebSocket`` itself."""
        connection = self._connection_of(websocket)
        if connection is not None:
            return connection
        scope = getattr(websocket, "scope", None)
        send, receive = getattr(websocket, "_send", None), getattr(websocket, "_receive", None)
        if isinstance(scope, dict) and inspect.iscoroutinefunction(send) and inspect.iscoroutinefunction(receive):
            connection = Connection(self, send, receive, scope)
            connection.accepted = getattr(getattr(websocket, "application_state", None), "name", "") != "CONNECTING"
            websocket._send, websocket._receive = connection.app_send, connection.app_receive
            scope[SCOPE_KEY] = connection
            connection.start_reading()
            return connection
        connection = Connection(self, _plain_send(websocket), None, scope if isinstance(scope, dict) else {})
        connection.accepted = True
        self.sockets[id(websocket)] = connection
        return connection

    def forget(self, connection: Connection) -> None:
        """Takes a connection out of every index; its session waits for the client to come back."""
        if connection.slot >= 0:
            self._slots[connection.slot].pop(connection, None)
            connection.slot = -1
            self.totals["closed"] += 1
            _log(
                "info",
                "🔌 WebSocket disconnected",
                connection=connection.id[:8],
                code=connection.close_code,
                seconds=round(self.now() - connection.connected_at, 1),
                connections=len(self.connections) - 1,
            )
        self.sockets.pop(id(connection.websocket), None)
        if self.connections.get(connection.id) is connection:
            del self.connections[connection.id]
            self.active_connections.pop(connection.id, None)
            mine = self.user_connections.get(connection.user_id, {})
            mine.pop(connection.id, None)
            if not mine:
                self.user_connections.pop(connection.user_id, None)
            for room in [name for name, members in self.rooms.items() if connection.id in members]:
                self.rooms[room].pop(connection.id)
                if not self.rooms[room]:
                    del self.rooms[room]
        session = connection.session
        if session is not None and session.connection is connection:
            session.connection = None
            session.detached_at = self.now()
            session.wake()

    def reconnects_of(self, user_id: str) -> int:
        """Connects of this user in the last hour, but for the first."""
        recent = self._recent.get(user_id)
        if not recent:
            return 0
        since = self.now() - 3600
        return max(0, sum(1 for at in recent if at > since) - 1)

    def _send_to_user(self, text: str, user_id: str) -> int:
        # Both lists first: a connection that breaks while it is written to leaves its session detached, with the message in it.
        connections = [
            self.connections[name] for name in self.user_connections.get(user_id, ()) if name in self.connections
        ]
        waiting = [
            session
            for session in self.user_sessions.get(user_id, {}).values()
            if session.connection is None and self.resumable(session)
        ]
        return sum(connection.deliver(text) for connection in connections) + sum(
            session.add(text) for session in waiting
        )

    # --- heartbeat -----------------------------------------------------------------------------------------------------------

    def _start_heartbeat(self) -> None:
        loop = asyncio.get_running_loop()
        task = self.heartbeat_task
        if task is None or task.done() or task.get_loop() is not loop:
            self._wheel_time = self.now()
            self.heartbeat_task = loop.create_task(self._heartbeat())
            self._hook_sigterm(loop)

    async def _heartbeat(self) -> None:
        """Turns the wheel until nobody is left; an error in one slot must not end it."""
        while self.connections or self.sessions or self.blocked:
            pause = max(0.02, min(0.1, self.heartbeat_interval / SLOTS))
            before = self.clock()
            await asyncio.sleep(pause)
            late = self.clock() - before - pause
            if late > HICCUP:
                self.paused += late
                _log("warning", "💓 The server itself stood still; no peer is blamed", seconds=round(late, 1))
            try:
                self.tick()
            except Exception as error:
                _log("error", "💓 Heartbeat error", error=f"{type(error).__name__}: {error}")
        self.heartbeat_task = None

    def tick(self) -> None:
        """Does what is due: pings, dead peers, stalled writes, expired sessions, one line of statistics a minute."""
        now = self.now()
        step = self.heartbeat_interval / SLOTS
        steps = int((now - self._wheel_time) / step)
        if steps > SLOTS:
            steps, self._wheel_time = SLOTS, now
        else:
            self._wheel_time += steps * step
        epoch = time.time()
        for _ignored in range(steps):
            self._cursor = (self._cursor + 1) % SLOTS
            self._visit(self._cursor, now, epoch, step)
        for connection in [slow for slow in self.blocked if now - slow.blocked_since > self.stall_seconds]:
            self.totals["slow"] += 1
            self.blocked.pop(connection, None)
            _log(
                "warning",
                "🔌 WebSocket client does not read",
                connection=connection.id[:8],
                queued_bytes=connection.outbox_bytes,
            )
            connection.shut(1013, "client does not read", flush=False)
        if now - self._swept > 1:
            self._swept = now
            self._sweep_sessions()
        if now - self._reported > 60:
            self._reported = now
            _log(
                "info",
                "💓 WebSocket heartbeat",
                connections=len(self.connections),
                users=len(self.user_connections),
                latency_p50_ms=self.latencies.quantile(0.5),
                latency_p95_ms=self.latencies.quantile(0.95),
                timed_out=self.totals["timed_out"],
            )

    def _visit(self, slot: int, now: float, epoch: float, step: float) -> None:
        due, self._due[slot] = self._due[slot], []
        for connection in due:
            if connection.slot >= 0:
                self._watch(connection, now, step)
        head = f'{{"type":"ping","timestamp":{epoch:.6f},"connection_id":'
        # Of the others the deadline comes after their next ping: they are looked at again then.
        heard_before = now - self.connection_timeout + self.heartbeat_interval
        waiting_since = now - (self.max_missed_pings - 1) * self.heartbeat_interval
        for connection in list(self._slots[slot]):
            if connection.virtual is None and connection.slot >= 0:
                connection.ping(now, head)
            unanswered = connection.first_unanswered
            if connection.last_inbound <= heard_before or (unanswered is not None and unanswered <= waiting_since):
                self._watch(connection, now, step)

    def _watch(self, connection: Connection, now: float, step: float) -> None:
        """Ends a connection whose deadline has passed, or looks again at the deadline if that is before its next ping."""
        left = connection.deadline() - now
        if left <= 0:
            if connection.room is not None and not connection.room.done() and left > -4 * self.connection_timeout:
                return  # its frames wait here for the endpoint: we are the silent side
            self.totals["timed_out"] += 1
            _log(
                "warning",
                "🔌 WebSocket peer is silent",
                connection=connection.id[:8],
                seconds=round(now - connection.last_inbound, 1),
            )
            connection.shut(1001, "no sign of life", flush=False)
            self.forget(connection)
        elif left < self.heartbeat_interval:
            self._due[(self._cursor + max(1, math.ceil(left / step))) % SLOTS].append(connection)

    # --- sessions ------------------------------------------------------------------------------------------------------------

    def resumable(self, session: Session) -> bool:
        return session.detached_at is None or self.now() - session.detached_at <= self.session_seconds

    def _release_session(self, connection: Connection) -> None:
        """Ends the connection that this one continues, so that it does not count against the user's limit."""
        query = parse_qs(connection.scope.get("query_string", b"").decode("latin-1"))
        session = self.sessions.get(query.get("session", [""])[-1])
        old = session.connection if session is not None and session.user_id == connection.user_id else None
        if old is not None and old is not connection:
            old.shut(4409, "resumed elsewhere", flush=False)
            self.forget(old)

    def _offer_session(self, connection: Connection) -> None:
        """Binds a client that asked for it in the query string to its session, before anything else is sent to it."""
        query = parse_qs(connection.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if connection.virtual is not None or "session" in query:
            self.bind(connection, query.get("session", [""])[-1], whole_number(query.get("last_seq", ["0"])[-1]))
        elif connection.wanted is not None:
            self.bind(connection, *connection.wanted)

    def resume_frame(self, connection: Connection, text: str) -> bool:
        """``{"type":"resume","session":ID,"last_seq":N}``: the same handshake for a client that cannot set the query string."""
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(frame, dict) or frame.get("type") != "resume":
            return False
        if connection.session is None:
            session = frame.get("session")
            connection.wanted = (session if isinstance(session, str) else "", whole_number(frame.get("last_seq")))
            if connection.slot >= 0:
                self.bind(connection, *connection.wanted)
        return True

    def bind(self, connection: Connection, session_id: str, last_seq: int) -> None:
        """Attaches the connection to its session and replays, or starts a new session and says so with one ``resync``."""
        session = self.sessions.get(session_id)
        missed: t.Optional[t.List[str]] = None
        if session is not None and session.user_id == connection.user_id and self.resumable(session):
            missed = session.since(last_seq)
        if session is None or missed is None:
            session = self._new_session(connection.user_id)
        elif session.connection is not None and session.connection is not connection:
            old, session.connection = session.connection, None
            old.session = None
            old.shut(4409, "resumed elsewhere", flush=False)
        connection.session, session.connection, session.detached_at = session, connection, None
        kind = "resync" if session_id and missed is None else "session"
        notice = {
            "type": kind,
            "session": session.id,
            "epoch": session.epoch,
            "seq": session.seq,
            "heartbeat_ms": int(self.heartbeat_interval * 1000),
            "timeout_ms": int(self.connection_timeout * 1000),
        }
        connection.push(json.dumps(notice, separators=(",", ":")))
        if missed is not None:
            session.reconnects += 1
            self.totals["resumed"] += 1
            for text in missed:
                connection.push(text)
        elif session_id:
            self.totals["resynced"] += 1
        if connection.virtual is not None:
            connection.virtual.attached(session, kind)

    def _new_session(self, user_id: str) -> Session:
        mine = self.user_sessions.setdefault(user_id, {})
        limit = 2 * (self.max_per_user or OUTBOX_MESSAGES)
        for old in [known for known in mine.values() if known.connection is None][: max(0, len(mine) + 1 - limit)]:
            self._end_session(old)
        while len(self.sessions) >= MAX_SESSIONS:
            oldest = next(
                (known for known in self.sessions.values() if known.connection is None),
                next(iter(self.sessions.values())),
            )
            self._end_session(oldest)
        session = Session(user_id, self.epoch)
        self.sessions[session.id] = session
        self.user_sessions.setdefault(user_id, {})[session.id] = session
        return session

    def _end_session(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        mine = self.user_sessions.get(session.user_id, {})
        mine.pop(session.id, None)
        if not mine:
            self.user_sessions.pop(session.user_id, None)
        if session.connection is not None:
            session.connection.session = None
        session.wake()

    def _sweep_sessions(self) -> None:
        for session in [known for known in self.sessions.values() if not self.resumable(known)]:
            self._end_session(session)

    # --- shutdown ------------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: t.Optional[float] = None) -> None:
        """Tells every client when to come back, then closes all with 1012, evenly over a few seconds; refuses new ones meanwhile."""
        self.draining = True
        connections = list(self.connections.values())
        random.shuffle(connections)
        seconds = min(self.drain_seconds if seconds is None else seconds, len(connections) * 0.005)
        _log("info", "🔌 Draining WebSocket connections", connections=len(connections), seconds=round(seconds, 1))
        for session in list(self.sessions.values()):
            session.wake()
        started = self.clock()
        for count, connection in enumerate(connections):
            connection.push(f'{{"type":"reconnect","after_ms":{random.randint(0, RECONNECT_SPREAD_MS)}}}')
            connection.shut(1012, "server restart")
            ahead = started + seconds * (count + 1) / len(connections) - self.clock()
            if ahead > 0.01:
                await asyncio.sleep(ahead)
            elif count % 32 == 31:
                await asyncio.sleep(0)
        if self.closings:
            await asyncio.wait(set(self.closings), timeout=CLOSE_GRACE + 1)

    def _hook_sigterm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drains before the server's own handler runs: uvicorn would cut all connections at once and let them all come back at once."""
        if self._previous_sigterm is not None or threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        if not callable(previous):  # no server in charge of this process
            return
        self._previous_sigterm = previous

        async def drain_then(number: int, frame: t.Any) -> None:
            try:
                await asyncio.wait_for(self.drain(), 9)
            except Exception as error:
                _log("error", "🔌 Draining failed", error=type(error).__name__)
            finally:
                previous(number, frame)

        def handler(number: int, frame: t.Any) -> None:
            if self.draining or not loop.is_running():
                previous(number, frame)
            else:
                loop.call_soon_threadsafe(lambda: self.spawn(drain_then(number, None)))

        signal.signal(signal.SIGTERM, handler)


class _Refusal(t.NamedTuple):
    status: int
    text: str
    retry_after: int = 0
    close_code: int = 1008


class WebSocketGuard:
    """ASGI layer around the application: origin and limits before the handshake is accepted, the long poll, an orderly shutdown.

    Everything that is neither a WebSocket nor the long poll passes through untouched.
    """

    def __init__(self, app: App, connections: t.Optional[ConnectionManager] = None) -> None:
        self.app = app
        self.manager = connections if connections is not None else manager
        self.open = 0
        self.by_address: t.Dict[str, int] = {}
        self.proxies = _trusted_proxies(os.environ.get("WEBSOCKET_TRUSTED_PROXIES", ""))
        self.told_of_nameless_proxy = False
        self.accepts = TokenBucket(self.manager.accept_rate, max(1.0, 2 * self.manager.accept_rate))
        self.handshakes: OrderedDict[t.Tuple[str, str], TokenBucket] = OrderedDict()

    async def __call__(self, scope: t.MutableMapping[str, t.Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            inner = dict(scope)
            _hide_secrets(scope)
            await self.websocket(inner, receive, send)
        elif (
            scope["type"] == "http"
            and scope.get("path") in (POLL_PATH, SCRIPT_PATH)
            and scope.get("method") in ("GET", "POST")
        ):
            try:
                from app.wheels_ops import ws_poll
            except ImportError:
                _log(
                    "error",
                    "🔌 No long poll: copy app/wheels_ops/ws_poll.py of the same release next to the patched files",
                )
                await respond(send, 501, {"error": "the long poll is not installed"})
                return
            if scope["path"] == POLL_PATH:
                inner = dict(scope)
                _hide_secrets(scope)
                await ws_poll.Poll(self, inner, receive, send).answer()
            else:
                await ws_poll.script(scope, send)
        else:
            await self.app(scope, receive, send)

    async def websocket(
        self, scope: t.MutableMapping[str, t.Any], receive: Receive, send: Send, virtual: t.Optional[Virtual] = None
    ) -> None:
        address = _counted_as(_client_address(scope, self.proxies))
        refusal = self.refuse(scope, address)
        if refusal is not None:
            self.manager.totals["refused"] += 1
            _log("warning", "🔌 WebSocket refused", status=refusal.status, reason=refusal.text)
            await _refuse(scope, receive, send, refusal)
            return
        connection = Connection(self.manager, send, receive, scope)
        connection.virtual = virtual
        if virtual is not None:
            virtual.connection = connection
        self.open += 1
        self.by_address[address] = self.by_address.get(address, 0) + 1
        try:
            await self.app({**scope, SCOPE_KEY: connection}, connection.app_receive, connection.app_send)
            if connection.accepted:
                await connection.close(1000)
        except BaseException:
            connection.close_code = 1011
            raise
        finally:
            self.open -= 1
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]
            connection.gone(connection.close_code)

    def refuse(self, scope: t.Mapping[str, t.Any], address: str) -> t.Optional[_Refusal]:
        """Why this handshake must not be accepted, or None."""
        here = self.manager
        if not origin_allowed(header(scope, b"origin")):
            return _Refusal(403, "origin not allowed")
        if here.draining:
            return _Refusal(503, "server restarts", random.randint(1, RECONNECT_SPREAD_MS // 1000), 1012)
        if self.open >= here.max_connections:
            return _Refusal(503, "too many connections", random.randint(5, 15), 1013)
        if (
            here.max_per_address
            and self.by_address.get(address, 0) >= here.max_per_address
            and not self._nameless_proxy(scope)
        ):
            return _Refusal(429, "too many connections from this address", 10)
        if here.max_per_user:
            key = (address, scope.get("path", ""))
            bucket = self.handshakes.get(key)
            if bucket is None:
                bucket = self.handshakes[key] = TokenBucket(1.0, 4.0 * here.max_per_user)
                if len(self.handshakes) > 4096:
                    self.handshakes.popitem(last=False)
            self.handshakes.move_to_end(key)
            wait = bucket.take()
            if wait:
                return _Refusal(429, "too many handshakes for this user", math.ceil(wait))
        wait = self.accepts.take()
        if wait:
            return _Refusal(503, "too many handshakes", max(1, math.ceil(wait)), 1013)
        return None

    def _nameless_proxy(self, scope: t.Mapping[str, t.Any]) -> bool:
        """Whether the TCP peer is a proxy that does not say for whom it speaks: its address stands for everybody, and a limit that
        nobody chose for that would lock everybody out. Anything on a private network is such a proxy; on this very machine it
        is one when it brings a browser's page from elsewhere."""
        peer = _address((scope.get("client") or ("", 0))[0])
        if self.manager.address_limit_chosen or peer is None or not _within(peer, self.proxies):
            return False
        if any(header(scope, name) for name in (b"x-forwarded-for", b"x-real-ip", b"cf-connecting-ip")):
            return False
        if peer.is_loopback:
            origin = header(scope, b"origin") or ""
            if not origin or re.match(r"https?://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$", origin):
                return False
        if not self.told_of_nameless_proxy:
            self.told_of_nameless_proxy = True
            _log(
                "warning",
                "🔌 The proxy in front names no client, so connections are not limited by address: let it send"
                " X-Forwarded-For",
            )
        return True


def header(scope: t.Mapping[str, t.Any], name: bytes) -> t.Optional[str]:
    return next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key.lower() == name), None)


def origin_allowed(origin: t.Optional[str]) -> bool:
    """The CORS policy's own verdict. A client without an Origin is no browser; its token is what protects it."""
    if origin is None:
        return True
    try:
        from app.core.cors_config import cors_config

        allows = getattr(cors_config, "is_websocket_origin_allowed", None)
    except Exception:  # no CORS policy in this process
        allows = None
    return True if allows is None else bool(allows(origin))


Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_PRIVATE = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,100.64.0.0/10,fc00::/7,fe80::/10"
# https://www.cloudflare.com/ips/; the hosting service of the first user stands behind it.
_CLOUDFLARE = (
    "173.245.48.0/20,103.21.244.0/22,103.22.200.0/22,103.31.4.0/22,141.101.64.0/18,108.162.192.0/18,190.93.240.0/20,188.114.96.0/20,"
    "197.234.240.0/22,198.41.128.0/17,162.158.0.0/15,104.16.0.0/13,104.24.0.0/14,172.64.0.0/13,131.0.72.0/22,"
    "2400:cb00::/32,2606:4700::/32,2803:f800::/32,2405:b500::/32,2405:8100::/32,2a06:98c0::/29,2c0f:f248::/32"
)


def _trusted_proxies(text: str) -> t.Tuple[Network, ...]:
    """The networks whose word about a client's address is taken. Nothing configured: private ones and Cloudflare's."""
    if text.strip().lower() == "none":
        return ()
    found: t.List[Network] = []
    for entry in (text.strip() or f"{_PRIVATE},{_CLOUDFLARE}").split(","):
        try:
            found.append(ipaddress.ip_network(entry.strip(), strict=False))
        except ValueError:
            if entry.strip():
                _log(
                    "error",
                    f"🔌 WEBSOCKET_TRUSTED_PROXIES: {entry.strip()[:60]!a} is neither an address nor a network;"
                    " left out",
                )
    return tuple(found)


_DEFAULT_PROXIES = _trusted_proxies("")
_CLOUDFLARE_NETWORKS = _trusted_proxies(_CLOUDFLARE)


def _address(text: object) -> t.Optional[Address]:
    """An address as proxies write it, perhaps with a port; None for anything else."""
    text = str(text or "").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _within(address: Address, networks: t.Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _client_address(scope: t.Mapping[str, t.Any], proxies: t.Sequence[Network] = _DEFAULT_PROXIES) -> str:
    """Whom to count a connection against: from the TCP peer on, each trusted proxy's word for the one before it.

    What stands left of the first address that is no trusted proxy came from the client itself and is not looked at.
    """
    peer = (scope.get("client") or ("unknown", 0))[0]
    known = _address(peer)
    if known is not None and not _within(
        known, proxies
    ):  # a Unix socket has no address: whoever listens there is trusted
        return str(known)
    if not proxies:
        return str(peer)
    forwarded = [
        part
        for key, value in scope.get("headers", ())
        if key.lower() == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]
    nearest = known
    for entry in reversed(forwarded):
        address = _address(entry)
        if address is None:
            break
        nearest = address
        if not _within(address, proxies):
            return str(address)
    named = _address(header(scope, b"cf-connecting-ip"))
    if named is not None and (not forwarded or (nearest is not None and _within(nearest, _CLOUDFLARE_NETWORKS))):
        return str(named)
    named = None if forwarded else _address(header(scope, b"x-real-ip"))
    return str(named or nearest or peer)


def _counted_as(address: str) -> str:
    """An IPv6 client has a whole /64 to choose its address from."""
    known = _address(address)
    return (
        address
        if known is None or known.version == 4 or known.is_loopback
        else str(ipaddress.ip_network((known, 64), strict=False))
    )


_SECRET_IN_QUERY = re.compile(rb"(^|&)((?:access_|refresh_)?token|session|apikey)=[^&]*", re.IGNORECASE)


def _hide_secrets(scope: t.MutableMapping[str, t.Any]) -> None:
    """A browser can send its token in the address only, and servers log addresses: uvicorn writes the path out of this very object,
    with the query in it, when it accepts a WebSocket or answers a request. The application has got a copy of its own.
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


async def _refuse(scope: t.Mapping[str, t.Any], receive: Receive, send: Send, refusal: _Refusal) -> None:
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": refusal.close_code, "reason": refusal.text})
        return

    async def answer(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    # Servers add the length of a refused handshake's body themselves; with one of ours before it, uvicorn's sansio sends two.
    await respond(answer, refusal.status, {"error": refusal.text}, retry_after=refusal.retry_after, length=False)


def whole_number(value: t.Any) -> int:
    try:
        return int(value) if not isinstance(value, (bool, float)) and len(str(value)) < 16 else -1
    except (TypeError, ValueError):
        return -1


def _plain_send(websocket: t.Any) -> Send:
    """An ASGI ``send`` for an object that has only the methods of a WebSocket (a double in a test, another framework's)."""

    async def send(message: Message) -> None:
        if getattr(getattr(websocket, "client_state", None), "name", "") == "DISCONNECTED":
            raise OSError("the WebSocket is closed")
        if message["type"] == "websocket.close":
            await websocket.close(code=message.get("code", 1000))
        elif message.get("text") is None:
            await websocket.send_bytes(message.get("bytes") or b"")
        else:
            text, value = message["text"], None
            if text.startswith(("{", "[")) and hasattr(websocket, "send_json"):
                with contextlib.suppress(ValueError):  # a text that only looks like JSON
                    value = json.loads(text)
            await (websocket.send_text(text) if value is None else websocket.send_json(value))

    return send


manager = ConnectionManager()
websocket_manager = manager  # the name that app/monitoring/enhanced_monitoring.py imports


async def startup() -> None:
    """Around the application's lifespan: ready to drain before the first client is there."""
    manager.draining = False
    manager._hook_sigterm(asyncio.get_running_loop())


async def shutdown() -> None:
    """For a server that was stopped in another way than by SIGTERM."""
    if not manager.draining:
        await manager.drain(0)
    if manager.heartbeat_task is not None:
        manager.heartbeat_task.cancel()
        manager.heartbeat_task = None
