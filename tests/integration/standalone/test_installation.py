# SPDX-License-Identifier: GPL-3.0-or-later
"""The library on a host: a run that is killed anywhere is finished by the next one, and nothing of it stays behind."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support import killed_installs
from tests.support.killed_installs import NEW, OLD
from wheels_ops.standalone import installation


def content(target: Path) -> t.Dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.py")}


@pytest.fixture(scope="module", params=["present", "absent"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Tuple[str, t.List[Path]]:
    """Libraries in which an update or a removal was killed, each one change later than the one before."""
    root = tmp_path_factory.mktemp("killed")
    # In a process of its own: one that has threads, as this one, had better not fork.
    words = [sys.executable, "-m", killed_installs.__name__, str(root), request.param]
    done = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 10
    return request.param, [root / str(number) / "wheels_ops" for number in range(1, count + 1)]


def test_a_run_killed_before_any_change_is_finished_by_the_next(
    killed: t.Tuple[str, t.List[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, targets = killed
    monkeypatch.setattr(installation, "library", lambda: NEW)
    for target in targets:
        (target.parent / ".wheels_ops.of-another").mkdir()
        (target.parent / ".wheels_ops.of-another" / "file").write_text("not ours")
        assert (content(target) if target.exists() else {}) in (OLD, NEW, {}), "half of a library"
        foretold = installation.run(str(target), state=state, check_mode=True)
        done = installation.run(str(target), state=state)
        assert (foretold.changed, foretold.actions, foretold.after) == (done.changed, done.actions, done.after)
        again = installation.run(str(target), state=state)
        assert not again.changed and not again.actions
        assert (content(target) if target.exists() else {}) == (NEW if state == "present" else {})
        assert sorted(entry.name for entry in target.parent.iterdir()) == [
            ".wheels_ops.of-another",
            *(["wheels_ops"] if state == "present" else []),
        ]
