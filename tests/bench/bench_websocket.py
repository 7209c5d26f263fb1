# SPDX-License-Identifier: GPL-3.0-or-later
"""WebSocket goals W1 to W9: against a naive manager, against `websockets`' own broadcast, under real uvicorn.

``WHEELS_OPS_BENCH_CLIENTS`` (2,000) is the number of connections where a goal does not name one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_now

from tests.bench.harness import Pair, benchmark
from tests.bench.websocket_peers.crowd import Crowd
from tests.bench.websocket_peers.naive_manager import ConnectionManager as Naive
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.tcp_relay import Relay
from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend
from tests.support.websocket_module import Clock, Peer, Socket, load_manager

logging.disable(logging.CRITICAL)  # what the manager says of its dead peers would drown the results
PEERS = Path(__file__).with_name("websocket_peers")
MANY = int(os.environ.get("WHEELS_OPS_BENCH_CLIENTS", "2000"))
NO_LIMITS: t.Dict[str, t.Any] = {
    "WEBSOCKET_MAX_PER_USER": 0,
    "WEBSOCKET_MAX_PER_ADDRESS": 0,
    "WEBSOCKET_ACCEPT_RATE": 0,
    "WEBSOCKET_MAX_CONNECTIONS": 100_000,
}
#: As the backend should run; the server's own pings stay out of the measurement.
OPTIONS = (
    "--ws-per-message-deflate",
    "false",
    "--ws-ping-interval",
    "86400",
    "--ws-ping-timeout",
    "86400",
    "--backlog",
    "4096",
)
ours_backend = functools.partial(socket_backend, options=OPTIONS, **NO_LIMITS)
naive_backend = functools.partial(
    socket_backend, options=OPTIONS, guard=False, package=False, manager_file=PEERS / "naive_manager.py"
)


def quantile(values: t.Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


# --- heartbeats ----------------------------------------------------------------------------------------------------------------


class Double(Socket):
    """A socket that takes everything at once and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(Peer())
        self._send = self.taken

    async def taken(self, message: t.Any) -> None:
        pass

    async def send_json(self, message: t.Any) -> None:
        await self._send(
            {"type": "websocket.send", "text": json.dumps(message, separators=(",", ":"), ensure_ascii=False)}
        )


async def our_round(connections: int) -> t.Tuple[float, float]:
    """CPU microseconds per connection of one interval (200 slots), and milliseconds of the longest slot."""
    clock = Clock()
    manager = load_manager().ConnectionManager(clock)
    manager.max_per_user, manager._start_heartbeat = 0, lambda: None
    for number in range(connections):
        await manager.connect(Double(), f"u{number % 1000}", f"c{number}")
    slots = []
    for _ in range(200):
        clock.now += 0.1000001
        began = time.thread_time()
        manager.tick()
        slots.append(time.thread_time() - began)
    assert sum(connection.pings for connection in manager.connections.values()) >= connections
    for connection in list(manager.connections.values()):
        connection.gone(1000)
    return sum(slots) * 1e6 / connections, max(slots) * 1e3


async def naive_round(connections: int) -> float:
    manager = Naive()
    for number in range(connections):
        await manager.connect(Double(), f"u{number % 1000}", f"c{number}")
    began = time.thread_time()
    await manager.round()
    spent = time.thread_time() - began
    assert manager.task is not None
    manager.task.cancel()
    return spent * 1e6 / connections


@benchmark(
    "W1",
    what="heartbeat, manager's CPU per connection and interval, 5,000 connections",
    unit="us",
    goal="ratio <= 0.125",
    peer="naive manager",
)
@contextlib.contextmanager
def heartbeat_cost() -> t.Iterator[Pair]:
    yield lambda: asyncio.run(our_round(5000))[0], lambda: asyncio.run(naive_round(5000))


@benchmark("W1b", what="heartbeat, longest slot of 200, 5,000 connections", unit="ms", goal="ours <= 1")
@contextlib.contextmanager
def heartbeat_slot() -> t.Iterator[Pair]:
    yield lambda: asyncio.run(our_round(5000))[1], None


