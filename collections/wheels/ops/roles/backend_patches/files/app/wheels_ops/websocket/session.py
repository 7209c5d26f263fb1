# SPDX-License-Identifier: MIT
"""Sessions: a client that lost its connection comes back and receives what it missed, once and in order.

Wire format. A client that connects with ``?session=`` (empty: a new one) receives
``{"type":"session","session":ID,"epoch":E,"seq":N,...}``; from then on each message carries ``"_seq"``. It reconnects
with ``?session=ID&last_seq=N``, or says ``{"type":"resume","session":ID,"last_seq":N}`` when it cannot set the query
string. It then receives what it missed, or one ``{"type":"resync",...}`` when that is no longer kept. Clients that know
nothing of this are served as before.

Environment: ``WEBSOCKET_SESSION_SECONDS`` (120, how long a cut connection can be resumed),
``WHEELS_OPS_MEMORY_BUDGET_MB`` (64, of all sessions and the spoken texts together).

Sessions live in this process: with several workers a reconnect that reaches another worker gets a ``resync``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import typing as t
from collections import OrderedDict, deque
from urllib.parse import parse_qs

from app.core.websocket_manager import OUTBOX_MESSAGES, Connection, ConnectionManager, SessionStore, setting
from app.wheels_ops import memory_budget

SESSION_MESSAGES = 256
SESSION_BYTES = 256 * 1024
SESSION_SECONDS = 120.0
MAX_SESSIONS = 20_000
#: What a kept message takes beside its text: a tuple and a number.
ENTRY_BYTES = 100
#: Messages that stay kept for a client that is there, however tight memory is.
LEAST_MESSAGES = 8


class Session:
    """What one client was sent, kept so that it can be sent again after a cut; bounded in messages, bytes and time."""

    __slots__ = ("bytes", "connection", "detached_at", "epoch", "id", "owner", "ring", "seq", "user_id", "waiter")

    def __init__(self, user_id: str, epoch: str, owner: t.Optional[Sessions] = None) -> None:
        #: Who counts what it keeps; None once it has ended.
        self.owner = owner
        self.id = secrets.token_urlsafe(18)
        self.user_id = user_id
        self.epoch = epoch
        self.seq = 0
        self.ring: t.Deque[t.Tuple[int, str]] = deque()
        self.bytes = 0
        self.connection: t.Optional[Connection] = None
        self.detached_at: t.Optional[float] = None
        self.waiter: t.Optional[asyncio.Future[None]] = None  # of a long poll

    def add(self, text: str) -> bool:
        """Numbers and keeps the message and sends it on if the client is there."""
        self.seq += 1
        text = number_frame(text, self.seq)
        self.ring.append((self.seq, text))
        self.bytes += len(text)
        growth = held_by(text)
        while len(self.ring) > SESSION_MESSAGES or (self.bytes > SESSION_BYTES and len(self.ring) > 1):
            growth -= self.drop_oldest()
        if self.owner is not None:
            self.owner.changed(growth)
        if self.connection is not None:
            self.connection.push(text)
        self.wake()
        return True

    def drop_oldest(self) -> int:
        """Keeps the oldest message no longer; the bytes that it held."""
        text = self.ring.popleft()[1]
        self.bytes -= len(text)
        return held_by(text)

    def drop(self, least: int = 0, size: t.Optional[int] = None) -> int:
        """Keeps the oldest messages no longer, until ``size`` bytes (all: None) are free or ``least`` are left; the
        bytes that they held."""
        freed = 0
        while len(self.ring) > least and (size is None or freed < size):
            freed += self.drop_oldest()
        return freed

    def since(self, last_seq: int) -> t.Optional[t.List[str]]:
        """The messages after ``last_seq``, or None when some of them are no longer kept (or never were)."""
        if not 0 <= last_seq <= self.seq:
            return None
        if last_seq < self.seq and (not self.ring or self.ring[0][0] > last_seq + 1):
            return None
        return [text for seq, text in self.ring if seq > last_seq]

    def wake(self) -> None:
        """Ends the wait of a long poll."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Sessions(SessionStore):
    """The sessions of one manager, by id and by user. Its methods, too, belong to the event loop's thread."""

    keeps = True

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager
        self.seconds = setting("WEBSOCKET_SESSION_SECONDS", SESSION_SECONDS, 0, 86400)
        self.epoch = secrets.token_hex(4)
        self.by_id: OrderedDict[str, Session] = OrderedDict()
        self.by_user: t.Dict[str, t.Dict[str, Session]] = {}
        #: Bytes of all rings together.
        self.held = 0
        self.budget = memory_budget.budget
        self.budget.limit = int(setting(memory_budget.VARIABLE, memory_budget.DEFAULT_MB, 1, 1_000_000) * (1 << 20))
        self.budget.register("messages for clients that are away", memory_budget.AWAY, self.shrink_away)
        self.budget.register("messages for clients that are there", memory_budget.PRESENT, self.shrink_present)

    @classmethod
    def of(cls, manager: ConnectionManager) -> Sessions:
        """Those that are registered with this manager; registers new ones if it has none."""
        if not isinstance(manager.sessions, cls):
            manager.register(cls(manager))
        return t.cast(Sessions, manager.sessions)

    # --- what the manager calls ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.by_id)

    def connecting(self, connection: Connection) -> None:
        """Ends the connection that this one continues, so that it does not count against the user's limit."""
        query = parse_qs(connection.scope.get("query_string", b"").decode("latin-1"))
        session = self.by_id.get(query.get("session", [""])[-1])
        predecessor = session.connection if session is not None and session.user_id == connection.user_id else None
        if predecessor is not None and predecessor is not connection:
            predecessor.shut(4409, "resumed elsewhere", flush=False)
            self.manager.forget(predecessor)

    def connected(self, connection: Connection) -> None:
        """Binds a client that asked for it in the query string to its session, before anything else is sent to it."""
        query = parse_qs(connection.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if connection.virtual is not None or "session" in query:
            self.bind(connection, query.get("session", [""])[-1], whole_number(query.get("last_seq", ["0"])[-1]))
        elif connection.resume_request is not None:
            self.bind(connection, *connection.resume_request)

    def disconnected(self, connection: Connection) -> None:
        """From now on the session waits for the client to come back."""
        session = connection.session
        if isinstance(session, Session) and session.connection is connection:
            session.connection = None
            session.detached_at = self.manager.now()
            session.wake()

    def resume(self, connection: Connection, text: str) -> bool:
        """Takes ``{"type":"resume","session":ID,"last_seq":N}``; False for what is no such frame."""
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(frame, dict) or frame.get("type") != "resume":
            return False
        if connection.session is None:
            session = frame.get("session")
            last_seq = whole_number(frame.get("last_seq"))
            connection.resume_request = (session if isinstance(session, str) else "", last_seq)
            if connection.slot >= 0:
                self.bind(connection, *connection.resume_request)
        return True

    def resumable(self, connection: Connection) -> bool:
        return isinstance(connection.session, Session) and self.is_alive(connection.session)

    def detached(self, user_id: t.Optional[str] = None) -> t.List[Session]:
        owned = self.by_id if user_id is None else self.by_user.get(user_id, {})
        return [session for session in owned.values() if session.connection is None and self.is_alive(session)]

    def sweep(self) -> None:
        for session in [session for session in self.by_id.values() if not self.is_alive(session)]:
            self.end(session)

    def wake(self) -> None:
        for session in list(self.by_id.values()):
            session.wake()

    # --- memory -------------------------------------------------------------------------------------------------------

    def changed(self, size: int) -> None:
        self.held += size
        self.budget.change(size)

    def shrink_away(self, size: int) -> int:
        """Gives up messages of clients that are away, the longest away first: they will start anew."""
        away = sorted(
            (session for session in self.by_id.values() if session.detached_at is not None and session.ring),
            key=lambda session: session.detached_at or 0.0,
        )
        return self._shrink(away, size, 0)

    def shrink_present(self, size: int) -> int:
        """Gives up messages of clients that are there, those who have most first; a few newest stay."""
        present = sorted(self.by_id.values(), key=lambda session: -session.bytes)
        return self._shrink(present, size, LEAST_MESSAGES)

    def _shrink(self, sessions: t.Iterable[Session], size: int, least: int) -> int:
        freed = 0
        for session in sessions:
            released = session.drop(least, size - freed)
            freed += released
            self.changed(-released)
            if freed >= size:
                break
        return freed

    # --- sessions -----------------------------------------------------------------------------------------------------

    def is_alive(self, session: Session) -> bool:
        """Whether its client is there, or may still come back."""
        return session.detached_at is None or self.manager.now() - session.detached_at <= self.seconds

    def bind(self, connection: Connection, session_id: str, last_seq: int) -> None:
        """Attaches the connection to its session and replays, or starts a new one and says so with one ``resync``."""
        session = self.by_id.get(session_id)
        missed: t.Optional[t.List[str]] = None
        if session is not None and session.user_id == connection.user_id and self.is_alive(session):
            missed = session.since(last_seq)
        if session is None or missed is None:
            session = self.start(connection.user_id)
        elif session.connection is not None and session.connection is not connection:
            predecessor, session.connection = session.connection, None
            predecessor.session = None
            predecessor.shut(4409, "resumed elsewhere", flush=False)
        connection.session, session.connection, session.detached_at = session, connection, None
        kind = "resync" if session_id and missed is None else "session"
        notice = {
            "type": kind,
            "session": session.id,
            "epoch": session.epoch,
            "seq": session.seq,
            "heartbeat_ms": int(self.manager.heartbeat_interval * 1000),
            "timeout_ms": int(self.manager.connection_timeout * 1000),
        }
        connection.push(json.dumps(notice, separators=(",", ":")))
        if missed is not None:
            self.manager.totals["resumed"] += 1
            for text in missed:
                connection.push(text)
        elif session_id:
            self.manager.totals["resynced"] += 1
        if connection.virtual is not None:
            connection.virtual.attached(session, kind)

    def start(self, user_id: str) -> Session:
        """A new session; where its user or the process has too many, those that wait longest end."""
        siblings = self.by_user.get(user_id, {})
        limit = 2 * (self.manager.max_per_user or OUTBOX_MESSAGES)
        idle = [session for session in siblings.values() if session.connection is None]
        for session in idle[: max(0, len(siblings) + 1 - limit)]:
            self.end(session)
        while len(self.by_id) >= MAX_SESSIONS:
            waiting = (session for session in self.by_id.values() if session.connection is None)
            self.end(next(waiting, next(iter(self.by_id.values()))))
        session = Session(user_id, self.epoch, self)
        self.by_id[session.id] = session
        self.by_user.setdefault(user_id, {})[session.id] = session
        return session

    def end(self, session: Session) -> None:
        self.by_id.pop(session.id, None)
        if session.owner is not None:
            session.owner = None
            self.changed(-session.drop())
        siblings = self.by_user.get(session.user_id, {})
        siblings.pop(session.id, None)
        if not siblings:
            self.by_user.pop(session.user_id, None)
        if session.connection is not None:
            session.connection.session = None
        session.wake()


def held_by(text: str) -> int:
    """Bytes of memory for a kept message; a text that is not Latin takes two or four for each character."""
    return sys.getsizeof(text) + ENTRY_BYTES


def number_frame(text: str, seq: int) -> str:
    """The message with its place in the session; what is not an object is put into one."""
    if text.startswith("{"):
        rest = text[1:].lstrip()
        return f'{{"_seq":{seq}}}' if rest == "}" else f'{{"_seq":{seq},{rest}'
    return f'{{"_seq":{seq},"type":"message","data":{json.dumps(text)}}}'


def whole_number(value: t.Any) -> int:
    """What a client wrote as a number, or -1."""
    try:
        return int(value) if not isinstance(value, (bool, float)) and len(str(value)) < 16 else -1
    except (TypeError, ValueError):
        return -1
