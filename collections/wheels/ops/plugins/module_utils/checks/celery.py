# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Celery: do the workers answer, does beat beat, and how much waits."""

from __future__ import annotations

import json
import re
import time
import typing as t

from ..core.redaction import redact_url
from ..core.results import OpsError
from ..health.check import Check, is_ours, unknown
from ..health.thresholds import DEFAULTS, Thresholds, worst
from ..services import broker, celery_workers, gates, redis_errors
from .context import HostContext, Options
from .redis import remedy_helps

#: Written by the patched backend's beat at every tick (5 s at most), with an expiry of 60 s.
BEAT_KEY = "pam:beat:heartbeat"
#: The throttle's hash; see ``remedies/celery_throttle.py``.
THROTTLE_KEY = "pam:throttle"
#: Tasks that may wait in all queues together.
WAITING = DEFAULTS["waiting_tasks"]


def check(
    redis_url: str,
    *,
    queues: t.Sequence[str] = broker.QUEUES,
    timeout: float = 3.0,
    waiting: Thresholds = WAITING,
    expect_workers: int = 1,
    expect_beat: bool = True,
    members: t.Collection[int] = (),
    outside: bool = False,
) -> Check:
    """Asks every worker by remote control over Redis, as ``celery inspect`` does, but without starting the application.

    The value is the number of waiting tasks. Critical: fewer than ``expect_workers`` answer or are seen to be at work,
    or the broker does not answer. Warning: one of them does not answer and may be at work, or is at one task for longer
    than a task may take (``celery_workers``), or nothing tells of a beat, neither its heartbeat in Redis nor a process
    of this broker on this host (``gates.beats_of``; ``members`` are the processes of our services). Critical, too: two
    such beats run. A worker that is seen to ask for tasks or to be at one does its work, whether it answers or not.
    ``outside``: the processes of this machine are not those of the host, and none is looked at.
    Raises ``OpsError`` where Redis refuses the password or a command.
    """
    import redis

    client = broker.connect(redis_url, timeout=max(timeout, 1.0) + 1)
    silent: t.List[celery_workers.Silence] = []
    try:
        client.ping()
        watch = celery_workers.Watch(client, 0 if outside else broker.port(redis_url))
        nodes = broker.workers(client, timeout=timeout, wanted=lambda answers: len(answers) >= max(1, expect_workers))
        if len(nodes) < expect_workers:
            watch.wait(min(timeout, 1.0))
            silent = _silent(watch, nodes)
        counts = broker.waiting_tasks(client, broker.queues(client, queues))
        beat = _beat(client, redis_url, members, outside)
        throttle = _throttle(client)
        consumed = _consumed(client)
    except redis.AuthenticationError:
        return Check(
            name="celery",
            status="critical",
            unit="waiting tasks",
            message=f"The broker at {redact_url(redis_url)} refuses the password in its URL.",
            details={"workers": {}, "beat": {}},
        )
    except redis.RedisError as error:
        if redis_errors.missing_right(error):
            raise redis_errors.explain(error, redis_url) from error
        refusal = redis_errors.code(error)
        if refusal:
            # A worker that is restarted now cannot write either: it would end in a crash loop.
            refused = redis_errors.WRITE_REFUSALS[refusal]
            remedy = refused.remedy if remedy_helps(refusal, client) else ""
            return Check(
                name="celery",
                status="critical",
                unit="waiting tasks",
                remedy=remedy,
                message=f"The broker at {redact_url(redis_url)} refuses writes ({refusal}): {refused.meaning}; {refused.advice}.",
                details={"workers": {}, "beat": {}},
            )
        if is_ours(error):
            raise OpsError(
                f"The broker at {redact_url(redis_url)} cannot be asked: {str(error).rstrip('.')}.",
                hint="Check host, name resolution and rights.",
            ) from error
        lives = redis_errors.answered(error)
        return Check(
            name="celery",
            status="critical",
            unit="waiting tasks",
            message=(
                f"The broker at {redact_url(redis_url)}"
                f" {redis_errors.unserved(error) if lives else f'does not answer: {type(error).__name__}'}."
            ),
            # Workers that are restarted would meet the same refusal.
            remedy="" if lives else "service_restart",
            details={"workers": {}, "beat": {}},
        )
    finally:
        client.close()
    total = sum(count for queue, count in counts.items() if queue != "unacked")
    depth = waiting.status(total)
    problems, status = [], depth
    working = [entry for entry in silent if entry.unfinished]
    missing = len(nodes) + len(working) < expect_workers
    if len(nodes) < expect_workers:
        reasons = "".join(f"; {why}" for why in dict.fromkeys(entry.why for entry in silent))
        problems.append(f"{len(nodes)} of {expect_workers} workers answer{reasons}")
        takes = [entry for entry in silent if entry.at_work]
        status = worst(
            [status, "critical" if missing else "ok" if len(nodes) + len(takes) >= expect_workers else "warning"]
        )
    several = beat.pop("several", {})
    if several:
        beat["pids"] = sorted(several)
        problems.append(gates.twice(several))
        status = worst([status, "critical"])
    if expect_beat and not beat:
        problems.append("beat gives no sign of life")
        status = worst([status, "warning"])
    if depth != "ok":
        problems.append(f"{total} tasks wait")
    restart = missing or (expect_beat and not beat)
    return Check(
        name="celery",
        status=status,
        value=total,
        unit="waiting tasks",
        thresholds=waiting.as_dict(),
        message=(
            f"{'; '.join(problems)}."
            if problems
            else f"{len(nodes)} workers answer{', beat is alive' if beat else ''}, {total} tasks wait."
            if nodes or expect_workers
            else f"No worker is expected here{', beat is alive' if beat else ''}, {total} tasks wait."
        ),
        remedy="service_restart" if restart else "" if depth == "ok" else "celery_throttle",
        details={
            "workers": {name: _worker(stats) for name, stats in sorted(nodes.items())},
            "silent": [{"pid": entry.pid, "verdict": entry.verdict, "why": entry.why} for entry in silent],
            "beat": beat,
            "queues": counts,
            "throttle": throttle,
            "bound_queues": consumed,
        },
    )