async def our_detection(seed: int) -> float:
    """The longest time in which one of 1,000 peers, silent from a random moment on, was found; real defaults, a clock
    of our own.
    """
    chance, clock = random.Random(seed), Clock()
    manager = load_manager().ConnectionManager(clock)
    manager.max_per_user, manager._start_heartbeat = 0, lambda: None
    last: t.Dict[str, float] = {}
    silent: t.Dict[str, float] = {}
    found: t.Dict[str, float] = {}
    for number in range(1000):
        name = f"c{number}"
        await manager.connect(Double(), name, name)
        last[name], silent[name] = clock.now, clock.now + chance.uniform(0, 60)
    while len(found) < 1000:
        clock.now += 0.1
        for name, connection in list(manager.connections.items()):
            if connection.outstanding and clock.now < silent[name]:
                connection.heard({"type": "websocket.receive", "text": '{"type":"pong"}'})
                last[name] = clock.now
        manager.tick()
        for name in last.keys() - manager.connections.keys() - found.keys():
            found[name] = clock.now - last[name]
        await asyncio.sleep(0)
    return max(found.values())


async def naive_detection(seed: int) -> float:
    chance, clock = random.Random(seed), Clock()
    manager = Naive()
    manager.clock = clock
    for number in range(1000):
        await manager.connect(Double(), f"u{number}", f"c{number}")
    silent = {name: clock.now + chance.uniform(0, 60) for name in manager.active_connections}
    last = dict.fromkeys(silent, clock.now)
    found: t.Dict[str, float] = {}
    while len(found) < 1000:
        clock.now += 20
        await manager.round()
        for name in list(manager.active_connections):
            if clock.now < silent[name]:
                await manager.handle_pong(name)
                last[name] = clock.now
        for name in silent.keys() - manager.active_connections.keys() - found.keys():
            found[name] = clock.now - last[name]
    assert manager.task is not None
    manager.task.cancel()
    return max(found.values())


@benchmark(
    "W2",
    what="a silent peer is found, longest of 1,000 (real intervals, a clock of our own)",
    unit="s",
    goal="ours <= 61 and ratio <= 0.4",
    peer="naive manager, 20/120/5",
    runs=1,
)
@contextlib.contextmanager
def detection() -> t.Iterator[Pair]:
    yield lambda: asyncio.run(our_detection(1)), lambda: asyncio.run(naive_detection(1))


# --- broadcast -----------------------------------------------------------------------------------------------------------------


class Stuck:
    """Clients that never read, each with a write of the server waiting for it."""

    def __init__(self, backend: SocketBackend, count: int, label: str) -> None:
        self.sockets: t.List[socket.socket] = []
        for number in range(count):
            user = f"{label}{number}"
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(("127.0.0.1", backend.port))
            path = backend.url(user).split(str(backend.port))[1]
            peer.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version:"
                " 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            self.sockets.append(peer)
            clog = functools.partial(backend.request, "POST", f"/control/clog/{user}")
            wait_until(lambda: clog()[1]["messages"], timeout=30, what=f"{user} to be stuck")  # noqa: B023 - waited for before it changes

    def close(self) -> None:
        for peer in self.sockets:
            peer.close()


class Broadcasts:
    """Numbers broadcasts and measures when the healthy had them."""

    def __init__(self, backend: SocketBackend, crowd: Crowd, healthy: int) -> None:
        self.backend, self.crowd, self.healthy = backend, crowd, healthy
        self.number = 0

    def p99(self, *, size: int = 1000, seconds: float = 60, share: float = 0.99) -> float:
        """Milliseconds from the call until 99 % of the healthy had the message; the time limit when they never did."""
        self.number += 1
        began = time.time()
        call = threading.Thread(target=self._call, args=(size,), daemon=True)
        call.start()
        arrivals = self.crowd.delivered(self.number, self.healthy, seconds)
        if len(arrivals) < self.healthy:
            return seconds * 1000
        call.join(30)
        return (quantile(arrivals, share) - began) * 1000

    def _call(self, size: int) -> None:
        with contextlib.suppress(OSError):
            self.backend.broadcast(number=self.number, size=size)


