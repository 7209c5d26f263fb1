# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an answer lets a browser go on and what gives a foreign site too much, and how the whole is graded."""

from __future__ import annotations

import io
import typing as t

import pytest
import requests

from tests.support.waiting import free_port
from wheels_ops.checks import cors
from wheels_ops.checks.cors import Exchange
from wheels_ops.core.results import OpsError

SITE, EVIL = "https://wheelsandwins.com", "https://evil.example"
GOOD = {
    "Access-Control-Allow-Origin": SITE,
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Methods": "GET, PUT",
    "Access-Control-Allow-Headers": "Authorization, content-type",
    "Vary": "Origin",
}


def reply(status: int = 200, **changes: t.Optional[str]) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    answer._content = b"Disallowed CORS origin"
    answer.raw = io.BytesIO()
    given = {**GOOD, **{f"Access-Control-Allow-{name}": value for name, value in changes.items() if name != "Vary"}}
    if "Vary" in changes:
        given["Vary"] = changes["Vary"]
    answer.headers.update({name: value for name, value in given.items() if value is not None})
    return answer


class Session:
    """Answers each request with the same reply."""

    def __init__(self, answer: t.Union[requests.Response, Exception]) -> None:
        self.answer = answer
        self.asked: t.List[t.Any] = []

    def request(self, method: str, url: str, **options: t.Any) -> requests.Response:
        self.asked.append((method, url, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def get(self, url: str, **options: t.Any) -> requests.Response:
        return self.request("GET", url, **options)


def ask(answer: t.Union[requests.Response, Exception], *, allowed: bool = True, **options: t.Any) -> Exchange:
    words: t.Dict[str, t.Any] = {"method": "PUT", "headers": ["Authorization"], "credentials": True, **options}
    return cors.preflight(Session(answer), "http://h/x", SITE if allowed else EVIL, allowed=allowed, timeout=5, **words)


def test_a_browser_goes_on_after_the_right_answer() -> None:
    session = Session(reply())
    exchange = cors.preflight(
        session, "http://h/x", SITE, method="PUT", headers=["X-b", "a"], allowed=False, credentials=True, timeout=5
    )
    method, url, options = session.asked[0]
    assert (method, url, options["allow_redirects"], options["timeout"]) == ("OPTIONS", "http://h/x", False, 5)
    assert options["headers"] == {
        "Origin": SITE,
        "Access-Control-Request-Method": "PUT",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Dest": "empty",
        "Access-Control-Request-Headers": "a,x-b",
    }
    assert exchange.kind == "preflight" and exchange.status == 200 and exchange.headers["vary"] == "Origin"
    assert ask(reply()).passed and ask(reply(204)).passed and ask(reply(299)).passed


@pytest.mark.parametrize(
    ("answer", "options", "why"),
    [
        (reply(199), {}, "status 199"),
        (reply(300), {}, "status 300"),
        (reply(400), {}, "status 400: 'Disallowed CORS origin'"),
        (reply(Origin=None), {}, "Allow-Origin is missing"),
        (reply(Origin=SITE + "/"), {}, "not the origin"),
        (reply(Origin="*"), {}, "'*', not the origin"),
        (reply(Credentials=None), {}, "Allow-Credentials is ''"),
        (reply(Credentials="True"), {}, "Allow-Credentials is 'True', not 'true'"),
        (reply(Methods="GET"), {}, "the method PUT is not in"),
        (reply(Methods="*"), {}, "the method PUT is not in"),
        (reply(Methods="put"), {}, "PUT"),
        (reply(Headers=None), {}, "not in Access-Control-Allow-Headers: Authorization"),
        (reply(Headers="*"), {}, "Authorization"),
        (reply(Headers="*"), {"credentials": False}, "Authorization"),
        (reply(), {"headers": ["apikey", "Authorization", "x-client-info"]}, "Allow-Headers: apikey, x-client-info"),
    ],
)
def test_what_keeps_a_browser_from_going_on_is_named(
    answer: requests.Response, options: t.Dict[str, t.Any], why: str
) -> None:
    exchange = ask(answer, **options)
    assert not exchange.passed and why in exchange.why, exchange.why


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (reply(Origin="*", Credentials=None), {"credentials": False}),
        (reply(Methods="*", Credentials=None), {"credentials": False}),
        (reply(Methods=None), {"method": "POST"}),
        (reply(Methods=None), {"method": "GET"}),
        (reply(Methods=None), {"method": "HEAD"}),
        (reply(Headers="*", Credentials=None), {"credentials": False, "headers": ["apikey"]}),
        (reply(Headers=None), {"headers": []}),
    ],
)
def test_what_the_standard_allows_passes(answer: requests.Response, options: t.Dict[str, t.Any]) -> None:
    assert ask(answer, **options).passed


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (reply(Origin=EVIL), f"the foreign origin {EVIL} is reflected with credentials"),
        (reply(Origin=EVIL, Credentials=None), f"{EVIL} is reflected"),
        (reply(Origin="*", Credentials=None), "any origin is allowed (*)"),
        (reply(Origin="*"), "(*), and credentials are promised too"),
        (reply(Origin=f"{SITE}, {EVIL}"), f"the foreign origin {EVIL} is listed in Access-Control-Allow-Origin"),
        (reply(500, Origin=EVIL), "is reflected with credentials"),
    ],
)
def test_what_a_foreign_site_is_given_is_named(answer: requests.Response, why: str) -> None:
    exchange = ask(answer, allowed=False)
    assert not exchange.passed and exchange.why.endswith(why), exchange.why
    assert exchange.expected == "refused"


