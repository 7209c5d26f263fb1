# SPDX-License-Identifier: GPL-3.0-or-later
"""The browser client in a real headless Chromium, with the server killed, frozen, restarted and hidden behind a proxy
under it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import typing as t

import pytest

from tests.support.browser import Browser, Page, browser
from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend

SETTINGS: t.Dict[str, t.Any] = {
    "WEBSOCKET_HEARTBEAT_INTERVAL": "0.2",
    "WEBSOCKET_CONNECTION_TIMEOUT": "3",
    "WEBSOCKET_MAX_MISSED_PINGS": "15",
    "WEBSOCKET_MAX_PER_USER": "0",
    "WEBSOCKET_MAX_PER_ADDRESS": "0",
}
#: The client's times, shortened; what is not named keeps its real value. The watchdog waits for ten heartbeats: a busy
#: machine is no silence.
TIMING = {"base": 100, "cap": 1000, "watchdog": 2000, "stable": 300}


@pytest.fixture(scope="module")
def chromium() -> t.Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def backend() -> t.Iterator[SocketBackend]:
    with socket_backend(**SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def steady() -> t.Iterator[SocketBackend]:
    """For tests that leave the server alone."""
    with socket_backend(**SETTINGS) as server:
        yield server


class Client:
    """A PamSocket in a page."""

    def __init__(
        self,
        chromium: Browser,
        port: int,
        user: str = "ann",
        *,
        timing: t.Optional[t.Dict[str, int]] = None,
        **options: t.Any,
    ) -> None:
        self.page: Page = chromium.page(f"http://127.0.0.1:{port}/page")
        settings = {"userId": user, "token": f"token-of-{user}", "timing": {**TIMING, **(timing or {})}, **options}
        self.page.evaluate(f"""
            window.messages = []; window.states = []; window.resyncs = 0;
            window.pam = new PamSocket(Object.assign({json.dumps(settings)}, {{
                onMessage: (message) => messages.push(message),
                onState: (state, detail) => states.push([state, detail, Date.now()]),
                onResync: () => resyncs++,
            }}));
            pam.start();
        """)

    def value(self, expression: str) -> t.Any:
        return self.page.evaluate(expression)

    def wait(self, expression: str, timeout: float = 20) -> t.Any:
        return wait_until(
            lambda: self.page.evaluate(expression),
            timeout=timeout,
            what=f"{expression} (states {self.page.evaluate('states')})",
        )

    def numbers(self) -> t.List[int]:
        return t.cast(t.List[int], self.value("messages.filter(m => m.type === 'note').map(m => m.number)"))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


class Proxy:
    """A proxy that does not let WebSockets through: it refuses the upgrade, or swallows it.

    ``block`` may change at any time.
    """

    def __init__(self, target: int, block: str) -> None:
        self.target, self.block = target, block
        self.upgrades = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: t.List[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.open.append(client)
        with contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            if b"upgrade: websocket" in head.lower():
                self.upgrades += 1
                if self.block == "refuse":
                    client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    client.close()
                    return
                if self.block == "swallow":
                    client.recv(1)
                    return
            server = socket.create_connection(("127.0.0.1", self.target))
            self.open.append(server)
            server.sendall(head)
            threading.Thread(target=self._copy, args=(server, client), daemon=True).start()
            self._copy(client, server)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in [self.listener, *self.open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_conversation(chromium: Browser, steady: SocketBackend) -> None:
    with Client(chromium, steady.port) as client:
        client.wait("pam.state === 'open' && messages.length === 1")
        assert client.value("pam.send({type: 'chat', message: 'hello'})") is True
        client.wait("messages.some(m => m.type === 'chat_response' && m.message === 'hello')")
        wait_until(lambda: steady.stats()["latency_ms"]["samples"] >= 3, what="pongs")
        assert client.value("messages.every(m => m._seq === undefined && !['ping', 'session'].includes(m.type))")


def test_the_server_is_killed_and_started_again(chromium: Browser, backend: SocketBackend) -> None:
    with Client(chromium, backend.port) as client:
        client.wait("pam.state === 'open' && messages.length === 1")
        backend.send("ann", number=1)
        client.wait("messages.length === 2")
        backend.stop(signal.SIGKILL)
        client.wait("pam.state === 'waiting'")
        assert client.value("pam.send({type: 'chat', message: 'kept'})") is True
        backend.start()
        client.wait("pam.state === 'open'", timeout=30)
        client.wait("messages.some(m => m.message === 'kept')")
        backend.send("ann", number=2)
        wait_until(lambda: client.numbers() == [1, 2])
        assert client.value("resyncs") == 1


def test_the_server_restarts_in_order_and_says_when_to_come_back(chromium: Browser, backend: SocketBackend) -> None:
    with Client(chromium, backend.port) as client:
        client.wait("pam.state === 'open'")
        client.value(
            "pam.take2 = pam.take; pam.take = function (text) { this.take2(text); if (this.afterMs !== null)"
            " window.told = this.afterMs; }"
        )
        backend.stop(signal.SIGTERM)
        backend.start()
        client.wait("states.filter(s => s[0] === 'open').length === 2", timeout=30)
        states = client.value("states")
        waiting = next(state for state in states if state[0] == "waiting")
        connecting = next(state for state in states[states.index(waiting) :] if state[0] == "connecting")
        assert waiting[1] == 1012
        assert connecting[2] - waiting[2] >= client.value("told") - 50


@pytest.mark.parametrize("freezes", [2])
def test_the_server_freezes(chromium: Browser, backend: SocketBackend, freezes: int) -> None:
    with Client(chromium, backend.port) as client:
        client.wait("pam.state === 'open'")
        for number in range(freezes):
            backend.send("ann", number=10 * number, count=5)
            backend.process.send_signal(signal.SIGSTOP)
            client.wait("pam.state !== 'open'")
            backend.process.send_signal(signal.SIGCONT)
            backend.send("ann", number=10 * number + 5, count=5)
            client.wait("pam.state === 'open'")
            wanted = list(range(10 * number + 10))
            wait_until(lambda: client.numbers() == wanted, what=f"{wanted}")  # noqa: B023 - waited for before it changes
        assert client.value("resyncs") == 0


def test_connections_are_cut_again_and_again(chromium: Browser, steady: SocketBackend) -> None:
    proxy = Proxy(steady.port, "")
    with Client(chromium, proxy.port, timing={"base": 20, "cap": 50}) as client:
        client.wait("pam.state === 'open'")
        for number in range(15):
            steady.send("ann", number=4 * number, count=4)
            for end in list(proxy.open):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            client.wait(f"pam.state === 'open' && messages.filter(m => m.type === 'note').length >= {4 * number + 1}")
        wait_until(lambda: len(client.numbers()) == 60)
        assert client.numbers() == list(range(60)) and client.value("resyncs") == 0
        assert client.value("states.filter(s => s[0] === 'open').length") > 3
    proxy.close()


@pytest.mark.parametrize("how", ["refuse", "swallow"])
def test_websockets_do_not_get_through(chromium: Browser, backend: SocketBackend, how: str) -> None:
    """Two refusals, or one handshake that hangs for 2.5 s, and it polls; when the way is free again it goes back."""
    proxy = Proxy(backend.port, how)
    with Client(chromium, proxy.port, timing={"probe": 1000}) as client:
        client.wait("pam.state === 'polling'")
        assert proxy.upgrades == (2 if how == "refuse" else 1)
        assert (
            client.value("pam.send({type: 'chat', message: 'one'}) && pam.send({type: 'chat', message: 'two'})") is True
        )
        client.wait("messages.filter(m => m.type === 'chat_response').length === 2")
        assert backend.stats()["messages"] == ["one", "two"]
        for number in range(30):
            backend.send("ann", number=number)
            if number == 15:
                proxy.block = ""
        client.wait("pam.state === 'open'")
        for number in range(30, 40):
            backend.send("ann", number=number)
        wait_until(lambda: len(client.numbers()) == 40)
        assert client.numbers() == list(range(40)) and client.value("resyncs") == 0
        assert backend.stats()["total_connections"] == 1
    proxy.close()


def test_the_server_freezes_under_a_poll(chromium: Browser, backend: SocketBackend) -> None:
    """The request stays open, and nothing comes back: the client gives it up and goes on from where it was."""
    proxy = Proxy(backend.port, "refuse")
    with Client(chromium, proxy.port, timing={"poll": 4000, "probe": 600_000}) as client:
        client.wait("pam.state === 'polling'")
        backend.send("ann", number=0, count=3)
        client.wait("messages.filter(m => m.type === 'note').length === 3")
        backend.process.send_signal(signal.SIGSTOP)
        client.wait("pam.state === 'waiting'")
        backend.process.send_signal(signal.SIGCONT)
        backend.send("ann", number=3, count=3)
        client.wait("pam.state === 'polling'")
        wait_until(lambda: client.numbers() == list(range(6)))
    proxy.close()


def test_a_message_that_is_being_posted_is_not_sent_a_second_time(chromium: Browser, backend: SocketBackend) -> None:
    """The WebSocket opens while the answer to a POST, which the server has taken already, is still on its way."""
    proxy = Proxy(backend.port, "refuse")
    with Client(chromium, proxy.port, timing={"probe": 300}) as client:
        client.wait("pam.state === 'polling'")
        client.value("""
            window.direct = window.fetch; window.answered = new Promise((resolve) => (window.answer = resolve));
            window.fetch = async (url, options) => {
                const found = await direct(url, options);
                if (options.method === 'POST') await answered;
                return found;
            };
            pam.send({type: 'chat', message: 'one'}); pam.send({type: 'chat', message: 'two'});
        """)
        wait_until(lambda: backend.stats()["messages"] == ["one"], what="the POST")
        proxy.block = ""
        client.wait("pam.state === 'open'")
        client.value("pam.send({type: 'chat', message: 'three'})")
        client.value("answer()")
        wait_until(lambda: "three" in backend.stats()["messages"], what="the rest")
        assert backend.stats()["messages"] == ["one", "two", "three"]
    proxy.close()


def test_a_token_that_never_comes_is_asked_for_again(chromium: Browser, steady: SocketBackend) -> None:
    """As of a session library whose refresh was under way when the page was put to sleep."""
    with Client(chromium, steady.port, timing={"token": 300}) as client:
        client.wait("pam.state === 'open'")
        client.value("""
            window.asked = 0;
            pam.options.token = () => (++asked < 3 ? new Promise(() => {}) : 'token-of-ann');
            pam.lost(1006, 'cut');
        """)
        client.wait("pam.state === 'open'")
        assert client.value("asked") == 3 and client.value(
            "states.some(s => s[0] === 'waiting' && s[1] === 'no token')"
        )


def test_a_refusal_is_final(chromium: Browser, steady: SocketBackend) -> None:
    with Client(chromium, steady.port, token="forged") as client:
        client.wait("pam.state === 'closed'")
        states = client.value("states")
        client.value("pam.woken()")
        assert client.value("states") == states and states[-1][0] == "closed"


@pytest.mark.parametrize("code", [1008, 4003])
def test_terminal_codes(chromium: Browser, steady: SocketBackend, code: int) -> None:
    with Client(chromium, steady.port) as client:
        client.wait("pam.state === 'open'")
        client.value(f"pam.send({{type: 'close', code: {code}}})")
        client.wait("pam.state === 'closed'")
        assert client.value("Object.keys(pam.timers).length") == 0


def test_two_tabs_do_not_fight_for_one_session(chromium: Browser, steady: SocketBackend) -> None:
    with Client(chromium, steady.port) as first:
        first.wait("pam.state === 'open'")
        first.value("pam.send({type: 'close', code: 4409})")
        first.wait("pam.state === 'waiting'")
        assert first.value("'retry' in pam.timers") is False
        first.value("pam.woken()")  # the user looks at this tab again
        first.wait("pam.state === 'open'")


def test_the_queue_is_bounded(chromium: Browser, backend: SocketBackend) -> None:
    with Client(chromium, backend.port, queue=3) as client:
        client.wait("pam.state === 'open'")
        backend.stop(signal.SIGKILL)
        client.wait("pam.state !== 'open'")
        assert client.value("[1, 2, 3, 4, 5].map(n => pam.send({type: 'chat', message: 'm' + n}))") == [
            True,
            True,
            True,
            False,
            False,
        ]
        backend.start()
        client.wait("messages.filter(m => m.type === 'chat_response').length === 3", timeout=30)
        assert backend.stats()["messages"] == ["m1", "m2", "m3"]


def test_the_network_comes_back(chromium: Browser, backend: SocketBackend) -> None:
    """``online`` and a page that is looked at again end the waiting at once."""
    with Client(chromium, backend.port, timing={"base": 600_000, "cap": 600_000}) as client:
        client.wait("pam.state === 'open'")
        backend.stop(signal.SIGKILL)
        client.wait("pam.state === 'waiting'")
        backend.start()
        client.value("window.dispatchEvent(new Event('online'))")
        client.wait("pam.state === 'open'", timeout=10)


def test_full_jitter_between_nothing_and_a_cap_that_doubles(chromium: Browser, steady: SocketBackend) -> None:
    with Client(chromium, steady.port) as client:
        delays = client.value("""(() => {
            const pam = new PamSocket({userId: 'x', token: 'y'}); const delays = [];
            pam.running = true; pam.arm = (name, delay) => delays.push(delay);
            for (let round = 0; round < 500; round++) { pam.attempt = round % 6; pam.later(); }
            return delays;
        })()""")
    for attempt, limit in enumerate([2000, 4000, 8000, 16000, 20000, 20000]):
        of_attempt = delays[attempt::6]
        assert (
            all(0 <= delay <= limit for delay in of_attempt)
            and max(of_attempt) > 0.8 * limit
            and min(of_attempt) < 0.2 * limit
        )


def test_the_script_is_served(steady: SocketBackend) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", steady.port)
    connection.request("GET", "/api/v1/pam/socket.js")
    answer = connection.getresponse()
    body, etag = answer.read(), answer.headers["etag"]
    assert (
        answer.status == 200
        and answer.headers["content-type"].startswith("text/javascript")
        and b"class PamSocket" in body
    )
    connection.request("GET", "/api/v1/pam/socket.js", headers={"If-None-Match": etag})
    again = connection.getresponse()
    assert again.status == 304 and not again.read()
    connection.close()
