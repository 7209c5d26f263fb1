# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a patched release, prints what its callers find as one line of JSON: signatures, attributes, keys of
results.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import sys
import typing as t
from datetime import datetime, timezone


def shape(value: t.Any) -> t.Any:
    """The keys of a result, all the way down; a list is the shape of its first element."""
    if isinstance(value, dict):
        return {str(key): shape(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(value[0])] if value else []
    return type(value).__name__


def surface(owner: t.Any) -> t.Dict[str, str]:
    """Every name but Python's own, with its signature."""
    return {name: signature(owner, name) for name in dir(owner) if not name.startswith("__")}


def signature(owner: t.Any, name: str) -> str:
    """``async (hours=1)``: what a caller may write, without annotations; ``property`` and plain values
    by their type.
    """
    found = inspect.getattr_static(owner, name)
    if isinstance(found, property):
        return "property"
    call = getattr(owner, name)
    if not callable(call):
        return type(call).__name__
    words = [one.replace(annotation=inspect.Parameter.empty) for one in inspect.signature(call).parameters.values()]
    plain = str(inspect.Signature(words)).replace("self, ", "").replace("(self)", "()")
    return ("async " if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call) else "") + plain


async def monitoring() -> t.Dict[str, t.Any]:
    from app.core import performance_monitor as performance
    from app.monitoring import memory_optimizer as memory

    optimizer, monitor = memory.MemoryOptimizer(), performance.PerformanceMonitor()
    await optimizer.start()
    await optimizer.start()
    await monitor.start()
    await monitor.start()
    running = [optimizer.is_running, monitor.is_running]
    stats, status, report = (
        await optimizer.get_memory_stats(),
        await monitor.get_current_status(),
        await monitor.get_performance_report(hours=6),
    )
    for call in (
        optimizer._optimize_memory,
        optimizer._routine_cleanup,
        optimizer._standard_cleanup,
        optimizer._aggressive_cleanup,
    ):
        await call()
    await optimizer._cleanup_disk_space()
    await optimizer.stop()
    await optimizer.stop()
    await monitor.stop()
    await monitor.stop()
    metric = performance.PerformanceMetric("cpu_percent", 72.5, 70.0, 85.0, datetime.now(timezone.utc), "%")
    alert = performance.PerformanceAlert(
        "cpu_percent", performance.AlertLevel.WARNING, "busy", datetime.now(timezone.utc)
    )
    return {
        "running": [*running, optimizer.is_running, monitor.is_running],
        "same": [
            await memory.get_memory_optimizer() is memory.memory_optimizer,
            await performance.get_performance_monitor() is performance.performance_monitor,
        ],
        "optimizer": surface(optimizer),
        "optimizer_values": {
            name: getattr(optimizer, name)
            for name in (
                "optimization_interval",
                "last_emergency_cleanup",
                *(f"memory_{tier}_threshold" for tier in ("warning", "critical", "emergency")),
            )
        },
        "monitor": surface(monitor),
        "retention_hours": monitor.history_retention.total_seconds() / 3600,
        "thresholds": {name: sorted(value) for name, value in monitor.thresholds.items()},
        "levels": {level.name: level.value for level in performance.AlertLevel},
        "metric": [one.name for one in dataclasses.fields(performance.PerformanceMetric)],
        "metric_level": metric.alert_level.value,
        "alert": {
            one.name: getattr(alert, one.name)
            for one in dataclasses.fields(alert)
            if one.name in ("auto_remediation_attempted", "remediation_result")
        },
        "stats": shape(stats),
        "status": shape(status),
        "report": shape(report),
        "history": {name: type(values[0]).__name__ for name, values in monitor.metrics_history.items() if values},
    }


async def speech() -> t.Dict[str, t.Any]:
    from app.services.tts import fallback_tts, tts_service
    from app.services.tts.base_tts import TTSRequest, VoiceProfile

    service, fallback, system = tts_service.TTSService(), fallback_tts.FallbackTTSService(), fallback_tts.SystemTTS()
    before = await service.get_service_status()
    never = await service.synthesize_for_pam("too early")
    started = [await service.initialize(), await fallback.initialize(), await system.initialize()]
    engines = [list(fallback.available_engines), (await fallback.initialize(), list(fallback.available_engines))[1]]
    whole = await service.synthesize_for_pam(
        text="Hello", user_id="anna", context="general_conversation", voice_preference=None, stream=False
    )
    chunks = [chunk async for chunk in await streamed(service)]
    voices = await service.get_available_voices("anna")
    request = TTSRequest("Hello", VoiceProfile("v", "n", "female", "adult", "US"))
    made = await system.synthesize(request)
    found = {
        "before": before,
        "never": never,
        "started": started,
        "engines": engines,
        "service": surface(service),
        "fallback": surface(fallback),
        "system": surface(system),
        "globals": [type(tts_service.tts_service).__name__, type(fallback_tts.fallback_tts_service).__name__],
        "whole": {
            name: hasattr(whole, name)
            for name in (
                "success",
                "error",
                "audio_data",
                "duration_ms",
                "generation_time_ms",
                "cache_hit",
                "engine_used",
            )
        },
        "whole_engine": whole.engine_used.value,
        "whole_audio": bool(whole.audio_data),
        "chunks": [
            len(chunks) > 0,
            all(hasattr(chunk, "data") and hasattr(chunk, "is_final") for chunk in chunks),
            chunks[-1].is_final,
        ],
        "voices": shape(voices),
        "preference": [
            await service.set_user_voice_preference("anna", voices[0], context=None, is_default=True),
            await service.rate_voice("anna", voices[0], 5.0, feedback="clear"),
        ],
        "status": shape(await service.get_service_status()),
        "analytics": type(await service.get_user_analytics("anna")).__name__,
        "cleared": shape(await service.clear_cache(older_than_hours=1)),
        "spoken": shape(await fallback.synthesize_speech("Hello", user_id="anna")),
        "system_made": [made.success, bool(made.audio_data)],
        "system_facts": [system.is_available(), system.supports_streaming(), system.get_max_text_length()],
        "system_formats": [one.value for one in system.get_supported_formats()],
        "system_health": shape(await system.health_check()),
    }
    await service.shutdown()
    await fallback.shutdown()
    return found


async def streamed(service: t.Any) -> t.Any:
    """Callers await the call, and read from what it gives."""
    return await service.synthesize_for_pam("Hello again", stream=True)


def router() -> t.Dict[str, t.Any]:
    from app.api.v1 import system_health

    return {
        "prefix": system_health.router.prefix,
        "tags": system_health.router.tags,
        "routes": sorted(f"{method} {route.path}" for route in system_health.router.routes for method in route.methods),
    }


if __name__ == "__main__":
    wanted: t.Dict[str, t.Callable[[], t.Any]] = {"monitoring": monitoring, "speech": speech, "router": router}
    answer = wanted[sys.argv[1]]()
    sys.stdout.write(
        "\n" + json.dumps(asyncio.run(answer) if inspect.iscoroutine(answer) else answer, default=str) + "\n"
    )
