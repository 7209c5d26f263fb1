# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a patched release: its services used on one event loop after another, as test clients and scripts do;
prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import types
import typing as t


def lives(task: t.Any) -> bool:
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()


def started_here_stopped_there(make: t.Callable[[], t.Any], start: str, stop: str, task: str = "") -> t.List[bool]:
    """What is true after each step; the first loop ends with the service still running."""
    service = make()
    asyncio.run(getattr(service, start)())
    asyncio.run(getattr(service, stop)())
    found = [not getattr(service, "is_running", getattr(service, "is_initialized", None))]
    asyncio.run(getattr(service, start)())

    async def again() -> None:
        await getattr(service, start)()
        await getattr(service, start)()
        if task:
            found.append(lives(getattr(service, task)))
        await getattr(service, stop)()
        await getattr(service, stop)()

    asyncio.run(again())
    return found


def monitoring() -> t.Dict[str, t.Any]:
    from app.core import performance_monitor as performance
    from app.monitoring import memory_optimizer as memory

    return {
        "optimizer": started_here_stopped_there(memory.MemoryOptimizer, "start", "stop", "_optimization_task"),
        "monitor": started_here_stopped_there(performance.PerformanceMonitor, "start", "stop", "monitoring_task"),
    }


def speech() -> t.Dict[str, t.Any]:
    from app.services.tts import tts_service

    found: t.Dict[str, t.Any] = {
        "service": started_here_stopped_there(tts_service.TTSService, "initialize", "shutdown")
    }
    service = tts_service.TTSService()
    asyncio.run(service.initialize())
    answers = [asyncio.run(service.synthesize_for_pam(f"Loop {number}")) for number in (1, 2)]
    found["spoken"] = [answer.success and bool(answer.audio_data) for answer in answers]
    asyncio.run(service.shutdown())
    found["left"] = len(tts_service.ATTEMPTS)
    nothing = asyncio.run(service_answer(tts_service, None))
    found["nothing"] = [nothing.success, nothing.error]
    return found


async def service_answer(module: t.Any, text: t.Any) -> t.Any:
    service = module.TTSService()
    await service.initialize()
    try:
        return await service.synthesize_for_pam(text)
    finally:
        await service.shutdown()


async def shutdown_together_with_an_event(ticks: int) -> bool:
    """Whether the service ends although a probe is woken up some ticks of the event loop before it is cancelled."""
    from app.services.tts import tts_service

    service = tts_service.TTSService()
    await service.initialize()
    while (
        service.breakers["coqui"].state != "open"
        or service._wake["coqui"].is_set()
        or not service._wake["coqui"]._waiters
    ):
        await asyncio.sleep(0.01)
    service._wake["coqui"].set()
    for _ignored in range(ticks):
        await asyncio.sleep(0)
    ending = asyncio.ensure_future(service.shutdown())
    await asyncio.wait({ending}, timeout=10)
    ended = ending.done()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return ended


async def dropped_together_with_an_error() -> bool:
    """An attempt that nobody wants any more at the moment in which its engine fails; whose error is never retrieved is
    said at exit.
    """
    from app.services.tts import tts_service

    gate = asyncio.Event()

    class Failing:
        name = "failing"

        def key(self, _voice: t.Any, _wanted: str) -> str:
            return "one voice"

        async def stream(self, text: str, voice: t.Any, wanted: str) -> t.AsyncIterator[bytes]:
            await gate.wait()
            if gate.is_set():
                raise OSError("gone")
            yield b""

    attempt = tts_service.Attempt(
        t.cast(t.Any, Failing()),
        tts_service.Breaker("failing"),
        "Hello",
        t.cast(t.Any, None),
        "mp3",
        first=60,
        gap=60,
        total=60,
    )
    await asyncio.sleep(0)
    gate.set()
    while not attempt._reader.done():
        await asyncio.sleep(0)
    attempt.drop()
    await asyncio.wait({attempt._judge})
    return attempt._judge.cancelled()


def dropped() -> bool:
    return asyncio.run(dropped_together_with_an_error())


