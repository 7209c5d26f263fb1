# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slows background work down, for a time: writes the hash that the patched backend's beat and workers obey."""

from __future__ import annotations

import json
import time
import typing as t

from ..checks.celery import BEAT_KEY, THROTTLE_KEY
from ..core.options import choice, choices, in_range
from ..core.results import OpsError, Result
from ..services import broker, redis_errors

#: How much rarer periodic tasks come, by level (``app/wheels_ops/celery_throttle.py``).
FACTORS: t.Tuple[int, ...] = (1, 2, 4, 8)
CLASSES: t.Tuple[str, ...] = ("cleanup", "analytics", "digest")
#: What users wait for. Named here so that the refusal can say why.
NEVER: t.Tuple[str, ...] = ("email", "notifications", "maintenance", "default")
MIN_EXPIRES, MAX_EXPIRES = 10, 86_400

#: Replaces the hash in one step, so that nobody reads half of it.
_REPLACE = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'level', ARGV[1], 'classes', ARGV[2], 'source', 'operator', 'reason', ARGV[3], 'since', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return redis.call('TTL', KEYS[1])
"""


def validate(state: str, level: int, classes: t.Sequence[str], expires_s: int, reason: str) -> None:
    """Refuses what makes no sense, before anything is touched."""
    choice("state", state, ("throttled", "normal"))
    in_range(
        "level",
        level,
        1,
        len(FACTORS) - 1,
        hint="1, 2 and 3 make the classes 2, 4 and 8 times rarer; for full rate use state=normal.",
    )
    forbidden = sorted(set(classes) & set(NEVER))
    if forbidden:
        raise OpsError(
            f"classes must not contain {', '.join(forbidden)}: users wait for it.",
            hint=f"Choose from {', '.join(CLASSES)}.",
        )
    if classes or state == "throttled":
        choices("classes", classes, CLASSES)
    in_range("expires_s", expires_s, MIN_EXPIRES, MAX_EXPIRES, unit="seconds", hint="A throttle must end by itself.")
    if len(reason) > 200 or not reason.isprintable():
        raise OpsError("reason must be one line of at most 200 characters.", hint="Shorten it.")


def run(
    redis_url: str,
    *,
    state: str = "throttled",
    level: int = 2,
    classes: t.Sequence[str] = CLASSES,
    expires_s: int = 900,
    reason: str = "by an operator",
    wait_timeout: float = 10.0,
    timeout: float = 5.0,
    check_mode: bool = False,
) -> Result:
    """Brings the throttle into ``state`` and, where beat shows its heartbeat, waits until beat obeys.

    ``before`` and ``after`` have ``level, factor, classes, source, expires_s, queued``. A throttle that is in force as
    wanted is renewed only when less than half of ``expires_s`` is left; until then nothing changes.
    """
    validate(state, level, classes, expires_s, reason)
    in_range("wait_timeout", wait_timeout, 0, 300, unit="seconds")
    in_range("timeout", timeout, 0.1, 300, unit="seconds")
    import redis

    client = broker.connect(redis_url, timeout=timeout)
    try:
        return _apply(
            client,
            state,
            level,
            tuple(name for name in CLASSES if name in classes),
            expires_s,
            reason,
            wait_timeout,
            check_mode,
        )
    except redis.RedisError as error:
        raise redis_errors.explain(
            error,
            redis_url,
            silent="does not work",
            hint="Start it, or correct redis_url, then run again; full rate applies meanwhile.",
        ) from error
    finally:
        client.close()


def _apply(
    client: t.Any,
    state: str,
    level: int,
    classes: t.Tuple[str, ...],
    expires_s: int,
    reason: str,
    wait_timeout: float,
    check_mode: bool,
) -> Result:
    kind = client.type(THROTTLE_KEY)
    if kind not in ("hash", "none"):
        raise OpsError(
            f"The key {THROTTLE_KEY} is a {kind}, which is not ours.", hint="Look who writes it; wrong database?"
        )
    before = _state(client)
    if state == "normal":
        changed, target = before["level"] > 0, _facts({}, -2)
    else:
        same = before["level"] == level and set(before["classes"]) == set(classes) and before["source"] == "operator"
        changed = not same or before["expires_s"] < expires_s / 2
        target = (
            _facts(
                {"level": str(level), "classes": ",".join(classes), "source": "operator", "reason": reason}, expires_s
            )
            if changed
            else before
        )
    action = {
        "action": "throttle" if state == "throttled" else "restore",
        "target": THROTTLE_KEY,
        "changed": changed,
        "factor": target["factor"],
    }
    after: t.Dict[str, t.Any] = {**target, "queued": before["queued"]}
    applied: t.Optional[bool] = None
    if not check_mode:
        if changed and state == "normal":
            client.delete(THROTTLE_KEY)
        elif changed:
            client.eval(
                _REPLACE, 1, THROTTLE_KEY, str(level), ",".join(classes), reason, str(int(time.time())), str(expires_s)
            )
        applied = _obeyed(client, target["factor"], wait_timeout)
        after = _state(client)
        if state == "throttled" and changed and (after["level"], after["source"]) != (level, "operator"):
            raise OpsError(
                "The throttle did not stay as it was written.", hint="Look who else writes it.", last_state=after
            )
    return Result(
        changed=changed,
        before=before,
        after=after,
        actions=[action],
        msg=_sentence(state, after, changed, applied, check_mode),
        diff=[
            {
                "before": _text(before),
                "after": _text(after),
                "before_header": THROTTLE_KEY,
                "after_header": THROTTLE_KEY,
            }
        ],
        extra={"applied": applied},
    )


def _facts(fields: t.Mapping[str, str], ttl: int) -> t.Dict[str, t.Any]:
    try:
        level = max(0, min(len(FACTORS) - 1, int(fields.get("level", "0"))))
    except ValueError:
        level = 0
    classes = [name for name in fields.get("classes", "").split(",") if name]
    return {
        "level": level,
        "factor": FACTORS[level],
        "classes": classes,
        "source": fields.get("source", ""),
        "reason": fields.get("reason", ""),
        "expires_s": max(0, ttl),
    }


def _state(client: t.Any) -> t.Dict[str, t.Any]:
    pipe = client.pipeline(transaction=True)
    pipe.hgetall(THROTTLE_KEY)
    pipe.ttl(THROTTLE_KEY)
    fields, ttl = pipe.execute()
    return {**_facts(fields, ttl), "queued": broker.waiting_tasks(client, broker.queues(client))}


def _obeyed(client: t.Any, factor: int, wait_timeout: float) -> t.Optional[bool]:
    """Whether beat's heartbeat shows the factor; None where beat shows none (stopped, or the backend is
    not patched).
    """
    deadline = time.monotonic() + wait_timeout
    while True:
        raw = client.get(BEAT_KEY)
        if not raw:
            return None
        try:
            if json.loads(raw).get("factor") == factor:
                return True
        except (ValueError, AttributeError):
            return None
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def _text(facts: t.Mapping[str, t.Any]) -> str:
    if not facts["level"]:
        return "full rate\n"
    return (
        f"level {facts['level']} ({facts['factor']} times rarer): {', '.join(facts['classes'])}\nby {facts['source']}\n"
    )


def _sentence(
    state: str, after: t.Mapping[str, t.Any], changed: bool, applied: t.Optional[bool], check_mode: bool
) -> str:
    if state == "normal":
        action = (
            "Background work runs at its full rate."
            if not changed
            else "Background work would return to its full rate."
            if check_mode
            else ""
        )
        action = action or "Background work returns to its full rate."
    else:
        verb = "would come" if check_mode and changed else "come"
        action = (
            f"Periodic tasks of {', '.join(after['classes'])} {verb} {after['factor']} times as rarely, for"
            f" {after['expires_s']} s at most."
        )
    if check_mode:
        return action
    if applied is None:
        return f"{action} Beat shows no heartbeat: it is stopped, or the backend is not patched."
    return action if applied else f"{action} Beat does not show it yet."
