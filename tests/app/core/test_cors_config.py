# SPDX-License-Identifier: GPL-3.0-or-later
"""The CORS configuration object, its environment, its memory and its log, each in a process of its own."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from tests.support.patched_tree import Tree, patched_tree

OWN = "https://wheelsandwins.com"


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "core/cors_config.py")


def origins(tree: Tree, **env: str) -> t.List[str]:
    program = "import json; from app.core.cors_config import cors_config as c; print(json.dumps(c.origins))"
    return t.cast(t.List[str], tree.json(program, env=env))


def test_every_name_that_callers_use(tree: Tree) -> None:
    found = tree.json("""
import json
from app.core.cors_config import CORSConfig, cors_config as c
c.origins.append("https://evil.example"); c.allowed_methods.clear(); c.allowed_headers.clear(); c.expose_headers.clear()
c.get_cors_config_dict()["allow_origins"].append("https://evil.example")
print(json.dumps({"aliases": c.origins == c.allowed_origins and "https://evil.example" not in c.origins, "dict": c.get_cors_config_dict(),
                  "headers": c.allowed_headers[:10], "methods": c.allowed_methods, "expose": c.expose_headers,
                  "allowed": [c.is_origin_allowed(o) for o in ("https://wheelsandwins.com", "https://evil.example", None, "", "null")],
                  "websocket": [c.is_websocket_origin_allowed(o) for o in (None, "https://wheelsandwins.com", "https://evil.example", "null", "")]}))
""")
    assert (
        found["aliases"]
        and found["allowed"] == [True, False, False, False, False]
        and found["websocket"] == [True, True, False, False, False]
    )
    assert set(found["dict"]) == {
        "allow_origins",
        "allow_credentials",
        "allow_methods",
        "allow_headers",
        "expose_headers",
        "max_age",
        "allow_origin_regex",
    }
    assert (
        found["dict"]["allow_credentials"] is True and found["dict"]["max_age"] == 7200 and len(found["headers"]) == 10
    )
    assert {"GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"} == set(found["methods"])
    assert {"apikey", "X-Client-Info", "Authorization", "X-CSRF-Token", "X-Auth-Type"} <= set(
        found["dict"]["allow_headers"]
    )
    assert {"Content-Range", "X-Content-Range", "X-Request-ID", "X-Response-Time", "Retry-After"} == set(
        found["expose"]
    )


@pytest.mark.parametrize(
    ("arguments", "status", "origin"),
    [
        (f"origin='{OWN}', requested_method='POST', requested_headers='content-type, apikey'", 200, OWN),
        (f"origin='{OWN}', cache_bust=False", 200, OWN),
        (f"'{OWN}', True", 200, OWN),  # the incident release's signature
        ("origin='https://evil.example', requested_method='POST'", 403, None),
        (f"origin='{OWN}', requested_method='PURGE'", 403, None),
        (f"origin='{OWN}', requested_method='POST', requested_headers='x-evil'", 403, None),
        ("origin='null', requested_method='GET'", 403, None),
        ("", 200, None),
        ("origin='https://wheelsandw\\u00efns.com', requested_method='GET'", 403, None),
        ("origin='\\u4e2d\\r\\nX-Evil: 1'", 403, None),
    ],
)
def test_options_responses_of_routes(tree: Tree, arguments: str, status: int, origin: t.Optional[str]) -> None:
    found = tree.json(f"""
import json
from app.core.cors_config import cors_config
response = cors_config.create_options_response({arguments})
print(json.dumps([response.status_code, dict(response.headers)]))
""")
    assert found[0] == status and found[1].get("access-control-allow-origin") == origin
    assert found[1]["vary"].startswith("Origin")
    if origin is None:
        assert not [name for name in found[1] if name.startswith("access-control-")]


def test_handle_preflight_request(tree: Tree) -> None:
    """Several field lines count, too, and a request object that has only a dictionary of headers will do."""
    assert tree.json("""
