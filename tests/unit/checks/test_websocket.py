# SPDX-License-Identifier: GPL-3.0-or-later
"""The grading of the WebSocket check: with a token and without one, at a path that is there and at one that is not."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
import types
import typing as t

import pytest
import websocket as library
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.support.answers import Clock
from tests.support.waiting import free_port
from wheels_ops.checks import dead_peer, websocket
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import Thresholds

SITE = "https://wheelsandwins.com"
PATH = "/api/v1/pam/ws"


def echo(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            if json.loads(message).get("type") == "ping":
                connection.send(json.dumps({"type": "pong"}))


def close(code: int, reason: str = "") -> t.Callable[[ServerConnection], None]:
    return lambda connection: connection.close(code, reason)


@contextlib.contextmanager
def server(
    handler: t.Callable[[ServerConnection], None], answer: t.Optional[t.Callable[[str, str], int]] = None
) -> t.Iterator[str]:
    """A server; ``answer`` gives the HTTP status for a path and an origin, 101 to go on."""

    def process(connection: ServerConnection, request: Request) -> t.Optional[Response]:
        status = answer(request.path.partition("?")[0], request.headers.get("Origin", "")) if answer else 101
        return None if status == 101 else connection.respond(status, "refused")

    with serve(handler, "127.0.0.1", 0, ping_interval=None, process_request=process) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}{PATH}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("value", "limits", "status", "over"),
    [
        (1000.0, Thresholds(1000), "ok", ""),
        (1000.5, Thresholds(1000), "warning", ", over 1000 ms"),
        (1000.5, Thresholds(10, 100), "critical", ", over 100 ms"),
        (3.0, Thresholds(1, 2, 2.5), "emergency", ", over 2.5 ms"),
        (5000.0, Thresholds(), "ok", ""),
    ],
)
def test_the_round_trip_is_graded(value: float, limits: Thresholds, status: str, over: str) -> None:
    check = websocket._check(value, [], {}, limits)
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("websocket", status, value, "ms", "")
    assert check.message == f"The round trip takes {value:g} ms{over}." and check.thresholds == limits.as_dict()


def test_a_problem_is_critical_however_fast_it_was() -> None:
    check = websocket._check(1.0, ["a ping was lost", "it is open"], {}, Thresholds(1000))
    assert (check.status, check.message, check.remedy) == ("critical", "A ping was lost; it is open", "service_restart")
    assert websocket._check(None, [], {}, Thresholds(1)).message == "It connects and closes cleanly."
    assert websocket._check(None, [], {}, Thresholds(1)).status == "ok"


def test_the_limit_is_an_option() -> None:
    with server(echo) as url:
        assert websocket.check(url, ping="json").status == "ok"
        check = websocket.check(url, ping="json", thresholds=Thresholds(critical=0))
    assert check.status == "critical" and "over 0 ms" in check.message
    with server(echo) as url:
        assert websocket.check(url, ping="json", max_latency_ms=0.0001).status == "warning"


#: How a server says that it wants a token, after the handshake and before it.
WANTING = [
    (close(4001, "Invalid or missing token"), None, "then the server closed it (4001 Invalid or missing token)"),
    (close(4401), None, "then the server closed it (4401)"),
    (close(3000), None, "(3000)"),
    (close(1008), None, "(1008)"),
    (close(4403, "forbidden"), None, "(4403 forbidden)"),
    (close(4003), None, "(4003)"),
    (echo, lambda path, _origin: 401, "answered with 401: it asks for a token"),
    (echo, lambda path, _origin: 403 if path == PATH else 404, "answered with 403: it asks for a token"),
]


@pytest.mark.parametrize(("handler", "answer", "words"), WANTING)
@pytest.mark.parametrize("origin", ["", SITE])
def test_without_a_token_a_server_that_asks_for_one_is_well_as_far_as_it_can_be_tried(
    handler: t.Any, answer: t.Any, words: str, origin: str
) -> None:
    with server(handler, answer) as url:
        check = websocket.check(url, ping="json", origin=origin, anonymous=True, heartbeat_within=1)
    assert (check.status, check.value, check.remedy) == ("ok", None, ""), check.message
    assert words in check.message and "set wheels_ops_websocket_token" in check.message
    assert check.details["authenticated"] is False and check.thresholds["warning"] == 1000


@pytest.mark.parametrize(("handler", "answer", "words"), WANTING)
def test_with_a_token_the_same_is_critical(handler: t.Any, answer: t.Any, words: str) -> None:
    with server(handler, answer) as url:
        check = websocket.check(url, ping="json", token="s3cret")
    assert (check.status, check.remedy) == (
        "critical",
        "",
    ), "a token that is refused is so after a restart, which would cut everybody off"
    assert "token" in check.message or "(4403" in check.message
    assert "authenticated" not in check.details and "s3cret" not in repr(check)


@pytest.mark.parametrize(
    "handler",
    [
        close(4002, "IP address blocked"),
        close(1011, "crashed"),
        close(1000),
        close(4008),
        close(1008, "Origin not allowed"),
        close(4403, "origin"),
    ],
)
def test_without_a_token_any_other_close_is_critical(handler: t.Any) -> None:
    with server(handler) as url:
        check = websocket.check(url, ping="json", anonymous=True)
    assert check.status == "critical" and "the server closed it" in check.message.lower()


def test_a_server_that_needs_no_token_is_measured() -> None:
    with server(echo) as url:
        check = websocket.check(url, ping="json", anonymous=True)
    assert check.status == "ok" and check.value and "authenticated" not in check.details


def test_a_server_that_closes_in_the_middle_is_not_waiting_for_a_token() -> None:
    def once(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(json.dumps({"type": "pong"}))
        connection.close(4001, "session ended")

    with server(once) as url:
        check = websocket.check(url, ping="json", anonymous=True, round_trips=2)
    assert check.status == "critical" and "4001 session ended" in check.message


@pytest.mark.parametrize("token", ["", "s3cret"])
def test_a_403_everywhere_may_be_three_things_and_says_so(token: str) -> None:
    """Starlette answers 403 for a route that it does not have, and for a close before the handshake."""
    with server(echo, lambda _path, _origin: 403) as url:
        assumed = websocket.check(url, token=token, origin=SITE, anonymous=not token, assumed_path=True)
        named = websocket.check(url, token=token, origin=SITE, anonymous=not token)
    assert (assumed.status, named.status) == ("unknown", "critical")
    for check in (assumed, named):
        assert "no such route, or origin or token refused" in check.message and check.remedy == ""
        assert ("wheels_ops_websocket_token" in check.message) == bool(token) and "s3cret" not in repr(check)


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("token", ["", "s3cret"])
def test_a_path_without_a_socket_is_named_as_that(status: int, token: str) -> None:
    with server(echo, lambda _path, _origin: status) as url:
        ours = websocket.check(url, token=token, origin=SITE, anonymous=not token, assumed_path=True)
        named = websocket.check(url, token=token, origin=SITE, anonymous=not token)
    assert (ours.status, named.status) == ("unknown", "critical")
    for check in (ours, named):
        assert (
            check.message.startswith(f"There is no WebSocket at {PATH} (")
            and "set monitoring_websocket_path" in check.message
        )
        assert str(status) in check.message and check.details["status"] == status and "s3cret" not in repr(check)


def test_an_origin_that_is_refused_is_named_whoever_asks() -> None:
    with server(echo, lambda _path, origin: 403 if origin else 101) as url:
        for anonymous in (True, False):
            check = websocket.check(url, origin=SITE, anonymous=anonymous, assumed_path=True)
            assert (check.status, check.message) == (
                "critical",
                f"The upgrade is answered with 403: the origin {SITE} is refused",
            )
            assert check.remedy == ""


def test_with_a_token_a_403_of_this_path_alone_is_the_token_or_the_origin() -> None:
    with server(echo, lambda path, _origin: 403 if path == PATH else 404) as url:
        check = websocket.check(url, token="x")
    assert check.message == "The upgrade is answered with 403: the origin or the token is refused"
    with server(echo, lambda _path, _origin: 401) as url:
        assert websocket.check(url).message == "The upgrade is answered with 401: it asks for a token"
        assert websocket.check(url, token="x").message == "The upgrade is answered with 401: the token is refused"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "a proxy in between may drop it"),
        (426, "does not pass the upgrade on"),
        (502, "finds no backend"),
        (503, "full or draining"),
        (418, "it is refused"),
    ],
)
def test_other_answers_are_critical_without_a_token_too(status: int, words: str) -> None:
    with server(echo, lambda _path, _origin: status) as url:
        check = websocket.check(url, anonymous=True, assumed_path=True)
    assert check.status == "critical" and f"answered with {status}: " in check.message and words in check.message


def test_a_foreign_origin_that_is_let_in_stays_critical_where_a_token_is_asked_for_later() -> None:
    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.headers.get("Origin") == "https://evil.example":
            echo(connection)
        else:
            connection.close(4001)

    with server(handler) as url:
        check = websocket.check(url, anonymous=True, foreign_origin="https://evil.example")
    assert check.status == "critical"
    assert check.message.startswith("The foreign origin https://evil.example is let in")


def test_a_foreign_origin_whose_connection_stays_open_is_let_in(line: t.Callable[..., Line]) -> None:
    """It answers no ping in time, and closes nothing either."""
    line(frame(10, b"another"), library.WebSocketTimeoutException())
    assert websocket._refuses("ws://h/x", "https://evil.example", 5, True) is False
    line(frame(10, b"another"), library.WebSocketConnectionClosedException())
    assert websocket._refuses("ws://h/x", "https://evil.example", 5, True) is True


@contextlib.contextmanager
def raw(answer: bytes) -> t.Iterator[str]:
    """A server that gives every connection these bytes once it has asked; without any it keeps still."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: t.List[socket.socket] = []

    def run() -> None:
        while True:
            try:
                connection, _address = listener.accept()
                held.append(connection)
                connection.recv(4096)
                if answer:
                    connection.sendall(answer)
                    connection.close()
            except OSError:
                if listener.fileno() < 0:
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "shown", "advice"),
    [
        ("https://{host}/ws?token=s3cret", "https://{host}/ws", "set wheels_ops_base_url to that https:// address"),
        (
            "https://login.example.com/",
            "https://login.example.com/",
            "set wheels_ops_base_url or monitoring_websocket_path",
        ),
        ("/elsewhere", "http://{host}/elsewhere", "set wheels_ops_base_url or monitoring_websocket_path to it"),
        ("", "nowhere", "have the proxy pass the upgrade on"),
    ],
)
def test_a_redirect_is_named_with_its_target(status: int, location: str, shown: str, advice: str) -> None:
    listener = f"HTTP/1.1 {status} Moved\r\nContent-Length: 0\r\n"
    # The host is 127.0.0.1 whatever the port: that is what a proxy in front of it compares.
    target = location.replace("{host}", "127.0.0.1")
    header = f"Location: {target}\r\n" if target else ""
    with raw(f"{listener}{header}\r\n".encode()) as host:
        check = websocket.check(f"ws://{host}/ws", token="s3cret")
    expected = shown.replace("{host}", host if location.startswith("/") else "127.0.0.1")
    assert check.status == "critical" and check.remedy == ""
    assert check.message.startswith(f"The upgrade is redirected to {expected} ({status}), which no WebSocket follows: ")
    assert advice in check.message and check.details["status"] == status and "s3cret" not in repr(check)
    assert check.details["location"] == expected


