# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis as Celery's broker: the tasks that wait in it, whether it would keep them over a restart, and the workers that listen.

The layout is that of kombu's Redis transport (kombu/transport/redis.py and kombu/pidbox.py of 5.3 to 5.6).
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
import typing as t
import urllib.parse
import uuid

from ..core.redaction import redact_url, url_problem
from ..results import OpsError

#: kombu joins routing key, pattern and queue with this in ``_kombu.binding.EXCHANGE``.
SEPARATOR = "\x06\x16"
#: kombu keeps the messages of a priority in a list of its own (``priority_steps``; 0 is the queue's own name).
PRIORITIES: t.Tuple[int, ...] = (3, 6, 9)
#: Queues of the backend's ``app/workers/celery.py``, and Celery's own default.
QUEUES: t.Tuple[str, ...] = ("celery", "default", "email", "maintenance", "analytics", "cleanup", "notifications")
_CONTROL = "celery.pidbox"


def require_database(url: str) -> None:
    """Raises ``OpsError`` where a Redis URL names a database that is no number: redis-py takes database 0 then, without a word."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise OpsError(f"The Redis URL cannot be read: {url_problem(error)}.", hint="It looks like redis://user:PASSWORD@host:6379/0.") from None
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and database and not (database.isascii() and database.isdigit()):
        raise OpsError(f"The Redis URL {redact_url(url)} names a database that is no number.", hint="It looks like redis://user:PASSWORD@host:6379/0.")


def readable(url: str) -> str:
    """The URL as redis-py takes it. Celery wants ``ssl_cert_reqs=CERT_NONE`` in the URL that both read, redis-py ``none``."""
    return re.sub(r"(?<=[?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)", lambda found: found[1].lower(), url, flags=re.IGNORECASE)


def connect(url: str, *, timeout: float = 5.0) -> t.Any:
    """A client for a Redis URL; nothing is sent yet."""
    import redis

    require_database(url)
    try:
        return redis.Redis.from_url(
            readable(url), socket_timeout=timeout, socket_connect_timeout=timeout, decode_responses=True, encoding_errors="surrogateescape"
        )
    except ValueError as error:
        raise OpsError(f"The Redis URL cannot be read: {url_problem(error)}.", hint="It looks like redis://user:PASSWORD@host:6379/0.") from None


def queues(client: t.Any, named: t.Sequence[str] = QUEUES) -> t.List[str]:
    """The queues named by the caller and those that kombu's bindings know, without those of remote control and events."""
    found = set(named)
    for key in client.scan_iter(match="_kombu.binding.*", count=1000, _type="SET"):
        if "pidbox" in key or "celeryev" in key:
            continue
        found.update(member.split(SEPARATOR)[-1] for member in client.smembers(key))
    return sorted(found)


def count_tasks(client: t.Any, named: t.Sequence[str]) -> t.Dict[str, int]:
    """Waiting tasks by queue, and ``unacked``: those that a worker took and has not finished. One atomic moment."""
    pipe = client.pipeline(transaction=True)
    for queue in named:
        for key in (queue, *(f"{queue}{SEPARATOR}{step}" for step in PRIORITIES)):
            pipe.llen(key)
    pipe.hlen("unacked")
    # A key of another type under the name of a queue answers with an error; it holds no task.
    answers = [answer if isinstance(answer, int) else 0 for answer in pipe.execute(raise_on_error=False)]
    width = 1 + len(PRIORITIES)
    counts = {queue: sum(answers[index * width : (index + 1) * width]) for index, queue in enumerate(named)}
    counts["unacked"] = answers[-1]
    return {queue: count for queue, count in counts.items() if count or queue == "unacked"}


def persistence(client: t.Any) -> t.Dict[str, t.Any]:
    """How this server keeps its data: ``aof``, ``rdb`` (a save schedule; None where CONFIG is not allowed), ``info``."""
    import redis

    info = client.info("persistence")
    schedule: t.Optional[bool] = None
    with contextlib.suppress(redis.exceptions.ResponseError):
        schedule = bool(client.config_get("save").get("save"))
    return {"aof": bool(int(info.get("aof_enabled", 0))), "rdb": schedule, "info": info}


def why_not_kept(kept: t.Mapping[str, t.Any]) -> str:
    """Why a restart would lose what this server holds; empty where it would not."""
    info = kept["info"]
    if kept["aof"]:
        return "" if info.get("aof_last_write_status", "ok") == "ok" else "its append-only file cannot be written"
    if kept["rdb"] is False:
        return "it keeps nothing on disk (no save schedule, no append-only file)"
    return ""


