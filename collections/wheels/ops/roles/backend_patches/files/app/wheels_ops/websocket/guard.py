# SPDX-License-Identifier: MIT
"""``WebSocketGuard(app)``: an ASGI layer around the application that decides before a WebSocket handshake is accepted.

It checks the origin and the limits, counts connections by address, refuses new ones during a shutdown and answers
``/api/v1/pam/poll``. It registers the sessions with the manager, says at ``/api/v1/pam/sockets`` which WebSocket routes
the application has, and ends an endpoint that keeps receiving from a closed socket.

Environment (read once, when the layer is built): ``WEBSOCKET_MAX_CONNECTIONS`` (10,000 in this process),
``WEBSOCKET_MAX_PER_ADDRESS`` (50; 0: no limit; an IPv6 client counts with its /64), ``WEBSOCKET_ACCEPT_RATE`` (500
handshakes a second), ``WEBSOCKET_ACCEPT_RATE_PER_ADDRESS`` (a tenth of that, so that one address does not use up
everybody's), ``WEBSOCKET_TRUSTED_PROXIES`` (see ``addresses.py``). Behind a proxy that names no client every connection
has the proxy's address; then the defaults of the limits by address do not apply to it, and one line in the log says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import random
import typing as t
from collections import OrderedDict

from app.core import websocket_manager
from app.core.websocket_manager import (
    RECONNECT_SPREAD_MS,
    SCOPE_KEY,
    Connection,
    ConnectionManager,
    Message,
    Receive,
    Send,
    log,
    setting,
)
from app.wheels_ops.rate_limit import TokenBucket
from app.wheels_ops.websocket.addresses import (
    client_address,
    counting_key,
    is_cloudflare,
    is_nameless_proxy,
    trusted_proxies,
)
from app.wheels_ops.websocket.asgi import Scope, header, hide_secrets, respond
from app.wheels_ops.websocket.poll import POLL_PATH, SCRIPT_PATH, SOCKET_PATH, Poll, Virtual, send_script
from app.wheels_ops.websocket.session import Sessions

App = t.Callable[[Scope, Receive, Send], t.Awaitable[None]]

#: ``GET``: ``{"paths": [...]}``, the application's WebSocket routes with their placeholders.
ROUTES_PATH = "/api/v1/pam/sockets"
#: The chat's socket in releases before August 2025; ``SOCKET_PATH`` is that of later ones.
SOCKET_BASE = SOCKET_PATH.rpartition("/")[0]
#: How often an endpoint may ask a closed socket for a message before it is ended.
RECEIVES_AFTER_CLOSE = 20
_SPINS = "_wheels_ops_spins"


class Refusal(t.NamedTuple):
    status: int
    text: str
    retry_after: int = 0
    close_code: int = 1008


class EndpointSpins(asyncio.CancelledError):
    """Ends an endpoint past its own ``except Exception: continue``."""


class WebSocketGuard:
    """Everything that is neither a WebSocket nor the long poll passes through untouched."""

    def __init__(self, app: App, connections: t.Optional[ConnectionManager] = None) -> None:
        self.app = app
        self.manager = connections if connections is not None else websocket_manager.manager
        self.sessions = Sessions.of(self.manager)
        self.max_connections = int(setting("WEBSOCKET_MAX_CONNECTIONS", 10_000, 1, 1_000_000))
        self.max_per_address = int(setting("WEBSOCKET_MAX_PER_ADDRESS", 50, 0, 1_000_000))
        # By an operator, who knows what is in front.
        self.address_limit_chosen = bool(os.environ.get("WEBSOCKET_MAX_PER_ADDRESS"))
        self.accept_rate = setting("WEBSOCKET_ACCEPT_RATE", 500.0, 0, 1_000_000)
        self.accept_rate_per_address = setting("WEBSOCKET_ACCEPT_RATE_PER_ADDRESS", self.accept_rate / 10, 0, 1_000_000)
        self.address_rate_chosen = bool(os.environ.get("WEBSOCKET_ACCEPT_RATE_PER_ADDRESS"))
        self.proxies = trusted_proxies(os.environ.get("WEBSOCKET_TRUSTED_PROXIES", ""))
        self.open = 0
        self.by_address: t.Dict[str, int] = {}
        self.nameless_proxy_logged = False
        self.accepts = TokenBucket(self.accept_rate, max(1.0, 2 * self.accept_rate))
        self.handshakes: OrderedDict[t.Tuple[str, str], TokenBucket] = OrderedDict()
        self.paths: t.Optional[t.List[str]] = None
        bound_receives()
        self.accepts_by_address: OrderedDict[str, TokenBucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            inner = dict(scope)
            hide_secrets(scope)
            await self.websocket(inner, receive, send)
        elif scope["type"] != "http" or scope.get("method") not in ("GET", "POST"):
            await self.app(scope, receive, send)
        elif scope.get("path") == POLL_PATH:
            inner = dict(scope)
            hide_secrets(scope)
            await Poll(self.sessions, self.websocket, inner, receive, send).answer()
        elif scope.get("path") == SCRIPT_PATH:
            await send_script(scope, send)
        elif scope.get("path") == ROUTES_PATH and scope["method"] == "GET":
            await respond(send, 200, {"paths": self.socket_paths(scope)})
        else:
            await self.app(scope, receive, send)

    def socket_paths(self, scope: t.Mapping[str, t.Any]) -> t.List[str]:
        """The application's WebSocket routes, looked up once: at the first request they are all there."""
        if self.paths is None:
            app = scope.get("app") or self.app
            self.paths = sorted(set(_socket_paths(getattr(app, "routes", ()))))
        return self.paths

    def routed(self, scope: Scope) -> Scope:
        """Leads the later releases' address, with the user in its path, to the earlier releases' without it.

        The script for browsers and the long poll have one address for every release.
        """
        paths = self.socket_paths(scope)
        base, _slash, user = str(scope.get("path", "")).rpartition("/")
        if user and base == SOCKET_BASE and base in paths and SOCKET_PATH not in paths:
            return {**scope, "path": base, "raw_path": base.encode()}
        return scope

    async def websocket(self, scope: Scope, receive: Receive, send: Send, virtual: t.Optional[Virtual] = None) -> None:
        """Serves one WebSocket, or the ``virtual`` one of a polling client, or refuses it."""
        address = counting_key(client_address(scope, self.proxies))
        refusal = self.refuse(scope, address)
        if refusal is not None:
            self.manager.totals["refused"] += 1
            log("warning", "🔌 WebSocket refused", status=refusal.status, reason=refusal.text)
            await _refuse(scope, receive, send, refusal)
            return
        connection = Connection(self.manager, send, receive, scope)
        connection.virtual = virtual
        if virtual is not None:
            virtual.connection = connection
        self.open += 1
        self.by_address[address] = self.by_address.get(address, 0) + 1
        try:
            with contextlib.suppress(EndpointSpins):
                await self.app(
                    {**self.routed(scope), SCOPE_KEY: connection}, connection.app_receive, connection.app_send
                )
            if connection.accepted:
                await connection.close(1000)
        except BaseException:
            connection.close_code = 1011
            raise
        finally:
            self.open -= 1
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]
            connection.gone(connection.close_code)

    def refuse(self, scope: t.Mapping[str, t.Any], address: str) -> t.Optional[Refusal]:
        """Why this handshake must not be accepted, or None."""
        if not origin_allowed(header(scope, b"origin")):
            return Refusal(403, "origin not allowed")
        if self.manager.draining:
            return Refusal(503, "server restarts", random.randint(1, RECONNECT_SPREAD_MS // 1000), 1012)
        if self.open >= self.max_connections:
            return Refusal(503, "too many connections", random.randint(5, 15), 1013)
        count = self.by_address.get(address, 0)
        if self.max_per_address and count >= self.max_per_address and self._counts(scope, self.address_limit_chosen):
            return Refusal(429, "too many connections from this address", 10)
        wait = self._take_of_address(scope, address)
        if wait:
            return Refusal(429, "too many handshakes from this address", math.ceil(wait))
        if self.manager.max_per_user:
            key = (address, scope.get("path", ""))
            bucket = self.handshakes.get(key)
            if bucket is None:
                bucket = self.handshakes[key] = TokenBucket(1.0, 4.0 * self.manager.max_per_user)
                if len(self.handshakes) > 4096:
                    self.handshakes.popitem(last=False)
            self.handshakes.move_to_end(key)
            wait = bucket.take()
            if wait:
                return Refusal(429, "too many handshakes for this user", math.ceil(wait))
        wait = self.accepts.take()
        if wait:
            return Refusal(503, "too many handshakes", max(1, math.ceil(wait)), 1013)
        return None

    def _take_of_address(self, scope: t.Mapping[str, t.Any], address: str) -> float:
        """A handshake from the share of its address, before it takes one of everybody's; the seconds to wait."""
        if not self.accept_rate_per_address:
            return 0.0
        rate = self.accept_rate_per_address
        bucket = self.accepts_by_address.get(address) or TokenBucket(rate, max(1.0, 2 * rate))
        self.accepts_by_address[address] = bucket
        self.accepts_by_address.move_to_end(address)
        if len(self.accepts_by_address) > 4096:
            self.accepts_by_address.popitem(last=False)
        wait = bucket.take()
        return wait if wait and self._counts(scope, self.address_rate_chosen) else 0.0

    def _counts(self, scope: t.Mapping[str, t.Any], chosen: bool) -> bool:
        """Whether a limit by address applies: chosen by an operator, or the address is not that of everybody."""
        return chosen or not self._speaks_for_everybody(scope)

    def _speaks_for_everybody(self, scope: t.Mapping[str, t.Any]) -> bool:
        """Whether a limit that nobody chose for the proxy in front would lock everybody out; said once in the log."""
        if is_cloudflare(client_address(scope, self.proxies), self.proxies):
            if not self.nameless_proxy_logged:
                self.nameless_proxy_logged = True
                log(
                    "warning",
                    "🔌 Clients come through Cloudflare, so connections are not limited by address: set"
                    " WEBSOCKET_TRUSTED_PROXIES=private,cloudflare",
                )
            return True
        if not is_nameless_proxy(scope, self.proxies):
            return False
        if not self.nameless_proxy_logged:
            self.nameless_proxy_logged = True
            log(
                "warning",
                "🔌 The proxy in front names no client, so connections are not limited by address: let it send"
                " X-Forwarded-For",
            )
        return True


def _socket_paths(routes: t.Iterable[t.Any], prefix: str = "") -> t.Iterator[str]:
    for route in routes:
        path = prefix + str(getattr(route, "path", ""))
        if any(each.__name__ == "WebSocketRoute" for each in type(route).__mro__):  # FastAPI's are Starlette's
            yield path
        else:  # what is mounted has routes of its own
            yield from _socket_paths(getattr(route, "routes", None) or (), path)


def bound_receives() -> None:
    """Has Starlette's ``WebSocket`` count how often an endpoint asks a closed socket for a message.

    After a disconnect its methods raise ``RuntimeError`` without ever waiting. An endpoint that catches every exception
    around its receive loop and goes on then never lets the event loop run again, and the whole process stands still.
    Here each such call lets the others run, and after ``RECEIVES_AFTER_CLOSE`` of them the endpoint is ended.
    """
    try:
        from starlette.websockets import WebSocket
    except ImportError:  # an application of another kind
        return
    for name in ("receive", "receive_text", "receive_bytes", "receive_json"):
        method = getattr(WebSocket, name, None)
        if method is not None and not hasattr(method, _SPINS):
            setattr(WebSocket, name, _bounded(method))


def _bounded(method: t.Callable[..., t.Awaitable[t.Any]]) -> t.Callable[..., t.Awaitable[t.Any]]:
    @functools.wraps(method)
    async def receive(self: t.Any, *words: t.Any, **options: t.Any) -> t.Any:
        try:
            return await method(self, *words, **options)
        except RuntimeError:
            if SCOPE_KEY not in self.scope or "DISCONNECTED" not in (
                self.client_state.name,
                self.application_state.name,
            ):
                raise
            count = getattr(self, _SPINS, 0) + 1
            setattr(self, _SPINS, count)
            # An endpoint that catches even what ends it goes on slowly, and the others with it.
            await asyncio.sleep(0 if count <= RECEIVES_AFTER_CLOSE else 0.1)
            if count < RECEIVES_AFTER_CLOSE:
                raise
            if count == RECEIVES_AFTER_CLOSE:
                log(
                    "warning",
                    "🔌 WebSocket endpoint ended: it kept receiving after the socket was closed",
                    path=self.scope.get("path", ""),
                    receives=count,
                )
            raise EndpointSpins("the WebSocket is closed") from None

    setattr(receive, _SPINS, True)
    return receive


def origin_allowed(origin: t.Optional[str]) -> bool:
    """The CORS policy's own verdict. A client without an Origin is no browser; its token is what protects it."""
    if origin is None:
        return True
    try:  # at each handshake: the policy may be that of the release, or none
        from app.core.cors_config import cors_config

        allows = getattr(cors_config, "is_websocket_origin_allowed", None)
    except Exception:  # no CORS policy in this process
        allows = None
    return True if allows is None else bool(allows(origin))


async def _refuse(scope: t.Mapping[str, t.Any], receive: Receive, send: Send, refusal: Refusal) -> None:
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": refusal.close_code, "reason": refusal.text})
        return

    async def answer(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    # Servers add the length of a refused handshake's body themselves; with one of ours before it, uvicorn's sansio
    # sends two.
    await respond(answer, refusal.status, {"error": refusal.text}, retry_after=refusal.retry_after, length=False)