def test_a_redirect_that_an_older_library_takes_for_a_connection_is_none(line: t.Callable[..., Line]) -> None:
    wire = line(CLOSED)
    answer = types.SimpleNamespace(status=302, headers={"location": "/x"})
    wire.handshake_response = answer  # type: ignore[attr-defined]  # as the library has it
    assert websocket.check("ws://h/y").message.startswith("The upgrade is redirected to http://h/x (302)")


def test_a_server_that_is_none_is_named_in_plain_words() -> None:
    for answer, words in (
        (b"-ERR unknown command\r\n\r\n", "what answers there speaks no WebSocket"),
        (b"\x00\xff\xfe\r\n\r\n", "what answers there speaks no WebSocket"),
        (b"HTTP/1.1 101 Yes\r\n\r\n", "what answers there speaks no WebSocket"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "a page is answered at /ws instead of a WebSocket (200)"),
    ):
        with raw(answer) as host:
            check = websocket.check(f"ws://{host}/ws")
        assert check.status == "critical" and words in check.message[0].lower() + check.message[1:], check.message
    with raw(b"") as host:
        check = websocket.check(f"ws://{host}/ws", timeout=0.2)
    assert check.message.startswith("No connection: it gives no answer in time (0.2 s)")


def test_tls_where_there_is_none_is_named_and_nothing_restarted() -> None:
    with raw(b"HTTP/1.1 400 Bad Request\r\n\r\n") as host:
        check = websocket.check(f"wss://{host}/ws")
    assert check.status == "critical" and check.remedy == ""
    assert (
        check.message
        == "No connection: the certificate or TLS does not hold: the server speaks no TLS there, use ws://"
    )


