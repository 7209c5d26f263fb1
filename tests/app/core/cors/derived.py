# SPDX-License-Identifier: GPL-3.0-or-later
"""Further vectors in the form of ``vectors/given.json``, written from the Fetch standard, RFC 9110 and WPT's cors/
directory.
"""

from __future__ import annotations

import typing as t

OWN = "https://wheelsandwins.com"
PREVIEW = "https://deploy-preview-7--wheels-wins-landing-page.netlify.app"
Pairs = t.Sequence[t.Tuple[str, str]]
NONE_LEAKED = ["access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers"]
NOTHING_AT_ALL = [
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
    "access-control-allow-private-network",
    "set-cookie",
]


def _vector(
    number: str,
    method: str,
    pairs: Pairs,
    expect: t.Dict[str, t.Any],
    app: str = "ok",
    path: str = "/api/v1/x",
    **override: t.Any,
) -> t.Dict[str, t.Any]:
    return {
        "id": number,
        "group": "derived",
        "request": {"method": method, "path": path, "headers": [list(pair) for pair in pairs]},
        "app": app,
        "policy_override": override,
        "expect": expect,
    }


def _allowed(status: int = 200, origin: str = OWN) -> t.Dict[str, t.Any]:
    return {
        "status": status,
        "browser": "allow",
        "acao": origin,
        "acac": "true",
        "vary_includes": ["Origin"],
        "single": [
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "access-control-expose-headers",
            "vary",
        ],
    }


def _denied(status: int = 200) -> t.Dict[str, t.Any]:
    return {"status": status, "browser": "deny", "absent": NONE_LEAKED, "vary_includes": ["Origin"]}


def _preflight(method: str = "POST", names: t.Sequence[str] = (), origin: str = OWN) -> t.List[t.Tuple[str, str]]:
    return [
        ("Origin", origin),
        ("Access-Control-Request-Method", method),
        *(("Access-Control-Request-Headers", line) for line in names),
    ]


def _granted(*names: str) -> t.Dict[str, t.Any]:
    return {
        "status": 200,
        "browser": "allow",
        "acao": OWN,
        "acac": "true",
        "max_age": 7200,
        "acah_includes": list(names),
        "body_empty_or_text": True,
        "vary_includes": ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"],
        "absent": ["set-cookie", "location"],
        "single": [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-max-age",
            "vary",
        ],
    }


def _refused(*not_echoed: str) -> t.Dict[str, t.Any]:
    return {
        "status": 403,
        "browser": "deny",
        "absent": NOTHING_AT_ALL,
        "not_echo": list(not_echoed),
        "vary_includes": ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"],
    }


