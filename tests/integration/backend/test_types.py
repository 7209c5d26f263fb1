# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in backend is typed: what mypy finds in a release is what was wrong with it, and nothing else.

Its files import each other as ``app``, so they can be checked only when a release is put together.
"""

from __future__ import annotations

import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.backend.materialise import materialise
from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY

_CALLERS = {
    ("app/services/pam/database/unified_database_service.py", "CacheService.delete_pattern"),
    ("app/api/deps.py", "CacheService.health_check"),
    ("app/services/performance_monitor.py", "CacheService.get_stats"),
    ("app/monitoring/enhanced_monitoring.py", "app.core.websocket_manager.websocket_manager"),
    ("app/main_hardened.py", "CORSConfig.allowed_origins"),
}
#: What callers miss in each release: file and name.
MISSING: t.Mapping[str, t.Set[t.Tuple[str, str]]] = {
    "incident": _CALLERS | {("app/services/performance_monitor.py", "CacheService.clear_expired")},
    "first_fix": _CALLERS,
    "august": (
        _CALLERS
        | {
            ("app/core/performance_monitor.py", "app.monitoring.memory_optimizer"),
            ("app/services/cache_service.py", "RedisDsn.split"),
            ("app/services/cache_service.py", "RedisDsn in"),
            ("app/services/tts/streaming_tts.py", "app.services.tts.coqui_tts_engine.CoquiTTSEngine"),
        }
    ),
}
_FORMS = (
    (re.compile(r'"(\w+)" has no attribute "(\w+)"'), "{0}.{1}"),
    (re.compile(r'Module "([\w.]+)" has no attribute "(\w+)"'), "{0}.{1}"),
    (re.compile(r'Cannot find implementation or library stub for module named "([\w.]+)"'), "{0}"),
    (re.compile(r'Unsupported right operand type for in \("(\w+)"\)'), "{0} in"),
)


@pytest.mark.parametrize("release", sorted(MISSING))
def test_a_release_lacks_what_it_lacked(release: str, tmp_path: Path) -> None:
    materialise(release, tmp_path)
    # The repository's own rules, but here a module of the backend that cannot be found is a finding.
    rules = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert '"app.*", ' in rules
    configuration = tmp_path / "pyproject.toml"
    configuration.write_text(rules.replace('"app.*", ', ""), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(configuration),
        "--python-executable",
        str(BACKEND_PYTHON),
    ]
    words += [
        "--disable-error-code",
        "import-untyped",
        "--no-pretty",
        "--no-error-summary",
        "--hide-error-context",
        "-p",
        "app",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.stderr == ""
    found, other = set(), []
    for line in done.stdout.splitlines():
        path, _, message = line.partition(": error: ")
        names = [
            form.format(*match.groups()) for pattern, form in _FORMS for match in [pattern.search(message)] if match
        ]
        if names:
            found.add((path.rpartition(":")[0], names[0]))
        elif message:
            other.append(line)
    assert other == []
    assert found == MISSING[release]
