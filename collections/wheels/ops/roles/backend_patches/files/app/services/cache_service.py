# SPDX-License-Identifier: MIT
"""The backend's cache in Redis.

Every key that a caller names is stored as ``pam:cache:<key>``: the database is shared with Celery's queues, rate limits
and others, and only a prefix tells what may be swept or deleted. What earlier releases wrote without the prefix is
still found (once: a hit moves it under the prefix), as long as it begins with one of their prefixes and is a string.

Callers never wait long for Redis and never see it fail. What the application has replaced or removed is never served
again by this process, whatever state Redis is in.

States of the connection (``Link``, one for each event loop):

==========  =======================================  ==================================================================
state       how it is entered                        what is read and written
==========  =======================================  ==================================================================
serving     at the start; when a probe was answered  Redis is read and written. A call waits for its turn among
                                                     ``REDIS_MAX_CONNECTIONS`` others, which is no failure of Redis.
suspected   a call timed out or was cut              As above; a PING on a connection of its own is under way. An
                                                     answer to it, or to any call, leads back to *serving*.
away        three failures in a row, and that PING   Redis is not asked. What this process read in the last minutes is
            failed too (LOADING is no answer)        served, other keys are not cached. Nothing is written. Connections
                                                     are new afterwards (the name is resolved again).
            ends: a probe's PING is answered, and    One probe at a time, every 0.25 to 3 s, sent when somebody asks
            what was pending has been tried          or an invalidation waits; no caller waits for it.
demoted     the answer is READONLY, MASTERDOWN or    The pool is dropped and connected anew, at most every 0.25 to 3 s;
            NOREPLICAS                               the refused call is made once more on the new one.
==========  =======================================  ==================================================================

States of a key, beside those (``Invalidations``, one for each process and address):

==========  =======================================  ==================================================================
state       how it is entered                        what is read and written
==========  =======================================  ==================================================================
current     at the start; when its invalidation      Redis, and for ``CACHE_L1_TTL`` this process's memory.
            went through
pending     a write that replaces or removes it was  It reads as not cached: Redis may still hold what was replaced.
            refused (MISCONF, READONLY, OOM,         UNLINK is retried in the background, after 0.25 to 3 s (10 s for
            LOADING, CLUSTERDOWN, NOREPLICAS,        refusals that do not pass by themselves), until Redis took it.
            TRYAGAIN, MASTERDOWN or anything else),  A later write of the key that goes through makes it *current*.
            timed out, was cut or cancelled
settling    UNLINK, or a later write, went through   After ``SETTLE`` seconds UNLINK is repeated, unless Redis holds
            after a write of which nobody knows      what was written last: the lost write may arrive late. Until then
            whether it was executed                  it is *pending*, or *current* after a later write.
==========  =======================================  ==================================================================

Where a write is refused and UNLINK is not (OOM), the key is deleted in the same call. Of more than ``MOST_PENDING``
pending keys those with the most frequent first word become one pattern, at last everything: not cached, until deleted.

Limits: nothing can be told to other processes while Redis takes no writes. They may serve what they hold in memory, or
what Redis still holds, until it accepts the retry or the entry's TTL ends, whichever comes first. So may all of them
after a process ended with invalidations pending (it tries once more when it is closed).

Values are JSON. ``use_pickle=True`` is accepted and keeps types (datetime, Decimal, UUID, bytes, set, tuple ...)
through a tagged JSON form; pickled data is never written and never loaded: whoever can write to Redis could run code
here.

Environment: ``REDIS_URL`` (when the settings have none; ``redis``, ``rediss`` or ``unix``), ``CACHE_TTL`` (seconds that
an entry lives when its writer does not say, 300), ``CACHE_L1_TTL`` (seconds that a value is served from this process's
memory, 0 for never), ``CACHE_L1_MB``, ``CACHE_STALE_IF_ERROR`` (seconds that such a value may stand in while Redis is
away), ``CACHE_LEGACY_READS`` (false: nothing without the prefix is looked at), ``CACHE_LEGACY_PREFIXES`` (further
prefixes of earlier releases, commas), ``REDIS_MAX_CONNECTIONS``, ``CACHE_MAX_VALUE_KB``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import hashlib
import importlib
import json
import math
import os
import random
import re
import socket
import struct
import threading
import time
import typing as t
import uuid
import weakref
from urllib.parse import unquote, urlsplit

import redis.asyncio as aioredis
from app.core.logging import get_logger
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    DataError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

try:
    env: t.Any = importlib.import_module("app.wheels_ops.env")
    redis_url: t.Any = importlib.import_module("app.wheels_ops.redis_url")
except ImportError:  # copied by hand without app/wheels_ops
    env = redis_url = None

logger = get_logger(__name__)
if env is None:
    logger.warning("Cache: app/wheels_ops is not installed; variables that cannot be read are not reported")

PREFIX = "pam:cache:"
_INTERNAL = PREFIX + "!"  # locks, the sweep's cursor, probes; all of them expire

# What earlier releases of this service wrote, without a common prefix.
_LEGACY_WORDS = (
    "user_profile",
    "user_trips",
    "trip_details",
    "user_social_groups",
    "user_social_posts",
    "marketplace_listings",
    "user_purchase_history",
    "user_wishlists",
    "personalized_recommendations",
    "financial_travel_insights",
    "social_travel_connections",
    "comprehensive_user_context",
    "user_calendar_events",
    "user_settings",
    "expenses",
    "budget_summary",
    "fuel_stations",
    "user_analytics",
    "response",
    "conversation_history",
    "user_context",
    "recent_conversation",
    "recent_conversations",
    "context",
    "calendar_events",
    "travel_events",
    "user_preferences",
    "user_insights",
    "web_search",
    "web_search_ctx",
    "script_analysis",
)
# ``pam:<table>:...``, written by the database service. Not ``pam:`` as a whole: ``pam:response:`` is another module's.
TABLES = (
    "profiles",
    "admin_users",
    "user_active_sessions",
    "pam_analytics_logs",
    "pam_conversation_memory",
    "pam_conversation_sessions",
    "pam_memory",
    "pam_user_context",
    "pam_learning_events",
    "pam_feedback",
    "expenses",
    "budgets",
    "budget_categories",
    "income_entries",
    "maintenance_records",
    "fuel_log",
    "fuel_stations",
    "local_events",
    "camping_locations",
    "calendar_events",
    "offroad_routes",
    "manual_waypoints",
    "youtube_hustles",
    "hustle_ideas",
    "user_hustle_attempts",
    "shop_products",
    "shop_orders",
    "affiliate_sales",
    "social_groups",
    "group_memberships",
    "social_posts",
    "marketplace_listings",
    "facebook_groups",
    "analytics_summary",
    "analytics_daily",
    "active_recommendations",
    "chat_sessions",
    "audio_cache",
)
# Others in the same database, whatever anybody configures.
_FOREIGN = re.compile(
    r"(?:rate_limit|security_event|threats|severity_count|blocked_ip|blocked_user|_kombu.*|unacked.*|celery.*"
    r"|pam:(?:response|cache|throttle)):"
)

CONNECT_TIMEOUT = 0.4  # seconds
OPERATION_TIMEOUT = 0.25
CALL_TIMEOUT = 0.45  # connecting and the operation together
HICCUP = 0.25  # a call that ends this much after its time was up met a pause of this process: Redis is not blamed
QUEUE_TIMEOUT = 10.0  # waiting for a turn among calls of this process; thousands on a busy machine take seconds
SWEEP_TIMEOUT = 5.0  # one slice of a sweep, which may have to wait for others
PATTERN_TIMEOUT = 60.0  # all slices of a pattern that a caller waits for; the background goes on
FAILURES_TO_OPEN = 3
SHORTEST_DELAY, LONGEST_PROBE_DELAY = 0.25, 3.0  # between two probes, two deliveries, two new pools
LONGEST_DELIVERY_DELAY = 10.0  # of what is refused for a reason that does not pass by itself
SETTLE = 1.0  # seconds in which a write that timed out may still reach Redis
SLICE = 200  # keys a script looks at; measured: 1.4 ms at the 99th percentile for other clients, 1,000 keys give 5 ms
LONGEST_TTL = 10 * 365 * 86_400.0  # seconds; Redis refuses an end that does not fit its clock
LONGEST_KEY, KEPT = 512, 96  # bytes; a longer one keeps its first characters, the rest becomes a digest
MOST_PENDING = 1000
REFUSAL_QUIET = 60.0  # seconds between two log lines about the same kind of refusal


def _number(name: str, default: float) -> float:
    """A number of at least 0 from the environment."""
    if env is not None:
        return env.number(name, default)
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if 0 <= value < math.inf else default


def _flag(name: str, default: bool) -> bool:
    """A switch from the environment."""
    if env is not None:
        return env.flag(name, default)
    switches = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
    return switches.get(os.environ.get(name, "").strip().lower(), default)


def _names(name: str) -> t.List[str]:
    """Entries between commas from the environment."""
    if env is not None:
        return env.names(name)
    return [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]


def _legacy_prefixes() -> t.FrozenSet[str]:
    prefixes = {f"{word}:" for word in _LEGACY_WORDS} | {f"pam:{table}:" for table in TABLES}
    for entry in _names("CACHE_LEGACY_PREFIXES"):
        if re.fullmatch(r"(?:pam:)?[A-Za-z0-9_-]+:", entry) and not _FOREIGN.fullmatch(entry):
            prefixes.add(entry)
        else:
            logger.error("Cache prefix left out: it is not of the form word: or belongs to others", prefix=entry[:60])
    return frozenset(prefixes)


LEGACY_PREFIXES = _legacy_prefixes()


def _head(key: str) -> str:
    """``word:`` or ``pam:word:``, what a key begins with."""
    first, colon, rest = key.partition(":")
    if not colon:
        return ""
    if first == "pam":
        second, colon, _ignored = rest.partition(":")
        return f"pam:{second}:" if colon else ""
    return first + ":"


def stored_name(key: str) -> str:
    """A caller's key as it is in Redis."""
    if len(key) > LONGEST_KEY // 4 and len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        key = f"{key[:KEPT]}:sha256:{digest}"
    return PREFIX + key


