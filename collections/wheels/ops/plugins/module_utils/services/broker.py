# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis as Celery's broker: the tasks that wait in it, whether it would keep them over a restart, and the workers that
listen.

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
from dataclasses import dataclass

from ..core.redaction import redact_url, url_problem
from ..core.results import OpsError

#: kombu joins routing key, pattern and queue with this in ``_kombu.binding.EXCHANGE``.
SEPARATOR = "\x06\x16"
#: Queues of the backend's ``app/workers/celery.py``, and Celery's own default.
QUEUES: t.Tuple[str, ...] = ("celery", "default", "email", "maintenance", "analytics", "cleanup", "notifications")
_CONTROL = "celery.pidbox"
_BINDING = "_kombu.binding."


#: What a scheme of a broker's URL stands for (kombu/transport/__init__.py), of those that are not spoken here.
OTHERS: t.Mapping[str, str] = {
    "amqp": "RabbitMQ",
    "amqps": "RabbitMQ",
    "pyamqp": "RabbitMQ",
    "librabbitmq": "RabbitMQ",
    "sqs": "Amazon SQS",
    "sentinel": "Redis Sentinel",
    "kafka": "Apache Kafka",
    "confluentkafka": "Apache Kafka",
    "gcpubsub": "Google Cloud Pub/Sub",
    "azureservicebus": "Azure Service Bus",
    "azurestoragequeues": "Azure Storage Queues",
    "mongodb": "MongoDB",
    "qpid": "Apache Qpid",
    "zookeeper": "ZooKeeper",
    "consul": "Consul",
    "etcd": "etcd",
    "slmq": "SoftLayer Message Queue",
    "sqla": "an SQL database",
    "sqlalchemy": "an SQL database",
    "filesystem": "a directory",
    "memory": "the memory of one process",
}


def other(url: str) -> str:
    """What a URL names that is a broker of Celery and no Redis, for example ``RabbitMQ (amqp://)``; empty for another
    URL.
    """
    scheme = url.partition(":")[0].strip().lower()
    name = OTHERS.get(scheme) or OTHERS.get(scheme.partition("+")[0], "")
    return f"{name} ({scheme}://)" if name else ""


def require_redis(url: str) -> None:
    """Raises ``OpsError`` for the URL of another broker, by its name."""
    if other(url):
        raise OpsError(
            f"The broker is {other(url)}, and only Redis can be asked for its tasks and workers.",
            hint="Leave this URL out, and give services that work with it a gate of type state, tcp or http.",
        )


def require_database(url: str) -> None:
    """Raises ``OpsError`` for another broker, and where a Redis URL names a database that is no number: redis-py takes
    database 0 then, without a word.
    """
    require_redis(url)
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise OpsError(
            f"The Redis URL cannot be read: {url_problem(error)}.",
            hint="It looks like redis://user:PASSWORD@host:6379/0.",
        ) from None
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and database and not (database.isascii() and database.isdigit()):
        raise OpsError(
            f"The Redis URL {redact_url(url)} names a database that is no number.",
            hint="It looks like redis://user:PASSWORD@host:6379/0.",
        )


def readable(url: str) -> str:
    """The URL as redis-py takes it.

    Celery wants ``ssl_cert_reqs=CERT_NONE`` in the URL that both read, redis-py ``none``.
    """
    return re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)",
        lambda pair: pair[1].lower(),
        url,
        flags=re.IGNORECASE,
    )


def port(url: str) -> int:
    """The TCP port in a Redis URL; 0 for a unix socket."""
    parts = urllib.parse.urlsplit(url)
    return 0 if parts.scheme == "unix" else parts.port or 6379


def connect(url: str, *, timeout: float = 5.0) -> t.Any:
    """A client for a Redis URL; nothing is sent yet."""
    import redis

    require_database(url)
    try:
        return redis.Redis.from_url(
            readable(url),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            decode_responses=True,
            encoding_errors="surrogateescape",
        )
    except ValueError as error:
        raise OpsError(
            f"The Redis URL cannot be read: {url_problem(error)}.",
            hint="It looks like redis://user:PASSWORD@host:6379/0.",
        ) from None


