# SPDX-License-Identifier: GPL-3.0-or-later
"""The grading of the HTTP check: each limit, each way not to answer, and what the application says of itself."""

from __future__ import annotations

import json
import socket
import typing as t

import pytest
import requests

from tests.support.answers import Clock, serve
from tests.support.waiting import free_port
from wheels_ops.checks import http
from wheels_ops.core.results import OpsError
from wheels_ops.health.thresholds import Thresholds

OWN = http.HEALTH_PATH
Step = t.Union[t.Tuple[float, int], Exception]


class Wire:
    """Stands in for the network: each request takes the next step, (milliseconds, status) or an error, and the clock
    moves by as much.
    """

    def __init__(self, clock: Clock, steps: t.Sequence[Step], body: t.Any = None) -> None:
        self.clock, self.steps, self.body = clock, list(steps), body
        self.urls: t.List[str] = []

    def get(self, session: requests.Session, url: str, **options: t.Any) -> requests.Response:
        self.urls.append(url)
        assert session.trust_env is False and options["timeout"] == 10.0
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        self.clock.now += step[0] / 1000
        answer = requests.Response()
        answer.status_code = step[1]
        answer._content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(http, "time", clock)
    return clock


def measured(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, steps: t.Sequence[Step], **options: t.Any
) -> t.Tuple[t.Any, Wire]:
    wire = Wire(clock, steps)
    monkeypatch.setattr(requests.Session, "get", lambda session, url, **further: wire.get(session, url, **further))
    return http.check("http://backend", **{"health_path": "", **options}), wire


@pytest.mark.parametrize(
    ("milliseconds", "status", "over"),
    [(500, "ok", 0), (500.5, "warning", 500), (1000, "warning", 500), (1000.5, "critical", 1000)],
)
def test_the_time_to_the_answer_is_graded(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, milliseconds: float, status: str, over: int
) -> None:
    check, _wire = measured(monkeypatch, clock, [(milliseconds, 200)])
    assert (check.name, check.status, check.unit) == ("http", status, "ms")
    assert check.value == pytest.approx(milliseconds, abs=0.1) and check.details["median_ms"] == pytest.approx(
        milliseconds, abs=0.1
    )
    assert check.thresholds == {"warning": 500, "critical": 1000, "emergency": None}
    if status == "ok":
        assert (check.message, check.remedy) == ("/health: 10 answers, 95 % within 500 ms.", "")
    else:
        assert check.message.startswith("5 % of the answers take ") and f"over {over} ms" in check.message
        assert check.remedy == "service_restart"


def test_the_value_is_the_95th_percentile_not_the_mean_nor_the_worst(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    check, _wire = measured(monkeypatch, clock, [(float(number), 200) for number in range(1, 21)], samples=20)
    assert check.value == pytest.approx(19.05, abs=0.06)
    assert check.details["median_ms"] == 10.5 and check.details["asked"] == 20
    one, _wire = measured(monkeypatch, clock, [(7, 200)], samples=1)
    assert one.value == 7.0


@pytest.mark.parametrize(
    ("limits", "status"),
    [(Thresholds(8000, 20000), "ok"), (Thresholds(100), "warning"), (Thresholds(1, 2, 3), "emergency")],
)
def test_the_limit_of_the_time_is_an_option(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, limits: Thresholds, status: str
) -> None:
    check, _wire = measured(monkeypatch, clock, [(600, 200)], response=limits)
    assert check.status == status and check.thresholds == limits.as_dict()


@pytest.mark.parametrize(
    ("bad", "status"), [(0, "ok"), (1, "ok"), (2, "warning"), (5, "warning"), (6, "critical"), (100, "critical")]
)
def test_the_share_of_errors_is_graded(monkeypatch: pytest.MonkeyPatch, clock: Clock, bad: int, status: str) -> None:
    check, _wire = measured(monkeypatch, clock, [(1, 500)] * bad + [(1, 200)] * (100 - bad), samples=100)
    assert check.status == status
    assert check.details["error_rate_percent"] == bad and check.details["errors"] == (
        {"/health: 500": bad} if bad else {}
    )
    assert (f"{bad} % of the answers are errors: /health: 500" in check.message) is bool(bad)
    assert check.remedy == ("" if status == "ok" else "service_restart")


@pytest.mark.parametrize(("code", "errors"), [(399, 0), (400, 1), (404, 1), (503, 1)])
def test_from_400_on_an_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, code: int, errors: int
) -> None:
    check, _wire = measured(monkeypatch, clock, [(1, code)], samples=1)
    assert sum(check.details["errors"].values()) == errors
    assert check.status == ("critical" if errors else "ok")


