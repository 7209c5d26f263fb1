# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ours and its peer in turn, in the same run, and judges the ratio of the medians against a goal.

    @benchmark("C3", what="CORS layer, CPU per request", unit="us", goal="ratio <= 0.5", peer="Starlette 0.47.3")
    def cors_cost() -> Pair:
        return ours_callable, peer_callable      # each gives one number in ``unit``

``ratio`` is ours / peer, ``difference`` ours - peer. A goal is ``ratio <= X``, ``ratio >= X``, ``ours <= X``,
``ours >= X`` or ``difference <= X``, several joined by ``and``. A benchmark without a peer (a bound set by the incident report) gives None for it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import re
import statistics
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests import supervise

REPOSITORY = Path(__file__).resolve().parents[2]
Measure = t.Callable[[], float]
Pair = t.Tuple[Measure, t.Optional[Measure]]


class Unavailable(RuntimeError):
    """The peer or a tool is not to be had on this machine; the message names it."""


@dataclass(frozen=True)
class Benchmark:
    id: str
    what: str
    unit: str
    goal: str
    peer_name: str
    runs: int
    make: t.Callable[[], t.ContextManager[Pair]]


REGISTRY: t.Dict[str, Benchmark] = {}


def benchmark(
    id: str,  # noqa: A002 - the field's name in build/bench.json
    *,
    what: str,
    unit: str,
    goal: str,
    peer: str = "",
    runs: int = 5,
) -> t.Callable[[t.Callable[[], t.ContextManager[Pair]]], t.Callable[[], t.ContextManager[Pair]]]:
    """Registers a context manager that sets up, yields ``(ours, peer)`` and cleans up. Ids sort as they are listed."""

    def register(make: t.Callable[[], t.ContextManager[Pair]]) -> t.Callable[[], t.ContextManager[Pair]]:
        if id in REGISTRY:
            raise ValueError(f"two benchmarks are called {id}")
        judge(goal, 1.0, 1.0, 1.0)  # a goal that cannot be read fails here, not after the run
        REGISTRY[id] = Benchmark(id, what, unit, goal, peer, runs, make)
        return make

    return register


def judge(goal: str, ours: float, ratio: t.Optional[float], peer: t.Optional[float] = None) -> bool:
    """Whether the measured values meet a goal such as ``ratio <= 0.5 and ours <= 10``."""
    met = True
    for part in goal.split(" and "):
        found = re.fullmatch(r"(ours|ratio|difference) (<=|>=|==) ([0-9.eE+-]+)", part.strip())
        if not found:
            raise ValueError(f"cannot read the goal {part!r}")
        difference = None if peer is None else ours - peer
        value = {"ours": ours, "ratio": ratio, "difference": difference}[found[1]]
        if value is None:
            raise ValueError(f"{part!r} needs a peer")
        limit = float(found[3])
        met = met and {"<=": value <= limit, ">=": value >= limit, "==": value == limit}[found[2]]
    return met


def run(entry: Benchmark) -> t.Dict[str, t.Any]:
    """One benchmark's record for ``build/bench.json``; ours and the peer take turns."""
    with entry.make() as (ours, peer):
        mine: t.List[float] = []
        other: t.List[float] = []
        for _ in range(entry.runs):
            mine.append(float(ours()))
            if peer:
                other.append(float(peer()))
    ours_median = statistics.median(mine)
    peer_median = statistics.median(other) if other else None
    ratio = None
    if peer_median is not None:
        ratio = ours_median / peer_median if peer_median else math.inf
    return {
        "id": entry.id,
        "what": entry.what,
        "ours": ours_median,
        "peer": peer_median,
        "peer_name": entry.peer_name,
        "unit": entry.unit,
        "ratio": None if ratio is None or math.isinf(ratio) else ratio,
        "goal": entry.goal,
        "met": judge(entry.goal, ours_median, ratio, peer_median),
        "runs": {"ours": mine, "peer": other},
    }