def _foreign_origins() -> t.Iterator[t.Tuple[str, str]]:
    yield from {
        "subdomain": "https://evil.wheelsandwins.com",
        "other port": "https://wheelsandwins.com:8443",
        "upper-case host": "https://WHEELSANDWINS.COM",
        "upper-case scheme": "HTTPS://wheelsandwins.com",
        "trailing dot": "https://wheelsandwins.com.",
        "query": "https://wheelsandwins.com?x",
        "fragment": "https://wheelsandwins.com#x",
        "path": "https://wheelsandwins.com/x",
        "backslash": "https://wheelsandwins.com\\evil.example",
        "percent": "https://wheelsandwins.com%2eevil.example",
        "null": "null",
        "file": "file://",
        "data": "data:text/html",
        "space list": "https://wheelsandwins.com https://evil.example",
        "doubled scheme": "https://https://wheelsandwins.com",
        "localhost in production": "http://localhost:3000",
        "preview of another site": "https://deploy-preview-1--other.netlify.app",
        "preview, letters": "https://deploy-preview-abc--wheels-wins-landing-page.netlify.app",
        "preview, seven digits": "https://deploy-preview-1234567--wheels-wins-landing-page.netlify.app",
        "preview, http": "http://deploy-preview-1--wheels-wins-landing-page.netlify.app",
        "preview, port": "https://deploy-preview-1--wheels-wins-landing-page.netlify.app:8443",
        "preview, prefix": "https://xdeploy-preview-1--wheels-wins-landing-page.netlify.app",
        "preview, dot replaced": "https://deploy-preview-1--wheels-wins-landing-pageXnetlify.app",
        "branch deploy": "https://feature--wheels-wins-landing-page.netlify.app",
        "substring": "https://notwheels-wins-landing-page.netlify.app",
        "homograph": "https://xn--wheelsndwins-kbb.com",
        "userinfo": "https://wheelsandwins.com@evil.example",
        "underscore": "https://wheels_and_wins.com",
        "regular expression": "https://.*",
        "long label": "https://" + "a" * 64 + ".com",
        "comma": "https://wheelsandwins.com,",
        "quotes": '"https://wheelsandwins.com"',
        "angle brackets": "<https://wheelsandwins.com>",
        "semicolon": "https://wheelsandwins.com;",
        "inner tab": "https://wheels\tandwins.com",
        "port 80": "https://wheelsandwins.com:80",
        "port 443 of a preview": PREVIEW + ":443",
        "empty port": "https://wheelsandwins.com:",
        "leading zero": "https://wheelsandwins.com:0443",
        "trailing dot and port": "https://wheelsandwins.com.:443",
        "password": "https://user:secret@wheelsandwins.com",
        "IPv6": "https://[::1]",
        "IPv6, mapped": "https://[::ffff:127.0.0.1]:443",
        "UTF-8 of a homograph": "https://wheels\u00c3\u00a4ndwins.com",
        "Latin-1": "https://wheels\u00e4ndwins.com",
        "soft hyphen": "https://wheels\u00c2\u00adandwins.com",
        "long, own in front": OWN + "." + "a" * 7000,
        "long, own behind": "https://" + "a" * 7000 + ".wheelsandwins.com",
        "file with path": "file:///etc/passwd",
        "NULL": "NULL",
        "null twice": "null null",
        "extension": "chrome-extension://abcdefghijklmnop",
        "about": "about:blank",
        "two slashes": "//wheelsandwins.com",
        "one slash": "https:/wheelsandwins.com",
        "no slash": "https:wheelsandwins.com",
        "double quote": OWN + '"',
        "star in front": "https://*.wheelsandwins.com",
        "preview, newer letters": "https://deploy-preview-1\u00c2\u00b2--wheels-wins-landing-page.netlify.app",
        "preview, no number": "https://deploy-preview---wheels-wins-landing-page.netlify.app",
        "preview in upper case": PREVIEW.upper().replace("HTTPS", "https"),
        "preview, trailing dot": PREVIEW + ".",
        "preview, user": PREVIEW + "@evil.example",
        "ip": "https://127.0.0.1",
        "blob": "blob:https://wheelsandwins.com",
        "websocket": "wss://wheelsandwins.com",
    }.items()


