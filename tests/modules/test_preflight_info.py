# SPDX-License-Identifier: GPL-3.0-or-later
"""preflight_info as Ansible runs it; what it measures is tested beside the library."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

from tests.support.module_run import run_module


def test_the_same_in_check_mode(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.py").touch()
    options: t.Dict[str, t.Any] = {
        "interpreter": sys.executable,
        "modules": ["psutil", "redis"],
        "backend_dir": str(tmp_path),
        "state_dir": str(tmp_path / "state"),
    }
    predicted, result = run_module("preflight_info", check=True, **options), run_module("preflight_info", **options)
    for answer in (predicted, result):
        assert answer["changed"] is False
        assert (answer["environment"], answer["application"], answer["writable"]) == (True, True, True)
        assert answer["free"]["bytes"] > 0
    assert not (tmp_path / "state").exists()