def persist(client: t.Any, *, timeout: float, wait_sleep: float = 0.05) -> t.Dict[str, t.Any]:
    """Brings everything to disk and waits for it; gives ``method`` and ``duration_ms``. Raises ``OpsError`` where it fails.

    With an append-only file the server itself writes and syncs it when it is stopped, so that only its health is looked at.
    """
    import redis

    started = time.monotonic()
    kept = persistence(client)
    problem = why_not_kept(kept)
    if problem:
        raise OpsError(f"Redis would not keep its data: {problem}.", hint="Turn on appendonly or save, then run again.")
    if kept["aof"]:
        return {"method": "aof", "duration_ms": round((time.monotonic() - started) * 1000, 1)}
    before = client.info("persistence")["rdb_last_save_time"]
    # LASTSAVE counts whole seconds: two saves within one second look like none.
    deadline = started + timeout
    while client.time()[0] <= before and time.monotonic() < deadline:
        time.sleep(wait_sleep)
    try:
        client.bgsave()
    except redis.exceptions.ResponseError as error:
        if "in progress" not in str(error):
            raise OpsError(f"Redis cannot save its data: {error}.", hint="Look at its log and at the space and rights of its directory.") from None
    while True:
        info = client.info("persistence")
        if not int(info["rdb_bgsave_in_progress"]):
            if info["rdb_last_bgsave_status"] != "ok":
                raise OpsError("Redis could not save its data.", hint="Look at its log and at the space and rights of its directory.", last_state=info)
            if info["rdb_last_save_time"] > before:
                return {"method": "rdb", "duration_ms": round((time.monotonic() - started) * 1000, 1)}
            with contextlib.suppress(redis.exceptions.ResponseError):
                client.bgsave()  # the one in progress had begun before ours was asked for
        if time.monotonic() > deadline:
            raise OpsError(f"Redis did not save its data within {timeout:g} s.", hint="Raise wait_timeout for a large dataset.", last_state=info)
        time.sleep(wait_sleep)


def workers(
    client: t.Any,
    *,
    timeout: float,
    wanted: t.Callable[[t.Dict[str, t.Any]], bool],
    method: str = "stats",
    arguments: t.Optional[t.Mapping[str, t.Any]] = None,
    destination: t.Optional[t.Sequence[str]] = None,
) -> t.Dict[str, t.Any]:
    """Asks every Celery worker for its ``stats`` as ``celery inspect`` does; by node name, until ``wanted`` is satisfied or time is up.

    ``celery inspect`` starts an interpreter with the whole application (2.1 s measured); this is one publish and one pop (7 ms), and the
    answer carries the worker's ``pid``. Another remote control command is sent with ``method`` and ``arguments``, to the nodes in ``destination``.
    """
    oid, ticket = str(uuid.uuid4()), str(uuid.uuid4())
    reply_queue = f"{oid}.reply.{_CONTROL}"
    binding, member = f"_kombu.binding.reply.{_CONTROL}", SEPARATOR.join([oid, "", reply_queue])
    body = {
        "method": method, "arguments": dict(arguments or {}), "destination": None if destination is None else list(destination), "pattern": None,
        "matcher": None, "ticket": ticket, "reply_to": {"exchange": f"reply.{_CONTROL}", "routing_key": oid},
    }  # fmt: skip
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(), "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"clock": 1, "expires": time.time() + timeout},
        "properties": {
            "delivery_mode": 2, "delivery_info": {"exchange": _CONTROL, "routing_key": ""}, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip
    database = client.connection_pool.connection_kwargs.get("db") or 0
    found: t.Dict[str, t.Any] = {}
    deadline = time.monotonic() + timeout
    client.sadd(binding, member)
    try:
        if not client.publish(f"/{database}.{_CONTROL}", json.dumps(message)):
            return found
        while not wanted(found) and time.monotonic() < deadline:
            popped = client.blpop([reply_queue], timeout=max(0.05, min(1.0, deadline - time.monotonic())))
            if popped:
                envelope = json.loads(popped[1])
                text = envelope["body"]
                if envelope.get("properties", {}).get("body_encoding") == "base64":
                    text = base64.b64decode(text).decode()
                found.update({str(node): answer for node, answer in json.loads(text).items() if isinstance(answer, (dict, list))})
        return found
    finally:
        client.srem(binding, member)
        client.delete(reply_queue)