def test_a_name_that_is_not_resolved_is_said_in_these_words() -> None:
    assert websocket._silence(socket.gaierror(-2, "x"), 1) == "the name of the host cannot be resolved"


def test_a_limit_out_of_range_is_named_by_its_option() -> None:
    with pytest.raises(OpsError, match="^max_latency_ms "):
        websocket.check("ws://h/x", max_latency_ms=600_001)


def test_a_certificate_that_does_not_hold_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "certificate has expired"
    monkeypatch.setattr(library, "WebSocket", Line(Clock(), [error]))
    check = websocket.check("wss://h/x")
    assert "certificate has expired; renew the certificate" in check.message and check.remedy == ""


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, ""), (426, ""), (429, ""), (500, "service_restart"), (502, "service_restart"), (504, "service_restart")],
)
def test_a_restart_is_named_where_the_backend_can_answer_for_it(
    line: t.Callable[..., Line], status: int, remedy: str
) -> None:
    line(library.WebSocketBadStatusException("%s %s", status)).shut = True
    check = websocket.check("ws://h/x")
    assert (check.status, check.remedy) == ("critical", remedy)
    assert f"answered with {status}: " in check.message and "it is refused" not in check.message


def test_a_foreign_origin_that_is_let_in_stays_critical_without_a_token() -> None:
    with server(close(4001), None) as url:
        check = websocket.check(url, anonymous=True, foreign_origin="https://evil.example")
    assert check.details["foreign_origin_refused"] is True and check.status == "ok"
    with server(echo, lambda _path, origin: 101 if origin else 401) as url:
        check = websocket.check(url, anonymous=True, foreign_origin="https://evil.example")
    assert check.status == "critical" and "https://evil.example is let in" in check.message


