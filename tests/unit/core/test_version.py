# SPDX-License-Identifier: GPL-3.0-or-later
"""One version in the library, the wheel and the collection."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import wheels_ops
from wheels_ops.command_line import main

REPOSITORY = Path(__file__).parents[3]


def test_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    galaxy = yaml.safe_load((REPOSITORY / "collections/wheels/ops/galaxy.yml").read_text())["version"]
    project = re.search(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert [wheels_ops.__version__, project[1], capsys.readouterr().out.strip()] == [
        galaxy,
        galaxy,
        f"wheels-ops {galaxy}",
    ]
