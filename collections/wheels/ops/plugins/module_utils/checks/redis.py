# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis and the application's cache in it: answers, takes writes, has room, and holds no key of the application without
an expiry.
"""

from __future__ import annotations

import itertools
import time
import typing as t

from ..core.redaction import redact_url, url_problem
from ..core.results import OpsError
from ..health.check import Check, Finding, conclude, is_ours
from ..health.thresholds import DEFAULTS, Thresholds, worst
from ..services import redis_errors
from ..services.broker import readable, require_database
from .context import HostContext, Options

#: Prefixes under which the backend caches. Only these are looked at, and only plain strings: queues and locks of others
#: are not ours.
CACHE_PREFIXES: t.Tuple[str, ...] = (
    "pam:cache:",
    "user_profile:",
    "user_trips:",
    "trip_details:",
    "user_social_groups:",
    "user_social_posts:",
    "marketplace_listings:",
    "user_purchase_history:",
    "user_wishlists:",
    "personalized_recommendations:",
    "financial_travel_insights:",
    "social_travel_connections:",
    "comprehensive_user_context:",
    "user_calendar_events:",
    "user_settings:",
    "expenses:",
    "budget_summary:",
    "fuel_stations:",
    "user_analytics:",
    "response:",
    "conversation_history:",
    "user_context:",
    "recent_conversation:",
    "recent_conversations:",
    "context:",
    "calendar_events:",
    "travel_events:",
    "user_preferences:",
    "user_insights:",
    "web_search:",
    "web_search_ctx:",
    "script_analysis:",
)
_SLICE = 500
#: Keys that are looked at for one of the cache's.
_LOOKED_AT = 20_000


#: A write that changes nothing: Redis judges it as any other that needs memory (LOADING, MISCONF, OOM, READONLY,
#: NOREPLICAS, CLUSTERDOWN), and with an empty value and no such key it makes none (redis.io/commands/setrange). The
#: prefix is one that the application may write under.
WRITE_PROBE: t.Tuple[str, ...] = ("SETRANGE", "pam:cache:wheels-ops-write-probe", "0", "")


def check(
    url: str,
    *,
    prefixes: t.Sequence[str] = CACHE_PREFIXES,
    max_keys: int = 200_000,
    timeout: float = 5.0,
    thresholds: t.Optional[Thresholds] = None,
) -> Check:
    """PING, INFO, a write that changes nothing (``WRITE_PROBE``), then a SCAN of at most ``max_keys`` keys for own keys
    without an expiry.

    ``critical`` where it does not answer, refuses the password or refuses writes. ``thresholds`` grade the share of
    ``maxmemory`` in use, where nothing may be evicted. ``warning`` where keys never expire or its last save failed.
    ``unknown`` where the user lacks a right. A server that answers is never named for a restart: it lives, and would
    refuse the same afterwards.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    require_database(url)
    try:
        # One question, one answer: redis-py would ask four times, and wait the timeout each time.
        client = redis.Redis.from_url(
            readable(url), socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise OpsError(
            f"The Redis URL {redact_url(url)} cannot be read: {url_problem(error)}.",
            hint="Give redis://:PASSWORD@HOST:PORT/0.",
        ) from error
    limits = thresholds or DEFAULTS["memory"]
    facts: t.Dict[str, t.Any] = {}
    try:
        findings = _look(client, prefixes, max_keys, limits, facts)
    except redis.AuthenticationError as error:
        facts = {}
        text = str(error).partition(".")[0]
        problem = (
            "wants a password" if "required" in text or text.startswith("HELLO") else f"refuses the password ({text})"
        )
        findings = [Finding("critical", f"Redis at {redact_url(url)} {problem}: check the one in its URL")]
    except redis.RedisError as error:
        if is_ours(error):
            raise OpsError(
                f"Redis at {redact_url(url)} cannot be asked: {str(error).rstrip('.')}.",
                hint="Check host, name resolution and rights.",
            ) from error
        if redis_errors.missing_right(error):
            raise redis_errors.explain(error, url) from error
        facts = {}
        findings = [
            Finding(
                "critical",
                f"Redis at {redact_url(url)} {redis_errors.unserved(error)}",
                "" if redis_errors.answered(error) else "service_restart",
            )
        ]
    finally:
        client.close()
    answers = f"Redis {facts.get('version')} answers in {facts.get('latency_ms') or 0:.1f} ms and takes writes"
    return conclude(
        "redis",
        findings,
        fine=f"{answers}; every cache key expires",
        value=facts.pop("eternal", None),
        unit="keys without expiry",
        thresholds=limits.as_dict() if facts.get("maxmemory_percent") is not None else {},
        details=facts,
    )


def _look(
    client: t.Any, prefixes: t.Sequence[str], max_keys: int, limits: Thresholds, facts: t.Dict[str, t.Any]
) -> t.List[Finding]:
    """What there is to say of a server that answers; fills ``facts``.

    Raises the library's error where it does not answer.
    """
    import redis

    findings: t.List[Finding] = []
    refusal = ""
    start = time.monotonic()
    try:
        client.ping()
    except (redis.ResponseError, redis.exceptions.BusyLoadingError) as error:
        refusal = redis_errors.code(error)  # LOADING, MISCONF and MASTERDOWN refuse a PING, too
        if not refusal:
            raise
    facts["latency_ms"] = round((time.monotonic() - start) * 1000, 2)
    info: t.Dict[str, t.Any] = {}
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError:
        findings.append(Finding("unknown", "the user may not ask for INFO: grant +info"))
    facts.update(_facts(info))
    tried = True
    if not refusal:
        refusal, tried = _refusal(client)
    refusal = refusal or _refusal_by(info, tried)
    facts["writes"] = f"refused: {refusal}" if refusal else "accepted" if tried else "not tried"
    eternal = cached = None
    if refusal not in ("LOADING", "MASTERDOWN"):
        try:
            facts["scanned"], cached, eternal = _without_expiry(client, prefixes, max_keys)
        except redis.exceptions.NoPermissionError:
            findings.append(
                Finding("unknown", "the user may not look for keys without an expiry: grant +scan and +pttl")
            )
    facts["eternal"] = eternal
    percent = facts.get("maxmemory_percent")
    # A cache that may evict is full all the time, and works.
    full = limits.status(percent) if percent is not None and facts["maxmemory_policy"] == "noeviction" else "ok"
    if refusal:
        refused = redis_errors.WRITE_REFUSALS[refusal]
        remedy = refused.remedy
        if refusal == "OOM" and not cached:
            remedy = ""  # nothing of the cache's is there to be purged
        share = f", {percent:.0f} % of maxmemory in use" if refusal == "OOM" and percent is not None else ""
        status = worst(["critical", full]) if refusal == "OOM" else "critical"
        findings.append(
            Finding(status, f"Redis refuses writes ({refusal}{share}): {refused.meaning}; {refused.advice}", remedy)
        )
    if full != "ok" and refusal != "OOM":
        findings.append(
            Finding(
                full,
                f"Redis uses {percent:.0f} % of its maxmemory, over {limits.crossed(percent or 0):g} %",
                "cache_purge" if cached else "",
            )
        )
    if eternal:
        findings.append(Finding("warning", f"{eternal} cache keys never expire", "cache_purge"))
    if not refusal and not tried:
        findings.append(
            Finding("unknown", f"whether Redis takes writes could not be tried: grant +setrange and ~{WRITE_PROBE[1]}")
        )
    if not refusal:
        findings += [
            Finding("warning", f"Redis cannot save its data ({name} is {info[name]}): a restart would lose it")
            for name in ("rdb_last_bgsave_status", "aof_last_write_status")
            if info.get(name, "ok") != "ok"
        ]
    return findings


def remedy_helps(refusal: str, client: t.Any) -> bool:
    """Whether the remedy of ``WRITE_REFUSALS`` would change something: without a key of the cache nothing can be
    purged.
    """
    import redis

    if refusal != "OOM":
        return True
    try:
        return _without_expiry(client, CACHE_PREFIXES, _LOOKED_AT)[1] > 0
    except redis.RedisError:
        return False


def _facts(info: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """What INFO says, as far as the user may ask for it."""
    if not info:
        return {}
    limit = int(info.get("maxmemory") or 0)
    hits, misses = int(info.get("keyspace_hits", 0)), int(info.get("keyspace_misses", 0))
    return {
        "version": info["redis_version"],
        "used_memory_bytes": int(info["used_memory"]),
        "maxmemory_percent": 100.0 * int(info["used_memory"]) / limit if limit else None,
        "maxmemory_policy": str(info.get("maxmemory_policy", "noeviction")),
        "hit_rate_percent": round(100.0 * hits / (hits + misses), 1) if hits + misses else None,
        "evicted_keys": int(info.get("evicted_keys", 0)),
        "expired_keys": int(info.get("expired_keys", 0)),
        "connected_clients": int(info["connected_clients"]),
        "role": str(info.get("role", "")),
    }


def _refusal(client: t.Any) -> t.Tuple[str, bool]:
    """(code with which a write is refused or empty, whether the server judged one at all)."""
    import redis

    try:
        client.execute_command(*WRITE_PROBE)
    except (redis.ResponseError, redis.exceptions.BusyLoadingError) as error:
        return redis_errors.code(error), bool(redis_errors.code(error))
    return "", True


def _refusal_by(info: t.Mapping[str, t.Any], tried: bool) -> str:
    """Why writes must be refused as far as INFO tells: for a user who may not try one."""
    if tried or not info:
        return ""
    limit = int(info.get("maxmemory") or 0)
    if int(info.get("loading", 0)):
        return "LOADING"
    if info.get("role") == "slave":
        return "READONLY"
    if limit and int(info["used_memory"]) >= limit and info.get("maxmemory_policy", "noeviction") == "noeviction":
        return "OOM"
    return ""


def _without_expiry(client: t.Any, prefixes: t.Sequence[str], max_keys: int) -> t.Tuple[int, int, int]:
    """(keys looked at, keys of the application's cache among them, those of them without an expiry)."""
    words = tuple(prefix.encode() for prefix in prefixes)
    scanned = cached = eternal = 0
    keys = client.scan_iter(count=_SLICE, _type="STRING")
    while scanned < max_keys:
        part = list(itertools.islice(keys, _SLICE))
        if not part:
            break
        scanned += len(part)
        # The broker's client gives texts, that of this check bytes.
        mine = [key for key in part if key.startswith(words if isinstance(key, bytes) else tuple(prefixes))]
        pipe = client.pipeline(transaction=False)
        for key in mine:
            pipe.pttl(key)
        cached += len(mine)
        eternal += sum(1 for ttl in pipe.execute() if ttl == -1)
    return scanned, cached, eternal


def measure(_context: HostContext, options: Options) -> Check:
    return check(options.redis_url, thresholds=options.limits("memory"))
