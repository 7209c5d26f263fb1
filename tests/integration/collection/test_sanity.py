# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-test sanity, every test of it, on the built and installed tarball; with no ignore entries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY


@pytest.mark.timeout(900)
def test_ansible_test_sanity() -> None:
    assert [str(path) for path in Path(REPOSITORY / "collections/wheels/ops/tests").rglob("ignore*")] == []
    done = subprocess.run(
        [str(REPOSITORY / "tests/sanity")],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    assert "Running sanity test" in output and "validate-modules" in output
    assert "ERROR:" not in output
