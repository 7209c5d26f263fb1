# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that the incident report copies by hand, without ``app/wheels_ops``: they work, and say what is left
out."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest

from tests.support.backend_env import PATCHES
from tests.support.patched_tree import Tree, patched_tree

_MEMORY, _MONITOR = "monitoring/memory_optimizer.py", "core/performance_monitor.py"
_MEMORY_LINE = "Memory optimizer: app/wheels_ops is not installed; variables that cannot be read are not reported"
_MONITOR_LINE = "Performance monitor: app/wheels_ops is not installed; the history ends with the process"


def copied(directory: Path, *files: str) -> Tree:
    """Copies, as ``cp`` makes them: a link would find its way back to the other files."""
    tree = patched_tree(directory)
    for name in files:
        target = directory / "app" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PATCHES / name, target)
    return tree


@pytest.mark.parametrize(
    ("files", "program", "environment", "answer", "lines"),
    [
        (
            [_MEMORY],
            "from app.monitoring.memory_optimizer import *\n"
            "made = MemoryOptimizer()\n"
            "answer = [made.memory_warning_threshold, made.memory_critical_threshold, kill_switch()]",
            {"MEMORY_WARNING_THRESHOLD": "55", "MEMORY_CRITICAL_THRESHOLD": "x", "DISABLE_MONITORING": "Yes"},
            [55.0, 75.0, "DISABLE_MONITORING"],
            [_MEMORY_LINE],
        ),
        (
            [_MEMORY, _MONITOR],
            "from app.core.performance_monitor import performance_monitor as monitor\n"
            "answer = [monitor.thresholds['cpu_percent']['warning'], monitor._paths]",
            {"CPU_WARNING_THRESHOLD": "60", "DISK_PATHS": "/:/tmp"},
            [60.0, ["/", "/tmp"]],
            [_MEMORY_LINE, _MONITOR_LINE],
        ),
        (
            ["services/cache_service.py"],
            "from app.services.cache_service import *\n"
            "answer = [configured_url(), cache_service.default_ttl, LocalStore().legacy_reads, "
            "'old:' in LEGACY_PREFIXES]",
            {
                "REDIS_URL": "redis://of-the-host:1/0",
                "CACHE_TTL": "180",
                "CACHE_LEGACY_READS": "off",
                "CACHE_LEGACY_PREFIXES": "old:",
            },
            ["redis://of-the-host:1/0", 180, False, True],
            ["Cache: app/wheels_ops is not installed; variables that cannot be read are not reported"],
        ),
        (
            ["services/cache_service.py"],
            "from app.services.cache_service import *\nanswer = configured_url()",
            {"STUB_REDIS_DSN": "redis://of-the-settings:1/0", "REDIS_URL": "redis://of-the-host:1/0"},
            "redis://of-the-settings:1/0",
            ["Cache: app/wheels_ops is not installed; variables that cannot be read are not reported"],
        ),
        (
            ["core/cors_config.py"],
            "from app.core.cors_config import cors_config\n"
            "answer = ['https://a.example' in cors_config.origins, cors_config.enhanced,"
            " any('lovable' in origin for origin in cors_config.origins)]",
            {
                "ADDITIONAL_CORS_ORIGINS": "https://a.example",
                "ENABLE_ENHANCED_CORS": "no",
                "STUB_ENVIRONMENT": "staging",
                "DISABLE_LOVABLE_ORIGINS": "on",
            },
            [True, False, False],
            ["CORS: app/wheels_ops is not installed; variables that cannot be read are not reported"],
        ),
    ],
    ids=["memory", "monitor", "cache", "cache-settings", "cors"],
)
def test_a_file_alone_reads_its_variables_and_says_what_is_left_out(
    tmp_path: Path, files: t.List[str], program: str, environment: t.Dict[str, str], answer: object, lines: t.List[str]
) -> None:
    tree = copied(tmp_path, *files)
    assert tree.json(f"import json\n{program}\nprint(json.dumps(answer))", env=environment) == answer
    logged = [entry["event"] for entry in tree.logged() if "app/wheels_ops" in entry["event"]]
    assert len(logged) == len(lines) and all(text in line for text, line in zip(lines, logged)), logged


def test_the_six_files_together_say_one_line_each(tmp_path: Path) -> None:
    six = (_MEMORY, "services/cache_service.py", "core/websocket_manager.py", "core/cors_config.py", _MONITOR)
    tree = copied(tmp_path, *six, "api/v1/system_health.py")
    for package in (tmp_path / "app" / "api", tmp_path / "app" / "api" / "v1"):
        (package / "__init__.py").touch()
    modules = [name[:-3].replace("/", ".") for name in (*six, "api/v1/system_health.py")]
    tree.run("".join(f"import app.{name}\n" for name in modules))
    lines = [entry["event"] for entry in tree.logged() if "app/wheels_ops" in entry["event"]]
    for name in ("Memory optimizer", "Performance monitor", "Cache", "CORS", "System health"):
        assert sum(f"{name}: " in line for line in lines) == 1, (name, lines)


def test_with_the_package_nothing_is_left_out(tmp_path: Path) -> None:
    tree = patched_tree(
        tmp_path, _MEMORY, _MONITOR, "services/cache_service.py", "core/cors_config.py", "wheels_ops/metrics_store.py"
    )
    tree.run(
        "import app.core.performance_monitor, app.services.cache_service, app.core.cors_config",
        env={"CACHE_TTL": "soon", "MEMORY_WARNING_THRESHOLD": "650"},
    )
    lines = [entry["event"] for entry in tree.logged() if entry["level"] == "warning"]
    assert [line for line in lines if "app/wheels_ops" in line] == []
    assert sum(line.startswith("CACHE_TTL must be a number, at least 0, got 'soon'.") for line in lines) == 1
    assert sum(line.startswith("MEMORY_WARNING_THRESHOLD must be a number, between 0 and 100") for line in lines) == 1