def test_who_does_not_listen_is_critical_and_who_has_no_name_is_unknown() -> None:
    gone = websocket.check(f"ws://127.0.0.1:{free_port()}/", anonymous=True, assumed_path=True)
    assert (gone.status, gone.message) == ("critical", "No connection: nothing listens there")
    nobody = websocket.check("ws://no-such-host.invalid/?token=s3cret", token="s3cret")
    assert nobody.status == "unknown" and "cannot be resolved" in nobody.message and "s3cret" not in repr(nobody)


# -- a peer that died
# ------------------------------------------------------------------------------------------------------


def test_how_long_a_dead_peer_is_kept() -> None:
    with server(close(1011)) as url:
        took = dead_peer.seconds_until_closed(url, within=30)
    assert took is not None and 0 <= took < 30
    release = threading.Event()
    with server(lambda _connection: t.cast("None", release.wait(30))) as url:
        assert dead_peer.seconds_until_closed(url, within=0.2, origin=SITE) is None
        release.set()


@pytest.mark.parametrize("before", ["ok", "warning", "critical"])
def test_a_dead_peer_that_is_kept_is_critical(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.setattr(dead_peer, "seconds_until_closed", lambda _url, **_options: None)
    first = Check("websocket", before, value=3.0, unit="ms", message="It is slow.", details={"handshake_ms": 1.0})
    check = dead_peer.add_to(first, "ws://h", within=12)
    assert (check.status, check.value, check.unit, check.remedy) == (
        "critical",
        12,
        "s, dead peer still connected",
        "managed_files",
    )
    assert check.message == "A peer that answers nothing is still connected after 12 s." + (
        "" if before == "ok" else " It is slow."
    )
    assert check.details == {"handshake_ms": 1.0, "dead_peer_closed_after_s": None}


def test_a_dead_peer_that_is_sent_away_changes_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: t.List[t.Any] = []

    def closed(url: str, **options: t.Any) -> float:
        asked.append((url, options))
        return 6.04

    monkeypatch.setattr(dead_peer, "seconds_until_closed", closed)
    first = Check("websocket", "warning", value=3.0, message="It is slow.", remedy="x", details={"handshake_ms": 1.0})
    check = dead_peer.add_to(first, "ws://h", within=12, origin=SITE)
    assert (check.status, check.value, check.remedy) == ("warning", 3.0, "x")
    assert (
        check.message == "It is slow. A dead peer is disconnected after 6.0 s."
        and check.details["dead_peer_closed_after_s"] == 6.0
    )
    assert asked == [("ws://h", {"within": 12, "origin": SITE})]


@pytest.mark.parametrize("details", [{}, {"handshake_ms": 1.0, "authenticated": False}])
def test_where_nobody_was_let_in_nothing_is_said_of_dead_peers(
    monkeypatch: pytest.MonkeyPatch, details: t.Dict[str, t.Any]
) -> None:
    monkeypatch.setattr(dead_peer, "seconds_until_closed", lambda _url, **_options: pytest.fail("asked"))
    for status in ("ok", "critical"):
        first = Check("websocket", status, message="x", remedy="service_restart", details=details)
        assert dead_peer.add_to(first, "ws://h", within=12) == first


class Frames:
    """Stands in for a connection: each frame arrives after a second of the clock; then it is silent, or broken."""

    def __init__(self, clock: Clock, frames: t.Sequence[t.Any]) -> None:
        self.clock, self.frames, self.limits, self.shut = clock, list(frames), t.cast("t.List[float]", []), False

    def settimeout(self, seconds: float) -> None:
        self.limits.append(seconds)

    def recv_frame(self) -> t.Any:
        self.clock.now += 1
        frame = self.frames.pop(0)
        if isinstance(frame, Exception):
            raise frame
        return frame

    def shutdown(self) -> None:
        self.shut = True


PING = types.SimpleNamespace(opcode=9)
END = types.SimpleNamespace(opcode=8)


@pytest.mark.parametrize(
    ("frames", "took"),
    [
        ([END], 1.0),
        ([PING, PING, END], 3.0),
        ([PING, None], 2.0),
        ([PING, ConnectionResetError()], 2.0),
        ([library.WebSocketConnectionClosedException()], 1.0),
        ([PING, library.WebSocketTimeoutException()], None),
        ([PING] * 9, None),
    ],
)
def test_the_end_of_a_dead_peer_is_timed(
    monkeypatch: pytest.MonkeyPatch, frames: t.List[t.Any], took: t.Optional[float]
) -> None:
    clock = Clock()
    peer = Frames(clock, frames)
    opened: t.List[t.Any] = []

    def connect(url: str, **options: t.Any) -> Frames:
        opened.append((url, options))
        return peer

    monkeypatch.setattr(dead_peer, "time", clock)
    monkeypatch.setattr(library, "create_connection", connect)
    assert dead_peer.seconds_until_closed("ws://h", within=4.5, origin=SITE) == took
    assert opened == [("ws://h", {"timeout": 4.5, "origin": SITE, "suppress_origin": False})]
    assert peer.limits == [4.5, 3.5, 2.5, 1.5, 0.5][: len(peer.limits)] and peer.shut, (
        "no answer is waited for beyond the end"
    )
    assert len(peer.limits) == min(len(frames), 5)


def test_only_a_pong_answers_a_ping() -> None:
    def chatty(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for _message in connection:
                for text in ('{"type": "ping"}', '{"type": "hello"}', "[1]", "{broken", '{"type": ["pong"]}'):
                    connection.send(text)

    with server(chatty) as url:
        check = websocket.check(url, ping="json", timeout=0.5)
    assert check.status == "critical" and "a ping (json) was not answered within 0.5 s" in check.message.lower()


def test_where_nobody_answers_no_foreign_origin_is_let_in() -> None:
    check = websocket.check(f"ws://127.0.0.1:{free_port()}/", foreign_origin="https://evil.example")
    assert check.details["foreign_origin_refused"] is None and "let in" not in check.message


@pytest.mark.parametrize("count", [1, 3])
def test_heartbeats_are_counted_and_timed(count: int) -> None:
    def beats(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            for _ in range(count):
                connection.send(json.dumps({"type": "ping"}))
                connection.recv(timeout=5)
            connection.recv(timeout=5)

    with server(beats) as url:
        check = websocket.check(url, ping="none", heartbeat_within=20, heartbeats=count)
    assert check.status == "ok", check.message
    assert len(check.details["heartbeats_s"]) == count and (check.details["heartbeat_period_s"] is None) is (count == 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"foreign_origin": "evil.example/"}, "foreign_origin must be an origin"),
        ({"origin": "x"}, "origin must be an origin"),
        ({"headers": {"Origin": "x"}}, "headers must not contain Origin. Use origin"),
        ({"headers": {"a b": "x"}}, "headers must be headers that can be sent"),
        ({"subprotocols": ["a b"]}, "subprotocols"),
        ({"round_trips": 1001}, "round_trips"),
        ({"timeout": 0}, "timeout"),
        ({"heartbeats": 0}, "heartbeats"),
        ({"heartbeat_within": 601}, "heartbeat_within"),
        ({"max_latency_ms": 0}, "max_latency_ms"),
        ({"ping": "x"}, "ping must be one of frame, json, none"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(change: t.Dict[str, t.Any], words: str) -> None:
    with pytest.raises(OpsError, match=words):
        websocket.check("ws://127.0.0.1:1/", **change)


# -- frame by frame
# --------------------------------------------------------------------------------------------------------


class Line:
    """Stands in for the library's socket: each frame arrives after 1.2345678 s of the clock; then there is silence."""

    def __init__(self, clock: Clock, frames: t.Sequence[t.Any]) -> None:
        self.clock, self.frames = clock, list(frames)
        self.limits: t.List[float] = []
        self.messages: t.List[t.Tuple[str, t.Any]] = []
        self.options: t.Dict[str, t.Any] = {}
        self.broken = self.shut = False

    def __call__(self, **options: t.Any) -> Line:
        self.options.update(options)
        return self

    def connect(self, url: str, **options: t.Any) -> None:
        self.options.update(options, url=url)
        self.clock.now += 0.0512345
        if self.frames and isinstance(self.frames[0], Exception):
            raise self.frames.pop(0)

    def getheaders(self) -> t.Dict[str, str]:
        return {"Sec-WebSocket-Extensions": "permessage-deflate"}

    def getsubprotocol(self) -> str:
        return "chat"

    def settimeout(self, seconds: float) -> None:
        self.limits.append(seconds)

    def recv_frame(self) -> t.Any:
        self.clock.now += 1.2345678
        frame = self.frames.pop(0) if self.frames else library.WebSocketTimeoutException()
        if isinstance(frame, Exception):
            raise frame
        if callable(frame):
            frame = frame(self.messages[-1][1])
        return frame

    def _note(self, name: str, value: t.Any = None) -> None:
        if self.broken:
            raise BrokenPipeError
        self.messages.append((name, value))

    def send(self, text: str) -> None:
        self._note("text", json.loads(text))

    def ping(self, word: bytes) -> None:
        self._note("ping", word)

    def pong(self, word: bytes) -> None:
        self._note("pong", word)

    def send_close(self, code: int) -> None:
        self._note("close", code)

    def shutdown(self) -> None:
        self.shut = True


def frame(opcode: int, data: t.Union[bytes, str] = b"") -> types.SimpleNamespace:
    return types.SimpleNamespace(opcode=opcode, data=data)


def pong(word: bytes) -> types.SimpleNamespace:
    return frame(10, word)


CLOSED = frame(8, (1000).to_bytes(2, "big"))


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Callable[..., Line]]:
    clock = Clock()
    lines: t.List[Line] = []

    def build(*frames: t.Any) -> Line:
        lines.append(Line(clock, frames))
        monkeypatch.setattr(library, "WebSocket", lines[-1])
        return lines[-1]

    monkeypatch.setattr(websocket, "time", types.SimpleNamespace(monotonic=clock.monotonic, time=lambda: 4711.0))
    yield build
    assert all(each.shut for each in lines), "no connection stays open"


def test_round_trips_of_frames_are_timed_and_the_end_is_clean(line: t.Callable[..., Line]) -> None:
    wire = line(pong, frame(10, b"another"), pong, CLOSED)
    check = websocket.check("ws://h/x", round_trips=2, timeout=5)
    assert (check.status, check.value, check.message) == (
        "warning",
        1851.85,
        "The round trip takes 1851.85 ms, over 1000 ms.",
    )
    assert check.details == {
        "url": "ws://h/x",
        "handshake_ms": 51.23,
        "subprotocol": "chat",
        "extensions": "permessage-deflate",
        "round_trips_ms": [1234.568, 2469.136],
        "close": {"clean": True, "code": 1000, "reason": "", "duration_ms": 1234.57},
    }
    assert [name for name, _value in wire.messages] == ["ping", "ping", "close"] and wire.messages[-1][1] == 1000
    assert len(wire.messages[0][1]) == 16 and wire.messages[0][1] != wire.messages[1][1], (
        "no answer of an earlier ping counts"
    )


def test_round_trips_of_the_backends_own_pings(line: t.Callable[..., Line]) -> None:
    wire = line(frame(10, b""), frame(1, '{"type": "pong"}'), CLOSED)
    check = websocket.check("ws://h/x", ping="json", round_trips=1)
    assert check.details["round_trips_ms"] == [2469.136]
    assert wire.messages[0] == ("text", {"type": "ping", "timestamp": 4711.0})


@pytest.mark.parametrize("answer", [lambda word: frame(1, word), frame(10, b""), frame(1, '{"type": "pong"}')])
def test_only_the_pong_of_this_ping_answers_a_frame(line: t.Callable[..., Line], answer: t.Any) -> None:
    line(answer)
    check = websocket.check("ws://h/x", round_trips=3, timeout=3)
    assert check.status == "critical" and check.details["round_trips_ms"] == []
    assert check.message == "A ping (frame) was not answered within 3 s; it did not answer the close frame within 3 s"
    assert check.details["close"] == {"clean": False, "code": None, "reason": "", "duration_ms": 1234.57}


def test_no_answer_is_waited_for_beyond_its_time(line: t.Callable[..., Line]) -> None:
    wire = line(*[frame(1, "chatter")] * 9)
    websocket.check("ws://h/x", round_trips=1, timeout=3)
    # The ping, three frames, then the close frame and three more.
    assert [round(limit, 2) for limit in wire.limits] == [3, 3, 1.77, 0.53, 3, 3, 1.77, 0.53]


def test_a_connection_that_breaks_is_no_clean_end(line: t.Callable[..., Line]) -> None:
    line(pong, library.WebSocketConnectionClosedException())
    check = websocket.check("ws://h/x", round_trips=2)
    assert (check.status, check.value, check.message) == (
        "critical",
        1234.57,
        "The connection broke without a close frame",
    )
    assert check.details["close"] == {"clean": False, "code": None, "reason": ""}


def test_pings_of_the_server_are_answered_and_timed(line: t.Callable[..., Line]) -> None:
    wire = line(frame(9, b"a"), frame(1, "x"), frame(1, '{"type": "ping"}'), CLOSED)
    check = websocket.check("ws://h/x", ping="none", heartbeat_within=9, heartbeats=2)
    assert (check.status, check.value, check.message) == ("ok", None, "It connects and closes cleanly.")
    assert (check.details["heartbeats_s"], check.details["heartbeat_period_s"]) == ([1.235, 3.704], 2.469)
    assert wire.messages == [("pong", b"a"), ("text", {"type": "pong"}), ("close", 1000)]


def test_a_ping_that_cannot_be_answered_is_no_heartbeat(line: t.Callable[..., Line]) -> None:
    wire = line(frame(9, b"a"))
    wire.broken = True
    check = websocket.check("ws://h/x", ping="none", heartbeat_within=9)
    assert check.details["heartbeats_s"] == [] and check.status == "critical"
    assert (
        check.message
        == "0 of 1 heartbeats of the server arrived within 9 s; the connection broke without a close frame"
    )


def test_heartbeats_that_do_not_come_are_critical(line: t.Callable[..., Line]) -> None:
    line(frame(9, b"a"), library.WebSocketTimeoutException(), CLOSED)
    check = websocket.check("ws://h/x", ping="none", heartbeat_within=9, heartbeats=2)
    assert (
        check.message == "1 of 2 heartbeats of the server arrived within 9 s"
        and check.details["heartbeat_period_s"] is None
    )
    assert check.status == "critical" and check.details["close"]["clean"] is True


def test_a_server_that_closes_with_a_reason_of_its_own_is_quoted(line: t.Callable[..., Line]) -> None:
    line(pong, frame(8, (1001).to_bytes(2, "big") + b"going away" + b"!" * 200))
    check = websocket.check("ws://h/x", round_trips=1)
    assert check.status == "critical" and check.message == f"The server closed it (1001 going away{'!' * 110})"
    line(pong, frame(8, b""))
    assert websocket.check("ws://h/x", round_trips=1).details["close"]["clean"] is False
    line(pong, frame(8, (1000).to_bytes(2, "big") + b"\xff"))
    assert websocket.check("ws://h/x", round_trips=1).details["close"]["reason"] == "\ufffd"


def test_how_a_browser_connects(line: t.Callable[..., Line]) -> None:
    wire = line(CLOSED)
    websocket.check(
        "ws://h/x",
        token="a b",
        origin=SITE,
        headers={"X-a": "1"},
        subprotocols=["chat"],
        ping="none",
        timeout=7,
        validate_certs=False,
    )
    options = {
        name: wire.options[name]
        for name in ("url", "timeout", "origin", "suppress_origin", "header", "subprotocols", "sslopt")
    }
    assert options == {
        "url": "ws://h/x?token=a+b",
        "timeout": 7,
        "origin": SITE,
        "suppress_origin": False,
        "header": ["X-a: 1"],
        "subprotocols": ["chat"],
        "sslopt": {"cert_reqs": ssl.CERT_NONE, "check_hostname": False},
    }
    assert (wire.options["http_no_proxy"], wire.options["redirect_limit"], wire.options["skip_utf8_validation"]) == (
        ["*"],
        0,
        False,
    )
    assert wire.options["enable_multithread"] is False
    wire = line(CLOSED)
    websocket.check("ws://h/x?a=b", token="c", ping="none")
    options = {
        name: wire.options[name]
        for name in ("url", "timeout", "origin", "suppress_origin", "header", "subprotocols", "sslopt")
    }
    assert options == {
        "url": "ws://h/x?a=b&token=c",
        "timeout": 5,
        "origin": None,
        "suppress_origin": True,
        "header": [],
        "subprotocols": None,
        "sslopt": {},
    }


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (library.WebSocketTimeoutException(), "critical", "it gives no answer in time"),
        (socket.timeout(), "critical", "it gives no answer in time"),
        (ConnectionRefusedError(), "critical", "nothing listens there"),
        (ssl.SSLError("x"), "critical", "the certificate or TLS does not hold"),
        (ConnectionResetError(104, "Connection reset by peer"), "critical", "Connection reset by peer"),
        (ConnectionResetError(), "critical", "ConnectionResetError"),
        (library.WebSocketProtocolException("x"), "critical", "WebSocketProtocolException"),
        (ValueError("x"), "critical", "ValueError"),
        (library.WebSocketAddressException("x"), "unknown", "cannot be resolved"),
        (socket.gaierror(-2, "Name or service not known"), "unknown", "cannot be resolved"),
    ],
)
def test_why_there_is_no_connection(monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, words: str) -> None:
    monkeypatch.setattr(library, "WebSocket", Line(Clock(), [error]))
    check = websocket.check("ws://h/x")
    assert check.status == status and words in check.message
    assert ("unresolved" in check.details) is (status == "unknown") and check.details["error"] == str(error)


