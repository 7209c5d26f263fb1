# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real WebSocket: handshake, round trips, the server's heartbeat, and how it closes."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import statistics
import time
import types
import typing as t
import urllib.parse
from dataclasses import dataclass

from ..core import options
from ..core.redaction import redact, redact_url, secrets_of
from ..health.check import Check, is_ours, unknown
from ..health.thresholds import Thresholds
from . import dead_peer
from .context import HostContext, Options

#: Where releases have the chat's socket, where nobody named its path: the later ones first. ``{user_id}`` is the ``sub``
#: of the token.
PATHS: t.Tuple[str, ...] = ("/api/v1/pam/ws/{user_id}", "/api/v1/pam/ws")
#: Where a deployed backend says which WebSocket routes it has.
ROUTES_PATH = "/api/v1/pam/sockets"
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*(?::\w+)?\}")
_NOBODY = "wheels-ops-health"
_NO_ROUTE = "there is no WebSocket at this path"
#: What a browser may see as an HTTP answer to the upgrade and what it means for the person who reads the check.
_REFUSALS = {
    401: "the token is refused",
    403: "the origin or the token is refused",
    404: _NO_ROUTE,
    405: _NO_ROUTE,
    426: "a proxy in between does not pass the upgrade on",
    400: "the upgrade did not arrive: a proxy in between may drop it",
    429: "this address asked too often and is locked out for a while",
    500: "the backend broke before it could answer",
    502: "the proxy finds no backend",
    503: "the server is full or draining",
    504: "the proxy waited in vain for the backend",
}
#: Answers for which a proxy or our own address is the reason: a restart of the backend changes none of them.
_NOT_OURS = frozenset({400, 426, 429})
_REDIRECTS = (301, 302, 303, 307, 308)
#: Close codes of a server that asks for a token: 4001 of the backend, 4401 and 3000 (IANA: unauthorized) of others.
_UNAUTHORIZED = (3000, 4001, 4401)
#: Close codes for a broken rule, whichever it is: the reason says whether it is the token.
_POLICY = (1008, 4003, 4403)
#: A path that no release has: how a server answers there says what its answer at another path is worth.
_NO_SUCH_PATH = "/wheels-ops-no-such-path"


def _shown(url: str) -> str:
    """The URL without its query, which says nothing but the token, and without a password."""
    return redact_url(url).partition("?")[0]


def validate(
    url: str,
    *,
    round_trips: int,
    timeout: float,
    heartbeat_within: float,
    heartbeats: int,
    max_latency_ms: float = 1000.0,
    origin: str = "",
    foreign_origin: str = "",
    headers: t.Mapping[str, str] = types.MappingProxyType({}),
    subprotocols: t.Sequence[str] = (),
) -> None:
    """Refuses nonsense; nothing is sent yet."""
    options.url("url", url, options.WEBSOCKET)
    options.in_range("round_trips", round_trips, 0, 1000)
    options.in_range("timeout", timeout, 0, 300, unit="seconds", above=True)
    options.in_range("heartbeats", heartbeats, 1, 100)
    options.in_range("heartbeat_within", heartbeat_within, 0, 600, unit="seconds", hint="Set 0 to wait for none.")
    options.in_range("max_latency_ms", max_latency_ms, 0, 600_000, unit="ms", above=True)
    for option, value in (("origin", origin), ("foreign_origin", foreign_origin)):
        if value:
            options.origin(option, value)
    options.headers("headers", headers, forbidden={"origin": "origin"})
    options.tokens("subprotocols", subprotocols)


@dataclass(frozen=True)
class Refusal:
    """An upgrade that was answered with an HTTP status: what that means, whether the server would take it with a token,
    or from another origin.
    """

    text: str
    wants_token: bool = False
    no_route: bool = False
    origin: bool = False
    #: Whether a restart of the backend may help.
    restart: bool = True