def prefixes(client: t.Any) -> t.List[str]:
    """What stands before every key of an application (Celery's ``global_keyprefix``): empty, and those under which
    bindings lie in this database.
    """
    return sorted(
        {"", *(key.partition(_BINDING)[0] for key in client.scan_iter(match=f"*{_BINDING}*", count=1000, _type="SET"))}
    )


def queues(client: t.Any, names: t.Sequence[str] = QUEUES) -> t.List[str]:
    """The queues named by the caller and those that kombu's bindings know, without those of remote control and events.

    A queue of an application with a ``global_keyprefix`` has it before its name, as its key has.
    """
    result = set(names)
    for key in client.scan_iter(match=f"*{_BINDING}*", count=1000, _type="SET"):
        prefix, _binding, exchange = key.partition(_BINDING)
        if "pidbox" in exchange or "celeryev" in exchange:
            continue
        result.update(prefix + member.split(SEPARATOR)[-1] for member in client.smembers(key))
    return sorted(result)


def waiting_tasks(client: t.Any, names: t.Sequence[str]) -> t.Dict[str, int]:
    """Waiting tasks of these queues in this database by queue, whatever their priorities; and ``unacked``: those that a
    worker took and has not finished. One atomic moment.
    """
    lists = sorted(set(client.scan_iter(match=f"*{SEPARATOR}*", count=1000, _type="LIST")) | set(names))
    keys = [key for key in lists if queue_of(key) in names]
    unacked = [f"{prefix}unacked" for prefix in prefixes(client)]
    pipe = client.pipeline(transaction=True)
    for key in keys:
        pipe.llen(key)
    for key in unacked:
        pipe.hlen(key)
    answers = [_counted(answer) for answer in pipe.execute(raise_on_error=False)]
    counts = dict.fromkeys(sorted(names), 0)
    for key, count in zip(keys, answers):
        counts[queue_of(key)] += count
    counts["unacked"] = sum(answers[len(keys) :])
    return {queue: count for queue, count in counts.items() if count or queue == "unacked"}


def _counted(answer: t.Any) -> int:
    """A length; a key of another type under the name of a queue answers with an error and holds no task.

    Any other error is raised.
    """
    if isinstance(answer, Exception):
        if "WRONGTYPE" in str(answer):
            return 0
        raise answer
    return int(answer)


def queue_of(key: str) -> str:
    """The queue that a list belongs to: kombu keeps every priority but the lowest in a list of its own, whatever
    ``priority_steps`` are.
    """
    queue, separator, step = key.rpartition(SEPARATOR)
    return queue if separator and step.isdigit() else key


