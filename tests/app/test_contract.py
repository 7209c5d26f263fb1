# SPDX-License-Identifier: GPL-3.0-or-later
"""What the callers of monitoring, health API and speech rely on, name by name, with our files in each of the three
releases.
"""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.backend.materialise import RELEASES, materialise
from tests.support.backend_env import BACKEND_PYTHON, PATCHES, environment, overlay

PROGRAM = Path(__file__).with_name("contract_program.py")
OPTIMIZER = {
    "start": "async ()",
    "stop": "async ()",
    "get_memory_stats": "async ()",
    "_optimize_memory": "async ()",
    "_routine_cleanup": "async ()",
    "_standard_cleanup": "async ()",
    "_aggressive_cleanup": "async ()",
    "_emergency_cleanup": "async ()",
    "_cleanup_disk_space": "async ()",
    "_clear_all_caches": "async ()",
    "_clear_module_caches": "async ()",
    "_configure_gc": "()",
    "_optimization_loop": "async ()",
    "is_running": "bool",
    "optimization_count": "int",
}
STATS = {
    "system": (
        "total_mb available_mb used_mb percent swap_total_mb swap_used_mb swap_percent cpu_percent disk_total_gb"
        " disk_used_gb disk_percent"
    ),
    "process": "rss_mb vms_mb percent num_threads cpu_percent num_fds",
    "garbage_collection": "collections counts thresholds",
    "network": "bytes_sent bytes_recv packets_sent packets_recv",
    "optimization": (
        "service_running warning_threshold critical_threshold emergency_threshold optimization_interval"
        " optimization_count last_emergency_cleanup"
    ),
}
MONITOR = {
    "start": "async ()",
    "stop": "async ()",
    "get_current_status": "async ()",
    "get_performance_report": "async (hours=1)",
    "is_running": "bool",
    "active_alerts": "dict",
    "metrics_history": "property",
}
METRICS = {"memory_percent", "cpu_percent", "disk_percent", "process_memory_mb"}
SPEECH = {
    "initialize": "async ()",
    "shutdown": "async ()",
    "get_service_status": "async ()",
    "is_initialized": "bool",
    "streaming_service": "property",
    "synthesize_for_pam": (
        "async (text, user_id=None, context='general_conversation', voice_preference=None, stream=False)"
    ),
    "get_available_voices": "async (user_id=None)",
    "get_user_analytics": "async (user_id)",
    "clear_cache": "async (older_than_hours=None)",
    "set_user_voice_preference": "async (user_id, voice_data, context=None, is_default=False)",
    "rate_voice": "async (user_id, voice_data, rating, feedback=None)",
}
FALLBACK = {
    "initialize": "async ()",
    "shutdown": "async ()",
    "synthesize_speech": "async (text, user_id=None)",
    "available_engines": "list",
}
SYSTEM = {
    "initialize": "async ()",
    "synthesize": "async (request)",
    "synthesize_stream": "async (request)",
    "get_available_voices": "async ()",
    "health_check": "async ()",
    "is_available": "()",
    "supports_streaming": "()",
    "get_supported_formats": "()",
    "get_max_text_length": "()",
    "fallback_service": "FallbackTTSService",
    "engine_type": "TTSEngine",
}
ROUTES = {
    "GET /system/health",
    "GET /system/performance/report",
    "POST /system/memory/optimize",
    "POST /system/cache/clear",
    "GET /system/monitoring/status",
    "POST /system/monitoring/start",
    "POST /system/monitoring/stop",
    "GET /system/recovery/history",
    "POST /system/recovery/trigger",
    "GET /system/logs/health",
    "GET /system/admin/debug",
}


