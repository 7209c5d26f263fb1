# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflights against real servers with right and wrong policies; what a browser would do is the measure."""

from __future__ import annotations

import http.server
import typing as t

import pytest

from tests.support.cors_server import Policy, serve
from wheels_ops.checks import cors
from wheels_ops.core.results import OpsError

SITE = "https://wheelsandwins.com"
OTHER = "https://www.wheelsandwins.com"
Handler = http.server.BaseHTTPRequestHandler
Answer = t.Tuple[int, t.Dict[str, str]]


def right(handler: Handler) -> Answer:
    origin = handler.headers.get("Origin", "")
    if origin not in (SITE, OTHER):
        return 400, {"Vary": "Origin"}
    return 200, {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Vary": "Origin",
    }


def changed(**headers: t.Optional[str]) -> Policy:
    """The right policy with some headers of the answer replaced, or removed (None)."""

    def policy(handler: Handler) -> Answer:
        status, answer = right(handler)
        if status == 200:
            for name, value in headers.items():
                key = name.replace("_", "-")
                answer.pop(key, None)
                if value is not None:
                    answer[key] = value
        return status, answer

    return policy


def test_a_right_policy_passes_and_the_requests_are_those_of_a_browser() -> None:
    with serve(right) as (url, seen):
        check = cors.check(
            url, [SITE, OTHER], ["POST", "PUT"], ["Content-Type", "authorization"], simple_path="/health"
        )
    assert check.status == "ok", check.message
    assert check.value == 100
    assert {exchange["origin"] for exchange in check.details["exchanges"]} >= {
        SITE,
        OTHER,
        "https://evil.example",
        "null",
    }
    preflights = [headers for method, headers in seen if method == "OPTIONS"]
    assert {headers["access-control-request-headers"] for headers in preflights} == {"authorization,content-type"}
    assert {headers["access-control-request-method"] for headers in preflights} == {"POST", "PUT"}
    assert not any("cookie" in headers or "authorization" in headers for headers in preflights)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (changed(Access_Control_Allow_Origin="*"), "is '*', not the origin"),
        (changed(Access_Control_Allow_Origin=f"{SITE}/"), "not the origin"),
        (changed(Access_Control_Allow_Origin=SITE.upper()), "not the origin"),
        (changed(Access_Control_Allow_Origin=f"{SITE}, {OTHER}"), "not the origin"),
        (changed(Access_Control_Allow_Origin=None), "is missing"),
        (changed(Access_Control_Allow_Credentials="True"), "not 'true'"),
        (changed(Access_Control_Allow_Credentials=None), "not 'true'"),
        (changed(Access_Control_Allow_Methods="GET, POST, delete"), "the method DELETE"),
        (changed(Access_Control_Allow_Methods="*"), "the method DELETE"),
        (changed(Access_Control_Allow_Headers="Content-Type"), "authorization"),
        (changed(Access_Control_Allow_Headers="*"), "authorization"),
        (lambda handler: (400, right(handler)[1]), "status 400"),
        (lambda handler: (302, {**right(handler)[1], "Location": "/"}), "status 302"),
    ],
)
def test_an_allowed_origin_that_a_browser_would_stop(policy: Policy, why: str) -> None:
    with serve(policy) as (url, _seen):
        check = cors.check(url, [SITE], ["DELETE"], ["authorization"], foreign_origins=[])
    assert check.status == "critical"
    assert why in check.message
    assert check.remedy == "managed_files"


def reflecting(status: int, only: t.Callable[[str], bool]) -> Policy:
    def policy(handler: Handler) -> Answer:
        origin = handler.headers.get("Origin", "")
        code, answer = right(handler)
        if code != 200 and only(origin):
            return status, {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true"}
        return code, answer

    return policy


@pytest.mark.parametrize("status", [200, 204, 400, 403, 500])
@pytest.mark.parametrize(
    ("matcher", "caught"),
    [
        (lambda origin: True, "https://evil.example"),
        (lambda origin: origin == "null", "null"),
        (lambda origin: origin.startswith(SITE), "https://wheelsandwins.com.evil.example"),
        (lambda origin: origin.endswith("wheelsandwins.com"), "https://evilwheelsandwins.com"),
        (lambda origin: origin == "http://wheelsandwins.com", "http://wheelsandwins.com"),
        (lambda origin: origin == "https://wheelsandwinsxcom", "https://wheelsandwinsxcom"),
    ],
)
def test_a_foreign_origin_is_never_reflected(status: int, matcher: t.Callable[[str], bool], caught: str) -> None:
    with serve(reflecting(status, matcher)) as (url, _seen):
        check = cors.check(url, [SITE])
    assert check.status == "critical"
    assert caught in check.details["reflected"]
    assert "is reflected with credentials" in check.message


def test_an_asterisk_for_everyone_is_a_leak_too() -> None:
    with serve(
        lambda handler: (200, {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true"})
    ) as (url, _seen):
        check = cors.check(url, [SITE])
    assert check.status == "critical"
    assert "https://evil.example" in check.details["reflected"]


def test_a_shared_cache_needs_vary() -> None:
    with serve(changed(Vary=None)) as (url, _seen):
        check = cors.check(url, [SITE], "GET", [], foreign_origins=[], simple_path="/")
    assert check.status == "critical"
    assert "Vary" in check.message


def test_no_server_is_critical_and_says_so() -> None:
    check = cors.check("http://127.0.0.1:1", [SITE])
    assert check.status == "critical"
    assert "does not answer" in check.message
    assert check.remedy == "service_restart"


@pytest.mark.parametrize(
    "options",
    [
        {"origins": ["https://wheelsandwins.com/"]},
        {"origins": ["wheelsandwins.com"]},
        {"origins": ["https://a.example\r\nX: y"]},
        {"origins": [SITE], "foreign_origins": [SITE]},
        {"origins": [SITE], "method": ["GE T"]},
        {"origins": [SITE], "headers": ["x: y"]},
        {"origins": [SITE], "timeout": 0},
        {"origins": [SITE], "method": []},
        {"origins": ["https://a.example:99999"]},
        {"origins": [SITE], "path": ""},
        {"origins": [SITE], "path": "/a b"},
        {"origins": [SITE], "simple_path": "/a\r\nX: y"},
        {"origins": []},
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(options: t.Dict[str, t.Any]) -> None:
    with serve(right) as (url, seen):
        with pytest.raises(OpsError):
            cors.check(url, **options)
        assert seen == []
    with pytest.raises(OpsError):
        cors.check("ftp://127.0.0.1", [SITE])
    with pytest.raises(OpsError, match="base_url"):
        cors.check("http://127.0.0.1:99999", [SITE])