def check(
    url: str,
    *,
    token: str = "",
    origin: str = "",
    headers: t.Optional[t.Mapping[str, str]] = None,
    subprotocols: t.Sequence[str] = (),
    round_trips: int = 3,
    ping: str = "frame",
    heartbeat_within: float = 0.0,
    heartbeats: int = 1,
    timeout: float = 5.0,
    max_latency_ms: float = 1000.0,
    validate_certs: bool = True,
    foreign_origin: str = "",
    anonymous: bool = False,
    assumed_path: bool = False,
    thresholds: t.Optional[Thresholds] = None,
) -> Check:
    """Connects as a browser does and measures.

    ``ping`` says how a round trip is made: ``frame`` (a control frame, answered by the server's library), ``json`` (the
    backend's own ``{"type": "ping"}``, answered by its code) or ``none``. ``heartbeat_within`` seconds is how long to
    wait for ``heartbeats`` pings of the server (frames or ``{"type": "ping"}``, which are answered). ``foreign_origin``
    is tried too and has to be refused.

    ``value`` is the median round trip in milliseconds. ``critical``: no connection, a lost round trip, no heartbeat, an
    unclean close, a foreign origin let in. ``warning``: slower than ``max_latency_ms``; ``thresholds`` take its place
    where they are given. ``unknown``: the name of the host does not resolve.

    ``anonymous`` says that we have no token: a server that makes the handshake, or knows the path, and then asks for
    one is ``ok`` as far as it can be tried, and ``details.authenticated`` is False. ``assumed_path`` says that nobody
    named the path: where a release has no WebSocket there, the check is ``unknown`` instead of ``critical``.
    """
    limits = thresholds or Thresholds(max_latency_ms)
    validate(
        url,
        round_trips=round_trips,
        timeout=timeout,
        heartbeat_within=heartbeat_within,
        heartbeats=heartbeats,
        max_latency_ms=max_latency_ms,
        origin=origin,
        foreign_origin=foreign_origin,
        headers=headers or {},
        subprotocols=subprotocols,
    )
    options.choice("ping", ping, ("frame", "json", "none"))
    if token:
        url += ("&" if urllib.parse.urlsplit(url).query else "?") + urllib.parse.urlencode({"token": token})
    details: t.Dict[str, t.Any] = {"url": _shown(url)}
    problems: t.List[str] = []
    if foreign_origin:
        details["foreign_origin_refused"] = refused = _refuses(url, foreign_origin, timeout, validate_certs)
        if refused is False:
            problems.append(f"the foreign origin {foreign_origin} is let in")
    try:
        connection = Connection(
            url,
            origin=origin,
            headers=headers,
            subprotocols=subprotocols,
            timeout=timeout,
            validate_certs=validate_certs,
        )
    except _Refused as error:
        details.update(error.details)
        if error.details.get("unresolved"):
            return unknown(
                "websocket", f"{_shown(url)} was not asked: the name of its host cannot be resolved.", **details
            )
        refusal = _explain(url, error, origin, "token=" in urllib.parse.urlsplit(url).query, timeout, validate_certs)
        if refusal.no_route and assumed_path and not problems:
            return unknown("websocket", f"{refusal.text[0].upper()}{refusal.text[1:]}.", **details)
        if refusal.wants_token and anonymous and not problems:
            return _unauthenticated(refusal.text, details, limits)
        # Who refuses a token, an origin or a path refuses it after a restart, too, which would only cut everybody off.
        return _check(
            None,
            [refusal.text, *problems],
            details,
            limits,
            restart=refusal.restart and not (refusal.wants_token or refusal.no_route or refusal.origin),
        )
    try:
        details.update(
            handshake_ms=connection.handshake_ms, subprotocol=connection.subprotocol, extensions=connection.extensions
        )
        times = []
        for _number in range(round_trips if ping != "none" else 0):
            took = connection.round_trip(ping)
            if took is None:
                problems.append(
                    f"a ping ({ping}) was not answered within {timeout:g} s" if connection.open else connection.ended()
                )
                break
            times.append(took)
        details["round_trips_ms"] = times
        if heartbeat_within and connection.open:
            arrived = connection.heartbeats(heartbeats, heartbeat_within)
            details["heartbeats_s"] = arrived
            gaps = [round(later - earlier, 3) for earlier, later in zip(arrived, arrived[1:])]
            details["heartbeat_period_s"] = round(statistics.median(gaps), 3) if gaps else None
            if len(arrived) < heartbeats:
                why = "" if connection.open else f"; {connection.ended()}"
                problems.append(
                    f"{len(arrived)} of {heartbeats} heartbeats of the server arrived within {heartbeat_within:g}"
                    f" s{why}"
                )
        if connection.open:
            details["close"] = closing = connection.close()
            if not closing["clean"]:
                problems.append(f"it did not answer the close frame within {timeout:g} s")
            elif closing["code"] != 1000:  # ours was 1000: the server had closed before it saw that
                problems.append(connection.ended())
        else:
            details["close"] = {"clean": False, "code": connection.close_code, "reason": connection.close_reason}
            if not problems:
                problems.append(connection.ended())
    finally:
        connection.abort()
    if anonymous and not times and problems == [connection.ended()] and connection.asks_for_token():
        return _unauthenticated(
            f"the handshake takes {connection.handshake_ms:g} ms, then {connection.ended()}", details, limits
        )
    refused = not times and problems == [connection.ended()] and connection.asks_for_token()
    if refused and not anonymous:
        problems = [
            (
                f"{connection.ended()}: it does not take the token"
                if "token=" in urllib.parse.urlsplit(url).query
                else connection.ended()
            )
        ]
    return _check(round(statistics.median(times), 2) if times else None, problems, details, limits, restart=not refused)


