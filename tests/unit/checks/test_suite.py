# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check takes what it needs from the options, and several statuses have one order."""

from __future__ import annotations

import itertools
import typing as t

import pytest

from wheels_ops.checks import celery, dead_peer, http, suite, websocket
from wheels_ops.core.results import OpsError
from wheels_ops.health import check as health
from wheels_ops.health import thresholds
from wheels_ops.health.subjects import REGISTRY
from wheels_ops.health.thresholds import DEFAULTS, STATUSES, Thresholds
from wheels_ops.report import metrics, report
from wheels_ops.standalone import program_output


def test_the_size_of_a_log_is_an_option(tmp_path: t.Any) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"x" * 9000)

    def status(limit: int) -> str:
        found = suite.run(suite.Options(subjects=("disk",), filesystems=(), logs=(str(log),), log_max_bytes=limit))
        return str(found["status"])

    assert (status(8999), status(9000)) == ("warning", "ok")


@pytest.mark.parametrize(
    ("services", "beat", "workers"),
    [
        ([], False, 1),
        ([{"name": "pam-backend"}, {"name": "w", "gate": {"type": "celery", "url": "redis://h/0"}}], False, 1),
        ([{"name": "pam-backend"}, {"name": "celery-worker"}], False, 1),
        ([{"name": "celery-beat"}], True, 0),
        ([{"name": "planner", "unit": "wheels-beat.service"}], True, 0),
        ([{"name": "planner", "gate": {"type": "beat"}}], True, 0),
        ([{"name": "heartbeat"}, {"name": "redis", "gate": {"type": "redis", "url": "redis://h/0"}}], False, 0),
        ([{"name": "web-worker", "gate": {"type": "tcp", "port": 80}}], False, 0),
    ],
)
def test_beat_and_worker_are_asked_for_where_they_are_services(
    monkeypatch: pytest.MonkeyPatch, services: t.List[t.Dict[str, t.Any]], beat: bool, workers: int
) -> None:
    given: t.Dict[str, t.Any] = {}

    def check(_url: str, **options: t.Any) -> health.Check:
        given.update(options)
        return health.Check("celery", "ok")

    monkeypatch.setattr(celery, "check", check)
    suite.run(
        suite.Options(subjects=("celery",), redis_url="redis://h/0", services=services, service_manager="systemd")
    )
    assert (given["expect_beat"], given["expect_workers"]) == (beat, workers) and given["waiting"] == DEFAULTS[
        "waiting_tasks"
    ]


Tried = t.List[t.Tuple[str, t.Dict[str, t.Any]]]


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> t.Tuple[t.Dict[str, str], Tried]:
    """What the check of a socket gives by path (unknown elsewhere), and what it was called with."""
    statuses: t.Dict[str, str] = {}
    tried: Tried = []

    def check(url: str, **options: t.Any) -> health.Check:
        tried.append((url, options))
        path = url[len("ws://host") :].partition("?")[0]
        status = statuses.get(path, "unknown")
        return health.Check(
            "websocket", status, message=f"{path} is {status}.", details={"handshake_ms": 1.0} if status == "ok" else {}
        )

    monkeypatch.setattr(websocket, "check", check)

    def closed(url: str, **_options: t.Any) -> float:
        tried.append((url, {}))
        return 1.0

    monkeypatch.setattr(dead_peer, "seconds_until_closed", closed)
    return statuses, tried


def websocket_of(**options: t.Any) -> t.Dict[str, t.Any]:
    (found,) = suite.run(suite.Options(subjects=("websocket",), base_url="http://host", **options))["checks"]
    return t.cast("t.Dict[str, t.Any]", found)


FIRST, SECOND = suite.WEBSOCKET_PATHS
#: The first one, for a token that says of nobody whose it is.
NOBODYS = "/api/v1/pam/ws/wheels-ops-health"
ANNAS = "e30.eyJzdWIiOiJhbm5hIn0.c2ln"  # {"sub": "anna"}


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> t.List[t.Optional[t.List[str]]]:
    """What the application says of its routes, in its first entry: nothing, unless a test says otherwise."""
    answer: t.List[t.Optional[t.List[str]]] = [None]
    monkeypatch.setattr(websocket, "routes_of", lambda _base_url: answer[0])
    return answer


def test_a_release_that_has_the_older_path_is_measured_there(sockets: t.Tuple[t.Dict[str, str], Tried]) -> None:
    statuses, tried = sockets
    statuses[SECOND] = "ok"
    found = websocket_of(websocket_path=FIRST, websocket_dead_peer_within=5)
    assert found["status"] == "ok" and [url for url, _options in tried] == [
        f"ws://host{path}" for path in (NOBODYS, SECOND, SECOND)
    ]
    assert found["details"]["dead_peer_closed_after_s"] == 1.0


@pytest.mark.parametrize("status", ["ok", "warning", "critical"])
def test_a_path_that_is_there_is_the_only_one_tried(sockets: t.Tuple[t.Dict[str, str], Tried], status: str) -> None:
    statuses, tried = sockets
    statuses[NOBODYS] = status
    assert websocket_of(websocket_path=FIRST)["status"] == status and len(tried) == 1