def machine() -> str:
    """The machine in one sentence."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.M))
    release = platform.freedesktop_os_release() if sys.version_info >= (3, 10) else {}
    return (
        f"{cores} cores ({cpu[1].strip() if cpu else platform.machine()}),"
        f" {int(memory[1]) / 1048576 if memory else 0:.0f} GiB, {release.get('PRETTY_NAME', platform.system())}, Linux"
        f" {platform.release()}, Python {platform.python_version()}"
    )


def natural(identifier: str) -> t.Tuple[str, int, str]:
    """Sorts W2 before W10."""
    found = re.fullmatch(r"([A-Za-z]+)(\d*)(.*)", identifier)
    return (found[1], int(found[2] or 0), found[3]) if found else (identifier, 0, "")


def number(value: t.Optional[float]) -> str:
    """A number with three significant digits, for a table."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(records: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """``build/bench.json`` and, from it, ``docs/benchmarks.md``; what is known of other ids is kept.

    A clone without ``build`` knows them from the lines of ``docs/benchmarks.md`` alone.
    """
    target = REPOSITORY / "build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    kept = {record["id"]: record for record in json.loads(target.read_text())} if target.exists() else {}
    kept.update({record["id"]: record for record in records})
    ordered = [kept[name] for name in sorted(kept, key=natural)]
    target.write_text(json.dumps(ordered, indent=1) + "\n")
    lines = [
        "# Benchmarks",
        "",
        (
            "Written by `make bench`. Ours and the peer take turns in the same run; the median is shown. `ratio` is"
            " ours / peer."
        ),
        "",
        f"Machine: {machine()}.",
        "",
        "| id | what | ours | peer | unit | ratio | goal | met | runs |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | --- | ---: |",
    ]
    docs = REPOSITORY / "docs" / "benchmarks.md"
    rows = {
        found[1]: found[0]
        for found in re.finditer(r"^\| ([A-Za-z]+\d\w*) \| .*$", docs.read_text() if docs.exists() else "", re.M)
    }
    for record in ordered:
        peer = number(record["peer"]) + (f" ({record['peer_name']})" if record.get("peer_name") else "")
        rows[record["id"]] = (
            f"| {record['id']} | {record['what']} | {number(record['ours'])} | {peer} | {record['unit']} |"
            f" {number(record['ratio'])} | {record['goal']} | {'yes' if record['met'] else '**no**'} |"
            f" {len(record['runs']['ours'])} |"
        )
    lines += [rows[name] for name in sorted(rows, key=natural)]
    docs.parent.mkdir(exist_ok=True)
    docs.write_text("\n".join(lines) + "\n")


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    supervise.interrupt_on_terminate()
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="ids or families: W C R3")
    chosen = parser.parse_args(words).only
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        importlib.import_module(f"tests.bench.{path.stem}")
    # This file runs as __main__, the benchmarks register with tests.bench.harness: the same registry only by name.
    registry = importlib.import_module("tests.bench.harness").REGISTRY
    names = [
        name
        for name in sorted(registry, key=natural)
        if not chosen or any(name == word or natural(name)[0] == word for word in chosen)
    ]
    if not names:
        print(
            f"No benchmark is called {' '.join(chosen)}. There are: {' '.join(sorted(registry, key=natural))}",
            file=sys.stderr,
        )
        return 2
    records, missed = [], []
    for name in names:
        entry = registry[name]
        print(f"{name}: {entry.what} ... ", end="", flush=True)
        started = time.monotonic()
        try:
            record = run(entry)
        except Unavailable as error:
            print(f"NOT RUN: {error}")
            missed.append(f"{name} (not run: {error})")
            continue
        records.append(record)
        verdict = f"{'met' if record['met'] else 'MISSED'} ({time.monotonic() - started:.0f} s)"
        print(f"{number(record['ours'])} {entry.unit}, peer {number(record['peer'])}, goal {entry.goal}: {verdict}")
        if not record["met"]:
            missed.append(name)
        write(records)
    print(
        f"{len(records)} benchmarks, {len(missed)} not met or not run{': ' + ', '.join(missed) if missed else ''}. See"
        " docs/benchmarks.md."
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