def _unauthenticated(text: str, details: t.Dict[str, t.Any], limits: Thresholds) -> Check:
    """What can be said without a token: the endpoint is there and guards itself."""
    return Check(
        name="websocket",
        status="ok",
        unit="ms",
        thresholds=limits.as_dict(),
        details={**details, "authenticated": False},
        message=(
            f"{text[0].upper()}{text[1:]}. Without a token nothing more can be tried: set wheels_ops_websocket_token to"
            " measure round trips."
        ),
    )


def _explain(url: str, error: _Refused, origin: str, with_token: bool, timeout: float, validate_certs: bool) -> Refusal:
    """What a refused upgrade means.

    403 means three things, which two more requests tell apart: starlette answers a missing route with it, too.
    """
    status = error.details.get("status")
    path = urllib.parse.urlsplit(url).path or "/"
    if status == 200:
        return Refusal(
            f"a page is answered at {path} instead of a WebSocket (200): set monitoring_websocket_path to the path of"
            " this release, or let the proxy pass the upgrade on",
            no_route=True,
        )
    if status in (404, 405):
        return Refusal(
            f"there is no WebSocket at {path} ({status}): set monitoring_websocket_path to the path of this release",
            no_route=True,
        )
    if status == 401:
        return Refusal(
            f"the upgrade is answered with 401: {'the token is refused' if with_token else 'it asks for a token'}",
            wants_token=True,
        )
    if status != 403:
        return Refusal(str(error), restart=error.restart and status not in _NOT_OURS)
    if origin and _status(url, "", timeout, validate_certs) != 403:
        return Refusal(f"the upgrade is answered with 403: the origin {origin} is refused", origin=True)
    control = urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(path=_NO_SUCH_PATH))
    if _status(control, origin, timeout, validate_certs) == 403:
        return Refusal(
            f"the upgrade at {path} is answered with 403, as at a path that does not exist: no such route, or origin or"
            " token refused. Compare monitoring_websocket_path with the routes of this release"
            + (", wheels_ops_cors_origins with its origins" if origin else "")
            + (" and wheels_ops_websocket_token with its users" if with_token else ""),
            no_route=True,
        )
    return Refusal(
        f"the upgrade is answered with 403: {_REFUSALS[403] if with_token else 'it asks for a token'}", wants_token=True
    )


def _status(url: str, origin: str, timeout: float, validate_certs: bool) -> t.Optional[int]:
    """The HTTP status with which an upgrade is answered, 101 for a connection; None without an answer."""
    try:
        connection = Connection(
            url, origin=origin, headers=None, subprotocols=(), timeout=timeout, validate_certs=validate_certs
        )
    except _Refused as error:
        return error.details.get("status")
    connection.abort()
    return 101


def _check(
    value: t.Optional[float],
    problems: t.Sequence[str],
    details: t.Dict[str, t.Any],
    limits: Thresholds,
    *,
    restart: bool = True,
) -> Check:
    status = "critical" if problems else limits.status(value) if value is not None else "ok"
    over = f", over {limits.crossed(value):g} ms" if value is not None and status != "ok" else ""
    message = "; ".join(problems) or (
        f"The round trip takes {value:g} ms{over}." if value is not None else "It connects and closes cleanly."
    )
    return Check(
        name="websocket",
        status=status,
        value=value,
        unit="ms",
        thresholds=limits.as_dict(),
        message=message[0].upper() + message[1:],
        remedy="service_restart" if problems and restart else "",
        details=details,
    )


