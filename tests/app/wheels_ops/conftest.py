# SPDX-License-Identifier: GPL-3.0-or-later
"""The leaves of ``app.wheels_ops`` in this process: their modules, and the lines that they log."""

from __future__ import annotations

import importlib
import logging
import sys
import types
import typing as t

import pytest

from tests.support.patched_tree import LEAVES, patched_tree

_LOGGING = "import logging\ndef get_logger(name=None):\n    return logging.getLogger(name)\n"
_CONFIG = "class Settings:\n    pass\nsettings = Settings()\n"


class Leaves(t.NamedTuple):
    env: t.Any
    rate_limit: t.Any
    redis_url: t.Any
    #: ``app.core.config``; ``config.settings`` is empty until a test fills it.
    config: types.ModuleType
    caplog: pytest.LogCaptureFixture

    def logged(self) -> t.List[str]:
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def leaves(tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture) -> t.Iterator[Leaves]:
    directory = tmp_path_factory.mktemp("app")
    patched_tree(directory, *LEAVES)
    (directory / "app" / "core" / "logging.py").write_text(_LOGGING)
    (directory / "app" / "core" / "config.py").write_text(_CONFIG)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "app" or name.startswith("app.")}
    sys.path.insert(0, str(directory))
    caplog.set_level(logging.INFO)
    try:
        yield Leaves(
            importlib.import_module("app.wheels_ops.env"),
            importlib.import_module("app.wheels_ops.rate_limit"),
            importlib.import_module("app.wheels_ops.redis_url"),
            importlib.import_module("app.core.config"),
            caplog,
        )
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name == "app" or name.startswith("app.")]:
            del sys.modules[name]
        sys.modules.update(hidden)