def _silent(
    watch: celery_workers.Watch, nodes: t.Mapping[str, t.Mapping[str, t.Any]]
) -> t.List[celery_workers.Silence]:
    """The workers that are seen and did not answer.

    One whose process is not seen may be one that did: so many of these are left out.
    """
    answered = {int(stats.get("pid") or 0) for stats in nodes.values()}
    every = watch.silent()
    here = len([entry for entry in every if entry.pid and entry.pid in answered])
    unseen = [entry for entry in every if not entry.pid]
    return [entry for entry in every if entry.pid and entry.pid not in answered] + unseen[max(0, len(nodes) - here) :]


def _worker(stats: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    pool = stats.get("pool") or {}
    return {
        "pid": stats.get("pid"),
        "uptime_s": stats.get("uptime"),
        "concurrency": pool.get("max-concurrency"),
        "tasks_done": stats.get("total"),
        "max_rss_kb": (stats.get("rusage") or {}).get("maxrss"),
    }


def _beat(client: t.Any, redis_url: str, members: t.Collection[int], outside: bool) -> t.Dict[str, t.Any]:
    """What is known of beat: ``source`` is ``heartbeat`` or ``process``; empty when there is no sign of it.

    ``several``: the processes where more than one runs on this host, with their command lines.
    """
    try:
        here = {} if outside else gates.beats_of(redis_url, members)
    except (OpsError, OSError):
        here = {}
    several = {"several": here} if len(here) > 1 else {}
    raw = client.get(BEAT_KEY)
    if raw:
        try:
            facts = json.loads(raw)
            age = time.time() - float(facts["at"])
        except (ValueError, KeyError, TypeError):
            return {"source": "heartbeat", "readable": False, **several}
        return {
            "source": "heartbeat",
            **several,
            "age_s": round(max(0.0, age), 1),
            **{key: facts.get(key) for key in ("pid", "host", "last_sent", "factor")},
        }
    return {"source": "process", "pids": sorted(here), **several} if here else {}


def _throttle(client: t.Any) -> t.Dict[str, t.Any]:
    fields = client.hgetall(THROTTLE_KEY) if client.type(THROTTLE_KEY) == "hash" else {}
    return {**fields, "expires_s": client.ttl(THROTTLE_KEY)} if fields else {}


def _consumed(client: t.Any) -> t.List[str]:
    """The queues that a worker has ever bound; a waiting queue that is not among them is consumed by nobody."""
    return [queue for queue in broker.queues(client, ()) if queue]


def measure(context: HostContext, options: Options) -> Check:
    """Beat is asked for where it is one of the services, and so is a worker; a host may have either, both or none.

    Where no services are listed a worker is asked for. ``unknown`` where a worker of this host has another broker than
    a Redis: what lies in the Redis says nothing about it then.
    """
    services = context.services

    def named(kind: str, words: str) -> t.List[str]:
        """By their gates; where a gate does not say what it is, by their names."""
        return [
            service.name
            for service in services
            if service.gate.type == kind
            or (service.gate.type in ("none", "state") and re.search(words, f"{service.name} {service.unit}"))
        ]

    beats = named("beat", "(?<!heart)beat")
    workers = [name for name in named("celery", "celery|worker") if name not in beats]
    members: t.Set[int] = set()
    if beats or workers:
        try:
            pids = context.pids()
            members = set().union(*(pids.get(name, set()) for name in {*beats, *workers}))
        except OpsError:
            pass  # the check of the services says so
    told = next(filter(None, (broker.other(gates.broker_url(pid)) for pid in sorted(members))), "")
    if told:
        return unknown(
            "celery",
            f"The broker of Celery on this host is {told}, and only Redis can be asked for its tasks and workers.",
        )
    return check(
        options.redis_url,
        waiting=options.limits("waiting_tasks"),
        expect_workers=1 if workers or not services else 0,
        expect_beat=bool(beats),
        members=members,
        outside=context.view.outside,
    )
