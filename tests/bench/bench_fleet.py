# SPDX-License-Identifier: GPL-3.0-or-later
"""L4 to L6: what the users of two hosts behind HAProxy notice of a whole deployment and a whole rollback."""

from __future__ import annotations

import contextlib
import typing as t

from tests.bench.fleet_lab import measured
from tests.bench.harness import Pair, benchmark

ROLL = ("deploy", "rollback")


@benchmark(
    "L4",
    what="requests that fail during `deploy` and `rollback` of two hosts behind HAProxy",
    unit="requests",
    goal="ours == 0",
    peer="`systemctl restart`, host by host",
    runs=1,
)
@contextlib.contextmanager
def failed_requests() -> t.Iterator[Pair]:
    yield lambda: sum(measured().failed(name) for name in ROLL), lambda: measured().failed("restart")


@benchmark(
    "L4b",
    what="the same",
    unit="requests",
    goal="ours == 0",
    peer="stop, copy, start, host by host",
    runs=1,
)
@contextlib.contextmanager
def failed_requests_beside_the_usual_role() -> t.Iterator[Pair]:
    yield lambda: sum(measured().failed(name) for name in ROLL), lambda: measured().failed("usual")


@benchmark(
    "L5",
    what="Celery tasks lost or doubled, and WebSocket messages lost, meanwhile",
    unit="tasks and messages",
    goal="ours == 0",
    peer="stop, copy, start, host by host",
    runs=1,
)
@contextlib.contextmanager
def lost_work() -> t.Iterator[Pair]:
    yield lambda: sum(measured().lost(name) for name in ROLL), lambda: measured().lost("usual")


@benchmark(
    "L6",
    what="response time meanwhile, p99",
    unit="ms",
    goal="ratio <= 2",
    peer="the same fleet before",
    runs=1,
)
@contextlib.contextmanager
def response_time() -> t.Iterator[Pair]:
    yield lambda: max(measured().p99(name) for name in ROLL), lambda: measured().p99("before")