class _Refused(Exception):
    def __init__(self, message: str, *, restart: bool = True, **details: t.Any) -> None:
        super().__init__(message)
        self.restart, self.details = restart, details


def _refuses(url: str, origin: str, timeout: float, validate_certs: bool) -> t.Optional[bool]:
    """Whether an upgrade from this origin gets no connection; a close right after the handshake counts as refused.

    None where no server answered: nothing is known of what it would let in.
    """
    try:
        connection = Connection(
            url, origin=origin, headers=None, subprotocols=(), timeout=timeout, validate_certs=validate_certs
        )
    except _Refused as error:
        return True if error.details.get("status") is not None else None
    try:
        return connection.round_trip("frame") is None and not connection.open
    finally:
        connection.abort()


def _as(url: str, scheme: str) -> str:
    """``ws`` and ``wss`` are ``http`` and ``https`` for whom redirects them."""
    return re.sub(r"^ws", scheme, url)


def _silence(error: Exception, timeout: float) -> str:
    """Why there is no connection, in words for people."""
    import websocket

    if isinstance(error, (websocket.WebSocketTimeoutException, socket.timeout)):
        return f"it gives no answer in time ({timeout:g} s): the backend hangs, or a firewall drops what is sent"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, (websocket.WebSocketAddressException, socket.gaierror)):
        return "the name of the host cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or "it cannot be verified"
        return f"the certificate or TLS does not hold: {why}; renew the certificate, or trust its issuer on this host"
    if isinstance(error, ssl.SSLError):
        plain = getattr(error, "reason", "") in (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "UNKNOWN_PROTOCOL",
            "RECORD_LAYER_FAILURE",
        )
        return "the certificate or TLS does not hold" + (": the server speaks no TLS there, use ws://" if plain else "")
    if isinstance(error, websocket.WebSocketConnectionClosedException):
        return "it closes the connection before it answers"
    if isinstance(error, (websocket.WebSocketException, ValueError, IndexError)):
        return f"what answers there speaks no WebSocket ({type(error).__name__})"
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__