@pytest.fixture(scope="module", params=sorted(RELEASES))
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> t.Callable[[str], t.Dict[str, t.Any]]:
    """Asks a patched release for one part, with neither a database nor Redis."""
    directory = tmp_path_factory.mktemp(str(request.param))
    materialise(str(request.param), directory)
    overlay(directory, [path.name for path in PATCHES.iterdir() if path.name != "__pycache__"])
    variables = {"PYTHONPATH": str(directory), "WHEELS_OPS_STATE_DIR": str(directory / "state")}
    variables = {
        **environment(directory, database_url="postgresql://localhost/none", redis_url=None, port=0),
        **variables,
    }

    def ask(part: str) -> t.Dict[str, t.Any]:
        done = subprocess.run(
            [str(BACKEND_PYTHON), str(PROGRAM), part],
            cwd=directory,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return t.cast(t.Dict[str, t.Any], json.loads(done.stdout.splitlines()[-1]))

    return ask


def missing(promised: t.Mapping[str, str], there: t.Mapping[str, str]) -> t.Dict[str, t.Any]:
    return {name: (form, there.get(name)) for name, form in promised.items() if there.get(name) != form}


def test_monitoring(found: t.Callable[[str], t.Dict[str, t.Any]]) -> None:
    facts = found("monitoring")
    assert facts["running"] == [True, True, False, False], "start and stop may be called twice"
    assert facts["same"] == [True, True], "what FastAPI's Depends gets is the module's own"
    assert missing(OPTIMIZER, facts["optimizer"]) == {} and missing(MONITOR, facts["monitor"]) == {}
    assert {"_optimization_task"} <= set(facts["optimizer"]) and {
        "monitoring_task",
        "check_interval",
        "thresholds",
    } <= set(facts["monitor"])
    assert facts["optimizer_values"] == {
        "optimization_interval": 180,
        "memory_warning_threshold": 65.0,
        "memory_critical_threshold": 75.0,
        "memory_emergency_threshold": 85.0,
        "last_emergency_cleanup": 0,
    }
    for section, keys in STATS.items():
        assert set(keys.split()) <= set(facts["stats"][section]), section
    assert facts["stats"]["timestamp"] == "str" and facts["stats"]["garbage_collection"]["collections"] == ["int"]
    assert facts["retention_hours"] == 24
    assert METRICS | {"response_time_ms", "active_connections"} <= set(facts["thresholds"])
    assert all(keys == ["critical", "warning"] for keys in facts["thresholds"].values())
    assert facts["levels"] == {"INFO": "info", "WARNING": "warning", "CRITICAL": "critical", "EMERGENCY": "emergency"}
    assert (
        facts["metric"] == ["name", "value", "threshold_warning", "threshold_critical", "timestamp", "unit"]
        and facts["metric_level"] == "warning"
    )
    assert facts["alert"] == {"auto_remediation_attempted": False, "remediation_result": None}
    status, report = facts["status"], facts["report"]
    assert {"monitoring_active", "current_metrics", "active_alerts", "metrics_history_size"} <= set(status)
    assert set(status["current_metrics"]) >= METRICS and set(facts["history"].values()) == {"PerformanceMetric"}
    assert all(
        set(entry) == {"value", "unit", "alert_level", "timestamp"} for entry in status["current_metrics"].values()
    )
    assert {"report_period_hours", "generated_at", "metrics_summary", "alert_summary", "recommendations"} <= set(report)
    assert set(report["metrics_summary"]) >= METRICS
    assert all(
        {"min", "max", "avg", "current", "unit", "data_points"} <= set(entry)
        for entry in report["metrics_summary"].values()
    )
    assert {"warning": "int", "critical": "int"}.items() <= report["alert_summary"].items() and report[
        "recommendations"
    ] == ["str"]


def test_health_routes(found: t.Callable[[str], t.Dict[str, t.Any]]) -> None:
    facts = found("router")
    assert (facts["prefix"], facts["tags"]) == ("/system", ["System Health"])
    assert set(facts["routes"]) >= ROUTES


def test_speech(found: t.Callable[[str], t.Dict[str, t.Any]]) -> None:
    facts = found("speech")
    assert facts["started"] == [True, True, True]
    assert (
        facts["before"]["status"] == "not_initialized"
        and facts["before"]["initialized"] is False
        and facts["before"]["engines"] == {}
    )
    assert facts["never"] is None, "before it is initialized it says nothing"
    assert (
        missing(SPEECH, facts["service"]) == {}
        and missing(FALLBACK, facts["fallback"]) == {}
        and missing(SYSTEM, facts["system"]) == {}
    )
    assert facts["globals"] == ["TTSService", "FallbackTTSService"]
    assert facts["engines"][0] == facts["engines"][1], "a second initialize finds no engine twice"
    assert facts["engines"][0][-1] == "text_only"
    assert all(facts["whole"].values()) and facts["whole_audio"] is (facts["whole_engine"] != "text_only")
    assert facts["chunks"] == [True, True, True]
    assert set(facts["voices"][0]) == {"voice_id", "name", "gender", "age", "accent", "language", "engine", "settings"}
    assert set(facts["voices"][0]["settings"]) == {"stability", "similarity_boost", "speed", "pitch", "volume", "style"}
    assert facts["preference"] == [True, True] and facts["analytics"] == "dict"
    assert {
        "status",
        "initialized",
        "is_initialized",
        "engines",
        "service_status",
        "cache",
        "performance",
        "quality",
    } <= set(facts["status"])
    assert {"overall_status", "engines", "healthy_engines", "total_engines"} <= set(facts["status"]["engines"])
    assert {"total_requests", "success_rate_percent", "avg_generation_time_ms", "engine_usage"} <= set(
        facts["status"]["performance"]
    )
    assert {"success", "cleared_entries", "older_than_hours"} == set(facts["cleared"])
    assert {"audio_data", "format", "duration", "engine", "success"} <= set(facts["spoken"])
    audible = facts["engines"][0] != ["text_only"]
    assert facts["system_made"] == [True, True] if audible else not facts["system_made"][1]
    assert facts["system_facts"] == [audible, True, 5000] and facts["system_formats"] == ["wav"]
    assert {"status", "engine_available", "available_engines", "available_voices", "supports_streaming"} == set(
        facts["system_health"]
    )
