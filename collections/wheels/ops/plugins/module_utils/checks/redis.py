# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis and the application's cache in it: answers, has room, and holds no key of the application without an expiry."""

from __future__ import annotations

import itertools
import time
import typing as t

from ..health import Check
from ..redaction import redact_url
from ..results import OpsError
from ..services import redis_errors
from ..services.broker import readable, require_database
from ..thresholds import DEFAULTS

#: Prefixes under which the backend caches. Only these are looked at, and only plain strings: queues and locks of others are not ours.
CACHE_PREFIXES: t.Tuple[str, ...] = (
    "pam:cache:", "user_profile:", "user_trips:", "trip_details:", "user_social_groups:", "user_social_posts:", "marketplace_listings:",
    "user_purchase_history:", "user_wishlists:", "personalized_recommendations:", "financial_travel_insights:", "social_travel_connections:",
    "comprehensive_user_context:", "user_calendar_events:", "user_settings:", "expenses:", "budget_summary:", "fuel_stations:", "user_analytics:",
    "response:", "conversation_history:", "user_context:", "recent_conversation:", "recent_conversations:", "context:", "calendar_events:",
    "travel_events:", "user_preferences:", "user_insights:", "web_search:", "web_search_ctx:", "script_analysis:",
)  # fmt: skip
_SLICE = 500


def check(url: str, *, prefixes: t.Sequence[str] = CACHE_PREFIXES, max_keys: int = 200_000, timeout: float = 5.0) -> Check:
    """PING and INFO, then a SCAN of at most ``max_keys`` keys for own keys without an expiry."""
    import redis

    require_database(url)
    try:
        client = redis.Redis.from_url(readable(url), socket_timeout=timeout, socket_connect_timeout=timeout)
    except ValueError as error:
        raise OpsError(f"The Redis URL {redact_url(url)} cannot be read: {error}.", hint="Give redis://:PASSWORD@HOST:PORT/DB.") from error
    try:
        started = time.monotonic()
        client.ping()
        latency = (time.monotonic() - started) * 1000
        info = client.info()
        scanned, eternal = _without_expiry(client, prefixes, max_keys)
    except redis.RedisError as error:
        cause = redis_errors.explain(error, url)
        if cause.details["redis_error"] in ("permission", "password"):
            raise cause from error
        return Check(
            name="redis", status="critical", value=None, unit="keys without expiry", message=cause.message,
            remedy="service_restart" if cause.details["redis_error"] == "silent" else "", details={},
        )  # fmt: skip
    finally:
        client.close()
    limit = int(info.get("maxmemory") or 0)
    percent = 100.0 * int(info["used_memory"]) / limit if limit else None
    memory = DEFAULTS["memory"].status(percent) if percent is not None else "ok"
    hits, misses = int(info.get("keyspace_hits", 0)), int(info.get("keyspace_misses", 0))
    loading = bool(int(info.get("loading", 0)))
    status = "critical" if loading else "warning" if eternal else memory
    return Check(
        name="redis",
        status=status,
        value=eternal,
        unit="keys without expiry",
        message=(
            "Redis still loads its data."
            if loading
            else f"{eternal} cache keys never expire."
            if eternal
            else f"Redis {info['redis_version']} answers in {latency:.1f} ms; every cache key expires."
        ),
        remedy="" if status == "ok" else "cache_purge" if eternal else "memory_trim",
        details={
            "version": info["redis_version"], "latency_ms": round(latency, 2), "used_memory_bytes": int(info["used_memory"]), "maxmemory_percent": percent,
            "hit_rate_percent": round(100.0 * hits / (hits + misses), 1) if hits + misses else None, "evicted_keys": int(info.get("evicted_keys", 0)),
            "expired_keys": int(info.get("expired_keys", 0)), "connected_clients": int(info["connected_clients"]), "scanned": scanned,
            "scan_complete": scanned < max_keys, "uptime_s": int(info["uptime_in_seconds"]),
        },
    )  # fmt: skip


def _without_expiry(client: t.Any, prefixes: t.Sequence[str], max_keys: int) -> t.Tuple[int, int]:
    words = tuple(prefix.encode() for prefix in prefixes)
    scanned = found = 0
    keys = client.scan_iter(count=_SLICE, _type="STRING")
    while scanned < max_keys:
        part = list(itertools.islice(keys, _SLICE))
        if not part:
            break
        scanned += len(part)
        mine = [key for key in part if key.startswith(words)]
        pipe = client.pipeline(transaction=False)
        for key in mine:
            pipe.pttl(key)
        found += sum(1 for ttl in pipe.execute() if ttl == -1)
    return scanned, found