class Connection:
    """An open WebSocket, as a browser has it: pings of the server are answered whenever we wait for something."""

    def __init__(
        self,
        url: str,
        *,
        origin: str,
        headers: t.Optional[t.Mapping[str, str]],
        subprotocols: t.Sequence[str],
        timeout: float,
        validate_certs: bool,
    ) -> None:
        import websocket

        self._timeout = timeout
        self.close_code: t.Optional[int] = None
        self.close_reason = ""
        start = time.monotonic()
        self._socket = websocket.WebSocket(
            enable_multithread=False,
            sslopt={} if validate_certs else {"cert_reqs": ssl.CERT_NONE, "check_hostname": False},
            skip_utf8_validation=False,
        )
        try:
            self._socket.connect(
                url,
                timeout=timeout,
                origin=origin or None,
                suppress_origin=not origin,
                header=[f"{name}: {value}" for name, value in (headers or {}).items()],
                subprotocols=list(subprotocols) or None,
                http_no_proxy=["*"],
                redirect_limit=0,
            )
        except websocket.WebSocketBadStatusException as error:
            code = int(error.status_code)
            raise _Refused(
                f"the upgrade is answered with {code}: {_REFUSALS.get(code, 'it is refused')}", status=code
            ) from None
        except (websocket.WebSocketException, OSError, ValueError, IndexError) as error:
            self._refuse_redirect(url)
            name = _silence(error, timeout)
            unresolved = isinstance(error, websocket.WebSocketAddressException) or is_ours(error)
            reason = redact(str(error), secrets_of(url, {"headers": headers or {}}))[:200]
            raise _Refused(
                f"no connection: {name}",
                restart=not isinstance(error, ssl.SSLError),
                error=reason,
                **({"unresolved": True} if unresolved else {}),
            ) from None
        self._refuse_redirect(url)
        self.handshake_ms = round((time.monotonic() - start) * 1000, 2)
        answered = {name.lower(): value for name, value in (self._socket.getheaders() or {}).items()}
        self.subprotocol = self._socket.getsubprotocol()
        self.extensions = answered.get("sec-websocket-extensions", "")
        self.open = True

    def _refuse_redirect(self, url: str) -> None:
        """Raises where the answer was a redirect, which releases of the library before 1.3 take for a connection."""
        answer = getattr(self._socket, "handshake_response", None)
        status = getattr(answer, "status", None)
        if status not in _REDIRECTS:
            return
        self._socket.shutdown()
        target = str((getattr(answer, "headers", None) or {}).get("location") or "")
        place = _shown(urllib.parse.urljoin(_as(url, "http"), target)) if target else "nowhere"
        here, there = urllib.parse.urlsplit(_as(url, "http")), urllib.parse.urlsplit(place)
        if there.hostname == here.hostname and there.scheme == "https" and here.scheme == "http":
            advice = "set wheels_ops_base_url to that https:// address"
        else:
            advice = "set wheels_ops_base_url or monitoring_websocket_path to it, or have the proxy pass the upgrade on"
        raise _Refused(
            f"the upgrade is redirected to {place} ({status}), which no WebSocket follows: {advice}",
            restart=False,
            status=status,
            location=place,
        )

    def ended(self) -> str:
        """How the server ended it."""
        code = self.close_code
        return (
            f"the server closed it ({code} {self.close_reason})".replace(" )", ")")
            if code
            else "the connection broke without a close frame"
        )

    def asks_for_token(self) -> bool:
        """Whether the server closed it because there was no token."""
        code, reason = self.close_code or 0, self.close_reason.lower()
        return code in _UNAUTHORIZED or (code in _POLICY and "origin" not in reason)

    def _frame(self, until: float) -> t.Optional[t.Tuple[int, bytes]]:
        """The next frame as (opcode, payload); None when time is up or the connection has ended. Pings are answered."""
        import websocket

        remaining = until - time.monotonic()
        if remaining <= 0 or not self.open:
            return None
        self._socket.settimeout(remaining)
        try:
            frame = self._socket.recv_frame()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketException, OSError):
            self.open = False
            return None
        opcode, data = frame.opcode, frame.data if isinstance(frame.data, bytes) else str(frame.data).encode()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.open = False
            if len(data) >= 2:
                self.close_code, self.close_reason = (
                    int.from_bytes(data[:2], "big"),
                    data[2:].decode("utf-8", "replace")[:120],
                )
        elif opcode == websocket.ABNF.OPCODE_PING:
            self._send(lambda: self._socket.pong(data))
        elif _is_ping(data):
            self._send(lambda: self._socket.send(json.dumps({"type": "pong"})))
        return opcode, data

    def _send(self, call: t.Callable[[], t.Any]) -> None:
        import websocket

        try:
            self._socket.settimeout(self._timeout)
            call()
        except (websocket.WebSocketException, OSError):
            self.open = False

    def round_trip(self, ping: str) -> t.Optional[float]:
        """Milliseconds from a ping to its pong; None where there was none."""
        import websocket

        word = os.urandom(8).hex().encode()
        start = time.monotonic()
        self._send(
            lambda: (
                self._socket.ping(word)
                if ping == "frame"
                else self._socket.send(json.dumps({"type": "ping", "timestamp": time.time()}))
            )
        )
        while True:
            frame = self._frame(start + self._timeout)
            if frame is None or not self.open:
                return None
            opcode, data = frame
            if (ping == "frame" and opcode == websocket.ABNF.OPCODE_PONG and data == word) or (
                ping == "json" and _type(data) == "pong"
            ):
                return round((time.monotonic() - start) * 1000, 3)

    def heartbeats(self, count: int, within: float) -> t.List[float]:
        """When pings of the server arrived, in seconds from now; each was answered."""
        import websocket

        start = time.monotonic()
        moments: t.List[float] = []
        while len(moments) < count:
            frame = self._frame(start + within)
            if frame is None or not self.open:
                break
            if frame[0] == websocket.ABNF.OPCODE_PING or _is_ping(frame[1]):
                moments.append(round(time.monotonic() - start, 3))
        return moments

    def close(self) -> t.Dict[str, t.Any]:
        """Says goodbye with 1000 and waits for the answer: ``clean``, ``code``, ``duration_ms``."""
        start = time.monotonic()
        self._send(lambda: self._socket.send_close(1000))
        while self.open and self._frame(start + self._timeout) is not None:
            continue
        return {
            "clean": not self.open and self.close_code is not None,
            "code": self.close_code,
            "reason": self.close_reason,
            "duration_ms": round((time.monotonic() - start) * 1000, 2),
        }

    def abort(self) -> None:
        """Closes the TCP connection, whatever its state."""
        self.open = False
        self._socket.shutdown()