def printable(key: str) -> str:
    """A key as a person reads it: no character of it can move a cursor or end a line."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in key)


@dataclass(frozen=True)
class Stock:
    """What lies under one key and would be missed: ``count`` entries of a ``kind`` (list, stream, zset, hash)."""

    database: int
    key: str
    kind: str
    count: int

    @property
    def name(self) -> str:
        return printable(queue_of(self.key))


#: Sorted sets that hold jobs of other queues on Redis (arq, rq, Sidekiq, huey). Any other sorted set may be a ranking
#: or a rate limit.
_JOB_SETS = re.compile(
    r"(?:^|:)(?:arq:queue(?::.*)?|rq:(?:scheduled|deferred|wip):.*|schedule|retry|huey\.schedule\..*)$"
)
#: Hashes that are looked into for deliveries of kombu under a name of their own (``unacked_key``), in each database.
_HASHES_LOOKED_INTO = 10_000


def databases(client: t.Any) -> t.List[int]:
    """The numbers of the databases that hold any key."""
    return sorted(int(name[2:]) for name in client.info("keyspace") if name.startswith("db") and name[2:].isdigit())


def inventory(client: t.Any) -> t.List[Stock]:
    """Everything in every database of the server that may be work which somebody misses; nothing of what it says is
    read out.

    Every list and every stream counts, whoever uses it: names do not tell whose queue it is (``global_keyprefix``,
    ``priority_steps``, other brokers than Celery). Beside them the hashes of kombu's unfinished deliveries and
    dramatiq's messages, and the sorted sets of ``_JOB_SETS``. Replies of remote control do not count. Raises what
    redis-py raises; a right that is missing is such an error.
    """
    stocks: t.List[Stock] = []
    own = database(client)
    for number in databases(client):
        if number == own:
            stocks += _stock(client, number)
            continue
        pool = client.connection_pool
        other = type(client)(
            connection_pool=type(pool)(
                connection_class=pool.connection_class, **{**pool.connection_kwargs, "db": number}
            )
        )
        with contextlib.closing(other):
            stocks += _stock(other, number)
            other.connection_pool.disconnect()
    return stocks


def database(client: t.Any) -> int:
    """The number of the database that a client talks to."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def _stock(client: t.Any, number: int) -> t.List[Stock]:
    def keys(kind: str) -> t.List[str]:
        return sorted(set(client.scan_iter(count=1000, _type=kind.upper())))

    lists = [key for key in keys("list") if not key.endswith(f".reply.{_CONTROL}")]
    hashes = keys("hash")
    messages = [key for key in hashes if key.endswith(".msgs")]
    # Dramatiq's lists name the messages that wait, its hash holds these and those that are being worked on.
    lists = [key for key in lists if f"{key}.msgs" not in set(messages)]
    wanted = (
        [("list", key) for key in lists]
        + [("stream", key) for key in keys("stream")]
        + [("hash", key) for key in messages]
    )
    wanted += [("zset", key) for key in keys("zset") if _JOB_SETS.search(key)]
    wanted += [("hash", key) for key in _deliveries(client, hashes)]
    length = {"list": "llen", "stream": "xlen", "zset": "zcard", "hash": "hlen"}
    pipe = client.pipeline(transaction=not in_cluster(client))
    for kind, key in wanted:
        getattr(pipe, length[kind])(key)
    answers = [_counted(answer) for answer in pipe.execute(raise_on_error=False)] if wanted else []
    return [Stock(number, key, kind, count) for (kind, key), count in zip(wanted, answers) if count]


def in_cluster(client: t.Any) -> bool:
    """Whether the server is in cluster mode: one transaction or script cannot span its slots, so that what it holds is
    looked at key by key.
    """
    return bool(int(client.info("cluster").get("cluster_enabled", 0)))


def primaries(client: t.Any, url: str, *, timeout: float) -> t.List[t.Any]:
    """A client for each primary of the cluster of which ``client`` (at ``url``) is a node; the caller closes them.

    A node of a cluster that names no address for itself is the one that was asked. Raises what redis-py raises.
    """
    parts = urllib.parse.urlsplit(url)
    own = (parts.hostname or "127.0.0.1", parts.port or 6379)
    account = parts.netloc.rpartition("@")[0]
    addresses: t.List[t.Tuple[str, int]] = []
    answer = client.execute_command("CLUSTER SLOTS")
    # Until version 8 redis-py makes a dictionary of it.
    entries = (
        [entry["primary"] for entry in answer.values()] if isinstance(answer, dict) else [row[2] for row in answer]
    )
    for host, port in (entry[:2] for entry in entries):
        address = (str(host or own[0]), int(port))
        if address not in addresses:
            addresses.append(address)
    clients = []
    for host, port in addresses:
        shown = f"[{host}]" if ":" in host else host
        netloc = f"{account}@{shown}:{port}" if account else f"{shown}:{port}"
        clients.append(connect(urllib.parse.urlunsplit(parts._replace(netloc=netloc)), timeout=timeout))
    return clients