def vectors() -> t.List[t.Dict[str, t.Any]]:
    """All of them; ids are ``L`` and a number."""
    made: t.List[t.Dict[str, t.Any]] = []

    def add(method: str, pairs: Pairs, expect: t.Dict[str, t.Any], app: str = "ok", **more: t.Any) -> None:
        made.append(_vector(f"L{len(made) + 1:03d}", method, pairs, expect, app, **more))

    own = [("Origin", OWN)]
    # no Origin: no CORS request, whatever else it carries
    plain = {"browser": "n/a", "absent": NOTHING_AT_ALL, "vary_includes": ["Origin"]}
    add("POST", [("Content-Type", "application/json")], {"status": 200, **plain})
    add("GET", [], {"status": 404, **plain}, "notfound")
    add("GET", [], {"status": 500, **plain}, "boom")
    add("GET", [], {"status": 200, **plain}, "ownacao")
    add("OPTIONS", [("Access-Control-Request-Method", "GET")], {"status": 204, **plain}, "optroute")
    add("GET", [("Referer", OWN + "/")], {"status": 200, **plain})
    # allowed requests, on every path that an answer can take
    for app, status in (
        ("ok", 200),
        ("boom", 500),
        ("inner500", 500),
        ("needauth", 401),
        ("notfound", 404),
        ("limited", 429),
        ("invalid", 422),
        ("notmod", 304),
        ("redir", 307),
        ("stream", 200),
        ("ownacao", 200),
        ("sse", 200),
        ("passing", 200),
        ("late500", 200),
        ("mounted", 200),
        ("verbose", 200),
    ):
        add("GET", own, _allowed(status), app)
        add("GET", [("Origin", "https://evil.example")], _denied(status), app)
        add("GET", [("Origin", PREVIEW)], _allowed(status, PREVIEW), app)
    for method in ("PUT", "PATCH", "DELETE", "POST", "HEAD"):
        add(method, own, _allowed())
    add("POST", own, _allowed(405), "getonly")
    add("GET", [*own, ("Range", "bytes=0-1")], _allowed())
    # Vary: merged, never doubled, never lost
    add("GET", own, {**_allowed(), "vary_includes": ["Origin", "Accept-Encoding"]}, "vary")
    add(
        "GET",
        [],
        {
            "status": 200,
            "browser": "n/a",
            "absent": NONE_LEAKED,
            "vary_includes": ["Origin", "Accept-Encoding"],
            "single": ["vary"],
        },
        "vary",
    )
    add("GET", own, {**_allowed(), "vary_includes": ["Origin", "Cookie"], "vary_is": "Origin, Cookie"}, "varyorigin")
    add("GET", [("Origin", "https://evil.example")], {**_denied(), "vary_includes": ["*"]}, "varystar")
    add(
        "GET",
        [],
        {"status": 200, "browser": "n/a", "absent": NOTHING_AT_ALL, "vary_includes": ["*"], "vary_is": "*"},
        "varystar",
    )
    merged = "Origin, Accept-Encoding, cookie"
    add(
        "GET",
        own,
        {**_allowed(), "vary_is": merged, "absent": ["access-control-max-age", "access-control-allow-methods"]},
        "verbose",
    )
    add(
        "GET",
        [("Origin", "https://evil.example")],
        {**_denied(), "absent": NOTHING_AT_ALL, "vary_is": merged, "single": ["vary"]},
        "verbose",
    )
    add(
        "GET",
        [],
        {"status": 200, "browser": "n/a", "absent": NOTHING_AT_ALL, "vary_is": merged, "single": ["vary"]},
        "verbose",
    )
    # what a mounted application thinks of CORS has no effect, not even on OPTIONS requests that are no preflights
    add("OPTIONS", [("Origin", "https://evil.example")], _denied(405), "mounted")
    add("OPTIONS", [("Access-Control-Request-Method", "GET")], {"status": 405, **plain}, "mounted")
    # blanks around a value are none of it (RFC 9110, 5.5)
    add(
        "OPTIONS",
        [
            ("Origin", f" {OWN}\t"),
            ("Access-Control-Request-Method", "\tPOST "),
            ("Access-Control-Request-Headers", "\tcontent-type "),
        ],
        _granted(),
    )
    # foreign origins, actual and preflight
    for why, origin in _foreign_origins():
        add("GET", [("Origin", origin)], {**_denied(), "why": why})
        add("OPTIONS", _preflight("POST", ["content-type"], origin), {**_refused(), "why": why})
    add("OPTIONS", [("Origin", "https://evil.example")], _denied(204), "optroute")
    add("GET", [("Origin", OWN), ("Origin", OWN)], {**_denied(), "why": "twice the same is still not one origin"})
    # allowed preflights
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        add("OPTIONS", _preflight(method), _granted())
    for lines in (
        ["Authorization, Content-Type"],
        ["AUTHORIZATION"],
        ["authorization,,content-type"],
        [",authorization"],
        ["authorization,"],
        [" "],
        [" authorization\t,  content-type "],
        ["authorization", ""],
        ["", ""],
        [",,,,"],
        ["x-client-info", "apikey", "authorization"],
        ["accept,accept-language,content-language"],
        ["x-csrf-token,x-request-id,x-requested-with"],
        [",".join(["authorization"] * 60)],
    ):
        add("OPTIONS", _preflight("POST", lines), _granted())
    for app in (
        "boom",
        "inner500",
        "needauth",
        "notfound",
        "limited",
        "redir",
        "optroute",
        "getonly",
        "invalid",
        "notmod",
        "ownacao",
        "vary",
        "sse",
        "passing",
        "mounted",
        "verbose",
        "varystar",
    ):
        add("OPTIONS", _preflight("POST", ["content-type"]), _granted("content-type"), app)
    add(
        "OPTIONS",
        [*_preflight("POST", ["content-type"]), ("Cookie", "session=1"), ("Authorization", "Bearer x")],
        _granted("content-type"),
    )
    # refused preflights
    for method in (
        "TRACE",
        "CONNECT",
        "TRACK",
        "PURGE",
        "patch",
        "post",
        "get",
        "*",
        "",
        "GET,POST",
        "POST POST",
        "PO\tST",
        "PROPFIND",
        "<script>",
    ):
        add("OPTIONS", _preflight(method), _refused("trace", "connect", "purge", "propfind", "script"))
    for lines in (
        ["x-evil"],
        ["authorization,x-evil"],
        ["authorization", "x-evil"],
        ["*"],
        ["authorization content-type"],
        ["a;b"],
        ["content-type\u00e9"],
        ["cookie"],
        ["x-" + "a" * 5000],
        [",".join(["authorization"] * 65)],
        ["," * 5000],
        ["content-type:"],
        ['"authorization"'],
        ["content-type", ""] * 40,
        ["x-client-info\u00c2\u00a0"],
        ["content-type\xa0"],
        ["sec-fetch-mode"],
        ["host"],
        ["x-forwarded-for"],
    ):
        add("OPTIONS", _preflight("POST", lines), _refused("x-evil", "cookie", "sec-fetch", "x-forwarded"))
    add("OPTIONS", [("Origin", OWN), ("Origin", OWN), ("Access-Control-Request-Method", "GET")], _refused())
    add(
        "OPTIONS",
        [("Origin", OWN), ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Method", "GET")],
        _refused(),
    )
    # private network access: silent unless asked for, and never for others
    pna = ("Access-Control-Request-Private-Network", "true")
    add("OPTIONS", [*_preflight("GET"), pna], {**_granted(), "absent": ["access-control-allow-private-network"]})
    add("OPTIONS", [*_preflight("GET"), pna], {**_granted(), "acapn": "true"}, allow_private_network=True)
    add(
        "OPTIONS",
        _preflight("GET"),
        {**_granted(), "absent": ["access-control-allow-private-network"]},
        allow_private_network=True,
    )
    add("OPTIONS", [*_preflight("GET", origin="https://evil.example"), pna], _refused(), allow_private_network=True)
    # shared with everybody, without credentials
    anyone: t.Dict[str, t.Any] = {"allow_origins": ["*"], "allow_origin_patterns": [], "allow_credentials": False}
    anonymous = {
        "status": 200,
        "browser": "allow-anonymous",
        "acao": "*",
        "absent": ["access-control-allow-credentials"],
        "vary_includes": ["Origin"],
    }
    for origin in ("https://evil.example", "null", OWN):
        add("GET", [("Origin", origin)], anonymous, **anyone)
    add("GET", [("Origin", "https://evil.example")], {**anonymous, "status": 500}, "boom", **anyone)
    add("OPTIONS", _preflight("PUT", ["x-client-info"], "https://evil.example"), anonymous, **anyone)
    add(
        "OPTIONS",
        _preflight("PUT", ["x-anything"], "https://evil.example"),
        anonymous,
        allow_headers=["*"],
        allow_methods=["*"],
        **anyone,
    )
    add(
        "OPTIONS",
        _preflight("PUT", ["authorization"], "https://evil.example"),
        anonymous,
        allow_headers=["*", "Authorization"],
        **anyone,
    )
    add(
        "OPTIONS",
        _preflight("PUT", ["authorization"], "https://evil.example"),
        _refused(),
        allow_headers=["*"],
        **anyone,
    )
    # credentials off for listed origins; nothing exposed; no headers; caching off
    add(
        "GET",
        own,
        {"status": 200, "browser": "allow-anonymous", "acao": OWN, "absent": ["access-control-allow-credentials"]},
        allow_credentials=False,
    )
    add(
        "GET",
        own,
        {"status": 200, "browser": "allow", "acao": OWN, "absent": ["access-control-expose-headers"]},
        expose_headers=[],
    )
    add("OPTIONS", _preflight("POST", ["content-type"]), _refused(), allow_headers=[])
    add("OPTIONS", _preflight("POST"), {"status": 200, "browser": "allow", "max_age": 0}, max_age=0)
    return made


def config_vectors() -> t.List[t.Dict[str, t.Any]]:
    """Policies that must not start, and some that must."""
    refused: t.List[t.Dict[str, t.Any]] = [
        {"allow_origins": ["null"]},
        {"allow_origins": ["https://wheelsandwins.com:443"]},
        {"allow_origins": ["https://wheelsandwins.com/app"]},
        {"allow_origins": ["http://wheelsandwins.com"]},
        {"allow_origins": ["http://localhost:5173"]},
        {"allow_origins": ["https://wheels\u00e4ndwins.com"]},
        {"allow_origins": ["https://user@wheelsandwins.com"]},
        {"allow_origins": [" https://wheelsandwins.com"]},
        {"allow_origins": [""]},
        {"allow_origins": ["https://*.wheelsandwins.com"]},
        {"allow_origins": ["https://"]},
        {"allow_origins": ["ftp://wheelsandwins.com"]},
        {"allow_origins": ["HTTPS://wheelsandwins.com"]},
        {"allow_origins": ["https://wheelsandwins.com:0"]},
        {"allow_origins": ["https://wheelsandwins.com:99999"]},
        {"allow_origins": ["https://[0:0:0:0:0:0:0:1]:8443"]},
        {"allow_origins": ["https://[2001:db8::0001]"]},
        {"allow_origins": ["https://[1:2]"]},
        {"allow_origins": ["https://[::1"]},
        {"allow_origins": ["https://[::ffff:192.0.2.7]"]},
        {"allow_origins": ["https://127.1"]},
        {"allow_origins": ["https://192.0.2.07"]},
        {"allow_origins": ["https://256.0.2.1"]},
        {"allow_origins": ["https://shop.0x7"]},
        {"allow_origins": ["https://shop.example.80"]},
        {"allow_origins": ["https://wheelsandwins.com?x"]},
        {"allow_origins": ["https://wheelsandwins.com."]},
        {"allow_origins": "https://wheelsandwins.com"},
        {"allow_origins": [], "allow_origin_patterns": []},
        {"allow_origins": ["*", OWN], "allow_credentials": False},
        {"allow_origins": [7]},
        {"allow_origin_patterns": [{"regex": "https://.*"}]},
        {"allow_origin_patterns": [{"regex": r"https://.*\.netlify\.app"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z0-9-]+\.netlify\.app"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z]*wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://[^.]+\.wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://(a|b)\.wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://wheelsandwins\.com|https://evil"}]},
        {"allow_origin_patterns": [{"regex": r"(a+)+$"}]},
        {"allow_origin_patterns": [{"regex": r"https?://[a-z]+\.wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": "["}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z]+\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z]+\.co\.uk"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z]+--wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z0-9-]+--wheelsandwins\.co\.uk"}]},
        {"allow_origin_patterns": [{"regex": r"http://[a-z]+\.wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://\S+\.wheelsandwins\.com"}]},
        {"allow_headers": ["*"]},
        {"expose_headers": ["*"]},
        {"allow_methods": ["patch"]},
        {"allow_methods": ["TRACE"]},
        {"allow_methods": ["GET POST"]},
        {"allow_methods": []},
        {"allow_headers": ["X Y"]},
        {"allow_headers": ["Cookie"]},
        {"allow_headers": ["Sec-Fetch-Mode"]},
        {"expose_headers": ["set-cookie2"]},
        {"max_age": -1},
        {"max_age": 86_401},
        {"max_age": "7200"},
        {"max_age": True},
        {"max_age": 1.5},
        {"environment": "prod-ish"},
        {"allow_orgins": []},
        {
            "allow_origins": ["*"],
            "allow_origin_patterns": [],
            "allow_credentials": False,
            "allow_private_network": True,
        },
        {"allow_origins": ["http://10.0.0.1"], "environment": "staging"},
    ]
    accepted: t.List[t.Dict[str, t.Any]] = [
        {},
        {"max_age": 0},
        {"max_age": 86_400},
        {"allow_origins": ["https://wheelsandwins.com:8443"]},
        {"allow_origins": ["https://xn--whels-kva.com"]},
        {"allow_origins": ["https://[2001:db8::1]"]},
        {"allow_origins": ["https://[2001:db8:0:1::]:8443"]},
        {"allow_origins": ["https://192.0.2.7"]},
        {"allow_origins": ["https://[::ffff:c000:207]"]},
        {"allow_origins": ["https://24.example"]},
        {"allow_origins": ["https://shop.80x"]},
        {"allow_origins": ["http://127.0.0.1:3000"], "environment": "staging"},
        {"allow_origins": ["https://[::1]:8443"], "environment": "development"},
        {"allow_origin_patterns": [{"regex": r"https://[a-z0-9-]{1,40}\.wheelsandwins\.com"}]},
        {"allow_origin_patterns": [{"regex": r"https://[a-z0-9-]{1,40}--wheels-wins-landing-page\.netlify\.app"}]},
        {"allow_origin_patterns": [{"regex": r"https://pr-[0-9]+--app\.wheelsandwins\.com"}]},
        {"allow_origins": ["*"], "allow_origin_patterns": [], "allow_credentials": False},
        {"expose_headers": []},
        {"allow_origin_patterns": [{"regex": "http://localhost:[0-9]{4}"}], "environment": "development"},
    ]
    return [
        {"id": f"M{number:02d}", "override": override, "expect": expect}
        for number, (override, expect) in enumerate(
            [(entry, "reject_at_startup") for entry in refused] + [(entry, "accept") for entry in accepted], 1
        )
    ]


def websocket_vectors() -> t.List[t.Dict[str, t.Any]]:
    def entry(number: int, pairs: Pairs, expect: str) -> t.Dict[str, t.Any]:
        return {"id": f"Y{number:02d}", "handshake": [list(pair) for pair in pairs], "expect": expect}

    refused = "close_403_before_accept"
    cases: t.List[t.Tuple[Pairs, str]] = [
        ([("Origin", OWN)], "accept"),
        ([("Origin", PREVIEW)], "accept"),
        ([], "accept"),
        ([("Origin", "null")], refused),
        ([("Origin", "")], refused),
        ([("Origin", OWN), ("Origin", OWN)], refused),
        *(([("Origin", origin)], refused) for _, origin in _foreign_origins()),
    ]
    return [entry(number, pairs, expect) for number, (pairs, expect) in enumerate(cases, 1)]