def _type(data: bytes) -> str:
    if not data.startswith(b"{") or len(data) > 65536:
        return ""
    try:
        message = json.loads(data)
    except ValueError:
        return ""
    kind = message.get("type") if isinstance(message, dict) else None
    return kind if isinstance(kind, str) else ""


def _is_ping(data: bytes) -> bool:
    return _type(data) == "ping"


def subject_of(token: str) -> str:
    """The ``sub`` of a JWT, which is not verified; empty where there is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return ""
    subject = claims.get("sub") if isinstance(claims, dict) else None
    return subject if isinstance(subject, str) else ""


def routes_of(base_url: str, timeout: float = 5.0) -> t.Optional[t.List[str]]:
    """The WebSocket routes of which the application itself speaks; None where it does not, before a deployment."""
    import requests

    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment must not answer for the backend
        try:
            answer = session.get(base_url + ROUTES_PATH, timeout=timeout, allow_redirects=False)
            paths = answer.json()["paths"] if answer.status_code == 200 else None
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return None
    texts = isinstance(paths, list) and all(isinstance(path, str) and path.startswith("/") for path in paths)
    return paths if texts else None


def _candidates(routes: t.Optional[t.Sequence[str]]) -> t.Sequence[str]:
    """Where to look for a socket whose path nobody named."""
    if not routes:
        return PATHS
    shapes = {_PLACEHOLDER.sub("{}", path): path for path in routes}
    known = [shapes[shape] for shape in (_PLACEHOLDER.sub("{}", path) for path in PATHS) if shape in shapes]
    return known[:1] or sorted(routes, key=lambda path: ("/pam" not in path, path))[:1]


def measure(_context: HostContext, options: Options) -> Check:
    """Asks the application for its routes where nobody named one, and tries the known ones where it does not say; a peer
    that dies, too, where a limit is given for it.

    A placeholder in the path becomes the ``sub`` of the token. A release with ``PATHS[0]`` that does not answer for its
    routes is asked without the token: as long as our guard is not in it, the August release answers nobody any more
    after an endpoint's socket was closed, and a check must not do that to it.
    """
    origin = options.cors_origins[0] if options.cors_origins else ""
    path, mark, query = options.websocket_path.partition("?")
    assumed = path == PATHS[0]
    token = urllib.parse.parse_qs(query).get("token", [""])[-1]
    user = urllib.parse.quote(subject_of(token) or _NOBODY, safe="")
    routes = routes_of(options.base_url) if assumed else None
    attempts: t.List[Check] = []
    address = ""
    for candidate in _candidates(routes) if assumed else (path,):
        spared = bool(assumed and routes is None and token and candidate == PATHS[0])
        address = f"ws{options.base_url[len('http') :]}{_PLACEHOLDER.sub(user, candidate)}"
        attempt = check(
            address if spared else address + mark + query,
            origin=origin,
            ping="none" if spared else "json",
            heartbeat_within=0 if spared else options.websocket_heartbeat_within,
            anonymous=spared or not token,
            assumed_path=assumed,
            thresholds=options.limits("websocket_ms"),
        )
        attempts.append(_spared(attempt) if spared and attempt.status == "ok" else attempt)
        if attempts[-1].status != "unknown" or attempts[-1].details.get("authenticated") is False:
            break
    result = attempts[0 if attempts[-1].status == "unknown" and "authenticated" not in attempts[-1].details else -1]
    if options.websocket_dead_peer_within:
        result = dead_peer.add_to(
            result, address + mark + query, within=options.websocket_dead_peer_within, origin=origin
        )
    return result


def _spared(attempt: Check) -> Check:
    """A socket that is there and was not opened with the token."""
    return unknown(
        "websocket",
        "The WebSocket is there and asks for a token; with the token it was not tried, because a release of its kind"
        " may answer nobody any more after a WebSocket was closed. The deployment prevents that; then it is measured.",
        **{**attempt.details, "authenticated": False},
    )