def test_a_long_error_is_cut_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WebSocket", Line(Clock(), [ValueError("s3cret-word header-word" + "x" * 300)]))
    check = websocket.check("ws://h/x", token="s3cret-word", headers={"X-Key": "header-word"})
    assert len(check.details["error"]) == 200 and "s3cret-word" not in repr(check) and "header-word" not in repr(check)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "the upgrade did not arrive"),
        (401, "the token is refused"),
        (403, "the origin or the token is refused"),
        (404, "there is no WebSocket"),
        (405, "there is no WebSocket"),
        (418, "it is refused"),
        (426, "a proxy in between"),
        (502, "the proxy finds no backend$"),
        (503, "the server is full or draining$"),
        (504, "the proxy waited in vain for the backend$"),
        (500, "the backend broke before it could answer$"),
        (429, "this address asked too often and is locked out for a while$"),
    ],
)
def test_what_an_answer_to_the_upgrade_means(line: t.Callable[..., Line], status: int, words: str) -> None:
    line(library.WebSocketBadStatusException("%s %s", status)).shut = True
    with pytest.raises(websocket._Refused, match=f"the upgrade is answered with {status}: .*{words}") as caught:
        websocket.Connection("ws://h/x", origin="", headers=None, subprotocols=(), timeout=1, validate_certs=True)
    assert caught.value.details == {"status": status}