@pytest.mark.parametrize("answer", [reply(), reply(400, Origin=None), reply(200, Origin="null"), reply(Origin="")])
def test_a_foreign_site_that_is_given_nothing_is_refused(answer: requests.Response) -> None:
    assert ask(answer, allowed=False).passed


@pytest.mark.parametrize(
    ("answer", "allowed", "credentials", "why"),
    [
        (reply(), True, True, ""),
        (reply(Vary="Accept, origin"), True, True, ""),
        (reply(Vary=None), True, True, "Vary does not name Origin"),
        (reply(Origin="*", Credentials=None, Vary=None), True, False, ""),
        (reply(Origin=None, Vary=None), False, True, ""),
        (reply(Origin=None), True, True, "Allow-Origin is missing"),
        (reply(Origin=EVIL), False, True, "is reflected"),
    ],
)
def test_a_plain_request_is_read_where_the_answer_says_so(
    answer: requests.Response, allowed: bool, credentials: bool, why: str
) -> None:
    exchange = cors.simple(
        Session(answer), "http://h/x", SITE if allowed else EVIL, allowed=allowed, credentials=credentials, timeout=5
    )
    assert (exchange.kind, exchange.method, exchange.passed) == ("request", "GET", not why) and why in exchange.why
    assert exchange.expected == ("allowed" if allowed else "refused")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.exceptions.SSLError("x"), "the certificate or TLS does not hold"),
        (requests.exceptions.ReadTimeout("x"), "nothing came in time"),
        (requests.ConnectionError("[Errno 111] Connection refused"), "nothing listens there"),
        (requests.ConnectionError("Name or service not known"), "resolved"),
        (requests.ConnectionError("Temporary failure in name resolution"), "resolved"),
        (requests.ConnectionError("No route to host"), "no route"),
        (requests.ConnectionError("Network is unreachable"), "cannot be reached"),
        (requests.ConnectionError("Connection reset by peer"), "broke the connection"),
        (requests.ConnectionError("Remote end closed connection"), "broke the connection"),
        (requests.ConnectionError("else"), "ConnectionError"),
    ],
)
def test_silence_is_no_refusal(error: Exception, words: str) -> None:
    for allowed in (True, False):
        exchange = ask(error, allowed=allowed)
        assert (
            (exchange.passed, exchange.status) == (False, None)
            and exchange.why.startswith("no answer: ")
            and words in exchange.why
        )
        plain = cors.simple(Session(error), "http://h/x", SITE, allowed=allowed, credentials=True, timeout=5)
        assert not plain.passed and plain.status is None


def exchange(
    origin: str, *, passed: bool, expected: str = "allowed", status: t.Optional[int] = 200, why: str = ""
) -> Exchange:
    return Exchange("preflight", origin, "POST", status, expected, passed, why)


def test_right_answers_are_healthy() -> None:
    check = cors._judged(
        "http://h/x",
        [exchange(SITE, passed=True), exchange(EVIL, passed=True, expected="refused"), exchange(SITE, passed=True)],
    )
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("cors", "ok", 100.0, "percent", "")
    assert check.message == "3 requests of 2 origins are answered rightly." and check.details["reflected"] == []