@benchmark(
    "W3",
    what=f"broadcast, p99 delivery to {MANY:,} healthy with stuck clients (worst of 1, 10, 50)",
    unit="ms",
    goal="ratio <= 1.25",
    peer="ours, none stuck",
    runs=3,
)
@contextlib.contextmanager
def stuck_against_none() -> t.Iterator[Pair]:
    with ours_backend() as backend, Crowd() as crowd:
        crowd.open(backend.port, MANY)
        broadcasts = Broadcasts(backend, crowd, MANY)
        rounds = iter(range(1000))

        def with_stuck(count: int) -> float:
            blocked = Stuck(backend, count, f"stuck{next(rounds)}-")
            try:
                return statistics.median(broadcasts.p99() for _ in range(5))
            finally:
                blocked.close()
                wait_until(lambda: backend.stats()["total_connections"] == MANY, timeout=30)

        yield (
            lambda: max(with_stuck(count) for count in (1, 10, 50)),
            lambda: max(statistics.median(broadcasts.p99() for _ in range(5)) for _ in range(3)),
        )


@benchmark(
    "W3b",
    what="broadcast, p99 delivery to 200 healthy with 1 stuck (naive cut off at 60 s)",
    unit="ms",
    goal="ratio <= 0.002",
    peer="naive manager",
    runs=1,
)
@contextlib.contextmanager
def stuck_against_naive() -> t.Iterator[Pair]:
    with ours_backend() as backend, naive_backend() as naive, Crowd() as crowd, Crowd() as other:
        blocked = [Stuck(naive, 1, "stuck")]  # the first in its list
        crowd.open(backend.port, 200)
        other.open(naive.port, 200)

        def ours() -> float:
            blocked.append(Stuck(backend, 1, "stuck"))
            return Broadcasts(backend, crowd, 200).p99()

        yield ours, lambda: Broadcasts(naive, other, 200).p99(seconds=60)
        for item in blocked:
            item.close()
        naive.stop(signal.SIGKILL)


@benchmark("W3c", what="a stuck client is closed, longest of 20", unit="s", goal="ours <= 15", runs=1)
@contextlib.contextmanager
def stuck_closed() -> t.Iterator[Pair]:
    with ours_backend() as backend:

        def ours() -> float:
            began = time.monotonic()
            blocked = Stuck(backend, 20, "stuck")
            wait_until(lambda: backend.stats()["total_connections"] == 0, timeout=60)
            blocked.close()
            return time.monotonic() - began

        yield ours, None


@benchmark("W3d", what="memory of a stuck client (RSS, 50 of them)", unit="MiB", goal="ours <= 1", runs=1)
@contextlib.contextmanager
def stuck_memory() -> t.Iterator[Pair]:
    with ours_backend(WEBSOCKET_STALL_SECONDS=600) as backend:
        warm = Stuck(backend, 3, "warm")

        def ours() -> float:
            before = backend.stats()["rss"]
            blocked = Stuck(backend, 50, "stuck")
            backend.broadcast(number=1, count=14, size=60_000)  # fills each outbox almost to its bound
            grown = backend.stats()["rss"] - before
            blocked.close()
            warm.close()
            return float(grown) / 50 / 1048576

        yield ours, None


@benchmark(
    "W4",
    what="broadcast to 5,000: longest CPU time of one turn of the event loop",
    unit="ms",
    goal="ours <= 10",
    peer="naive manager",
    runs=3,
)
@contextlib.contextmanager
def longest_hold() -> t.Iterator[Pair]:
    with ours_backend() as backend, Crowd() as crowd:
        crowd.open(backend.port, 5000, seconds=240)
        with naive_backend() as naive, Crowd() as other:
            other.open(naive.port, 5000, seconds=240)

            def hold(server: SocketBackend) -> float:
                return float(
                    server.request("POST", "/control/hold", {"number": random.randrange(10**6, 10**9)})[1][
                        "milliseconds"
                    ]
                )

            yield lambda: hold(backend), lambda: hold(naive)