@pytest.mark.parametrize(("origin", "requests"), [("", 2), (SITE, 3)])
def test_a_403_is_told_apart_with_as_few_requests_as_it_takes(origin: str, requests: int) -> None:
    """The backend locks out an address that asks too often."""
    paths: t.List[str] = []

    def answer(path: str, _origin: str) -> int:
        paths.append(path)
        return 403

    with server(echo, answer) as url:
        websocket.check(url, origin=origin)
    assert len(paths) == requests and len(set(paths)) == 2


@pytest.mark.parametrize(("status", "refused"), [(401, True), (403, True), (101, False)])
def test_a_foreign_origin_that_is_refused_before_the_handshake_is_refused(status: int, refused: bool) -> None:
    with server(echo, lambda _path, origin: status if origin == "https://evil.example" else 101) as url:
        check = websocket.check(url, foreign_origin="https://evil.example")
    assert check.details["foreign_origin_refused"] is refused
    assert check.status == ("ok" if refused else "critical")


@pytest.mark.parametrize(
    "change",
    [
        {"round_trips": 1000},
        {"timeout": 300},
        {"timeout": 0.1},
        {"heartbeats": 100},
        {"heartbeats": 1},
        {"heartbeat_within": 600},
        {"heartbeat_within": 0},
        {"max_latency_ms": 600_000},
        {"max_latency_ms": 0.1},
        {"origin": "null"},
        {"foreign_origin": "https://[::1]:1"},
        {"headers": {"X-a": "b c"}},
    ],
)
def test_the_edges_of_what_is_allowed_are_allowed(change: t.Dict[str, t.Any]) -> None:
    websocket.validate(
        "wss://h:1/x", **{"round_trips": 0, "timeout": 1, "heartbeat_within": 1, "heartbeats": 1, **change}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"round_trips": -1},
        {"timeout": 300.1},
        {"heartbeats": 101},
        {"heartbeat_within": -0.1},
        {"max_latency_ms": 600_001},
        {"headers": {"X": "a\nb"}},
        {"headers": {"X": "a\rb"}},
        {"headers": {"X": "a\0b"}},
        {"headers": {"ORIGIN": "b"}},
    ],
)
def test_just_beyond_the_edges_is_refused(change: t.Dict[str, t.Any]) -> None:
    with pytest.raises(OpsError):
        websocket.validate(
            "wss://h:1/x", **{"round_trips": 0, "timeout": 1, "heartbeat_within": 1, "heartbeats": 1, **change}
        )