def _deliveries(client: t.Any, hashes: t.Sequence[str]) -> t.List[str]:
    """The hashes in which kombu keeps unfinished deliveries: by their name, or by what one entry looks like where
    ``unacked_key`` gives another.
    """
    unacked_hashes = [key for key in hashes if key.endswith("unacked")]
    others = [key for key in hashes if not key.endswith("unacked")][:_HASHES_LOOKED_INTO]
    for start in range(0, len(others), 200):  # a small hash is given whole
        part = others[start : start + 200]
        pipe = client.pipeline(transaction=False)
        for key in part:
            pipe.hscan(key, 0, count=1)
        for key, (_cursor, fields) in zip(part, pipe.execute()):
            if '"delivery_tag"' in next(iter(fields.values()), ""):
                unacked_hashes.append(key)
    return unacked_hashes


def count_tasks(client: t.Any, names: t.Sequence[str] = ()) -> t.Dict[str, int]:
    """What waits in the whole server by queue (see ``inventory``), and ``unacked``: what a worker of this database took
    and has not finished.

    What lies in another database has its number behind its name. ``names`` queues count in any case, as the others do.
    """
    return by_name(inventory(client), database(client))


def by_name(stocks: t.Iterable[Stock], own: int) -> t.Dict[str, int]:
    """Entries by the name of their queue; ``own`` is the database whose queues are called by their name alone."""
    counts: t.Dict[str, int] = {"unacked": 0}
    for stock in stocks:
        name = stock.name if stock.database == own else f"{stock.name} (database {stock.database})"
        counts[name] = counts.get(name, 0) + stock.count
    return counts


def persistence(client: t.Any) -> t.Dict[str, t.Any]:
    """How this server keeps its data: ``aof``, ``rdb`` (a save schedule), ``info``.

    Raises what redis-py raises where INFO or CONFIG is refused.
    """
    info = client.info("persistence")
    schedule = bool(client.config_get("save").get("save"))
    return {"aof": bool(int(info.get("aof_enabled", 0))), "rdb": schedule, "info": info}


def why_not_kept(settings: t.Mapping[str, t.Any]) -> str:
    """Why a restart would lose what this server holds; empty where it would not."""
    info = settings["info"]
    if settings["aof"]:
        return "" if info.get("aof_last_write_status", "ok") == "ok" else "its append-only file cannot be written"
    if not settings["rdb"]:
        return "it keeps nothing on disk (no save schedule, no append-only file)"
    return ""


