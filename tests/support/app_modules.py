# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports the patched monitoring files into this process, from a tree that holds nothing else of the backend."""

from __future__ import annotations

import importlib
import sys
import types
import typing as t

import pytest

from tests.support.patched_tree import patched_tree

FILES = (
    "core/performance_monitor.py",
    "monitoring/memory_optimizer.py",
    "wheels_ops/metrics_store.py",
    "wheels_ops/scores.py",
    "wheels_ops/exposition.py",
    "wheels_ops/load.py",
    "wheels_ops/dashboard.py",
)
_QUIET = "import logging\ndef get_logger(name=None):\n    return logging.getLogger(name)\n"


@pytest.fixture(scope="module")
def app_modules(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Callable[[str], types.ModuleType]]:
    """``app_modules("core.performance_monitor")`` imports ``app.core.performance_monitor``."""
    directory = tmp_path_factory.mktemp("app")
    patched_tree(directory, *FILES)
    (directory / "app" / "core" / "logging.py").write_text(_QUIET)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "app" or name.startswith("app.")}
    sys.path.insert(0, str(directory))
    try:
        yield lambda name: importlib.import_module(f"app.{name}")
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name == "app" or name.startswith("app.")]:
            del sys.modules[name]
        sys.modules.update(hidden)