import json, types
from starlette.requests import Request
from app.core.cors_config import cors_config
def answer(*extra, origin=b"https://wheelsandwins.com"):
    pairs = [(b"origin", origin), (b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization"), *extra]
    return cors_config.handle_preflight_request(Request({"type": "http", "method": "OPTIONS", "path": "/", "headers": pairs})).status_code
plain = types.SimpleNamespace(headers={"origin": "https://wheelsandwins.com", "access-control-request-headers": "x-evil"})
print(json.dumps([answer(), answer(origin=b"https://evil.example"), answer((b"access-control-request-headers", b"apikey")),
                  answer((b"access-control-request-headers", b"x-evil")), answer((b"origin", b"https://wheelsandwins.com")),
                  answer((b"access-control-request-method", b"PURGE")), cors_config.handle_preflight_request(plain).status_code,
                  cors_config.handle_preflight_request(types.SimpleNamespace(headers={})).status_code]))
""") == [200, 403, 200, 403, 403, 403, 403, 200]


def test_environments(tree: Tree) -> None:
    local, staging, lovable = (
        "http://localhost:5173",
        "https://staging-wheelsandwins.netlify.app",
        "https://4fd8d7d4-1c59-4996-a0dd-48be31131e7c.lovable.app",
    )
    both = "https://wheels-wins-staging.netlify.app"
    production = origins(tree, STUB_ENVIRONMENT="production", NODE_ENV="development")
    assert OWN in production and both in production and not {local, staging, lovable} & set(production)
    assert {OWN, both, staging, lovable} <= set(origins(tree, STUB_ENVIRONMENT="staging")) and local not in origins(
        tree, STUB_ENVIRONMENT="staging"
    )
    assert {OWN, both, local, lovable} <= set(origins(tree, NODE_ENV="development"))
    assert origins(tree) == production == origins(tree, NODE_ENV="nonsense")
    assert lovable in origins(tree, ENABLE_LOVABLE_ORIGINS="true")
    assert lovable not in origins(tree, ENABLE_LOVABLE_ORIGINS="true", DISABLE_LOVABLE_ORIGINS="1")
    assert lovable not in origins(tree, NODE_ENV="staging", DISABLE_LOVABLE_ORIGINS="true")
    assert "https://a.example" in origins(tree, ADDITIONAL_CORS_ORIGINS=" https://a.example , ,https://b.example:8443")
    assert "https://a.example" in origins(tree, CORS_ALLOWED_ORIGINS='["https://a.example", "*", "http://b.example"]')
    assert not {"*", "http://b.example"} & set(
        origins(tree, CORS_ALLOWED_ORIGINS='["https://a.example", "*", "http://b.example"]')
    )


@pytest.mark.parametrize(
    "text",
    [
        '"https://a.example,https://b.example"',
        "'https://a.example, https://b.example'",
        '"https://a.example","https://b.example"',
        ",, https://a.example ,,https://b.example,",
        '["https://a.example", "", "https://b.example"]',
        '\'["https://a.example","https://b.example"]\'',
        "https://a.example,\n https://b.example\r\n",
        "https://a.example,https://b.example,https://a.example",
    ],
)
def test_every_way_in_which_files_of_variables_write_a_list(tree: Tree, text: str) -> None:
    assert origins(tree, ADDITIONAL_CORS_ORIGINS=text)[-2:] == ["https://a.example", "https://b.example"]


def test_no_foreign_origin_is_ever_reflected(tree: Tree) -> None:
    """Property: an answer names an origin only if the policy has it, whatever is sent.

    Seed and number by environment.
    """
    count, seed = os.environ.get("WHEELS_OPS_FUZZ", "100000"), os.environ.get("WHEELS_OPS_SEED", "1")
    program = (Path(__file__).with_name("cors") / "fuzz_program.py").read_text(encoding="utf-8")
    found = tree.json(program, count, seed, timeout=240)
    assert found["leaked"] == found["wrong"] == 0, (found, f"seed {seed}")
    assert found["foreign"] > 0.9 * int(count) and found["named"] > 0, "the generator must make both kinds"
    assert found["kept"] == 20 and found["size"] < 16_000
    lines = [line for line in tree.logged() if "denied" in line["event"]]
    assert 1 <= len(lines) <= 30, "rate-limited: ten lines a minute"


def test_debug_snapshot_explains_and_is_bounded_and_clean(tree: Tree) -> None:
    found = tree.json("""
import asyncio, json
from app.core.cors_config import CORSMiddleware, cors_config
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
layer = CORSMiddleware(app)
async def send(message): pass
def ask(origin, method="GET", *more):
    return layer({"type": "http", "method": method, "path": "/api/v1/pam/chat", "headers": [(b"origin", origin), *more]}, None, send)
async def main():
    for origin in (b"http://wheelsandwins.com", b"https://evil.wheelsandwins.com", b"https://wheelsandwins.com/", b"https://wheelsandwins.com:443", b"null",
                   b"", b"https://wheels-andwins.com", b"\\x1b[31m\\r\\nSet-Cookie: x", b"x" * 9000):
        await ask(origin)
    await ask(b"https://wheelsandwins.com", "OPTIONS", (b"access-control-request-method", b"PURGE"))
    await ask(b"https://wheelsandwins.com", "OPTIONS", (b"access-control-request-method", b"PUT"), (b"access-control-request-headers", b"x-evil"))
    await ask(b"https://wheelsandwins.com", "OPTIONS", (b"access-control-request-method", b"PUT"))
    await ask(b"https://wheelsandwins.com")
asyncio.run(main())
print(json.dumps(cors_config.debug_snapshot()))
""")
    why = {entry["origin"]: entry["why"] for entry in found["denied_origins"]}
    assert (
        "another scheme" in why["http://wheelsandwins.com"]
        and "subdomain" in why["https://evil.wheelsandwins.com"]
        and "slash" in why["https://wheelsandwins.com/"]
    )
    assert (
        "default port" in why["https://wheelsandwins.com:443"]
        and "sandboxed" in why["null"]
        and "resembles" in why["https://wheels-andwins.com"]
    )
    assert all(name.isascii() and name.isprintable() and len(name) < 160 for name in why)
    counters = found["counters"]
    assert (counters["allowed"], counters["denied"], counters["preflight_allowed"]) == (1, 9, 1)
    assert (
        counters["preflight_denied_method"],
        counters["preflight_denied_header"],
        counters["preflight_denied_origin"],
    ) == (1, 1, 0)
    # the report's own command: grep "CORS\\|OPTIONS\\|preflight"
    assert any(line["event"] == "CORS preflight denied (OPTIONS)" for line in tree.logged())
    assert all("CORS" in line["event"] for line in tree.logged())


def test_the_way_back_to_starlettes_middleware(tree: Tree) -> None:
    found = tree.json(
        """
import asyncio, json
from app.core.cors_config import CORSMiddleware
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
layer = CORSMiddleware(app)
out = {}
async def ask(origin):
    async def send(message):
        if message["type"].endswith("start"): out[origin.decode()] = {k.decode(): v.decode() for k, v in message["headers"]}
    await layer({"type": "http", "method": "GET", "path": "/", "headers": [(b"origin", origin)]}, None, send)
for origin in (b"https://wheelsandwins.com", b"https://deploy-preview-5--wheels-wins-landing-page.netlify.app", b"https://evil.example"):
    asyncio.run(ask(origin))
print(json.dumps([type(layer.app).__module__, out]))
""",
        env={"ENABLE_ENHANCED_CORS": "false"},
    )
    assert found[0] == "starlette.middleware.cors"
    assert [headers.get("access-control-allow-origin") for headers in found[1].values()] == [
        OWN,
        "https://deploy-preview-5--wheels-wins-landing-page.netlify.app",
        None,
    ]


def test_an_error_outside_the_application_still_carries_the_headers(tree: Tree) -> None:
    """Between this layer and Starlette's error handler lie other layers; their errors must not look
    like CORS failures.
    """
    found = tree.json("""
import asyncio, json
from app.core.cors_config import CORSMiddleware, install
async def app(scope, receive, send):
    raise ZeroDivisionError
sent = []
async def send(message): sent.append(message)
async def main():
    try:
        await CORSMiddleware(app)({"type": "http", "method": "GET", "path": "/", "headers": [(b"Origin", b"https://wheelsandwins.com")]}, None, send)
    except ZeroDivisionError:
        return True
raised = asyncio.run(main())
class App:
    def build_middleware_stack(self): return app
host = App(); install(host); install(host)
stack = host.build_middleware_stack()
print(json.dumps([raised, sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, type(stack).__name__, stack.app is app]))
""")
    assert (
        found[0] is True
        and found[1] == 500
        and found[2]["access-control-allow-origin"] == OWN
        and found[2]["vary"] == "Origin"
    )
    assert found[3:] == ["CORSMiddleware", True]
