# SPDX-License-Identifier: MIT
"""WebSocket connections of PAM: heartbeats, bounded sending, orderly shutdown.

A drop-in for the backend's ``app/core/websocket_manager.py``. The endpoint accepts the socket, authenticates the user
and calls ``await manager.connect(websocket, user_id, connection_id)``; from then on

* every frame the endpoint or the manager sends goes through one bounded outbox and one writer per connection, so that a
  client that does not read delays nobody but itself, and is closed with 1013 when it stalls;
* every frame that arrives is seen here before the endpoint reads it, so that a peer counts as alive by whatever it
  sends, even while the endpoint is busy, and round trips are timed by the server's own clock;
* a peer that stays silent is closed, and its socket really is.

``connect`` interposes on the ``WebSocket`` object itself, so this file works alone, copied into a backend by hand.
``app/wheels_ops/websocket/`` adds resumed sessions, the checks and limits before a handshake is accepted, and the long
poll. That package imports this file and registers with the manager; without it one line in the log says what is left
out.

Wire format. Ping ``{"type":"ping","timestamp":EPOCH,"connection_id":ID,"seq":N}``, answered by ``{"type":"pong"}`` or,
better, ``{"type":"pong","seq":N}``. ``{"type":"reconnect","after_ms":N}`` announces a shutdown.

Close codes: 1001 peer silent, 1012 server restarts, 1013 client reads too slowly, 4409 replaced by a newer connection.

Environment (read once, at start; what is no number in its range is left out with a warning):
``WEBSOCKET_HEARTBEAT_INTERVAL`` (20 s), ``WEBSOCKET_CONNECTION_TIMEOUT`` (60 s of silence),
``WEBSOCKET_MAX_MISSED_PINGS`` (3), ``WEBSOCKET_MAX_PER_USER`` (5, the newest win; 0: no limit),
``WEBSOCKET_STALL_SECONDS`` (10, a write without progress), ``WEBSOCKET_DRAIN_SECONDS`` (3, over which a shutdown is
spread). ``guard.py``, ``addresses.py`` and ``session.py`` of the package name theirs.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import json
import logging
import math
import os
import random
import signal
import threading
import time
import typing as t
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path

try:
    from app.core.logging import get_logger

    logger: t.Any = get_logger(__name__)
except Exception:  # outside the backend (a test, a script) the standard logger does
    logger = logging.getLogger(__name__)

Message = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[Message]]
Send = t.Callable[[Message], t.Awaitable[None]]

SCOPE_KEY = "wheels_ops.websocket"
PACKAGE = Path(__file__).parents[1] / "wheels_ops" / "websocket"  # registers with the manager, when it is installed

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
RECONNECT_SPREAD_MS = 8000
DETAILS = 1000  # connections listed by get_connection_stats


def setting(name: str, default: float, low: float, high: float) -> float:
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
        bounds = f"between {low:g} and {high:g}, got {str(raw)[:40]!r}"
        log("warning", f"🔌 {name} must be a number {bounds}. Using {default:g}.")
        return default
    return value


class _Throttle:
    """At most ``burst`` lines of one kind in ten seconds; the next one says how many were left out."""

    def __init__(self, burst: int = 20) -> None:
        self.burst = burst
        self.windows: t.Dict[str, t.List[float]] = {}

    def allows(self, kind: str) -> t.Optional[int]:
        """None to stay silent, else the number of lines suppressed before this one."""
        now = time.monotonic()
        window = self.windows.setdefault(kind, [now, 0, 0])
        if now - window[0] > 10:
            window[0], window[1] = now, 0
        window[1] += 1
        if window[1] > self.burst:
            window[2] += 1
            return None
        suppressed, window[2] = int(window[2]), 0
        return suppressed


_throttle = _Throttle()


def shown(value: t.Any) -> t.Any:
    """A value as one word of a log line: ids are made by callers, who may put a line break or an escape into them."""
    if not isinstance(value, str) or (value.isprintable() and len(value) <= 200):
        return value
    return value[:200].encode("unicode_escape").decode("ascii") + ("..." if len(value) > 200 else "")


def log(level: str, event: str, **fields: t.Any) -> None:
    """One structured line; never a message body, a token or a session id."""
    suppressed = _throttle.allows(event)
    if suppressed is None:
        return
    if suppressed:
        fields["suppressed"] = suppressed
    fields = {key: shown(value) for key, value in fields.items()}
    try:
        getattr(logger, level)(event, **fields)
    except TypeError:  # a standard logger takes no fields
        getattr(logger, level)(" ".join([event, *(f"{key}={value}" for key, value in fields.items())]))


def encode(message: t.Any) -> str:
    """The text of a message: strings as they are, anything else as JSON that every client can parse.

    So there is no NaN in it and no lone surrogate.
    """
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
    """``encode``, or None with a line in the log for what JSON has no form for.

    Such are a list that holds itself, and keys that are tuples.
    """
    try:
        return encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        log("error", "🔌 WebSocket message cannot be written as JSON", error=type(error).__name__)
        return None


def _finite(value: t.Any) -> t.Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


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
        remaining = share * self.total
        for index, count in enumerate(self.buckets):
            remaining -= count
            if count and remaining <= 0:
                return round(2 ** ((index + 0.5) / 8) / 1000.0, 3)
        return None


class Replay(t.Protocol):
    """Keeps the messages of one client for its next connection: a ``Session`` of ``app/wheels_ops/websocket``."""

    def add(self, text: str) -> bool:
        """Keeps the message, and sends it if the client is there."""


class SessionStore:
    """What a manager asks about sessions. This one keeps none: each connection stands alone.

    ``app/wheels_ops/websocket/session.py`` has the other, which ``ConnectionManager.register`` puts in its place.
    """

    #: Whether a client can come back to what it missed.
    keeps = False

    def __len__(self) -> int:
        return 0

    def connecting(self, connection: Connection) -> None:
        """The user of a socket is known; it is not yet counted against the user's limit."""

    def connected(self, connection: Connection) -> None:
        """The connection is registered, and nothing was sent to it yet."""

    def disconnected(self, connection: Connection) -> None:
        """The connection is in no index any more."""

    def resume(self, connection: Connection, text: str) -> bool:
        """Whether a frame with ``resume`` in it was a request for a session, which the endpoint must not see."""
        return False

    def resumable(self, connection: Connection) -> bool:
        """Whether what the endpoint sends to this closed connection will still reach the client."""
        return False

    def detached(self, user_id: t.Optional[str] = None) -> t.Sequence[Replay]:
        """Those, of one user or of all, whose client is between two connections."""
        return ()

    def sweep(self) -> None:
        """Once a second: ends what has expired."""

    def wake(self) -> None:
        """The process shuts down: nobody may go on waiting for a message."""


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
        "resume_request",
        "room",
        "rtt_min",
        "rttvar",
        "scope",
        "send",
        "sending",
        "session",
        "slot",
        "srtt",
        "total_missed",
        "transport",
        "unread_pongs",
        "user_id",
        "virtual",
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
        self.virtual: t.Any = None  # the long poll behind it, when there is no socket
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
        self.session: t.Optional[Replay] = None
        self.resume_request: t.Optional[t.Tuple[str, int]] = None  # session and number, before the user is known
        self.slot = -1
        self.connected_at = self.last_inbound = self.last_ping = self.last_pong = now
        self.first_unanswered: t.Optional[float] = None
        self.outstanding: t.List[t.Tuple[t.Optional[int], float]] = []
        self.ping_seq = self.pings = self.pongs = self.missed = self.total_missed = self.unread_pongs = 0
        self.last_latency = self.srtt = self.rttvar = self.jitter = 0.0
        self.rtt_min = math.inf
        self.context: t.Dict[str, t.Any] = {}

    # --- sending ------------------------------------------------------------------------------------------------------

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

        Servers write to the transport and wait only while its buffer is full. So a healthy peer gets its frame before
        this returns, and one heartbeat costs no task switch. A close, which waits for the peer, never comes through
        here.
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
        """Whether the peer leaves more unread than a server should keep.

        uvicorn's ``websockets-sansio`` writes whatever it gets and never waits: its buffer would grow without bound,
        and nobody would count as slow.
        """
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
        """Waits for the transport itself.

        The server's own ping may wait for it already, and ``websockets`` 16 and later lets only one wait: the other,
        with its frame written, gets an ``AssertionError``.
        """
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
                log("warning", "🔌 WebSocket write failed", connection=self.id[:8], error=type(error).__name__)
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
            if self.session is not None and self.closed and not self.manager.sessions.resumable(self):
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

    # --- closing ------------------------------------------------------------------------------------------------------

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
        """Ends the TCP connection at once.

        uvicorn's ``send`` belongs to the protocol object, which has the transport.
        """
        transport = _transport(self.send)
        if transport is not None:
            transport.abort()

    async def _close_unseen(self, code: int) -> None:
        """Where the transport is out of reach, as another server's is: its own close, beside the hanging write."""
        if _transport(self.send) is None:
            await asyncio.wait_for(self.send({"type": "websocket.close", "code": code, "reason": ""}), CLOSE_GRACE)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def start_reading(self) -> None:
        if self.pump is None and self.receive is not None and not self.closed:
            transport = _transport(self.send)
            self.transport = transport if hasattr(transport, "get_write_buffer_size") else None
            self.pump = asyncio.get_running_loop().create_task(self._pump(self.receive))

    async def _pump(self, receive: Receive) -> None:
        """Reads ahead of the endpoint, so that heartbeats count while it is busy; stops when its inbox is full."""
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
            log("warning", "🔌 WebSocket read failed", connection=self.id[:8], error=type(error).__name__)
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
                self.unread_pongs += 1  # the endpoint will read it, too, and call handle_pong
        elif '"resume"' in text:
            return self.manager.sessions.resume(self, text)
        return False

    # --- heartbeat ----------------------------------------------------------------------------------------------------

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
        self.rtt_min = min(self.rtt_min, rtt)
        self.manager.latencies.add(rtt)

    def deadline(self) -> float:
        """When the peer counts as dead.

        That is after the timeout in silence, or after so many pings in a row, each unanswered for an interval.
        """
        limit = self.last_inbound + self.manager.connection_timeout
        if self.first_unanswered is not None:
            limit = min(limit, self.first_unanswered + self.manager.max_missed_pings * self.manager.heartbeat_interval)
        return limit

    def stability(self) -> float:
        """0 to 100: unanswered pings cost up to 50, unsteady latency up to 20, reconnects of the last hour up to 30."""
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
    """The asyncio transport behind an ASGI ``send``, or None.

    It is an attribute of the object that ``send`` is a method of, at most a few closures away.
    """
    queue, steps = [send], 0
    while queue and steps < 40:
        item = queue.pop(0)
        steps += 1
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
    """The echoed number of a pong, None for a pong without one, False for what is no pong.

    Nothing else in it is believed.
    """
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
        self.heartbeat_interval = setting("WEBSOCKET_HEARTBEAT_INTERVAL", 20.0, 0.05, 3600)
        self.connection_timeout = setting("WEBSOCKET_CONNECTION_TIMEOUT", 60.0, 0.1, 86400)
        self.max_missed_pings = int(setting("WEBSOCKET_MAX_MISSED_PINGS", 3, 1, 1000))
        self.max_per_user = int(setting("WEBSOCKET_MAX_PER_USER", 5, 0, 100_000))
        self.stall_seconds = setting("WEBSOCKET_STALL_SECONDS", STALL_SECONDS, 0.05, 3600)
        self.drain_seconds = setting("WEBSOCKET_DRAIN_SECONDS", 3.0, 0, 8)
        if self.connection_timeout < self.heartbeat_interval:
            log("warning", "🔌 WEBSOCKET_CONNECTION_TIMEOUT is shorter than the heartbeat; using three heartbeats")
            self.connection_timeout = 3 * self.heartbeat_interval
        self.clock = clock
        self.paused = 0.0  # seconds this process itself stood still
        self.active_connections: t.Dict[str, t.Any] = {}
        self.user_connections: t.Dict[str, t.Dict[str, t.Any]] = {}
        self.connections: t.Dict[str, Connection] = {}
        self.sockets: t.Dict[int, Connection] = {}  # by id() of a registered socket that has no ASGI scope
        self.blocked: t.Dict[Connection, None] = {}
        self.sessions = SessionStore()
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
        self.alone_logged = False
        self.heartbeat_task: t.Optional[asyncio.Task[None]] = None
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

    def register(self, sessions: SessionStore) -> None:
        """Puts a store of sessions in the place of the one that keeps none, before the first client connects."""
        self.sessions = sessions

    def log_if_alone(self) -> None:
        """Says once what this process lacks where nobody has registered sessions."""
        if not self.sessions.keeps and not self.alone_logged:
            self.alone_logged = True
            log(
                "warning",
                f"🔌 WebSocket: app/wheels_ops is not {'in use' if PACKAGE.is_dir() else 'installed'}; sessions are not"
                " resumed, origins and limits are not checked before the handshake, there is no long poll",
            )

    # --- what the backend calls ---------------------------------------------------------------------------------------

    @property
    def connection_metadata(self) -> t.Dict[str, t.Dict[str, t.Any]]:
        """The state of each connection now, built at each access; the manager does not read it back."""
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
        self.sessions.connecting(connection)
        mine = self.user_connections.setdefault(connection.user_id, {})
        if self.max_per_user and len(mine) >= self.max_per_user:
            oldest = self.connections.get(next(iter(mine)))
            if oldest is not None:
                self.totals["replaced"] += 1
                log("info", "🔌 WebSocket replaced by a newer one of the same user", connection=oldest.id[:8])
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
        log("info", "🔗 WebSocket connected", connection=connection.id[:8], connections=len(self.connections))
        self.sessions.connected(connection)

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
            # app/api/chat.py passes a user's id, which it takes from the body of a request: it must reach no socket.
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
            log("warning", "🔌 WebSocket message not sent", error=type(error).__name__)
            return False

    async def send_message_to_user(self, message: t.Any, user_id: str) -> None:
        """Sends to all connections of the user, and to their sessions that are between two connections."""
        text = _encoded(message)
        if text is not None:
            self._send_to_user(text, str(user_id))

    async def broadcast(self, message: t.Any, *, droppable: str = "") -> None:
        """Sends to everybody; encoded once, in slices of 2 ms.

        So no peer and no number of peers holds up the event loop. ``droppable`` names a kind of message of which a slow
        client needs only the latest.
        """
        text = _encoded(message)
        if text is None:
            return
        if self._broadcasting is None:
            self._broadcasting = asyncio.Lock()
        async with self._broadcasting:  # two broadcasts must not overtake each other between slices
            targets: t.List[t.Union[Connection, Replay]] = [*self.connections.values(), *self.sessions.detached()]
            slice_end = time.perf_counter() + 0.002
            for count, target in enumerate(targets):
                if not isinstance(target, Connection):
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
        if connection.unread_pongs:
            connection.unread_pongs -= 1
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
        """Counts and latencies without any user, connection or address in them.

        Latencies and score are at most one second old.
        """
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

    # --- connections --------------------------------------------------------------------------------------------------

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
        guarded = scope.get(SCOPE_KEY) if isinstance(scope, Mapping) else None
        return guarded if isinstance(guarded, Connection) else self.sockets.get(id(websocket))

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
            log(
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
        self.sessions.disconnected(connection)

    def reconnects_of(self, user_id: str) -> int:
        """Connects of this user in the last hour, but for the first."""
        recent = self._recent.get(user_id)
        if not recent:
            return 0
        since = self.now() - 3600
        return max(0, sum(1 for at in recent if at > since) - 1)

    def _send_to_user(self, text: str, user_id: str) -> int:
        # Both lists first: a connection that breaks while it is written to leaves its session detached, with the
        # message in it.
        connections = [
            self.connections[name] for name in self.user_connections.get(user_id, ()) if name in self.connections
        ]
        detached = self.sessions.detached(user_id)
        return sum(connection.deliver(text) for connection in connections) + sum(
            session.add(text) for session in detached
        )

    # --- heartbeat ----------------------------------------------------------------------------------------------------

    def _start_heartbeat(self) -> None:
        loop = asyncio.get_running_loop()
        task = self.heartbeat_task
        if task is None or task.done() or task.get_loop() is not loop:
            self.log_if_alone()
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
                log("warning", "💓 The server itself stood still; no peer is blamed", seconds=round(late, 1))
            try:
                self.tick()
            except Exception as error:
                log("error", "💓 Heartbeat error", error=f"{type(error).__name__}: {error}")
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
            log(
                "warning",
                "🔌 WebSocket client does not read",
                connection=connection.id[:8],
                queued_bytes=connection.outbox_bytes,
            )
            connection.shut(1013, "client does not read", flush=False)
        if now - self._swept > 1:
            self._swept = now
            self.sessions.sweep()
        if now - self._reported > 60:
            self._reported = now
            log(
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
        """Ends a connection whose deadline has passed, or looks again at the deadline if its next ping comes later."""
        rest = connection.deadline() - now
        if rest <= 0:
            if connection.room is not None and not connection.room.done() and rest > -4 * self.connection_timeout:
                return  # its frames wait here for the endpoint: we are the silent side
            self.totals["timed_out"] += 1
            log(
                "warning",
                "🔌 WebSocket peer is silent",
                connection=connection.id[:8],
                seconds=round(now - connection.last_inbound, 1),
            )
            connection.shut(1001, "no sign of life", flush=False)
            self.forget(connection)
        elif rest < self.heartbeat_interval:
            self._due[(self._cursor + max(1, math.ceil(rest / step))) % SLOTS].append(connection)

    # --- shutdown -----------------------------------------------------------------------------------------------------

    async def drain(self, seconds: t.Optional[float] = None) -> None:
        """Tells every client when to come back, then closes all with 1012, evenly over a few seconds.

        Meanwhile the guard refuses new ones.
        """
        self.draining = True
        connections = list(self.connections.values())
        random.shuffle(connections)
        seconds = min(self.drain_seconds if seconds is None else seconds, len(connections) * 0.005)
        log("info", "🔌 Draining WebSocket connections", connections=len(connections), seconds=round(seconds, 1))
        self.sessions.wake()
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
        """Drains before the server's own handler runs.

        uvicorn would cut all connections at once and let them all come back at once.
        """
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
                log("error", "🔌 Draining failed", error=type(error).__name__)
            finally:
                previous(number, frame)

        def handler(number: int, frame: t.Any) -> None:
            if self.draining or not loop.is_running():
                previous(number, frame)
            else:
                loop.call_soon_threadsafe(lambda: self.spawn(drain_then(number, None)))

        signal.signal(signal.SIGTERM, handler)


def _plain_send(websocket: t.Any) -> Send:
    """An ASGI ``send`` for an object that has only a WebSocket's methods: a double in a test, another framework's."""

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
if not PACKAGE.is_dir():  # nobody will register: said at the start, not when the first client comes
    manager.log_if_alone()


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
