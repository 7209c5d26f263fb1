# SPDX-License-Identifier: GPL-3.0-or-later
"""environment_directories as Ansible runs it."""

from __future__ import annotations

import typing as t
from pathlib import Path

from tests.support.module_run import run_module


def test_check_mode_predicts_and_no_result_holds_the_token(tmp_path: Path) -> None:
    options: t.Dict[str, t.Any] = {
        "token_file": str(tmp_path / "etc/ops-token"),
        "variables_file": str(tmp_path / "etc/backend.env"),
        "directories": [str(tmp_path / "state/metrics")],
        "state_dir": str(tmp_path / "state"),
    }
    predicted = run_module("environment_directories", check=True, **options)
    assert list(tmp_path.iterdir()) == []
    result = run_module("environment_directories", **options)
    token = (tmp_path / "etc/ops-token").read_text().strip()
    assert token not in str(result)
    for key in ("changed", "before", "after", "actions", "diff"):
        assert result[key] == predicted[key], key
    assert result["changed"] is True
    again = run_module("environment_directories", **options)
    assert (again["changed"], again["actions"], again["diff"]) == (False, [], [])
