# SPDX-License-Identifier: GPL-3.0-or-later
"""Speech: time to the first audio when Edge is dead, start, cache.

"Edge" is the fake edge endpoint, which speaks the service's protocol.
"""

from __future__ import annotations

import contextlib
import shutil
import typing as t

from tests.bench.harness import Pair, Unavailable, benchmark
from tests.support import tts_backend
from tests.support.fake_edge_tts import FAULTS

#: Seconds after which the peer is cut off in each fault: a lower bound. edge-tts itself gives up after 10, 60 or no
#: seconds at all.
CUT_OFF = 4.0
LOCAL = {"TTS_PRIMARY_ENGINE": "fallback"}


@contextlib.contextmanager
def parts() -> t.Iterator[t.Tuple[tts_backend.Tree, tts_backend.FakeEdge]]:
    missing = [name for name in ("espeak-ng", "lame", "openssl") if not shutil.which(name)]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")
    with tts_backend.fake_edge() as edge, tts_backend.tree() as tree:
        yield tree, edge


@benchmark(
    "T1",
    what="time to first audio, Edge dead in 12 ways, breaker closed, p99",
    unit="ms",
    goal="ours <= 600 and ratio <= 0.15",
    runs=2,
    peer="edge-tts 7.3 alone, cut off at 4 s where no audio came",
)
@contextlib.contextmanager
def dead_edge() -> t.Iterator[Pair]:
    with parts() as (tree, edge):
        yield (
            lambda: float(tree.run("first_audio", modes=FAULTS, each=4, env=edge.env)["p99"]),
            lambda: float(tree.run("naive_first_audio", modes=FAULTS, cut_off=CUT_OFF, env=edge.env)["p99"]),
        )


@benchmark(
    "T2",
    what="time to first audio, breaker open, p99",
    unit="ms",
    goal="ours <= 25",
    runs=3,
    peer="espeak-ng started by hand, p99",
)
@contextlib.contextmanager
def open_breaker() -> t.Iterator[Pair]:
    with parts() as (tree, edge):
        yield (
            lambda: float(
                tree.run("first_audio", modes=["unavailable"], each=100, keep_open=True, env=edge.env)["p99"]
            ),
            lambda: float(tree.run("cache_hit", times=1, by_hand=100, env=LOCAL)["espeak_p99"]),
        )


@benchmark(
    "T3",
    what="longest wait in 1,000 requests while Edge fails at random (all get audio or text)",
    unit="ms",
    goal="ours <= 3000",
    runs=1,
)
@contextlib.contextmanager
def storm() -> t.Iterator[Pair]:
    def run() -> float:
        found = tree.run(
            "storm",
            requests=1000,
            seed=11,
            modes=[*["ok"] * 10, "slow_ok", *FAULTS, "stall", "drip"],
            timeout=240,
            env=edge.env,
        )
        if set(found["kinds"]) - {"audio", "text", "abandoned", "abandoned too late"}:
            raise AssertionError(f"requests without an answer: {found['kinds']}")
        return 1000 * float(found["slowest"])

    with parts() as (tree, edge):
        yield run, None


@benchmark("T5", what="recovery of Edge seen in the background after it is back", unit="s", goal="ours <= 20", runs=1)
@contextlib.contextmanager
def recovery() -> t.Iterator[Pair]:
    with parts() as (tree, edge):
        yield lambda: float(tree.run("recovery", env=edge.patient)["seconds"]), None


@benchmark(
    "T6",
    what="speech that was spoken before, p50",
    unit="ms",
    goal="ours <= 0.2",
    runs=3,
    peer="espeak-ng started for the same words, p50",
)
@contextlib.contextmanager
def cached() -> t.Iterator[Pair]:
    with parts() as (tree, _):
        yield (
            lambda: float(tree.run("cache_hit", times=500, env=LOCAL)["p50"]),
            lambda: float(tree.run("cache_hit", times=1, env=LOCAL)["espeak"]),
        )


@benchmark(
    "T8",
    what="start of the service while Edge is a black hole",
    unit="ms",
    goal="ours <= 50 and ratio <= 0.05",
    runs=3,
    peer="a start that waits for edge-tts, cut off at 4 s",
)
@contextlib.contextmanager
def start() -> t.Iterator[Pair]:
    def mine() -> float:
        edge.mode("black_hole")
        return 1000 * float(tree.run("start_time", env=edge.env)["seconds"])

    def theirs() -> float:
        edge.mode("black_hole")
        return 1000 * float(tree.run("naive_start", cut_off=CUT_OFF, env=edge.env)["seconds"])

    with parts() as (tree, edge):
        yield mine, theirs