@benchmark(
    "W4b",
    what=f"broadcast of 1 kB to {MANY:,}: the server's CPU per connection",
    unit="us",
    goal="ratio <= 2",
    peer="websockets' broadcast()",
)
@contextlib.contextmanager
def broadcast_cost() -> t.Iterator[Pair]:
    words = [str(BACKEND_PYTHON), str(PEERS / "broadcast_server.py")]
    with ours_backend() as backend, Crowd() as crowd, Crowd() as other:
        peer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert peer.stdin is not None and peer.stdout is not None
            stdin, stdout = peer.stdin, peer.stdout
            crowd.open(backend.port, MANY)
            other.open(int(stdout.readline()), MANY, path="/")
            broadcasts, numbers = Broadcasts(backend, crowd, MANY), iter(range(1000))

            def ours() -> float:
                before = cpu_seconds(backend.process.pid)
                broadcasts.p99(share=1)
                return (cpu_seconds(backend.process.pid) - before) * 1e6 / MANY

            def theirs() -> float:
                before = cpu_seconds(peer.pid)
                stdin.write("1000\n")
                stdin.flush()
                stdout.readline()
                assert len(other.delivered(next(numbers), MANY)) == MANY
                return (cpu_seconds(peer.pid) - before) * 1e6 / MANY

            yield ours, theirs
        finally:
            peer.kill()
            peer.wait()


# --- latency, resume, drain, poll, memory ----------------------------------------------------------------------------------------


async def latency_error(backend: SocketBackend, milliseconds: float) -> float:
    """Difference of the server's median round trip and the injected one, less that of clients without a delay; in ms.

    The injected one is what the relay really waited: its timers are late, too, on a busy machine.
    """

    async def answer(websocket: t.Any) -> None:
        async for text in websocket:
            ping = json.loads(text)
            if ping["type"] == "ping":
                await websocket.send(json.dumps({"type": "pong", "seq": ping["seq"]}))

    samples: t.Dict[str, t.List[float]] = {"far": [], "near": []}
    async with (
        Relay(backend.port, delay=milliseconds / 2000, jitter=0.2) as relay,
        Relay(backend.port) as direct,
        contextlib.AsyncExitStack() as stack,
    ):
        tasks = []
        for kind, through in (("far", relay), ("near", direct)):
            for number in range(5):
                url = backend.url(f"{kind}{number}").replace(str(backend.port), str(through.port))
                tasks.append(asyncio.ensure_future(answer(await stack.enter_async_context(connect(url)))))
        for _ in range(8):
            await asyncio.sleep(0.5)
            for item in (await asyncio.to_thread(backend.stats))["connection_details"]:
                if item["total_pongs_received"]:
                    samples[item["user_id"][:-1]].append(item["last_latency_ms"])
        for task in tasks:
            task.cancel()
        far, near = (sum(statistics.median(waits) for waits in through.waits) * 1000 for through in (relay, direct))
    return abs((statistics.median(samples["far"]) - far) - (statistics.median(samples["near"]) - near))


@benchmark(
    "W5",
    what="measured latency against injected 5, 50, 200 ms +- 20 %: worst error in units of 1 ms + 5 %",
    unit="x",
    goal="ours <= 1",
    runs=1,
)
@contextlib.contextmanager
def latency() -> t.Iterator[Pair]:
    with ours_backend(WEBSOCKET_HEARTBEAT_INTERVAL=0.5, WEBSOCKET_CONNECTION_TIMEOUT=5) as backend:
        yield (
            lambda: max(asyncio.run(latency_error(backend, delay)) / (1 + 0.05 * delay) for delay in (5, 50, 200)),
            None,
        )


