# SPDX-License-Identifier: GPL-3.0-or-later
"""Stalls of the event loop: seen, measured, and blamed on the code that blocks."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import types
import typing as t
import weakref

import pytest

Modules = t.Callable[[str], types.ModuleType]


@pytest.fixture
def lag(app_modules: Modules) -> t.Iterator[t.Any]:
    module = app_modules("core.performance_monitor")
    found = module.LoopLag()
    yield found
    found.stop()


def block(seconds: float) -> None:
    time.sleep(seconds)


async def turned(lag: t.Any, stalls: int) -> None:
    """Until the loop has answered to the look at its last stall."""
    async with asyncio.timeout(20):
        while len(lag._recent) < stalls:
            await asyncio.sleep(0.01)


async def test_each_stall_is_seen_with_its_length_and_the_frame_that_blocks(lag: t.Any) -> None:
    """The incident's own: 1.05 s in a coroutine, which a timer every two seconds did not notice."""
    lag.start()
    for number in range(3):
        await asyncio.sleep(0.25)
        block(1.05)
        await turned(lag, number + 1)
    lengths = [late for _at, late, _place in lag._recent]
    assert min(lengths) > 0.95, lengths
    ((place, seconds),) = lag.by_place()
    assert place.startswith("tests/app/core/test_performance_monitor_loop.py:") and place.endswith(" in block")
    assert seconds == pytest.approx(sum(lengths))
    assert lag.stalls[place].count == 3
    assert lag.worst(60) == max(lengths) and lag.take() == max(lengths)
    assert lag.blocked_percent(60) == pytest.approx(100 * sum(lengths) / 60)


async def test_the_application_is_blamed_for_what_it_calls_in_a_library(lag: t.Any) -> None:
    import subprocess

    lag.start()
    await asyncio.sleep(0.25)
    subprocess.run(["sleep", "0.5"], check=True)
    await turned(lag, 1)
    place = lag._recent[0][2]
    assert "in test_the_application_is_blamed_for_what_it_calls_in_a_library (in " in place, place
    assert "subprocess.py:" in place or "selectors.py:" in place, place


async def test_code_that_holds_the_interpreter_is_seen_as_well(lag: t.Any) -> None:
    """No thread runs meanwhile, the one that looks neither."""
    lag.start()
    await asyncio.sleep(0.25)
    sum(range(40_000_000))  # one call in C
    await turned(lag, 1)
    assert lag.worst(60) > 0.2


async def test_a_loop_that_only_waits_is_never_woken(lag: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: t.List[t.Any] = []
    loop = asyncio.get_running_loop()
    lag.start()
    await asyncio.sleep(0.05)
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *arguments: woken.append(arguments))
    sleeps = threading.Event()
    loop.call_later(1.0, sleeps.set)
    await asyncio.sleep(1.1)
    assert len(woken) <= 2, "but for a look that met the timer itself"
    assert not lag._recent


async def test_a_stall_that_goes_on_is_in_the_log_before_it_ends(
    lag: t.Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(type(lag), "STILL", 0.3)
    lag.start()
    await asyncio.sleep(0.25)
    seen = False
    until = time.monotonic() + 20
    while not seen and time.monotonic() < until:
        time.sleep(0.01)  # noqa: ASYNC251 - the stall
        seen = any("has not turned for" in record.getMessage() for record in caplog.records)
    assert seen
    assert any("test_performance_monitor_loop.py" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("name", "value"), [("loop_lag_ms", 260.0), ("loop_blocked_percent", 11.0)])
async def test_warning_names_the_frame(app_modules: Modules, name: str, value: float) -> None:
    from datetime import datetime, timezone

    monitor = app_modules("core.performance_monitor").PerformanceMonitor()
    monitor.loop_lag._recent.append((time.monotonic(), 0.4, "app/main.py:31 in block"))
    for _ in range(3):
        monitor._note(name, value, datetime.now(timezone.utc), time.time())
    alert = monitor.active_alerts[name]
    assert alert.level.value == "warning"
    assert alert.message.endswith("; blocked by app/main.py:31 in block")


async def test_eight_tenths_of_each_second_blocked_is_measured_as_that(lag: t.Any) -> None:
    lag.start()
    await asyncio.sleep(0.25)
    started = time.monotonic()
    for number in range(3):
        block(0.8)
        await turned(lag, number + 1)
        await asyncio.sleep(0.2)
    share = 100 * sum(late for _at, late, _place in lag._recent) / (time.monotonic() - started)
    assert 55 < share < 100


def test_load_of_the_loop_is_load_for_background_work(app_modules: Modules) -> None:
    load = app_modules("wheels_ops.load")
    assert 250 in load.LAG_RAISE and load.BLOCKED_RAISE[0] == 10, "throttled where the monitor warns"
    blocked = load.Load()
    assert [blocked.observe(5.0, None, None, share) for share in (0.0, 9.0, 12.0, 80.0)] == [0, 0, 1, 3]
    assert blocked.reason == "event loop blocked 80 % of the time"


async def test_what_a_stall_held_is_let_go_when_it_ends(lag: t.Any) -> None:
    """A frame that is kept keeps everything in its variables: megabytes of a request, until the next look."""

    class Payload:
        """Something large."""

    def hold(seconds: float) -> weakref.ref[Payload]:
        payload = Payload()
        time.sleep(seconds)
        return weakref.ref(payload)

    lag.start()
    for number in range(3):
        await asyncio.sleep(0.25)
        reference = hold(0.35)
        assert reference() is None, f"kept after stall {number}"
        await turned(lag, number + 1)
