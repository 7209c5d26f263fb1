# SPDX-License-Identifier: GPL-3.0-or-later
"""celery_throttle: check mode, run, again; what it refuses; an expiry that nobody has to remember."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import servers
from wheels_ops.core.results import OpsError
from wheels_ops.remedies.celery_throttle import run


def independent(redis: servers.Redis) -> t.Dict[str, str]:
    words = redis.cli("HGETALL", "pam:throttle").split("\n")
    return dict(zip(words[::2], words[1::2]))


def test_check_mode_then_run_then_again(redis: servers.Redis) -> None:
    redis.cli("RPUSH", "analytics", "{}", "{}")
    predicted = run(redis.url, level=3, classes=["analytics"], expires_s=100, check_mode=True)
    assert predicted.changed and redis.cli("EXISTS", "pam:throttle") == "0"
    real = run(redis.url, level=3, classes=["analytics"], expires_s=100)
    fields = independent(redis)
    assert (fields["level"], fields["classes"], fields["source"]) == ("3", "analytics", "operator")
    assert 95 <= int(redis.cli("TTL", "pam:throttle")) <= 100
    assert set(predicted.as_dict()) == set(real.as_dict()) and predicted.changed == real.changed
    assert {**predicted.after, "expires_s": 0} == {**real.after, "expires_s": 0}
    assert (
        predicted.diff == real.diff and "full rate" in real.diff[0]["before"] and "analytics" in real.diff[0]["after"]
    )
    again = run(redis.url, level=3, classes=["analytics"], expires_s=100)
    assert not again.changed and again.before["level"] == again.after["level"] == 3
    assert real.before["queued"] == real.after["queued"] == {"analytics": 2, "unacked": 0}


def test_normal_and_again(redis: servers.Redis) -> None:
    run(redis.url, level=1)
    assert run(redis.url, state="normal", check_mode=True).changed and redis.cli("EXISTS", "pam:throttle") == "1"
    done = run(redis.url, state="normal")
    assert done.changed and redis.cli("EXISTS", "pam:throttle") == "0" and done.after["factor"] == 1
    assert not run(redis.url, state="normal").changed


def test_renewed_only_when_half_is_gone(redis: servers.Redis) -> None:
    run(redis.url, level=2, expires_s=100)
    redis.cli("EXPIRE", "pam:throttle", "60")
    assert not run(redis.url, level=2, expires_s=100).changed
    redis.cli("EXPIRE", "pam:throttle", "40")
    assert run(redis.url, level=2, expires_s=100).changed
    assert int(redis.cli("TTL", "pam:throttle")) > 90


def test_an_automatic_throttle_is_replaced_by_the_operators(redis: servers.Redis) -> None:
    redis.cli(
        "HSET",
        "pam:throttle",
        "level",
        "2",
        "classes",
        "cleanup,analytics,digest",
        "source",
        "monitor",
        "stale",
        "field",
    )
    assert run(redis.url, level=2).changed
    assert independent(redis)["source"] == "operator" and "stale" not in independent(redis)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 0}, "level must be between 1 and 3, got 0"),
        ({"level": 4}, "level must be between 1 and 3, got 4"),
        ({"classes": ["email"]}, "users wait"),
        ({"classes": ["cleanup", "notifications"]}, "users wait"),
        ({"classes": ["analitics"]}, "classes must contain only .*, got analitics"),
        ({"classes": []}, "classes must not be empty"),
        ({"expires_s": 9}, "by itself"),
        ({"expires_s": 86_401}, "by itself"),
        ({"expires_s": -1}, "by itself"),
        ({"reason": "two\nlines"}, "one line"),
        ({"state": "paused"}, "state must be one of throttled, normal, got 'paused'"),
        ({"wait_timeout": 301}, "wait_timeout must be between 0 and 300 seconds, got 301"),
        ({"timeout": 0}, "timeout must be between 0.1 and 300 seconds, got 0"),
        ({"timeout": float("nan")}, "timeout must be .*, got nan"),
    ],
)
def test_nonsense_is_refused_before_anything_is_touched(
    redis: servers.Redis, options: t.Dict[str, t.Any], words: str
) -> None:
    with pytest.raises(OpsError, match=words):
        run(redis.url, **options)
    assert redis.cli("DBSIZE") == "0"


def test_a_foreign_key_under_the_name_is_left_alone(redis: servers.Redis) -> None:
    redis.cli("SET", "pam:throttle", "mine")
    with pytest.raises(OpsError, match="not ours"):
        run(redis.url)
    assert redis.cli("GET", "pam:throttle") == "mine"


def test_unreachable_redis_is_one_clear_message_without_the_password() -> None:
    with pytest.raises(OpsError, match="does not work") as caught:
        run("redis://:topsecret@127.0.0.1:1/0", timeout=0.5)
    assert "topsecret" not in str(caught.value)


def test_waits_for_beat_and_says_when_it_does_not_obey(redis: servers.Redis) -> None:
    redis.cli("SET", "pam:beat:heartbeat", '{"at": 1, "factor": 1}')
    result = run(redis.url, level=2, wait_timeout=0.3)
    assert result.extra["applied"] is False and "does not show it" in result.msg
    redis.cli("SET", "pam:beat:heartbeat", '{"at": 1, "factor": 4}')
    assert run(redis.url, level=2, wait_timeout=5).extra["applied"] is True