def test_the_limit_of_errors_is_an_option(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    check, _wire = measured(monkeypatch, clock, [(1, 500), (1, 200)], samples=2, errors=Thresholds(60, 80))
    assert check.status == "ok" and "50 % of the answers are errors" in check.message


def test_the_worst_reason_begins_the_message(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    slow = [(1500.0, 500)] * 2 + [(1500.0, 200)] * 98
    check, _wire = measured(monkeypatch, clock, slow, samples=100)
    assert check.status == "critical"
    assert (
        check.message
        == "5 % of the answers take 1500 ms or longer, over 1000 ms; 2 % of the answers are errors: /health: 500."
    )
    check, _wire = measured(monkeypatch, clock, [(600.0, 500)], samples=10)
    assert check.message.startswith("100 % of the answers are errors: /health: 500; 5 % of the answers take 600 ms")


@pytest.mark.parametrize("error", [requests.ConnectionError("x"), requests.Timeout("x")])
def test_who_does_not_answer_is_critical_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, error: Exception
) -> None:
    check, wire = measured(monkeypatch, clock, [error], paths=("/a", "/b"), health_path=OWN)
    name = type(error).__name__
    assert (check.status, check.value, check.remedy) == ("critical", None, "service_restart")
    assert check.message == f"http://backend does not answer: /a: {name}, /b: {name}."
    assert wire.urls == ["http://backend/a", "http://backend/b"]
    assert check.details["asked"] == 2 and check.details["error_rate_percent"] == 100.0


def test_a_broken_answer_is_an_error_of_one_answer(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    check, wire = measured(monkeypatch, clock, [requests.TooManyRedirects("x"), (1, 200)])
    assert (
        len(wire.urls) == 10
        and check.details["errors"] == {"/health: TooManyRedirects": 1}
        and check.status == "critical"
    )
    assert check.details["error_rate_percent"] == 10.0


def test_without_a_path_nothing_is_healthy(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    check, _wire = measured(monkeypatch, clock, [(1, 200)], paths=())
    assert check.status == "critical" and "no path is asked for" in check.message


@pytest.mark.parametrize(
    "url", ["backend:8000", "ftp://backend", "http://", "http://backend:0", "http://ba ckend", "http://[1", ""]
)
def test_an_address_that_is_none_is_our_fault(url: str) -> None:
    with pytest.raises(OpsError, match="base_url must be an http.s. URL, got"):
        http.check(url)


def test_the_addresses_that_are_taken() -> None:
    for url in ("http://h", "https://h", "https://h:8443", "http://[::1]:80"):
        http.require_url(url, "/health")


def test_a_name_that_does_not_resolve_is_our_fault() -> None:
    with pytest.raises(OpsError, match="does not resolve"):
        http.check("http://no-such-host.invalid")


def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    check = http.check(url)
    assert (check.status, check.message) == ("critical", f"{url} does not answer: /health: ConnectionError.")


def test_a_proxy_of_the_environment_does_not_answer_for_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/health": (200, {"status": "healthy"})}) as backend:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert http.check(backend.url, samples=2).status == "ok"
    with serve({"/health": (200, {"status": "healthy"})}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert http.check(f"http://127.0.0.1:{free_port()}", samples=2).status == "critical"
        assert proxy.asked == []


def checks(**statuses: str) -> t.Dict[str, t.Any]:
    return {name.replace("__", ":"): [{"status": status}] for name, status in statuses.items()}


@pytest.mark.parametrize(
    ("answer", "status", "words", "application"),
    [
        ((200, {"status": "pass", "checks": checks(database__connection="pass")}), "ok", "95 % within", "ok"),
        (
            (503, {"status": "fail", "checks": checks(database__connection="fail", redis__connection="pass")}),
            "critical",
            (
                f"The application itself says ({OWN}, 503): database:connection is critical; check DATABASE_URL in its"
                " environment."
            ),
            "critical",
        ),
        (
            (503, {"status": "fail", "checks": checks(redis__write="fail")}),
            "critical",
            "redis:write is critical; check REDIS_URL",
            "critical",
        ),
        (
            (200, {"status": "warn", "checks": checks(database__connection="warn")}),
            "warning",
            "database:connection is warning",
            "warning",
        ),
        # The host is measured by the host's own checks: a busy machine is no second reason here.
        (
            (503, {"status": "fail", "checks": checks(cpu__utilization="fail", memory__utilization="warn")}),
            "ok",
            "95 % within",
            "ok",
        ),
        (
            (404, {"detail": "Not Found"}),
            "ok",
            f"application's own health is not known: {OWN} is not there (404).",
            "not deployed",
        ),
        ((401, {"detail": "no"}), "ok", f"{OWN} refuses us (401).", "not readable"),
        ((200, "<html>"), "ok", f"{OWN} says nothing of health (200).", "not readable"),
        ((200, {"app": "Wheels"}), "ok", "says nothing of health", "not readable"),
        ((200, {"status": "Wheels"}), "unknown", "its status is Wheels, which cannot be understood", "unknown"),
        ((200, '{"status": "pa'), "unknown", "its answer is no valid JSON", "unknown"),
        ((500, {"error": "boom"}), "critical", "an error (boom)", "critical"),
        ((503, {"status": "starting"}), "critical", "its status is starting", "critical"),
        ((200, {"status": "starting"}), "warning", "its status is starting", "warning"),
        ((500, {"detail": "Health check failed"}), "critical", f"{OWN} answers 500 without a reason.", "critical"),
        ((502, "<html>"), "critical", f"{OWN} answers 502 without a reason.", "critical"),
        (
            (503, {"status": "pass", "checks": checks(database__connection="pass")}),
            "critical",
            "answers 503 although every check in it passes",
            "critical",
        ),
    ],
)
def test_what_the_application_says_of_itself_counts(
    answer: t.Tuple[int, t.Any], status: str, words: str, application: str
) -> None:
    with serve({"/health": (200, {"status": "healthy"}), OWN: answer}) as backend:
        check = http.check(backend.url, samples=2, settle=0)
    assert check.status == status, check.message
    assert words in check.message and check.remedy == ""
    assert (check.details["application"]["status"], check.details["application"]["http_status"]) == (
        application,
        answer[0],
    )
    assert backend.asked.count(OWN) == 1


def test_a_health_that_is_well_needs_no_words(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with serve({"/health": (200, {}), OWN: (200, {"status": "pass"})}) as backend:
        assert http.check(backend.url, samples=1).message == "/health: 1 answers, 95 % within 0 ms."
    with serve({"/health": (200, {}), OWN: (500, {"status": "pass"})}) as backend:
        assert "answers 500 although every check in it passes" in http.check(backend.url, samples=1, settle=0).message


def test_advice_is_given_only_where_there_is_some() -> None:
    with serve(
        {"/health": (200, {}), OWN: (503, {"status": "fail", "checks": checks(supabase__rest="fail")})}
    ) as backend:
        check = http.check(backend.url, samples=1, settle=0)
    assert check.message == f"The application itself says ({OWN}, 503): supabase:rest is critical."


def test_left_out_reasons_stand_in_the_details() -> None:
    with serve(
        {"/health": (200, {}), OWN: (503, {"status": "fail", "checks": checks(cpu__utilization="fail")})}
    ) as backend:
        found = http.check(backend.url, samples=1, settle=0).details["application"]
    assert (found["left_out"], found["reasons"]) == (["cpu:utilization (critical)"], [])


def test_health_that_was_just_repaired_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(http, "time", clock)
    bad, good = (503, {"status": "fail", "checks": checks(redis__connection="fail")}), (200, {"status": "pass"})
    with serve({"/health": (200, {}), OWN: [bad, bad, good]}) as backend:
        assert http.check(backend.url, samples=1).status == "ok"
        assert clock.slept == [1.0, 1.0] and backend.asked.count(OWN) == 3
    with serve({"/health": (200, {}), OWN: bad}) as backend:
        assert http.check(backend.url, samples=1, settle=3).status == "critical"
        assert backend.asked.count(OWN) == 4


def test_an_application_that_gives_no_word_of_its_health_is_critical(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    check, wire = measured(monkeypatch, clock, [(1, 200), requests.Timeout("x")], samples=1, health_path=OWN, settle=0)
    assert (check.status, check.message) == ("critical", f"{OWN} gives no answer: Timeout.")
    assert check.remedy == "service_restart"
    assert check.details["application"] == {
        "path": OWN,
        "http_status": None,
        "status": "critical",
        "reasons": [],
        "left_out": [],
    }


@pytest.mark.parametrize("path", ["", "/health"])
def test_the_health_is_asked_for_where_that_is_wanted(path: str) -> None:
    with serve({"/health": (200, {"status": "healthy"})}) as backend:
        check = http.check(backend.url, samples=3, health_path=path)
    assert check.status == "ok" and backend.asked == ["/health"] * 3 and "application" not in check.details


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"status": "healthy"}, "ok"),
        ({"status": "degraded"}, "warning"),
        ({"status": "unhealthy"}, "critical"),
        ("not JSON", "ok"),
    ],
)
def test_an_answer_200_that_calls_itself_unhealthy_is_not_healthy(body: t.Any, status: str) -> None:
    with serve({"/health": (200, body)}) as backend:
        check = http.check(backend.url, samples=1)
    assert check.status == status
    if status != "ok":
        assert check.message.startswith(f"/health says: its status is {body['status']};")
        assert check.details["said"]["/health"]["status"] == status


def test_a_path_that_is_unavailable_gives_its_reasons() -> None:
    body = {"status": "unhealthy", "components": {"database": {"status": "down", "error": "login failed"}}}
    with serve({"/health": (503, body)}) as backend:
        check = http.check(backend.url, samples=2)
    assert check.status == "critical"
    assert (
        "100 % of the answers are errors: /health: 503; /health says: database is critical (login failed)"
        in check.message
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"unhealthy", "critical"),
        (b" DOWN\n", "critical"),
        (b"OK", "ok"),
        (b"<html>down</html>", "ok"),
        (b"[" * 100_000, "unknown"),
        (b"[[[[[", "unknown"),
        (b'{"status": "heal', "unknown"),
        (b"down " * 20, "ok"),
        (b'"critical"', "critical"),
        (b"CRITICAL: the database does not answer since 10:05", "critical"),
        (b"status=degraded\nversion=2", "warning"),
        (b"starting", "warning"),
        (b"Error handling is described elsewhere", "ok"),
        (b"<html><title>Critical care</title>", "ok"),
    ],
)
def test_words_alone_are_read_and_what_is_no_document_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, body: bytes, status: str
) -> None:
    wire = Wire(clock, [(5, 200)], body)
    monkeypatch.setattr(requests.Session, "get", lambda session, url, **further: wire.get(session, url, **further))
    assert http.check("http://backend", health_path="").status == status