class CacheUnavailableError(ConnectionError):
    """Redis cannot be used right now. The message names the kind of error, never an address or a secret."""

    #: Redis answered, and said no.
    refused = False
    #: Redis may have executed the command, or may still: it was sent and not answered.
    uncertain = False
    #: The code of a refusal for the time being.
    code = ""


# The codes with which Redis refuses for the time being.
_CODES = re.compile(r"\b(MISCONF|READONLY|OOM|LOADING|CLUSTERDOWN|NOREPLICAS|TRYAGAIN|MASTERDOWN)\b")
# The client takes the code off the text of these. A subclass comes before its base.
_CODE_OF: t.Tuple[t.Tuple[t.Type[Exception], str], ...] = (
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
    (BusyLoadingError, "LOADING"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (TryAgainError, "TRYAGAIN"),
)
# This server is, or may be, no longer the one that takes writes: its name may lead to another one now.
_DEMOTED = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS"})


def refusal(error: BaseException) -> str:
    """The code with which Redis refused for the time being, also from within a script; empty for any other error."""
    for kind, code in _CODE_OF:
        if isinstance(error, kind):
            return code
    match = _CODES.search(str(error)) if isinstance(error, ResponseError) else None
    return match[1] if match else ""


def _unavailable(error: BaseException) -> CacheUnavailableError:
    unavailable = CacheUnavailableError(_kind(error))
    unavailable.refused = isinstance(error, (ResponseError, DataError, UnicodeError))
    unavailable.code = refusal(error)
    never_sent = "connecting to" in str(error)  # the client library's words; without them the safe thing is assumed
    unavailable.uncertain = not (unavailable.refused or unavailable.code or never_sent)
    return unavailable


#: What a client library raises when a server is gone or slow; RuntimeError is asyncio's for a transport that is closed.
_OUTAGES = (RedisError, OSError, asyncio.TimeoutError, TimeoutError, EOFError, RuntimeError)


def is_outage(error: BaseException) -> bool:
    """Whether an error is one of the connection, and not one of the program (TypeError, AttributeError, NameError)."""
    return isinstance(error, _OUTAGES) and not isinstance(error, (NotImplementedError, RecursionError))


def place_of(error: BaseException) -> str:
    """``file.py:12`` of the line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace is not None else ""


class _Deadline:
    """``asyncio.timeout`` for Python 3.9 and 3.10, which do not have it: ends its block with TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._expired = seconds, False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._seconds), self._expire, task)

    def _expire(self, task: asyncio.Task[t.Any]) -> None:
        self._expired = True
        task.cancel()

    async def __aexit__(self, kind: t.Any, error: t.Any, trace: t.Any) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            raise TimeoutError from None


time_limit: t.Any = getattr(asyncio, "timeout", _Deadline)


def _kind(error: BaseException) -> str:
    """How an error is named in the log: its class, or the code where the class says nothing."""
    name = type(error).__name__
    return (refusal(error) if name == "ResponseError" else "") or name


def redacted(url: object) -> str:
    """A Redis URL that may be shown: its password hidden, in the address and in the query. What cannot be read is not
    shown at all."""
    scheme, sign, rest = str(url).partition("://")
    if not sign:
        return "***"
    end = _first(rest, 0)
    path, mark, query = rest[end:].partition("?")
    clean = re.fullmatch(r"(?:(?:[\w.%-]+|\[[0-9A-Fa-f:.%\w]+\])(?::\d+)?)?", rest[:end].rpartition("@")[2])
    if not clean or "@" in path or (mark and not re.match(r"[\w.%-]+=", query)):
        # A password that is written as it is, with a character that ends the address.
        end = max(end, _first(rest, rest.rfind("@") + 1))
    who, at, host = rest[:end].rpartition("@")
    user, colon, password = who.partition(":")
    if user and not colon and scheme.lower() not in ("redis", "rediss", "unix"):
        user = "***"  # of an address that is none of Redis nobody knows whether this is a name
    path, mark, query = rest[end:].partition("?")
    if scheme.lower() in ("redis", "rediss") and not re.fullmatch(r"(?:/\d*)?", path):
        path = "/***"
    words = [
        (
            re.sub(r"=.+", "=***", word)
            if re.search(r"password|passwd|token|secret", unquote(word.partition("=")[0]))
            else word
        )
        for word in query.split("&")
    ]
    text = f"{scheme}://{user}{colon}{'***' if password else ''}{at}{host}{path}{mark}{'&'.join(words)}"
    try:
        port = urlsplit(text).port
    except ValueError:
        return "***"
    return text if port is None or port >= 0 else "***"


def _first(rest: str, start: int) -> int:
    """Where the address ends: at the first of ``/?#`` from ``start`` on."""
    return min((place for place in (rest.find(sign, start) for sign in "/?#") if place >= 0), default=len(rest))


def configured_url() -> str:
    """``REDIS_URL`` of the settings (text, or a pydantic URL object) or of the environment."""
    if redis_url is not None:
        return redis_url.default_url()
    try:
        from app.core import config

        getter = getattr(config, "get_settings", None)
        value = getattr(getter() if getter else getattr(config, "settings", None), "REDIS_URL", None)
    except Exception as error:  # settings that cannot be read have their own message; the environment may do
        logger.warning("Cache reads no settings", error=type(error).__name__)
        value = None
    return str(value or os.environ.get("REDIS_URL") or "redis://localhost:6379").strip()


# --- values -----------------------------------------------------------------------------------------------------------

_TYPED = "\x01"  # JSON never begins with it
_TAG = "$type"