def test_where_no_path_has_a_socket_the_first_is_named(sockets: t.Tuple[t.Dict[str, str], Tried]) -> None:
    found = websocket_of(websocket_path=FIRST)
    assert (found["status"], found["message"]) == ("unknown", f"{NOBODYS} is unknown.")


@pytest.mark.parametrize(
    ("listed", "path"),
    [
        (["/api/v1/pam/ws", "/other"], "/api/v1/pam/ws"),
        (["/api/v1/pam/ws/{user}", "/api/v1/pam/ws"], "/api/v1/pam/ws/anna"),
        (["/aa", "/v2/pam/live/{who:path}"], "/v2/pam/live/anna"),
    ],
)
def test_the_route_that_the_application_names_is_tried_alone_for_the_tokens_user(
    sockets: t.Tuple[t.Dict[str, str], Tried], routes: t.List[t.Any], listed: t.List[str], path: str
) -> None:
    statuses, tried = sockets
    routes[0], statuses[path] = listed, "ok"
    assert websocket_of(websocket_path=f"{FIRST}?token={ANNAS}")["status"] == "ok"
    assert [url for url, _options in tried] == [f"ws://host{path}?token={ANNAS}"]


def test_a_placeholder_in_a_path_of_ones_own_is_the_tokens_user(sockets: t.Tuple[t.Dict[str, str], Tried]) -> None:
    websocket_of(websocket_path=f"/ws/{{user_id}}?token={ANNAS}")
    assert sockets[1][0][0] == f"ws://host/ws/anna?token={ANNAS}"


def test_a_release_that_stands_still_after_a_closed_socket_is_asked_without_the_token(
    sockets: t.Tuple[t.Dict[str, str], Tried],
) -> None:
    """The August release before our guard is in it; the older path's releases are measured."""
    statuses, tried = sockets
    statuses["/api/v1/pam/ws/anna"] = "ok"
    found = websocket_of(websocket_path=f"{FIRST}?token={ANNAS}", websocket_dead_peer_within=5)
    assert found["status"] == "unknown" and "with the token it was not tried" in found["message"]
    assert [url for url, _options in tried] == ["ws://host/api/v1/pam/ws/anna"]


@pytest.mark.parametrize(
    ("path", "anonymous", "assumed"),
    [
        (FIRST, True, True),
        (f"{FIRST}?token=abc", False, True),
        (f"{FIRST}?token=", True, True),
        (f"{FIRST}?a=b&token=abc", False, True),
        ("/ws", True, False),
        ("/ws?token=abc", False, False),
        (f"{SECOND}?x=1", True, False),
    ],
)
def test_what_is_known_of_token_and_path_is_passed_on(
    sockets: t.Tuple[t.Dict[str, str], Tried], routes: t.List[t.Any], path: str, anonymous: bool, assumed: bool
) -> None:
    statuses, tried = sockets
    routes[0] = [FIRST]
    reached = path.replace(FIRST, NOBODYS)
    statuses[reached.partition("?")[0]] = "ok"
    websocket_of(websocket_path=path, cors_origins=["https://a.example"], websocket_heartbeat_within=3)
    ((url, given),) = tried
    assert url == f"ws://host{reached}"
    assert (given["anonymous"], given["assumed_path"], given["origin"], given["heartbeat_within"]) == (
        anonymous,
        assumed,
        "https://a.example",
        3,
    )


# -- one order of severity
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milder", "worse"), list(itertools.combinations(("ok", "warning", "unknown", "critical", "emergency"), 2))
)
def test_the_order_of_severity_is_the_same_everywhere(milder: str, worse: str) -> None:
    assert thresholds.worst([milder, worse]) == thresholds.worst([worse, milder]) == worse
    checks = [health.Check("a", milder), health.Check("b", worse), health.Check("c", "skipped")]
    assert health.overall(checks) == health.overall(checks[::-1]) == worse
    shown = [
        {"name": name, "status": status, "value": None, "unit": "", "duration_ms": 0}
        for name, status in (("database", milder), ("rls", worse))
    ]
    assert report._status(shown) == worse
    lines = metrics.text({"checks": shown}, "web1").splitlines()
    numbers = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("wheels_ops_check_severity{")]
    assert numbers == sorted(numbers) and numbers[0] < numbers[1]
    assert health.conclude("x", [health.Finding(milder, "one"), health.Finding(worse, "two")], fine="").status == worse
    levels = ("low", "medium", "high", "critical")
    assert levels.index(program_output.SEVERITY[milder]) <= levels.index(program_output.SEVERITY[worse])


def test_every_status_has_an_exit_status_and_a_severity() -> None:
    assert set(program_output.SEVERITY) == set(STATUSES) == {*program_output.EXIT, "skipped"}
    assert [program_output.exit_status(status) for status in ("ok", "warning", "unknown", "critical", "emergency")] == [
        0,
        1,
        3,
        2,
        2,
    ]