@pytest.mark.parametrize(
    "url", ["", "http://h/", "ws://", "ws://h:0/", "ws://h:99999/", "ws://[", "ws://h/a b", "ws://h/\x7f", "ws://h/\n"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(OpsError, match="url must be a ws:// or wss:// URL"):
        websocket.check(url)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"type": "ping"}', "ping"),
        (b'{"type": 3}', ""),
        (b'{"other": 3}', ""),
        (b"[1]", ""),
        (b"{", ""),
        (b"", ""),
        (b' {"type": "ping"}', ""),
        (b'{"type": "ping"}' + b" " * (65536 - 16), "ping"),
        (b'{"type": "ping"}' + b" " * (65536 - 15), ""),
    ],
)
def test_the_type_of_a_message(data: bytes, kind: str) -> None:
    assert websocket._type(data) == kind


def jwt_of(claims: t.Any) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize(
    ("token", "subject"),
    [
        (jwt_of({"sub": "user 7/ü"}), "user 7/ü"),
        (jwt_of({"sub": 7}), ""),
        (jwt_of(["sub"]), ""),
        ("e30.***.x", ""),
        ("opaque", ""),
        ("", ""),
    ],
)
def test_whose_a_token_is(token: str, subject: str) -> None:
    assert websocket.subject_of(token) == subject