def test_a_leak_is_named_before_a_refusal() -> None:
    found = [
        exchange(SITE, passed=False, why="missing"),
        exchange(EVIL, passed=False, expected="refused", why="reflected"),
        exchange(SITE, passed=True),
        exchange("null", passed=False, expected="refused", status=None, why="no answer: x"),
    ]
    check = cors._judged("http://h/x", found)
    assert (check.status, check.value, check.remedy) == ("critical", 25.0, "managed_files")
    assert check.message == f"3 of 4 answers are wrong; preflight POST from {EVIL}: reflected."
    assert check.details["reflected"] == [EVIL], "one that gave no answer reflects nothing"


def test_who_answers_nothing_is_critical_and_who_has_no_name_is_unknown() -> None:
    silent = [exchange(SITE, passed=False, status=None, why="no answer: nothing came in time")] * 2
    check = cors._judged("http://h/x", silent)
    assert (check.status, check.value, check.remedy) == ("critical", 0.0, "service_restart")
    assert check.message == "http://h/x does not answer: nothing came in time." and len(check.details["exchanges"]) == 2
    assert (check.name, check.unit, check.details["url"], check.details["reflected"]) == (
        "cors",
        "percent",
        "http://h/x",
        [],
    )
    one = cors._judged("http://h/x", [*silent, exchange(SITE, passed=True)])
    assert "1 requests" not in one.message and one.remedy == "managed_files"
    nobody = cors.check("http://no-such-host.invalid", [SITE])
    assert (nobody.name, nobody.status, nobody.remedy) == ("cors", "unknown", "") and "was not asked" in nobody.message
    assert nobody.details == {"url": "http://no-such-host.invalid/api/v1/pam/chat", "reflected": [], "exchanges": []}
    assert cors.check(f"http://127.0.0.1:{free_port()}", [SITE]).status == "critical"


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        (
            "https://a.b",
            {"https://a.b.evil.example", "https://evila.b", "http://a.b", "https://a.b:444", "https://axb"},
        ),
        (
            "http://localhost:3000",
            {
                "http://localhost.evil.example:3000",
                "http://evillocalhost:3000",
                "https://localhost:3000",
                "http://localhost:3001",
            },
        ),
    ],
)
def test_look_alikes_of_an_origin(origin: str, found: t.Set[str]) -> None:
    assert set(cors.variants(origin)) == {cors.FOREIGN, "null", *found}


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "http://h:0", "http://[", "http://h:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(OpsError, match="base_url must be an http.s. URL, got"):
        cors.validate(url, [SITE], [], ["GET"], [], 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"origins": []}, "origins must not be empty"),
        ({"origins": ["https://a.b/"]}, "origins must be an origin, got 'https://a.b/'"),
        ({"foreign": ["x"]}, "foreign_origins must be an origin"),
        ({"origins": ["https://a:0"]}, "origins must be an origin"),
        ({"origins": ["https://a:99999"]}, "origins must be an origin"),
        ({"foreign": [SITE]}, "must not overlap"),
        ({"methods": ["G T"]}, "methods must be words"),
        ({"headers": ["a:b"]}, "headers must be words"),
        ({"methods": []}, "methods must not be empty"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 300.1}, "timeout"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_what_no_browser_sends_is_refused(change: t.Dict[str, t.Any], words: str) -> None:
    words_given = {"origins": [SITE], "foreign": [EVIL], "methods": ["GET"], "headers": ["a"], "timeout": 5, **change}
    with pytest.raises(OpsError, match=words):
        cors.validate("http://h", **words_given)


def test_the_edges_of_what_is_allowed_are_allowed() -> None:
    cors.validate("https://h:1", ["null", "http://[::1]:3000", "capacitor://localhost"], [EVIL], ["OPTIONS"], [], 300)


@pytest.mark.parametrize("path", ["", "/a b", "http://h/x", "/x#y", "/\n"])
def test_a_path_that_no_request_can_carry_is_refused(path: str) -> None:
    with pytest.raises(OpsError, match="cors_path|path must be the path of a URL"):
        cors.check("http://h", [SITE], path=path)


# -- the whole check
# -------------------------------------------------------------------------------------------------------