def test_answers_of_another_host_are_named_as_such(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    wire = Wire(clock, [(5, 200)])

    def get(session: requests.Session, url: str, **further: t.Any) -> requests.Response:
        answer = wire.get(session, url, **further)
        answer.url = "https://login.example.com/"
        return answer

    monkeypatch.setattr(requests.Session, "get", get)
    assert (
        "/health redirects to login.example.com, which gave the answers"
        in http.check("http://backend", health_path="").message
    )


def test_a_redirect_to_a_host_that_is_not_known_names_that_host(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    request = requests.Request("GET", "http://no.such.invalid/").prepare()
    error = requests.ConnectionError(socket.gaierror(-2, "Name or service not known"), request=request)
    with pytest.raises(OpsError, match=r"The host name in http://no\.such\.invalid/ does not resolve"):
        measured(monkeypatch, clock, [error])


def test_a_report_of_megabytes_is_not_taken_for_health_and_a_page_is_none() -> None:
    with serve({"/health": (200, {"status": "unhealthy", "padding": "x" * http._LONGEST})}) as backend:
        check = http.check(backend.url, samples=1)
    assert (check.status, check.message.split(";")[0]) == (
        "unknown",
        "/health: its answer has 1.0 MB, too many for a report of health",
    )
    with serve({"/health": (200, "<html>" + "x" * http._LONGEST)}) as backend:
        assert http.check(backend.url, samples=1).status == "ok"


@pytest.mark.parametrize(
    ("steps", "status", "asked"),
    [
        ([(5, 200)] * 3 + [(1000, 200)] + [(5, 200)] * 100, "ok", 40),  # one of many was late
        ([(900, 200)] * 100, "warning", 16),  # for five seconds more
        ([(5, 200)] * 100, "ok", 10),
    ],
)
def test_one_late_answer_of_ten_is_measured_again_before_it_counts(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, steps: t.List[Step], status: str, asked: int
) -> None:
    check, _wire = measured(monkeypatch, clock, steps)
    assert (check.status, check.details["asked"]) == (status, asked)