def drain(server: t.Callable[..., t.ContextManager[SocketBackend]], clients: int) -> t.Tuple[float, int, float]:
    """Seconds to the exit, clients that got 1012 or 1001, and the peak of reconnects within 100 ms if each does as it
    is told.
    """
    with server() as backend, Crowd() as crowd:
        crowd.open(backend.port, clients)
        seconds = backend.stop(signal.SIGTERM, 30)
        ended = crowd.closed(clients)
    times = [at + (after or 0) / 1000 for at, _, after in ended]
    windows: t.Dict[int, int] = {}
    for at in times:
        windows[int(at * 10)] = windows.get(int(at * 10), 0) + 1
    return seconds, sum(1 for _, code, _ in ended if code in (1001, 1012)), max(windows.values())


@benchmark(
    "W7",
    what=f"SIGTERM with {MANY:,} clients, all told and gone within 10 s: peak of reconnects in 100 ms",
    unit="clients",
    goal="ratio <= 0.1",
    peer="naive manager",
    runs=1,
)
@contextlib.contextmanager
def reconnect_peak() -> t.Iterator[Pair]:
    def ours() -> float:
        seconds, told, peak = drain(ours_backend, MANY)
        if told != MANY or seconds > 10:
            raise AssertionError(f"{told} of {MANY} got 1012; it took {seconds:.1f} s")
        return peak

    yield ours, lambda: drain(naive_backend, MANY)[2]


@benchmark(
    "W8", what="long poll, p95 of the delivery of 200 messages", unit="ms", goal="ours <= 150", peer="WebSocket", runs=3
)
@contextlib.contextmanager
def poll_latency() -> t.Iterator[Pair]:
    with ours_backend() as backend:

        def produce(user: str, wait: t.Callable[[], bool]) -> None:
            wait_until(wait)
            for number in range(200):
                backend.send(user, number=number)

        def polled() -> float:
            late: t.List[float] = []
            session, last_seq = "", 0
            producer = threading.Thread(target=produce, args=("pat", lambda: bool(session)))
            producer.start()
            while len(late) < 200:
                query = f"user_id=pat&token=token-of-pat&session={session}&last_seq={last_seq}"
                page = backend.request("GET", f"/api/v1/pam/poll?{query}")[1]
                now = time.time()
                late += [(now - message["at"]) * 1000 for message in page["messages"] if message["type"] == "note"]
                last_seq = page["messages"][-1]["_seq"] if page["messages"] else last_seq
                session = page["session"]
            producer.join()
            return quantile(late, 0.95)

        def socketed() -> float:
            late: t.List[float] = []
            with connect_now(backend.url("wes")) as websocket:
                websocket.recv()
                producer = threading.Thread(target=produce, args=("wes", lambda: True))
                producer.start()
                while len(late) < 200:
                    message = json.loads(websocket.recv())
                    if message["type"] == "note":
                        late.append((time.time() - message["at"]) * 1000)
                producer.join()
            return quantile(late, 0.95)

        yield polled, socketed


def memory_per_connection(server: t.Callable[..., t.ContextManager[SocketBackend]], clients: int) -> float:
    with server() as backend, Crowd() as warm, Crowd() as crowd:
        warm.open(backend.port, 20, path="/api/v1/pam/ws/warm{n}?token=token-of-warm{n}")

        def rss() -> float:
            return (
                int(Path(f"/proc/{backend.process.pid}/statm").read_text().split()[1])
                * os.sysconf("SC_PAGE_SIZE")
                / 1024
            )

        before = rss()
        crowd.open(backend.port, clients)
        return (rss() - before) / clients


@benchmark(
    "W9",
    what="memory of an idle connection under uvicorn, 1,000 of them (RSS)",
    unit="kB",
    goal="ours <= 45",
    peer="naive manager",
    runs=1,
)
@contextlib.contextmanager
def memory() -> t.Iterator[Pair]:
    yield lambda: memory_per_connection(ours_backend, 1000), lambda: memory_per_connection(naive_backend, 1000)


if __name__ == "__main__":
    sys.exit("run: python -m tests.bench.harness W")
