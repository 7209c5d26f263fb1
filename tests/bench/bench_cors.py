# SPDX-License-Identifier: GPL-3.0-or-later
"""CORS: conformance, CPU per request and hostile header lists, against Starlette's middleware and the
incident's stack.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import typing as t
from pathlib import Path

from tests.app.core.test_cors_config_vectors import judged, serving, starlette
from tests.bench.harness import Pair, benchmark
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.patched_tree import patched_tree

PROGRAM = Path(__file__).with_name("cors_program.py")
PATHS = ("plain", "allowed", "pattern", "denied", "preflight", "preflight-denied")


@contextlib.contextmanager
def meter(version: str) -> t.Iterator[t.Callable[[str, str], float]]:
    """A process that measures: (layer, case) to microseconds of CPU per request."""
    with tempfile.TemporaryDirectory(prefix="wops-bench-") as directory:
        tree = patched_tree(Path(directory), "core/cors_config.py")
        process = subprocess.Popen(
            [str(BACKEND_PYTHON), str(PROGRAM)],
            env=tree.environment(ahead=[starlette(version)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout

        def measured(layer: str, case: str) -> float:
            assert process.stdin and process.stdout
            process.stdin.write(f"{layer} {case}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        try:
            yield measured
        finally:
            process.stdin.close()
            process.wait(30)


def _failed(layer: str, only: str = "") -> float:
    with (
        tempfile.TemporaryDirectory(prefix="wops-bench-") as directory,
        serving(Path(directory), "0.47.3", layer) as served,
    ):
        return float(sum(any(only in reason for reason in reasons) for reasons in judged(served).values()))


@benchmark(
    "C1",
    what="CORS vectors (given and derived) that fall short",
    unit="vectors",
    goal="ours == 0",
    peer="Starlette 0.47.3",
    runs=1,
)
@contextlib.contextmanager
def conformance() -> t.Iterator[Pair]:
    yield lambda: _failed("ours"), lambda: _failed("starlette")


@benchmark(
    "C1b",
    what="the same, counting only a wrong verdict of the browser",
    unit="vectors",
    goal="ours == 0",
    peer="Starlette 0.47.3",
    runs=1,
)
@contextlib.contextmanager
def verdicts() -> t.Iterator[Pair]:
    yield lambda: _failed("ours", "verdict"), lambda: _failed("starlette", "verdict")


@benchmark(
    "C3",
    what="CORS layer, CPU added: our dearest of six paths, its allowed GET",
    unit="us",
    goal="ours <= 2.5 and ratio <= 0.5",
    peer="Starlette 0.47.3",
)
@contextlib.contextmanager
def cost() -> t.Iterator[Pair]:
    with meter("0.47.3") as measured:
        yield (
            lambda: max(measured("ours", case) for case in PATHS) - measured("none", "allowed"),
            lambda: measured("starlette", "allowed") - measured("none", "allowed"),
        )


@benchmark(
    "C3b",
    what="CORS layer, CPU added to an allowed GET",
    unit="us",
    goal="ratio <= 0.01",
    peer="the incident's stack",
    runs=3,
)
@contextlib.contextmanager
def cost_original() -> t.Iterator[Pair]:
    with meter("0.47.3") as measured:
        yield (
            lambda: measured("ours", "allowed") - measured("none", "allowed"),
            lambda: measured("original", "allowed") - measured("none", "allowed"),
        )


@benchmark(
    "C3c",
    what="CORS layer, CPU added, as C3",
    unit="us",
    goal="ours <= 2.5 and ratio <= 0.5",
    peer="Starlette 1.10.0",
    runs=3,
)
@contextlib.contextmanager
def cost_newest() -> t.Iterator[Pair]:
    with meter("1.10.0") as measured:
        yield (
            lambda: max(measured("ours", case) for case in PATHS) - measured("none", "allowed"),
            lambda: measured("starlette", "allowed") - measured("none", "allowed"),
        )


@benchmark(
    "C5",
    what="a preflight that asks for 3,000 header names (20 kB), CPU",
    unit="us",
    goal="ours <= 50",
    peer="Starlette 0.47.3",
)
@contextlib.contextmanager
def oversize() -> t.Iterator[Pair]:
    with meter("0.47.3") as measured:
        yield lambda: measured("ours", "huge"), lambda: measured("starlette", "huge")