def test_a_message_begins_with_what_made_the_status() -> None:
    findings = [
        health.Finding("warning", "one", "a"),
        health.Finding("ok", "remark"),
        health.Finding("critical", "two", "b"),
        health.Finding("warning", "three"),
    ]
    check = health.conclude("x", findings, fine="all is well", value=3)
    assert (check.status, check.message, check.remedy, check.value) == ("critical", "Two; one; three; remark.", "b", 3)
    fine = health.conclude("x", [health.Finding("ok", "a remark.")], fine="all is well")
    assert (fine.status, fine.message, fine.remedy) == ("ok", "All is well; a remark.", "")
    assert health.conclude("x", [], fine="http://x answers").message == "http://x answers."


def test_a_library_that_is_missing_is_our_fault() -> None:
    def call() -> health.Check:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    (check,) = health.measure({"database": call})
    assert (
        check.status == "unknown" and "psycopg2-binary is not installed" in check.message and "prepare" in check.message
    )


@pytest.mark.parametrize(
    ("subject", "what"),
    [
        ("database", "database DSN"),
        ("rls", "database DSN"),
        ("redis", "Redis URL"),
        ("celery", "Redis URL"),
        ("http", "base URL"),
        ("cors", "base URL and origin"),
        ("websocket", "WebSocket path"),
        ("tts", "base URL"),
        ("services", "service"),
    ],
)
def test_a_subject_that_lacks_what_it_needs_is_skipped_and_says_so(subject: str, what: str) -> None:
    found = suite.run(suite.Options(subjects=(subject,)))
    (check,) = found["checks"]
    assert (check["name"], check["status"]) == (subject, "skipped")
    assert check["message"].startswith(f"Not measured: no {what} is given.")
    assert found["failing"] == [] and found["status"] == "unknown", "nothing was measured, so nothing is healthy"


def test_what_is_not_ok_is_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = dict(zip(suite.SUBJECTS, ("ok", "warning", "unknown", "critical", "emergency", "skipped")))
    calls = {name: lambda status=status: health.Check("x", status) for name, status in statuses.items()}
    monkeypatch.setattr(suite, "_calls", lambda _options, _known: calls)
    found = suite.run(suite.Options(subjects=tuple(statuses)))
    assert [check["name"] for check in found["checks"]] == list(statuses)
    assert found["failing"] == [name for name, status in statuses.items() if status not in ("ok", "skipped")]
    assert found["status"] == "emergency"


def test_the_scores_of_one_look() -> None:
    checks = [
        health.Check("memory", "warning", 65.0),
        health.Check("cpu", "ok", 1.0, details={"host_percent": 70.0, "services_percent": 0.0, "stall_ms": 100.0}),
        health.Check("disk", "ok", 75),
        health.Check("http", "ok", 500.0, details={"error_rate_percent": 1.0}),
    ]
    # On the curves: 80, 80, 80 and 90 for performance; 80 and 80 for the user.
    assert suite.scores_of(checks) == {"performance": 81.2, "stability": None, "user_experience": 80.0}
    assert suite.scores_of(checks, scope="services")["performance"] == 83.8
    unknown = [health.Check(check.name, "unknown", check.value) for check in checks]
    assert suite.scores_of(unknown) == {"performance": None, "stability": None, "user_experience": None}


def test_the_http_check_is_given_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    given: t.Dict[str, t.Any] = {}

    def check(base_url: str, **options: t.Any) -> health.Check:
        given.update(options, base_url=base_url)
        return health.Check("http", "ok")

    monkeypatch.setattr(http, "check", check)
    limits = {"response_time_ms": Thresholds(1), "error_rate": Thresholds(2)}
    suite.run(
        suite.Options(
            subjects=("http",), base_url="http://h", http_paths=("/a",), health_path="/b", timeout=12, thresholds=limits
        )
    )
    assert given == {
        "base_url": "http://h",
        "paths": ("/a",),
        "health_path": "/b",
        "settle": 6.0,
        "response": Thresholds(1),
        "errors": Thresholds(2),
        "view": suite.View(outside=False),
    }
    outside = suite.View(outside=True, ops_token="a-token-of-this-test")
    suite.run(suite.Options(subjects=("http",), base_url="http://h"), outside)
    assert given["view"] == outside
    suite.run(suite.Options(subjects=("http",), base_url="http://h"))
    assert (given["health_path"], given["settle"]) == ("/api/v1/system/health", 10.0)


def test_a_subject_that_nobody_knows_is_refused() -> None:
    with pytest.raises(OpsError, match="subjects must contain only .*, got ram"):
        suite.run(suite.Options(subjects=("redis", "ram")))


def test_a_subject_that_needs_the_host_is_never_measured_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where everything that it needs is given: what is seen here is another machine."""

    def fail(*_words: t.Any) -> health.Check:
        raise AssertionError("was measured")

    names = [subject.name for subject in REGISTRY if subject.needs_host]
    assert names == ["memory", "cpu", "disk", "services"]
    monkeypatch.setattr(suite, "MEASURES", dict.fromkeys(suite.MEASURES, fail))
    result = suite.run(suite.Options(subjects=names, services=[{"name": "redis"}]), suite.View(outside=True))
    assert result["status"] == "unknown" and result["not_measured"] == names
    assert {check["message"] for check in result["checks"]} == {"Not checked: needs the host."}