def persist(client: t.Any, *, timeout: float, wait_sleep: float = 0.05, dump: bool = False) -> t.Dict[str, t.Any]:
    """Brings everything to disk and waits for it; gives ``method`` and ``duration_ms``. Raises ``OpsError`` where it
    fails.

    With an append-only file the server itself writes and syncs it when it is stopped: its health is looked at, and a
    rewrite in progress waited for, as the file is not whole before the first one has ended. With ``dump`` there is one
    beside, for a start without that file.
    """
    import redis

    start = time.monotonic()
    settings = persistence(client)
    problem = why_not_kept(settings)
    if problem:
        raise OpsError(f"Redis would not keep its data: {problem}.", hint="Turn on appendonly or save, then run again.")
    if settings["aof"]:
        while any(
            int(client.info("persistence").get(f"aof_rewrite_{word}", 0)) for word in ("in_progress", "scheduled")
        ):
            if time.monotonic() > start + timeout:
                raise OpsError(
                    f"Redis did not finish to rewrite its append-only file within {timeout:g} s.",
                    hint="Raise wait_timeout for a large dataset.",
                )
            time.sleep(wait_sleep)
        if not dump:
            return {"method": "aof", "duration_ms": round((time.monotonic() - start) * 1000, 1)}
    while int(client.info("persistence")["rdb_bgsave_in_progress"]) and time.monotonic() < start + timeout:
        time.sleep(wait_sleep)  # it began before ours was asked for: what came since is not in it
    before = client.info("persistence")["rdb_last_save_time"]
    # LASTSAVE counts whole seconds: two saves within one second look like none.
    deadline = start + timeout
    while client.time()[0] <= before and time.monotonic() < deadline:
        time.sleep(wait_sleep)
    try:
        client.bgsave()
    except redis.exceptions.NoPermissionError:
        raise
    except redis.exceptions.ResponseError as error:
        if "in progress" not in str(error):
            raise OpsError(
                f"Redis cannot save its data: {error}.",
                hint="Look at its log and at the space and rights of its directory.",
            ) from None
    while True:
        info = client.info("persistence")
        if not int(info["rdb_bgsave_in_progress"]):
            if info["rdb_last_bgsave_status"] != "ok":
                raise OpsError(
                    "Redis could not save its data.",
                    hint="Look at its log and at the space and rights of its directory.",
                    last_state=info,
                )
            if info["rdb_last_save_time"] > before:
                return {
                    "method": "aof and rdb" if settings["aof"] else "rdb",
                    "duration_ms": round((time.monotonic() - start) * 1000, 1),
                }
            with contextlib.suppress(redis.exceptions.ResponseError):
                client.bgsave()  # a rewrite of the append-only file was in its way
        if time.monotonic() > deadline:
            raise OpsError(
                f"Redis did not save its data within {timeout:g} s.",
                hint="Raise wait_timeout for a large dataset.",
                last_state=info,
            )
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
    """Asks every Celery worker for its ``stats`` as ``celery inspect`` does; by node name, until ``wanted`` is
    satisfied or time is up.

    ``celery inspect`` starts an interpreter with the whole application (2.1 s measured); this is one publish and one
    pop (7 ms), and the answer carries the worker's ``pid``. Another remote control command is sent with ``method`` and
    ``arguments``, to the nodes in ``destination``.
    """
    oid, ticket = str(uuid.uuid4()), str(uuid.uuid4())
    reply_queue = f"{oid}.reply.{_CONTROL}"
    binding, member = f"_kombu.binding.reply.{_CONTROL}", SEPARATOR.join([oid, "", reply_queue])
    body = {
        "method": method,
        "arguments": dict(arguments or {}),
        "destination": None if destination is None else list(destination),
        "pattern": None,
        "matcher": None,
        "ticket": ticket,
        "reply_to": {"exchange": f"reply.{_CONTROL}", "routing_key": oid},
    }
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": time.time() + timeout},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": _CONTROL, "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    channel = f"/{database(client)}.{_CONTROL}"
    answers: t.Dict[str, t.Any] = {}
    start = time.monotonic()
    deadline = start + timeout
    methods: t.List[str] = []

    def ask(prefix: str) -> int:
        """How many listen to the remote control of one application: one with a key prefix has a channel and a reply
        queue of its own.
        """
        methods.append(prefix)
        client.sadd(f"{prefix}{binding}", member)
        return int(client.publish(f"{prefix}{channel}", json.dumps(message)))

    try:
        listeners = ask("")
        every = False
        while not wanted(answers) and time.monotonic() < deadline:
            # Looking for prefixes reads all keys: only where the usual answer, within milliseconds, does not come.
            if not every and (not listeners or time.monotonic() > start + min(0.3, timeout / 4)):
                every = True
                listeners += sum([ask(prefix) for prefix in prefixes(client) if prefix])
            if not listeners:
                break
            remaining = deadline - time.monotonic()
            popped = client.blpop(
                [f"{prefix}{reply_queue}" for prefix in methods],
                timeout=max(0.05, min(1.0 if every else 0.1, remaining)),
            )
            if popped:
                envelope = json.loads(popped[1])
                text = envelope["body"]
                if envelope.get("properties", {}).get("body_encoding") == "base64":
                    text = base64.b64decode(text).decode()
                answers.update(
                    {str(node): answer for node, answer in json.loads(text).items() if isinstance(answer, (dict, list))}
                )
        return answers
    finally:
        for prefix in methods:
            client.srem(f"{prefix}{binding}", member)
            client.delete(f"{prefix}{reply_queue}")