def _tagged(value: t.Any) -> t.Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, dict):
        if all(key.__class__ is str for key in value) and _TAG not in value:
            return {key: _tagged(item) for key, item in value.items()}
        return {_TAG: "dict", "v": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    for name, kind, write, _ignored in _TYPES:
        if value.__class__ is kind:
            return {_TAG: name, "v": write(value)}
    if isinstance(value, enum.Enum):
        return _tagged(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _tagged({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _tagged(dump())
    raise TypeError(f"a value of type {type(value).__name__} cannot be cached")


def _untagged(value: t.Any) -> t.Any:
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if isinstance(value, dict):
        name = value.get(_TAG)
        if name is None:
            return {key: _untagged(item) for key, item in value.items()}
        if name == "dict":
            return {_untagged(key): _untagged(item) for key, item in value["v"]}
        return _READERS[name](value["v"])
    return value


# Exact types only: what is read back has the type that was written, and nothing else is ever constructed.
_TYPES: t.Tuple[t.Tuple[str, type, t.Callable[[t.Any], t.Any], t.Callable[[t.Any], t.Any]], ...] = (
    ("datetime", dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),
    ("date", dt.date, dt.date.isoformat, dt.date.fromisoformat),
    ("time", dt.time, dt.time.isoformat, dt.time.fromisoformat),
    ("timedelta", dt.timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: dt.timedelta(*v)),
    ("decimal", decimal.Decimal, str, decimal.Decimal),
    ("uuid", uuid.UUID, str, uuid.UUID),
    ("bytes", bytes, lambda v: base64.b64encode(v).decode(), lambda v: base64.b64decode(v, validate=True)),
    ("tuple", tuple, lambda v: [_tagged(item) for item in v], lambda v: tuple(_untagged(v))),
    ("set", set, lambda v: [_tagged(item) for item in v], lambda v: set(_untagged(v))),
    ("frozenset", frozenset, lambda v: [_tagged(item) for item in v], lambda v: frozenset(_untagged(v))),
)
_READERS = {entry[0]: entry[3] for entry in _TYPES}
_dumps = json.JSONEncoder(default=str, separators=(",", ":")).encode
_loads = json.JSONDecoder().decode


def encode(value: t.Any, typed: bool = False) -> str:
    """The text to store. Without ``typed`` what JSON does not know becomes ``str()``, as it always has here."""
    return _TYPED + _dumps(_tagged(value)) if typed else _dumps(value)


def decode(text: str) -> t.Any:
    """The value of a stored text. Raises ValueError for anything else, pickled data among it."""
    if text[:1] != _TYPED:
        return _loads(text)
    try:
        return _untagged(_loads(text[1:]))
    except (KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not a cached value: {type(error).__name__}") from None


def _seconds(ttl: t.Union[int, float, str, dt.timedelta, None], default: int) -> float:
    """Digits count as a number. 0, None, negative numbers and what is no number mean the default; no entry lives longer
    than ten years."""
    try:
        value = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else float(ttl or 0)
    except OverflowError:  # a whole number beyond any float
        value = LONGEST_TTL if not isinstance(ttl, int) or ttl > 0 else 0.0
    except (TypeError, ValueError):
        value = 0.0
    return min(value, LONGEST_TTL) if value > 0 else float(default)


def escape_glob(text: str) -> str:
    """``text`` as a Redis pattern that matches it and nothing else."""
    return re.sub(r"([\\*?\[\]^])", r"\\\1", text)


def literal_beginning(pattern: str) -> t.Tuple[str, bool]:
    """What everything that a Redis pattern matches begins with, and whether it matches everything that does."""
    match = re.match(r"(?:[^*?\[\]\\]|\\.)*", pattern, re.DOTALL)
    literal = match[0] if match else ""
    return re.sub(r"\\(.)", r"\1", literal, flags=re.DOTALL), pattern[len(literal) :] == "*"


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()


# --- scripts ----------------------------------------------------------------------------------------------------------

# Each runs for well under a millisecond on one slice, and looks at the prefix before anything else.
_SWEEP = """
local own, old = '@prefix@', {@legacy@}
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local mine, legacy, adopted, ttl = 0, 0, 0, tonumber(ARGV[3])
for _, key in ipairs(page[2]) do
  local head = string.sub(key, 1, #own) == own and own or string.match(key, '^[^:]*:')
  if head == 'pam:' then head = string.match(key, '^pam:[^:]*:') end
  if head and (head == own or old[head]) then
    local left = redis.call('PTTL', key)
    if left ~= -2 and (head == own or redis.call('TYPE', key).ok == 'string') then
      if head == own then mine = mine + 1 else legacy = legacy + 1 end
      if left == -1 then
        redis.call('PEXPIRE', key, math.random(math.floor(ttl / 2), ttl))
        adopted = adopted + 1
      end
    end
  end
end
return {page[1], #page[2], mine, legacy, adopted}
""".replace("@prefix@", PREFIX).replace("@legacy@", ",".join(f"['{entry}']=true" for entry in sorted(LEGACY_PREFIXES)))
# ARGV[4] and on: beginnings of which a key must have one, each after 1 (ours: any type) or 0 (an earlier release's:
# strings only).
_UNLINK = """
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local keys = {}
for _, key in ipairs(page[2]) do
  for at = 4, #ARGV do
    local beginning = string.sub(ARGV[at], 2)
    if string.sub(key, 1, #beginning) == beginning then
      if string.sub(ARGV[at], 1, 1) == '1' or redis.call('TYPE', key).ok == 'string' then keys[#keys + 1] = key end
      break
    end
  end
end
return {page[1], #keys > 0 and redis.call('UNLINK', unpack(keys)) or 0}
"""
_MOVE = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('RENAMENX', KEYS[1], KEYS[2]) == 0 then return 0 end
if redis.call('PTTL', KEYS[2]) == -1 then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
return 1
"""
_DROP = "if redis.call('TYPE', KEYS[1]).ok == 'string' then return redis.call('UNLINK', KEYS[1]) end return 0"
_DROP_UNLESS = """
local text = redis.call('GET', KEYS[1])
if text and redis.sha1hex(text) ~= ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class SweepResult(int):
    """How many of the application's own entries a sweep dealt with: given an end, or found past it and reclaimed.

    ``adopted``: entries without an end that now have one. ``expired``: keys that Redis reclaimed meanwhile (Redis
    counts the whole server). ``scanned``: keys looked at. ``own`` and ``legacy``: entries of ours seen. ``finished``:
    False when the time was used up or another process was sweeping; the next call goes on from there. ``seconds``: wall
    time.
    """

    scanned: int
    own: int
    legacy: int
    adopted: int
    expired: int
    finished: bool
    seconds: float

    @classmethod
    def of(
        cls,
        *,
        scanned: int = 0,
        own: int = 0,
        legacy: int = 0,
        adopted: int = 0,
        expired: int = 0,
        finished: bool = True,
        seconds: float = 0.0,
    ) -> SweepResult:
        result = cls(adopted + expired)
        result.scanned, result.own, result.legacy, result.adopted, result.expired = (
            scanned,
            own,
            legacy,
            adopted,
            expired,
        )
        result.finished, result.seconds = finished, seconds
        return result


#: What is done with the client in one exchange, and what makes an exchange of it.
Work = t.Callable[[t.Any], t.Awaitable[t.Any]]
Call = t.Callable[[Work], t.Awaitable[t.Any]]

# --- state shared by all instances ------------------------------------------------------------------------------------


@dataclasses.dataclass
class CacheCounters:
    """Of this process, since it started."""

    hits: int = 0
    misses: int = 0
    local_hits: int = 0
    stale_hits: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0
    rejected_values: int = 0
    short_circuits: int = 0
    loads: int = 0
    breaker_opened: int = 0

    @property
    def hit_rate(self) -> float:
        """0 to 1, over everything that was asked for."""
        asked = self.hits + self.misses
        return round(self.hits / asked, 4) if asked else 0.0


@dataclasses.dataclass
class Pending:
    """One invalidation that Redis did not get. ``serial`` orders it among the writes of this process."""

    serial: int
    uncertain: bool  # a write of the key may still arrive: a delivery now is not the last one
    due: float = 0.0  # not to be delivered before
    digest: str = ""  # of what has been written since, which may stay; reads are allowed then


class Invalidations:
    """What this process replaced or removed, while Redis may still hold the old value: keys and patterns, bounded.

    Shared by the event loops of all threads. The lock is never held while waiting for anything.
    """

    def __init__(self) -> None:
        self.entries: t.Dict[t.Tuple[str, str], Pending] = {}
        self.serial = 0
        self.prefixes: t.Tuple[str, ...] = ()  # a key with one of these is not to be read
        self.whole: t.Tuple[t.Tuple[str, str], ...] = ()  # patterns of the form beginning*, after it
        self.lock = threading.Lock()

    def covers(self, key: str) -> bool:
        """Whether Redis may hold a value of this key that has been replaced."""
        if not self.entries:
            return False
        entry = self.entries.get(("key", key))
        return (entry is not None and not entry.digest) or key.startswith(self.prefixes)

    def remember(self, kind: str, texts: t.Iterable[str], uncertain: bool = False) -> None:
        """Keeps invalidations (``key`` or ``pattern``) that Redis did not get."""
        with self.lock:
            for text in texts:
                self.serial += 1
                place = self._place(kind, text)
                if place not in self.entries and len(self.entries) >= MOST_PENDING:
                    self._fold()
                    place = self._place(kind, text)
                before = self.entries.get(place)
                self.entries[place] = Pending(self.serial, uncertain or (before is not None and before.uncertain))
            self._index()

    def _place(self, kind: str, text: str) -> t.Tuple[str, str]:
        """Where it belongs: its own place, or that of a pattern here which deletes it too."""
        if ("pattern", "*") in self.entries:
            return "pattern", "*"
        if kind == "key" and text.startswith(self.prefixes):
            for beginning, pattern in self.whole:
                if text.startswith(beginning):
                    return "pattern", pattern
        return kind, text

    def _fold(self) -> None:
        """Makes room without forgetting anything: the keys with the most frequent first word become one pattern, or
        everything does."""
        heads: t.Dict[str, int] = {}
        for kind, text in self.entries:
            if kind == "key":
                heads[_head(text)] = heads.get(_head(text), 0) + 1
        most = max(heads, key=lambda head: heads[head], default="")
        if not most or heads[most] < MOST_PENDING // 10:
            most = ""
        going = [place for place in self.entries if not most or (place[0] == "key" and _head(place[1]) == most)]
        entries = [self.entries.pop(place) for place in going]
        uncertain = any(entry.uncertain for entry in entries)
        self.entries[("pattern", escape_glob(most) + "*")] = Pending(self.serial, uncertain)
        self._index()

    def _index(self) -> None:
        patterns = [text for kind, text in self.entries if kind == "pattern"]
        beginnings = [(*literal_beginning(pattern), pattern) for pattern in patterns]
        self.whole = tuple((beginning, pattern) for beginning, whole, pattern in beginnings if whole)
        ours = (name for pattern in patterns for name in _targets(pattern, False)[2])
        self.prefixes = tuple({literal_beginning(name)[0] for name in ours})

    def replaced(self, kind: str, text: str, serial: int, written: str = "") -> None:
        """A write that began when ``serial`` was the last one went through, and makes up for what is older.
        ``written``: what Redis now holds."""
        if not self.entries:
            return
        with self.lock:
            entry = self.entries.get((kind, text))
            if entry is None or entry.serial > serial:
                return
            if entry.uncertain or entry.due:
                due = entry.due or time.monotonic() + SETTLE
                self.entries[(kind, text)] = Pending(entry.serial, False, due, _digest(written) if written else "")
            else:
                del self.entries[(kind, text)]
                self._index()

    def delivered(self, places: t.Mapping[t.Tuple[str, str], int]) -> None:
        """Redis deleted these, as they were at their serial."""
        with self.lock:
            for place, serial in places.items():
                entry = self.entries.get(place)
                if entry is not None and entry.serial == serial:
                    if entry.uncertain:
                        self.entries[place] = Pending(serial, False, time.monotonic() + SETTLE)
                    else:
                        del self.entries[place]
            self._index()

    def waiting(self) -> t.Dict[t.Tuple[str, str], Pending]:
        """What is due now."""
        now = time.monotonic()
        with self.lock:
            return {place: entry for place, entry in self.entries.items() if entry.due <= now}


class LocalStore:
    """What this process knows of the cache: texts as they are in Redis, in the order they came, bounded in bytes.

    An entry is ``(text, fresh until, usable until, end)``. Fresh ones are served without asking Redis; the others only
    while Redis is away. ``end`` is when the entry expires, as far as this process set it. Texts, not objects: every
    caller gets a value of its own.
    """

    OVERHEAD = 280  # bytes that an entry costs beside its characters, measured with tracemalloc

    def __init__(self) -> None:
        self.fresh_for = _number("CACHE_L1_TTL", 2.0)
        self.usable_for = _number("CACHE_STALE_IF_ERROR", 300.0)
        self.limit = int(_number("CACHE_L1_MB", 16.0) * 1_048_576)
        self.entries: t.Dict[str, t.Tuple[str, float, float, float]] = {}
        self.bytes = 0
        self.legacy_reads = _flag("CACHE_LEGACY_READS", True)
        self.version = (
            0  # grows with every write here; a read that was under way meanwhile must not bring back the old value
        )
        self.loading: t.Dict[str, object] = {}  # the load whose result may be cached: none from before the last write
        self.pending = Invalidations()

    def forget(self, keys: t.Iterable[str]) -> None:
        """The keys are being replaced or removed: their values here, and those under way, are not to be served."""
        self.version += 1
        for key in keys:
            self.drop(key)
            self.loading.pop(key, None)

    def forget_all(self) -> None:
        self.clear()
        self.loading.clear()

    def old_name(self, key: str) -> t.Optional[str]:
        """The key under which an earlier release would have stored this, if that is one of its own prefixes."""
        if self.legacy_reads and len(key) <= LONGEST_KEY and _head(key) in LEGACY_PREFIXES:
            return key
        return None

    def put(self, key: str, text: str, *, fresh: bool, ttl: t.Optional[float] = None) -> None:
        size = len(text) + len(key) + self.OVERHEAD
        before = self.entries.get(key)
        self.drop(key)
        if size > self.limit // 16:
            return
        now = time.monotonic()
        if ttl is not None:
            end = now + ttl
        elif before is not None and before[0] == text and before[3] > now - CALL_TIMEOUT:
            end = before[3]  # Redis counts from when it got the entry, a little later than this process
        else:
            end = math.inf
        self.entries[key] = (
            text,
            min(now + self.fresh_for, end) if fresh else 0.0,
            min(now + self.usable_for, end + 60.0),
            end,
        )
        self.bytes += size
        while self.bytes > self.limit:
            try:
                oldest = next(iter(self.entries), None)
            except RuntimeError:  # another thread's loop wrote between the two calls
                continue
            if oldest is None:
                self.bytes = 0
                break
            self.drop(oldest)

    def drop(self, key: str) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            size = len(entry[0]) + len(key) + self.OVERHEAD
            self.bytes -= size  # nothing is called between reading and writing it, so no other thread comes between

    def clear(self) -> int:
        """Forgets everything; gives the bytes that were held."""
        freed, self.bytes = self.bytes, 0
        self.entries.clear()
        self.version += 1
        return freed

    def usable(self, key: str) -> t.Optional[str]:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry[2] < time.monotonic():
            self.drop(key)
            return None
        return entry[0]


class Link:
    """One event loop's way to Redis: the client with its pool, the queue for it, and the breaker."""

    def __init__(self, url: str, counters: CacheCounters, store: LocalStore) -> None:
        self.shown = redacted(url)
        self.counters = counters
        self.store = store
        self.invalidations = store.pending
        self.lock = asyncio.Lock()
        self.connected = False  # Redis has answered at least once since this was made
        self.failures = 0  # in a row
        self.unanswered = False  # a PING on a connection of its own has failed since the last answer
        self.open = False
        self.delay = SHORTEST_DELAY
        self.next_probe = 0.0
        self.renewal_delay = SHORTEST_DELAY
        self.renewed = -math.inf
        self.checking: t.Optional[asyncio.Task[None]] = None
        self.probing: t.Optional[asyncio.Task[None]] = None
        self.delivering: t.Optional[asyncio.Task[None]] = None
        self.retiring: t.Dict[asyncio.Task[None], t.Any] = {}  # pools that are no longer used, while calls on them end
        self.flights: t.Dict[str, t.Tuple[object, asyncio.Task[t.Any]]] = {}
        self.users: weakref.WeakSet[CacheService] = weakref.WeakSet()
        self.quiet_until: t.Dict[str, float] = {}  # by kind of refusal
        self.client: t.Optional[aioredis.Redis] = None
        size = max(1, int(_number("REDIS_MAX_CONNECTIONS", 20)))
        self.turns = asyncio.Semaphore(size)
        refused = redis_url.unsupported(url) if redis_url is not None else ""
        if refused:
            logger.error(f"Cache is off: {refused}")
            return
        try:
            self.client = self._client(url, size)
        except Exception as error:  # the text of the error can quote the URL
            logger.error("Cache is off: REDIS_URL cannot be read", error=type(error).__name__)

    @property
    def pending(self) -> t.Dict[t.Tuple[str, str], Pending]:
        return self.invalidations.entries

    @staticmethod
    def _client(url: str, size: int) -> aioredis.Redis:
        pool: aioredis.BlockingConnectionPool = aioredis.BlockingConnectionPool.from_url(
            url,
            max_connections=size,
            timeout=QUEUE_TIMEOUT,  # of those who use the client directly; our own calls take turns
            decode_responses=True,
            # Bytes that are no UTF-8 (pickled data) must come through, to be refused as a value and not as a broken
            # connection.
            encoding_errors="surrogateescape",
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=OPERATION_TIMEOUT,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=_on_connect,
        )
        arguments = pool.connection_kwargs
        if "path" not in arguments:
            arguments["socket_keepalive"] = True
        checked = str(arguments.get("ssl_cert_reqs", ""))
        if checked.upper().startswith(
            "CERT_"
        ):  # Celery insists on this spelling in the address that both read, redis-py on the other
            arguments["ssl_cert_reqs"] = checked[len("CERT_") :].lower()
        # A pool and its connections print their arguments; a provider prints only its address.
        username, password = arguments.pop("username", None), arguments.pop("password", None)
        if username or password:
            arguments["credential_provider"] = UsernamePasswordCredentialProvider(username, password)
        client: aioredis.Redis = aioredis.Redis(connection_pool=pool)
        return client

    # --- calls ---

    async def call(self, work: Work, *, timeout: float = CALL_TIMEOUT, again: bool = False) -> t.Any:
        """One exchange with Redis: waits for its turn, then for at most ``timeout`` seconds. Raises
        ``CacheUnavailableError`` only.

        ``again``: it may be made a second time when this process stood still meanwhile (a read).
        """
        if self.refuse():
            raise CacheUnavailableError("Redis is not available")
        if self.turns.locked():
            try:
                async with time_limit(QUEUE_TIMEOUT):
                    await self.turns.acquire()
            except TimeoutError:  # our own queue: Redis is not blamed
                self.counters.errors += 1
                raise CacheUnavailableError("no connection became free") from None
        else:
            await self.turns.acquire()
        try:
            if self.refuse():  # the breaker opened meanwhile: all who wait are let go at once
                raise CacheUnavailableError("Redis is not available")
            result = await self._exchange(work, timeout, again)
        finally:
            self.turns.release()
        if self.pending:
            self.deliver_soon()
        return result

    async def _exchange(self, work: Work, timeout: float, again: bool = False) -> t.Any:
        for last in (False, True):
            client = self.client
            if client is None:
                raise CacheUnavailableError("the cache has been closed")
            pool = client.connection_pool
            start = time.monotonic()
            try:
                async with time_limit(timeout):
                    result = await work(client)
            except (ResponseError, DataError, UnicodeError) as error:  # Redis is there, it only refuses this one
                if not last and refusal(error) in _DEMOTED and self._renew(pool, _kind(error)):
                    continue
                self.refused(error)
                raise _unavailable(error) from None
            except Exception as error:
                if not is_outage(error):
                    self.defect(error)
                    raise _unavailable(error) from None
                if time.monotonic() - start > timeout + HICCUP:
                    if again and not last:
                        continue
                    self.counters.errors += 1
                else:
                    await self._failed(error)
                raise _unavailable(error) from None
            self.succeeded()
            return result

    def defect(self, error: BaseException) -> None:
        """An error in the program, which no Redis is to blame for: it is in the log with its place, once a minute."""
        self.counters.errors += 1
        now = time.monotonic()
        if now >= self.quiet_until.get("defect", 0.0):
            self.quiet_until["defect"] = now + 60
            logger.error(
                "Cache: an error in the program, Redis is not to blame",
                error=f"{type(error).__name__}: {error}"[:300],
                place=place_of(error),
            )

    def succeeded(self) -> None:
        self.failures = 0
        self.unanswered = False
        self.connected = True

    async def _failed(self, error: BaseException) -> None:
        """Counts it. From the first one on a PING finds out whether it is Redis that fails; the third waits for it."""
        self.counters.errors += 1
        self.failures += 1
        if self.open:
            return
        if self.checking is None and not self.unanswered:
            self.checking = asyncio.get_running_loop().create_task(self._check())
        if self.failures >= FAILURES_TO_OPEN:
            if self.checking is not None:
                await asyncio.shield(self.checking)
            if self.unanswered and self.failures >= FAILURES_TO_OPEN and not self.open:
                self._open(error)

    def _open(self, error: BaseException) -> None:
        self.open = True
        self.delay = SHORTEST_DELAY
        self.counters.breaker_opened += 1
        self._plan_probe()
        self._swap()
        if self.pending:
            self.deliver_soon()
        logger.warning("Cache: Redis does not answer, going on without it", redis=self.shown, error=_kind(error))

    async def _check(self) -> None:
        try:
            answered = await self._ping()
            if answered:
                self.succeeded()
            elif answered is not None:
                self.unanswered = True
        finally:
            self.checking = None

    async def _ping(self) -> t.Optional[bool]:
        """Whether Redis answers on a connection made for this; None when this process stood still meanwhile."""
        if self.client is None:
            return None
        pool = self.client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        start = time.monotonic()
        try:
            async with time_limit(CALL_TIMEOUT):
                await connection.connect()
                await connection.send_command("PING", check_health=False)
                await connection.read_response()
        except ResponseError:  # it answers, if only that it takes no writes
            return True
        except Exception as error:
            if not is_outage(error):
                self.defect(error)
                return None
            return None if time.monotonic() - start > CALL_TIMEOUT + HICCUP else False
        finally:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
        return True

    def refused(self, error: BaseException) -> None:
        """Redis is there and says no (out of memory, read-only, moved, not permitted): one line a minute for each
        kind."""
        self.succeeded()
        self.counters.errors += 1
        kind, now = _kind(error), time.monotonic()
        if now >= self.quiet_until.get(kind, 0.0):
            self.quiet_until[kind] = now + REFUSAL_QUIET
            logger.warning("Cache: Redis refuses, going on without it where it does", redis=self.shown, error=kind)

    # --- a new pool ---

    def _renew(self, pool: t.Any, kind: str) -> bool:
        """Connects anew after a refusal on ``pool`` that another server may not give; whether there is a new pool."""
        if self.client is None:
            return False
        if self.client.connection_pool is not pool:  # another call was faster
            return True
        now = time.monotonic()
        if now - self.renewed < self.renewal_delay:
            return False
        recently = now - self.renewed < 4 * LONGEST_PROBE_DELAY
        self.renewal_delay = min(self.renewal_delay * 2, LONGEST_PROBE_DELAY) if recently else SHORTEST_DELAY
        self.renewed = now
        self._swap()
        logger.info("Cache: this Redis is not the one that takes writes, connecting anew", redis=self.shown, error=kind)
        return True

    def _swap(self) -> None:
        """Replaces the pool under the client, whose identity callers rely on: the address is resolved again."""
        if self.client is None:
            return
        old: t.Any = self.client.connection_pool
        self.client.connection_pool = type(old)(
            connection_class=old.connection_class,
            max_connections=old.max_connections,
            timeout=old.timeout,
            **old.connection_kwargs,
        )
        task = asyncio.get_running_loop().create_task(self._retire(old))
        self.retiring[task] = old
        task.add_done_callback(lambda done: self.retiring.pop(done, None))

    @staticmethod
    async def _retire(pool: t.Any) -> None:
        """Closes what is idle at once, and the rest when the calls on it have had their time."""
        with contextlib.suppress(Exception):
            await pool.disconnect(inuse_connections=False)
        try:
            await asyncio.sleep(SWEEP_TIMEOUT + HICCUP)
        finally:
            with contextlib.suppress(Exception):
                await pool.disconnect()

    # --- the breaker ---

    def _plan_probe(self) -> None:
        self.next_probe = time.monotonic() + self.delay * random.uniform(0.8, 1.2)
        self.delay = min(self.delay * 2, LONGEST_PROBE_DELAY / 1.2)

    def refuse(self) -> bool:
        """Whether to answer without Redis; now and then this sends a probe, which no caller waits for."""
        if self.client is None:
            return True
        if not self.open:
            return False
        self.counters.short_circuits += 1
        self._probe_when_due()
        return True

    def _probe_when_due(self) -> None:
        if time.monotonic() >= self.next_probe and self.probing is None:
            self.probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        try:
            back = await self._ping()
            if back:
                try:
                    await self._deliver()
                except CacheUnavailableError as error:
                    back = error.refused  # then Redis answers, and what waits for it reads as not cached
            if not back:
                self._plan_probe()
                return
            self.open = False
            self.succeeded()
            logger.info("Cache: Redis is back", redis=self.shown)
        finally:
            self.probing = None

    # --- invalidations ---

    def remember(self, kind: str, *texts: str, uncertain: bool = False) -> None:
        """Keeps invalidations (``key`` or ``pattern``, callers' names) that Redis did not get, and sees to them."""
        first = not self.pending
        self.invalidations.remember(kind, texts, uncertain)
        if first:
            logger.warning("Cache: an invalidation is pending, until then its keys are not cached", redis=self.shown)
        self.deliver_soon()

    def deliver_soon(self) -> None:
        if self.delivering is None and self.client is not None:
            self.delivering = asyncio.get_running_loop().create_task(self._delivery())

    async def _delivery(self) -> None:
        """Until nothing is pending: delivers what is due, later and later while it is refused."""
        delay = SHORTEST_DELAY
        try:
            while self.pending and self.client is not None:
                if self.open:
                    self._probe_when_due()  # which delivers
                    pause = SHORTEST_DELAY
                else:
                    try:
                        await self._deliver()
                        delay = SHORTEST_DELAY
                        pause = SHORTEST_DELAY  # what settles has its time, what came meanwhile is next
                    except CacheUnavailableError as error:
                        lasting = error.refused and not error.code
                        pause = min(delay, LONGEST_DELIVERY_DELAY if lasting else LONGEST_PROBE_DELAY)
                        delay = 2 * pause
                if self.pending:
                    await asyncio.sleep(pause * random.uniform(0.8, 1.2))
        finally:
            self.delivering = None

    async def _deliver(self) -> None:
        """Deletes what is due. Raises ``CacheUnavailableError`` when something of it was refused or not answered."""
        due = self.invalidations.waiting()
        keys = [place for place in due if place[0] == "key"]
        refusals: t.List[Exception] = []
        for start in range(0, len(keys), SLICE):
            part = keys[start : start + SLICE]
            replacements = [(place[1], due[place].digest) for place in part]
            unlink = functools.partial(_unlink_keys, keys=replacements, old_name=self.store.old_name)
            answers = await self._background(unlink, timeout=1.0)
            delivered = [place for place, answer in zip(part, answers) if answer is None]
            self.invalidations.delivered({place: due[place].serial for place in delivered})
            refusals += [answer for answer in answers if answer is not None]
        for place in due:
            if place[0] == "pattern":
                match, beginnings, _ours = _targets(place[1], self.store.legacy_reads)
                await _unlink_slices(self._background, match, beginnings)
                self.invalidations.delivered({place: due[place].serial})
        if refusals:
            if self.client is not None and refusal(refusals[0]) in _DEMOTED:
                self._renew(self.client.connection_pool, _kind(refusals[0]))
            passing = [error for error in refusals if refusal(error)]
            self.refused((passing or refusals)[0])
            raise _unavailable((passing or refusals)[0])

    async def _background(self, work: Work, timeout: float = SWEEP_TIMEOUT) -> t.Any:
        """An exchange of the delivery: in its turn, whatever the breaker says."""
        async with self.turns:
            return await self._exchange(work, timeout)

    # --- the end ---

    async def close(self) -> None:
        for task in (self.probing, self.delivering, self.checking):
            if task is not None:
                task.cancel()
        if self.pending and not self.open and self.client is not None:
            with contextlib.suppress(CacheUnavailableError, TimeoutError):
                async with time_limit(CALL_TIMEOUT):
                    await self._deliver()
        retiring = dict(self.retiring)
        for retired in retiring:
            retired.cancel()
        client, self.client = self.client, None
        self.connected = False
        for pool in retiring.values():
            with contextlib.suppress(RedisError, OSError, RuntimeError, TimeoutError):
                await pool.disconnect()
        if client is not None:
            with contextlib.suppress(RedisError, OSError, RuntimeError, TimeoutError):
                await (getattr(client, "aclose", None) or client.close)()  # redis-py 4 has no aclose
                await client.connection_pool.disconnect()

    def abandon(self) -> None:
        """Frees the sockets of a loop that has been closed or belongs to the parent process: nothing else can close
        them here."""
        client, self.client = self.client, None
        for pool in [client.connection_pool if client is not None else None, *self.retiring.values()]:
            for connection in [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]:
                with contextlib.suppress(Exception):
                    connection._writer.get_extra_info("socket")._sock.close()


async def _on_connect(connection: t.Any) -> None:
    """What is unsent when a call is given up must not arrive later: the connection is reset."""
    with contextlib.suppress(Exception):  # names of the client library's own
        writer = connection._writer
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close = writer.transport.abort
    await connection.on_connect()


async def _run(client: aioredis.Redis, script: str, keys: t.Sequence[str], arguments: t.Sequence[t.Any]) -> t.Any:
    digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    try:
        try:
            return await t.cast(t.Awaitable[t.Any], client.evalsha(digest, len(keys), *keys, *arguments))
        except NoScriptError:
            return await t.cast(t.Awaitable[t.Any], client.eval(script, len(keys), *keys, *arguments))
    except ResponseError as error:
        # A Redis that runs no scripts for us (an ACL, a hosted service): the same in single commands, with more round
        # trips.
        if not _no_scripts(error):
            raise
        return await _WITHOUT_SCRIPTS[script](client, *keys, *arguments)


# What the scripts do, for a Redis that runs none. Between two commands somebody else may write: a key then gets an end
# a moment after it got one already, or goes a moment after it was written anew. A cache can bear both.


def _text(value: t.Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _no_scripts(error: BaseException) -> bool:
    return isinstance(error, NoPermissionError) or "unknown command" in str(error).lower()


def _cursor(value: t.Any) -> str:
    """SCAN's own, as text. Of anything else a loop would never see the end."""
    text = _text(value)
    if not text.isdecimal():
        raise ResponseError("not a cursor")
    return text


async def _is_string(client: t.Any, key: t.Any) -> bool:
    return _text(await client.type(key)) == "string"


async def _sweep_slice(client: t.Any, cursor: str, count: int, ttl: int) -> t.List[t.Any]:
    following, page = await client.scan(cursor, count=count)
    heads = [(key, PREFIX if _text(key).startswith(PREFIX) else _head(_text(key))) for key in page]
    own_keys = [(key, head == PREFIX) for key, head in heads if head == PREFIX or head in LEGACY_PREFIXES]
    pipeline = client.pipeline(transaction=False)
    for key, _own in own_keys:
        pipeline.pttl(key)
        pipeline.type(key)
    answers = await pipeline.execute() if own_keys else []
    set_end = client.pipeline(transaction=False)
    mine = legacy = adopted = 0
    for (key, own), left, kind in zip(own_keys, answers[::2], answers[1::2]):
        if left == -2 or not (own or _text(kind) == "string"):
            continue
        mine, legacy = mine + own, legacy + (not own)
        if left == -1:
            adopted += 1
            set_end.pexpire(key, random.randint(ttl // 2, ttl))
    if adopted:
        await set_end.execute()
    return [following, len(page), mine, legacy, adopted]


async def _unlink_slice(client: t.Any, cursor: str, match: str, count: int, *beginnings: str) -> t.List[t.Any]:
    following, page = await client.scan(cursor, match=match, count=count)
    going = []
    for key in page:
        kind = next((beginning[0] for beginning in beginnings if _text(key).startswith(beginning[1:])), "")
        if kind == "1" or (kind == "0" and await _is_string(client, key)):
            going.append(key)
    return [following, await client.unlink(*going) if going else 0]


async def _move(client: t.Any, old: str, new: str, ttl: int) -> int:
    if not await _is_string(client, old) or not await client.renamenx(old, new):
        return 0
    if await client.pttl(new) == -1:
        await client.pexpire(new, ttl)
    return 1


async def _drop(client: t.Any, key: str) -> int:
    return int(await client.unlink(key)) if await _is_string(client, key) else 0


async def _drop_unless(client: t.Any, key: str, digest: str) -> int:
    text = await client.get(key)
    return int(await client.unlink(key)) if text is not None and _digest(_text(text)) != digest else 0


async def _give_back(client: t.Any, key: str, token: str) -> int:
    holder = await client.get(key)
    return int(await client.delete(key)) if holder is not None and _text(holder) == token else 0


_WITHOUT_SCRIPTS: t.Dict[str, t.Callable[..., t.Awaitable[t.Any]]] = {
    _SWEEP: _sweep_slice,
    _UNLINK: _unlink_slice,
    _MOVE: _move,
    _DROP: _drop,
    _DROP_UNLESS: _drop_unless,
    _RELEASE: _give_back,
}


async def _unlink_keys(
    client: t.Any,
    keys: t.Sequence[t.Tuple[str, str]],
    old_name: t.Callable[[str], t.Optional[str]],
) -> t.List[t.Optional[Exception]]:
    """Deletes callers' keys under their name of today and of earlier releases, each by itself; where a digest stands
    beside one, unless it holds that text. Gives the error of each, or None."""
    scripts: t.List[t.Tuple[int, str, t.Tuple[str, ...]]] = []
    for index, (key, digest) in enumerate(keys):
        old = old_name(key)
        if old is not None:  # first: a read of another process moves what is there under the name of today
            scripts.append((index, _DROP, (old,)))
        name = stored_name(key)
        scripts.append((index, _DROP_UNLESS, (name, digest)) if digest else (index, "", (name,)))
    pipe = client.pipeline(transaction=False)
    for _index, script, arguments in scripts:
        if script:
            pipe.eval(script, 1, *arguments)
        else:
            pipe.unlink(*arguments)
    errors: t.List[t.Optional[Exception]] = [None] * len(keys)
    for (index, script, arguments), answer in zip(scripts, await pipe.execute(raise_on_error=False)):
        if isinstance(answer, Exception) and script and _no_scripts(answer):
            try:
                answer = await _WITHOUT_SCRIPTS[script](client, *arguments)
            except ResponseError as error:
                answer = error
        if isinstance(answer, Exception):
            errors[index] = answer
    return errors


async def _unlink_next(client: t.Any, arguments: t.Sequence[t.Any]) -> t.Tuple[str, int]:
    reply = await _run(client, _UNLINK, (), arguments)
    return _cursor(reply[0]), int(reply[1])


async def _unlink_slices(call: Call, match: str, beginnings: t.Sequence[str], deadline: float = math.inf) -> int:
    """Deletes what matches and has one of the beginnings (``_UNLINK``), each slice a call of its own; says how many."""
    cursor, total, size = "0", 0, SLICE // 2
    while True:
        cursor, gone = await call(functools.partial(_unlink_next, arguments=(cursor, match, size, *beginnings)))
        total += gone
        if cursor == "0":
            return total
        if time.monotonic() > deadline:
            raise CacheUnavailableError("too many keys to wait for")
        size = SLICE // 2 if gone else SLICE * 5  # names that do not match cost next to nothing


def _targets(pattern: str, legacy: bool) -> t.Tuple[str, t.List[str], t.List[str]]:
    """How to delete a caller's pattern in one pass: the pattern for SCAN, the beginnings, and our own patterns among
    it.

    Everything that a beginning with ``*`` after it means fits one pass: our key, the database service's, an earlier
    release's. Of other patterns, which no caller has yet, only our own keys are looked at.
    """
    ours = [pattern]
    literal, whole = literal_beginning(pattern)
    if not whole or not literal:
        return PREFIX + pattern, ["1" + PREFIX], ours
    beginnings = ["1" + PREFIX + literal]
    if len(literal) > KEPT:  # of a long key no more than this is in its name
        pattern = escape_glob(literal[:KEPT]) + "*"
        beginnings.append(f"1{PREFIX}{literal[:KEPT]}:sha256:")
    elsewhere = False
    if _head(literal)[:-1] in TABLES:
        ours.append("pam:" + pattern)
        beginnings.append(f"1{PREFIX}pam:{literal}")
        elsewhere = True
    if legacy:
        older = ["0" + old for old in (literal, "pam:" + literal) if _head(old) in LEGACY_PREFIXES]
        beginnings += older
        elsewhere = elsewhere or bool(older)
    return ("*" if elsewhere else PREFIX) + pattern, beginnings, ours


_links: t.Dict[asyncio.AbstractEventLoop, t.Dict[str, Link]] = {}
_stores: t.Dict[str, t.Tuple[LocalStore, CacheCounters]] = {}
_inherited: t.List[t.Tuple[Link, t.Optional[aioredis.Redis]]] = []


def _after_fork() -> None:
    """A forked worker must not talk through its parent's sockets, nor let go of the objects that hold them: a transport
    that is collected takes its socket out of the selector, which a child shares with its parent."""
    for store, _counters in _stores.values():
        store.pending.lock = threading.Lock()  # another thread of the parent may have held it
    for links in _links.values():
        for link in links.values():
            _inherited.append((link, link.client))
            link.abandon()
    _links.clear()


os.register_at_fork(after_in_child=_after_fork)


class CacheService:
    """Instances are cheap and share everything: the pool (per event loop), the breaker, the memory and the counters."""

    def __init__(self, url: t.Optional[str] = None) -> None:
        self._url = url
        self.default_ttl = int(min(_number("CACHE_TTL", 300), LONGEST_TTL)) or 300
        self._override: t.Optional[t.Any] = None
        self._seen: t.Tuple[t.Optional[asyncio.AbstractEventLoop], t.Optional[Link]] = (None, None)
        self._store, self.counters = _stores.setdefault(url or "", (LocalStore(), CacheCounters()))
        self._entries = self._store.entries
        self._largest = int(_number("CACHE_MAX_VALUE_KB", 8192) * 1024)

    # --- connection ---

    def _link(self) -> Link:
        loop = asyncio.get_running_loop()
        seen, link = self._seen
        if seen is loop and link is not None and link.client is not None:
            return link
        links = _links.get(loop)
        if links is None:
            # A loop's connections refer to it, so nothing else would ever let go of a closed one (asyncio.run() in a
            # task).
            for old in [known for known in list(_links) if known.is_closed()]:
                for link in _links.pop(old, {}).values():  # another thread's loop may look at the same moment
                    link.abandon()
            links = _links[loop] = {}
        link = links.get(self._url or "")
        if link is None or (link.client is None and link.connected is False and not link.users):
            link = links[self._url or ""] = Link(self._url or configured_url(), self.counters, self._store)
        link.users.add(self)
        self._seen = (loop, link)
        return link

    @property
    def redis(self) -> t.Optional[t.Any]:
        """The client, once Redis has answered; None before, after ``close()`` and outside an event loop."""
        if self._override is not None:
            return self._override
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        link = _links.get(loop, {}).get(self._url or "")
        return link.client if link is not None and link.connected else None

    @redis.setter
    def redis(self, client: t.Optional[t.Any]) -> None:
        self._override = None
        if (
            client is not self.redis
        ):  # what is put back after a test was the shared client, which must not outlive its event loop here
            self._override = client

    @redis.deleter
    def redis(self) -> None:  # how unittest.mock puts an attribute back
        self._override = None

    @property
    def _connection_lock(self) -> asyncio.Lock:
        try:
            return self._link().lock
        except RuntimeError:  # outside an event loop nobody connects
            return asyncio.Lock()

    async def initialize(self) -> None:
        """Connects. Never raises: without Redis the backend works, uncached."""
        link = self._link()
        if self._override is not None:
            return
        async with link.lock:
            if link.connected:  # somebody was faster
                return
            try:
                await self._call(lambda client: client.ping())
                logger.info("Cache: connected to Redis", redis=link.shown)
            except CacheUnavailableError as error:
                logger.warning("Cache: no Redis yet, starting without it", redis=link.shown, error=str(error))

    async def close(self) -> None:
        """Lets go of the connection. The pool closes with the application's own instance, or with the last user."""
        loop = asyncio.get_running_loop()
        links = _links.get(loop, {})
        link = links.get(self._url or "")
        self._seen = (None, None)
        self._override = None
        if link is None:
            return
        link.users.discard(self)
        if self is globals().get("cache_service") or not link.users:
            links.pop(self._url or "", None)
            await link.close()

    async def _call(self, work: Work, *, timeout: float = CALL_TIMEOUT, again: bool = False) -> t.Any:
        """One exchange with Redis, bounded in time. Raises ``CacheUnavailableError`` only."""
        link = self._link()
        if self._override is None:
            return await link.call(work, timeout=timeout, again=again)
        try:
            async with time_limit(timeout):
                return await work(self._override)
        except Exception as error:
            if not is_outage(error):
                link.defect(error)
            self.counters.errors += 1
            raise _unavailable(error) from None

    async def _replace(
        self,
        kind: str,
        texts: t.Sequence[str],
        work: t.Callable[[], t.Awaitable[t.Any]],
        written: t.Optional[t.Mapping[str, str]] = None,
    ) -> t.Any:
        """Makes a write that replaces or removes what is cached for keys (or what a pattern matches).

        Unless it is known to have gone through, what it concerns is pending: after a refusal, an outage, a lost answer,
        and when the caller is cancelled. ``written``: the texts that Redis holds afterwards.
        """
        pending = self._store.pending
        serial, uncertain = pending.serial, True
        forget = self._store.forget_all if kind == "pattern" else functools.partial(self._store.forget, texts)
        forget()
        gone_through = False
        try:
            result = await work()
            gone_through = True
            for text in texts:
                pending.replaced(kind, text, serial, (written or {}).get(text, ""))
            return result
        except CacheUnavailableError as error:
            uncertain = error.uncertain
            raise
        finally:
            forget()  # a read that was under way has brought back the old value
            if not gone_through:
                self._link().remember(kind, *texts, uncertain=uncertain)

    # --- keys ---

    @staticmethod
    def _name(key: str) -> str:
        """The key in Redis."""
        return stored_name(str(key))

    def _old_name(self, key: str) -> t.Optional[str]:
        return self._store.old_name(key)

    def _usable(self, key: str) -> t.Optional[str]:
        """What this process knows of a key, to stand in for Redis; nothing that has been replaced."""
        return None if self._store.pending.covers(key) else self._store.usable(key)

    def _value(self, text: str) -> t.Tuple[bool, t.Any]:
        try:
            return True, decode(text)
        except (ValueError, TypeError, RecursionError):
            self.counters.rejected_values += 1
            return False, None

    # --- the cache ---

    async def get(self, key: str, use_pickle: bool = False) -> t.Any:
        """The cached value, or None. ``use_pickle`` makes no difference: a value knows how it was written."""
        try:
            entry = self._entries.get(key)
        except TypeError:  # a key that cannot be hashed; its text is the key
            entry = None
        if entry is not None and entry[1] > time.monotonic():
            counters = self.counters
            counters.hits += 1
            counters.local_hits += 1
            text = entry[0]
            return _loads(text) if text[:1] != _TYPED else decode(text)
        return await self._fetch(key)

    async def _fetch(self, key: str) -> t.Any:
        key = str(key)
        name, old = self._name(key), self._old_name(key)
        version = self._store.version
        covers = self._store.pending.covers
        try:
            if covers(key):
                text = None
            elif old is None:
                text = await self._call(lambda client: client.get(name), again=True)
            else:
                if self._override is None:
                    text, before = await self._call(lambda client: client.mget(name, old), again=True)
                else:  # perhaps a double in a test, which answers a get and nothing cleverer
                    text = await self._call(lambda client: client.get(name))
                    before = None if text is not None else await self._call(lambda client: client.get(old))
                if text is None and before is not None and not covers(key):
                    text = before
                    with contextlib.suppress(CacheUnavailableError):  # the next read tries again to move it
                        await self._call(lambda client: _run(client, _MOVE, (old, name), (self.default_ttl * 1000,)))
            if covers(key):  # replaced meanwhile
                text = None
        except CacheUnavailableError:
            text = self._usable(key)
            if text is None:
                self.counters.misses += 1
                return None
            self.counters.stale_hits += 1
            self.counters.hits += 1
            return self._value(text)[1]
        if text is not None:
            text = (
                _text(text) if isinstance(text, bytes) else text
            )  # a client that somebody put in, without decode_responses
            good, value = self._value(text)
            if good:
                self.counters.hits += 1
                if version == self._store.version:
                    self._store.put(key, text, fresh=True)
                return value
        self._store.drop(key)
        self.counters.misses += 1
        return None

    async def set(
        self, key: str, value: t.Any, ttl: t.Union[int, float, dt.timedelta, None] = None, use_pickle: bool = False
    ) -> None:
        """Caches ``value`` for ``ttl`` seconds (0 or None: the default). Up to a tenth less, so that what was written
        together does not expire together. What cannot be written as JSON is not cached."""
        try:
            text = encode(value, use_pickle)
        except Exception as error:  # JSON's own, or whatever the value's __str__ or model_dump raises
            self.counters.errors += 1
            logger.warning("Cache: a value cannot be cached", prefix=_head(str(key)), error=type(error).__name__)
            await self._remove(str(key))  # it replaces what is cached all the same
            return
        await self._store_text(str(key), text, _seconds(ttl, self.default_ttl))

    def _milliseconds(self, seconds: float) -> int:
        return max(1, int(seconds * 1000 * (random.uniform(0.9, 1.0) if seconds >= 10 else 1.0)))

    async def _store_text(self, key: str, text: str, seconds: float) -> None:
        if len(text) > self._largest:
            self.counters.errors += 1
            logger.warning("Cache: a value is too large to be cached", prefix=_head(str(key)), bytes=len(text))
            await self._remove(key)
            return
        name, old = self._name(key), self._old_name(key)

        async def write() -> bool:
            try:
                await self._call(lambda client: client.set(name, text, px=self._milliseconds(seconds)))
            except CacheUnavailableError as error:
                if not error.refused or error.code not in ("", "OOM"):
                    raise
                await self._unlink(name, old)  # what may not be written may be allowed to go
                return False
            if old is not None:
                await self._call(lambda client: _run(client, _DROP, (old,), ()))
            return True

        with contextlib.suppress(CacheUnavailableError):
            if await self._replace("key", [key], write, {key: text}):
                self._store.put(key, text, fresh=False, ttl=seconds)
                self.counters.sets += 1

    async def _unlink(self, name: str, old: t.Optional[str]) -> int:
        count = 0
        if old is not None:  # first: a read of another process moves what is there under the name of today
            count += int(await self._call(lambda client: _run(client, _DROP, (old,), ())))
        return count + int(await self._call(lambda client: client.unlink(name)))

    async def _remove(self, key: str) -> int:
        name, old = self._name(key), self._old_name(key)
        try:
            count = int(await self._replace("key", [key], lambda: self._unlink(name, old)))
        except CacheUnavailableError:
            return 0
        self.counters.deletes += count
        return count

    async def delete(self, key: str) -> int:
        """Deletes a key and gives how many went. With ``*`` in it, everything that it matches."""
        key = str(key)
        if "*" in key:
            return await self.delete_pattern("*".join(escape_glob(part) for part in key.split("*")))
        return await self._remove(key)

    async def exists(self, key: str) -> bool:
        key = str(key)
        name, old = self._name(key), self._old_name(key)
        covers = self._store.pending.covers
        try:
            if covers(key):
                return False
            names = [name] if old is None else [name, old]
            there = bool(await self._call(lambda client: client.exists(*names), again=True))
            return there and not covers(key)
        except CacheUnavailableError:
            return self._usable(key) is not None

    async def batch_get(self, keys: t.Sequence[str]) -> t.Dict[str, t.Any]:
        """The cached ones among ``keys``; the others are not in the result."""
        covers = self._store.pending.covers
        asked = list(dict.fromkeys(map(str, keys)))
        uncovered = [key for key in asked if not covers(key)]
        if not uncovered:
            self.counters.misses += len(asked)
            return {}
        version = self._store.version
        names = [self._name(key) for key in uncovered]
        old = [name for name in (self._old_name(key) for key in uncovered) if name is not None]
        try:
            texts = await self._call(lambda client: client.mget(*names, *old), timeout=1.0, again=True)
        except CacheUnavailableError:
            texts = [self._usable(key) for key in uncovered]
            self.counters.stale_hits += sum(text is not None for text in texts)
            version = -1
        before = dict(zip(old, texts[len(uncovered) :]))
        result: t.Dict[str, t.Any] = {}
        for key, text in zip(uncovered, texts):
            text = before.get(key) if text is None else text
            if text is None or covers(key):
                continue
            text = _text(text) if isinstance(text, bytes) else text
            good, value = self._value(text)
            if good:
                result[key] = value
                if version == self._store.version:
                    self._store.put(key, text, fresh=True)
        self.counters.hits += len(result)
        self.counters.misses += len(asked) - len(result)
        return result

    async def batch_set(self, data: t.Mapping[str, t.Any], ttl: t.Union[int, float, dt.timedelta, None] = None) -> None:
        """``set`` for several keys in one exchange."""
        seconds = _seconds(ttl, self.default_ttl)
        texts: t.Dict[str, str] = {}
        for key, value in data.items():
            text: t.Optional[str] = None
            try:
                text = encode(value)
            except Exception as error:  # as in set()
                logger.warning("Cache: a value cannot be cached", prefix=_head(str(key)), error=type(error).__name__)
            if text is None or len(text) > self._largest:
                self.counters.errors += 1
                await self._remove(str(key))
            else:
                texts[str(key)] = text
        if not texts:
            return

        async def write(client: t.Any) -> None:
            pipe = client.pipeline(transaction=False)
            for key, text in texts.items():
                pipe.set(self._name(key), text, px=self._milliseconds(seconds))
            old = [name for name in map(self._old_name, texts) if name is not None]
            for name in old:
                pipe.eval(_DROP, 1, name)
            answers = await pipe.execute(raise_on_error=False)
            for answer in answers[: len(texts)]:
                if isinstance(answer, Exception):
                    raise answer
            for name, answer in zip(old, answers[len(texts) :]):
                if isinstance(answer, Exception):
                    if not _no_scripts(answer):
                        raise answer
                    await _drop(client, name)

        async def write_or_unlink() -> bool:
            try:
                await self._call(write, timeout=1.0)
            except CacheUnavailableError as error:
                if not error.refused or error.code not in ("", "OOM"):
                    raise
                pairs = [(key, "") for key in texts]
                unlink = functools.partial(_unlink_keys, keys=pairs, old_name=self._old_name)  # as in set()
                for answer in await self._call(unlink, timeout=1.0):
                    if answer is not None:
                        raise _unavailable(answer) from None
                return False
            return True

        with contextlib.suppress(CacheUnavailableError):
            if await self._replace("key", list(texts), write_or_unlink, texts):
                for key, text in texts.items():
                    self._store.put(key, text, fresh=False, ttl=seconds)
                self.counters.sets += len(texts)

    async def get_or_set(
        self,
        key: str,
        loader: t.Callable[[], t.Union[t.Any, t.Awaitable[t.Any]]],
        ttl: t.Union[int, float, dt.timedelta, None] = None,
        *,
        use_pickle: bool = False,
        lease: float = 10.0,
    ) -> t.Any:
        """The cached value, or what ``loader()`` gives, called once however many ask for it at the same time.

        In this process the others wait for that one call; other processes wait for its result at most ``lease``
        seconds. When the loader fails, the last value this process knew stands in; without one its error goes to all
        who wait.
        """
        key = str(key)
        stale = self._usable(key)  # before asking Redis, whose "no" makes this process forget it
        value = await self.get(key)
        if value is not None:
            return value
        link, loading = self._link(), self._store.loading
        token, flight = link.flights.get(key, (None, None))
        if flight is None or loading.get(key) is not token:  # from before the last write: may give what was replaced
            token = object()
            load = self._load(key, loader, ttl, use_pickle, lease, stale, token)
            flight = asyncio.get_running_loop().create_task(load)
            link.flights[key], loading[key] = (token, flight), token

            def landed(done: asyncio.Task[t.Any]) -> None:
                if link.flights.get(key, (None, None))[0] is token:
                    del link.flights[key]
                if loading.get(key) is token:
                    del loading[key]
                if not done.cancelled():
                    done.exception()

            flight.add_done_callback(landed)
        loaded, text = await asyncio.shield(flight)
        return loaded if text is None else decode(text)

    async def _load(
        self,
        key: str,
        loader: t.Callable[[], t.Any],
        ttl: t.Union[int, float, dt.timedelta, None],
        use_pickle: bool,
        lease: float,
        stale: t.Optional[str],
        load: object,
    ) -> t.Tuple[t.Any, t.Optional[str]]:
        """What was loaded, and its text, from which everybody who waits makes a value of his own. It is cached unless
        the key was written or deleted here meanwhile."""

        def current() -> bool:
            return self._store.loading.get(key) is load

        name = _INTERNAL + "lease:" + self._name(key)[len(PREFIX) :]
        token = uuid.uuid4().hex
        leased = False
        deadline = time.monotonic() + lease
        pause = 0.02
        with contextlib.suppress(CacheUnavailableError):
            while not (
                leased := bool(await self._call(lambda client: client.set(name, token, nx=True, px=int(lease * 1000))))
            ):
                if time.monotonic() >= deadline:
                    break
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 1.5, 0.2)
                value = await self._fetch(key)
                if value is not None:
                    return value, None
            if leased:
                value = await self._fetch(key)  # somebody may have finished between our miss and our lease
                if value is not None:
                    await self._release(name, token)
                    return value, None
        try:
            self.counters.loads += 1
            loaded = loader()
            if asyncio.iscoroutine(loaded) or isinstance(loaded, asyncio.Future):
                loaded = await loaded
            if loaded is None:
                return None, None
            try:
                text = encode(loaded, use_pickle)
            except Exception:  # as in set()
                self.counters.errors += 1
                return loaded, None
            if current():
                await self._store_text(key, text, _seconds(ttl, self.default_ttl))
            return loaded, text
        except Exception as error:
            if stale is None or not current():
                raise
            self.counters.stale_hits += 1
            logger.warning(
                "Cache: loading failed, the last known value stands in", prefix=_head(key), error=type(error).__name__
            )
            return None, stale
        finally:
            if leased:
                await self._release(name, token)

    async def _release(self, name: str, token: str) -> None:
        with contextlib.suppress(CacheUnavailableError):
            await self._call(lambda client: _run(client, _RELEASE, (name,), (token,)))

    # --- deleting many ---

    async def delete_pattern(self, pattern: str) -> int:
        """Deletes what a Redis pattern matches (callers' keys, without our prefix) in slices that block nobody; gives
        how many.

        ``table:*`` also takes ``pam:table:*``: the database service writes the one and invalidates the other.
        """
        pattern = str(pattern)
        if len(pattern) > LONGEST_KEY or pattern.count("*") > 8:  # expensive to match: all with the same beginning go
            beginning = literal_beginning(pattern)[0][:KEPT]
            pattern = escape_glob(beginning) + "*" if beginning else ""
        if not pattern:
            return 0  # nothing that a caller means
        match, beginnings, _ours = _targets(pattern, self._store.legacy_reads)
        call = functools.partial(self._call, timeout=SWEEP_TIMEOUT)
        deadline = time.monotonic() + PATTERN_TIMEOUT
        try:
            unlink = functools.partial(_unlink_slices, call, match, beginnings, deadline)
            count = int(await self._replace("pattern", [pattern], unlink))
        except CacheUnavailableError:
            return 0
        self.counters.deletes += count
        return count

    async def clear_prefix(self, prefix: str) -> int:
        """Deletes every entry whose key begins with ``prefix``."""
        return await self.delete_pattern(escape_glob(str(prefix)) + "*") if prefix else 0

    def trim_local(self) -> int:
        """Gives back the memory held for quick answers; the bytes that were held."""
        return self._store.clear()

    async def clear_expired(self, max_seconds: float = 25.0) -> SweepResult:
        """Sees to it that every entry of this application ends, and that what has ended is gone.

        Redis expires entries itself, but reclaims lazily, and never what was written without an end. One pass over all
        keys, in slices of under a millisecond, makes Redis notice the expired ones and gives those of our own prefixes
        that have no end the default one. Keys of others are read by name only: never opened, changed or touched.
        Stops after ``max_seconds``; the next call, in any process, goes on. One process at a time.
        """
        start = time.monotonic()
        token = uuid.uuid4().hex
        try:
            if not await self._call(
                lambda client: client.set(_INTERNAL + "sweep:lock", token, nx=True, px=int((max_seconds + 10) * 1000))
            ):
                return SweepResult.of(finished=False)
        except CacheUnavailableError:
            return SweepResult.of(finished=False)
        totals = [0, 0, 0, 0]
        finished = False
        expired = 0
        whole = False
        try:
            saved, before = await self._call(self._sweep_state)
            cursor = _text(saved or "0")
            cursor = cursor if cursor.isdecimal() else "0"
            whole = cursor == "0"
            size = SLICE
            while True:
                at = time.monotonic()
                slice_of = (cursor, size, self.default_ttl * 1000)
                reply = await self._call(
                    functools.partial(_run, script=_SWEEP, keys=(), arguments=slice_of), timeout=SWEEP_TIMEOUT
                )
                cursor = _cursor(reply[0])
                totals = [total + int(more) for total, more in zip(totals, reply[1:])]
                if cursor == "0":
                    finished = True
                    break
                now = time.monotonic()
                if now - start > max_seconds:
                    break
                # Slow answers mean that Redis, or this machine, has better things to do.
                size = SLICE // 2 if now - at > 0.003 else SLICE
                await asyncio.sleep(0)
            expired = await self._call(lambda client: self._sweep_done(client, "0" if finished else cursor, before))
        except CacheUnavailableError as error:
            logger.warning("Cache: sweep interrupted, the next one goes on", error=str(error), scanned=totals[0])
        finally:
            await self._release(_INTERNAL + "sweep:lock", token)
        scanned, own, legacy, adopted = totals
        if finished and whole and not legacy and self._store.legacy_reads and "CACHE_LEGACY_READS" not in os.environ:
            self._store.legacy_reads = False
        result = SweepResult.of(
            scanned=scanned,
            own=own,
            legacy=legacy,
            adopted=adopted,
            expired=expired,
            finished=finished,
            seconds=round(time.monotonic() - start, 3),
        )
        logger.info(
            "Cache: swept",
            scanned=scanned,
            own=own,
            legacy=legacy,
            adopted=adopted,
            expired=expired,
            finished=finished,
            seconds=result.seconds,
        )
        return result

    @staticmethod
    async def _sweep_state(client: t.Any) -> t.Tuple[t.Optional[str], int]:
        saved = await client.get(_INTERNAL + "sweep:cursor")
        return saved, int((await client.info("stats")).get("expired_keys", 0))

    @staticmethod
    async def _sweep_done(client: t.Any, cursor: str, before: int) -> int:
        if cursor == "0":
            await client.delete(_INTERNAL + "sweep:cursor")
        else:
            await client.set(_INTERNAL + "sweep:cursor", cursor, ex=86_400)
        return max(0, int((await client.info("stats")).get("expired_keys", 0)) - before)

    # --- what operators see ---

    async def get_cache_stats(self) -> t.Dict[str, t.Any]:
        """The connection, Redis's own numbers (``redis_*`` and the keys of earlier releases: the whole server) and this
        process's."""
        own = {
            "hit_rate": self.counters.hit_rate,
            **dataclasses.asdict(self.counters),
            "local_entries": len(self._entries),
            "local_bytes": self._store.bytes,
            "breaker": "open" if self._breaker_open() else "closed",
            "pending_invalidations": len(self._store.pending.entries),
        }
        try:
            info, keys = await self._call(self._inspect, timeout=1.0)
        except CacheUnavailableError as error:
            return {"connected": False, "error": str(error), **own}
        hits, misses = int(info.get("keyspace_hits", 0)), int(info.get("keyspace_misses", 0))
        return {
            "connected": True,
            "total_keys": keys,
            "used_memory": info.get("used_memory_human", ""),
            "memory_usage_mb": round(int(info.get("used_memory", 0)) / 1_048_576, 2),
            "connected_clients": info.get("connected_clients", 0),
            "uptime_seconds": info.get("uptime_in_seconds", 0),
            "redis_version": info.get("redis_version", ""),
            "redis_hit_rate": round(hits / (hits + misses), 4) if hits + misses else 0.0,
            "redis_expired_keys": info.get("expired_keys", 0),
            "redis_evicted_keys": info.get("evicted_keys", 0),
            "redis_maxmemory": info.get("maxmemory", 0),
            "redis_maxmemory_policy": info.get("maxmemory_policy", ""),
            "redis_fragmentation_ratio": info.get("mem_fragmentation_ratio", 0.0),
            **own,
        }

    @staticmethod
    async def _inspect(client: t.Any) -> t.Tuple[t.Dict[str, t.Any], int]:
        return await client.info(), int(await client.dbsize())

    def _breaker_open(self) -> bool:
        try:
            link = self._link()
        except RuntimeError:
            return False
        return link.open or link.client is None

    async def get_stats(self) -> t.Dict[str, t.Any]:
        """``get_cache_stats()`` with ``memory_usage_mb`` always present (0 without Redis)."""
        return {"memory_usage_mb": 0.0, **await self.get_cache_stats()}

    async def health_check(self) -> t.Dict[str, t.Any]:
        """Writes, reads and deletes an entry. Raises ``CacheUnavailableError`` when that fails: callers take a return
        for good."""
        name = f"{_INTERNAL}probe:{uuid.uuid4().hex}"
        start = time.monotonic()

        async def probe(client: t.Any) -> bool:
            await client.set(name, "1", px=5000)
            good = _text(await client.get(name)) == "1"
            await client.unlink(name)
            return good

        if not await self._call(probe):
            raise CacheUnavailableError("Redis does not give back what was written")
        return {
            "status": "healthy",
            "connected": True,
            "latency_ms": round((time.monotonic() - start) * 1000, 2),
            "hit_rate": self.counters.hit_rate,
        }


cache_service = CacheService()


async def get_cache() -> CacheService:
    """The application's cache, connected if Redis is there."""
    if cache_service.redis is None:
        await cache_service.initialize()
    return cache_service