async def cancelled_together_with_an_error(ticks: int) -> bool:
    """A check that is ended some ticks of the event loop after its server is gone; whose error is never retrieved is
    said at exit.
    """
    from app.monitoring.memory_optimizer import within

    gate = asyncio.Event()

    async def failing() -> None:
        await gate.wait()
        raise OSError("gone")

    outer = asyncio.ensure_future(within(failing(), 60))
    for _ignored in range(3):
        await asyncio.sleep(0)
    gate.set()
    for _ignored in range(ticks):
        await asyncio.sleep(0)
    outer.cancel()
    await asyncio.wait({outer})
    return outer.cancelled()


def cancelled() -> t.List[bool]:
    return [asyncio.run(cancelled_together_with_an_error(ticks)) for ticks in range(3)]


def endings() -> t.List[bool]:
    return [asyncio.run(shutdown_together_with_an_event(ticks)) for ticks in range(4)]


def package_without_a_spec() -> t.Dict[str, t.Any]:
    """edge_tts as a bare module, as stubs are put into ``sys.modules``."""
    from app.services.tts import tts_service

    module = types.ModuleType("edge_tts")

    class Communicate:
        def __init__(self, text: str, voice: str, **options: t.Any) -> None:
            self.text = text

        async def stream(self) -> t.AsyncIterator[t.Dict[str, t.Any]]:
            yield {"type": "audio", "data": b"\xff\xf3\x64\xc4" + bytes(2000)}

    vars(module)["Communicate"] = Communicate
    sys.modules["edge_tts"] = module

    async def speak() -> t.Dict[str, t.Any]:
        service = tts_service.TTSService()
        await service.initialize()
        first = await service.get_service_status()
        answer = await service.synthesize_for_pam("Hello")
        await service.shutdown()
        return {"status": first["engines"]["engines"]["edge"]["status"], "engine": answer.engine_used.value}

    return asyncio.run(speak())


def api() -> t.List[t.List[t.Any]]:
    """The router in an application of somebody's own; outside ``with`` the client has an event loop for
    each request.
    """
    from app.api.v1 import system_health
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    app = FastAPI()
    app.include_router(system_health.router, prefix="/api/v1")
    client, headers = TestClient(app), {"X-Ops-Token": os.environ["WHEELS_OPS_TOKEN"]}
    asked = (
        ("POST", "monitoring/start"),
        ("GET", "health"),
        ("GET", "performance/report?hours=6"),
        ("POST", "monitoring/start"),
        ("POST", "monitoring/stop"),
        ("POST", "monitoring/stop"),
        ("POST", "monitoring/start"),
        ("POST", "monitoring/stop"),
    )
    found = []
    for method, path in asked:
        answer = client.request(method, f"/api/v1/system/{path}", headers=headers)
        body = answer.json()
        found.append(
            [path, answer.status_code, body.get("source") or body.get("results", {}).get("performance_monitor")]
        )
    return found


def lifespans() -> t.List[t.List[t.Any]]:
    """The whole installation: three lives one after the other, then one whose event loop ends without a shutdown, and
    another one.
    """
    from app.api.v1 import system_health
    from app.wheels_ops import health_checks
    from app.wheels_ops.wiring import install
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    app, headers = install(FastAPI()), {"X-Ops-Token": os.environ["WHEELS_OPS_TOKEN"]}
    found = []
    for number in range(4):
        if number == 3:
            asyncio.run(system_health.startup())
        with TestClient(app) as client:
            document = client.get("/api/v1/system/health", headers=headers).json()
            running = health_checks._running
            posted = document["checks"].get("tts:engines", [{"status": "untried"}])[0]["status"]
            found.append(
                [
                    client.get("/livez").status_code,
                    posted,
                    running is not None and not any(task.done() for task in running.tasks),
                ]
            )
        found[-1].append(health_checks._running is None)
    return found


if __name__ == "__main__":
    wanted: t.Dict[str, t.Callable[[], t.Any]] = {
        "monitoring": monitoring,
        "speech": speech,
        "endings": endings,
        "dropped": dropped,
        "cancelled": cancelled,
        "lifespans": lifespans,
        "stub": package_without_a_spec,
        "api": api,
    }
    sys.stdout.write("\n" + json.dumps(wanted[sys.argv[1]]()) + "\n")