class Everywhere(Session):
    """Answers as a backend with a right policy does; notes what it is asked and how it was set up."""

    def __init__(self) -> None:
        super().__init__(reply())
        self.cookies = requests.Session().cookies
        self.trust_env = True

    def __enter__(self) -> Everywhere:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def request(self, method: str, url: str, **options: t.Any) -> requests.Response:
        self.asked.append((method, url, options))
        origin = options["headers"]["Origin"]
        return reply(Origin=origin if origin in (SITE, OTHER) else None)


OTHER = "https://www.wheelsandwins.com"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Everywhere:
    session = Everywhere()
    monkeypatch.setattr(requests, "Session", lambda: session)
    return session


def origins(session: Everywhere, method: str = "OPTIONS") -> t.List[t.Tuple[str, str]]:
    return [
        (options["headers"]["Origin"], options["headers"].get("Access-Control-Request-Method", ""))
        for verb, _url, options in session.asked
        if verb == method
    ]


def test_every_origin_is_tried_with_every_method_and_foreign_ones_with_the_first(backend: Everywhere) -> None:
    check = cors.check(
        "http://h/",
        [SITE, OTHER, SITE],
        ["PUT", "GET", "PUT"],
        ["authorization"],
        path="x/y",
        foreign_origins=[EVIL, "null", EVIL],
        simple_path="z",
        timeout=7,
        validate_certs=False,
        parallel=1,
    )
    assert (check.status, check.value, check.message) == ("ok", 100.0, "10 requests of 4 origins are answered rightly.")
    assert origins(backend) == [
        (SITE, "PUT"),
        (SITE, "GET"),
        (OTHER, "PUT"),
        (OTHER, "GET"),
        (EVIL, "PUT"),
        ("null", "PUT"),
    ]
    assert [origin for origin, _method in origins(backend, "GET")] == [SITE, OTHER, EVIL, "null"]
    assert {(method, url) for method, url, _options in backend.asked} == {
        ("OPTIONS", "http://h/x/y"),
        ("GET", "http://h/z"),
    }
    for method, _url, options in backend.asked:
        assert (options["timeout"], options["verify"], options["allow_redirects"]) == (7, False, False)
        assert options["headers"]["Sec-Fetch-Mode"] == "cors" and bool(options.get("stream")) is (method == "GET")
        assert method == "GET" or options["headers"]["Access-Control-Request-Headers"] == "authorization"
    assert backend.trust_env is False, "no proxy of the environment answers"
    assert all(isinstance(entry["duration_ms"], float) for entry in check.details["exchanges"])


def test_without_options_it_is_the_chat_and_look_alikes(backend: Everywhere) -> None:
    check = cors.check("http://h", [SITE], parallel=0)
    assert check.status == "ok", check.message
    assert origins(backend) == [(SITE, "POST"), *((name, "POST") for name in cors.variants(SITE))]
    for method, url, options in backend.asked:
        assert (method, url, options["timeout"], options["verify"]) == ("OPTIONS", "http://h/api/v1/pam/chat", 5, True)
        assert options["headers"]["Access-Control-Request-Headers"] == "authorization,content-type"
    cors.check("http://h", [SITE, cors.FOREIGN], parallel=1)
    assert origins(backend).count((cors.FOREIGN, "POST")) == 2, "one that is allowed is not foreign"


def test_no_origin_is_foreign_where_none_is_wanted(backend: Everywhere) -> None:
    assert cors.check("http://h", [SITE], foreign_origins=[]).message == "1 requests of 1 origins are answered rightly."


def test_no_cookie_is_kept_from_one_request_to_the_next(backend: Everywhere) -> None:
    cors.check("http://h", [SITE], foreign_origins=[])
    backend.cookies.set("a", "b", domain="h.example")
    request = requests.Request("GET", "http://h.example/", cookies=backend.cookies).prepare()
    assert "Cookie" not in request.headers


def test_cookies_that_are_not_promised_are_not_needed(backend: Everywhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "request", lambda *_words, **_options: reply(Credentials=None))
    assert cors.check("http://h", [SITE], credentials=False, foreign_origins=[]).status == "ok"
    assert cors.check("http://h", [SITE], foreign_origins=[]).status == "critical"


def test_the_share_has_one_decimal() -> None:
    answers = [exchange(SITE, passed=False, why="missing"), exchange(SITE, passed=True), exchange(SITE, passed=True)]
    assert cors._judged("http://h/x", answers).value == 66.7


def test_a_look_alike_of_an_origin_without_a_host_is_no_error() -> None:
    assert cors.variants("null")[:3] == [cors.FOREIGN, "null", "://.evil.example"]
