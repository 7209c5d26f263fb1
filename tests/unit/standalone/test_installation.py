# SPDX-License-Identifier: GPL-3.0-or-later
"""The library on a host: a run that is killed anywhere is finished by the next one, and nothing of it stays behind."""

from __future__ import annotations

import os
import sys
import typing as t
from pathlib import Path

import pytest

from wheels_ops.standalone import installation

OLD = {"__init__.py": b"", "part/__init__.py": b"", "part/one.py": b"one = 1\n", "gone.py": b""}
NEW = {"__init__.py": b"", "part/__init__.py": b"", "part/one.py": b"one = 2\n", "two.py": b"two = 2\n"}
#: What changes something on a disk.
TOUCHING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "tempfile.mkdtemp"}


def killed_at(number: int, target: Path, state: str) -> bool:
    """Runs in a child that ends at once before its so-manieth change; whether it did."""
    child = os.fork()
    if not child:
        seen = 0

        def look(event: str, arguments: t.Tuple[t.Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in TOUCHING or writes:
                seen += 1
                if seen == number:
                    os._exit(9)

        try:
            sys.addaudithook(look)
            installation.run(str(target), state=state)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def content(target: Path) -> t.Dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.py")}


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_run_killed_before_any_change_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    for number in range(1, 200):
        target = tmp_path / str(number) / "wheels_ops"
        monkeypatch.setattr(installation, "library", lambda: OLD)
        assert installation.run(str(target)).changed and content(target) == OLD
        (target.parent / ".wheels_ops.of-another").mkdir()
        (target.parent / ".wheels_ops.of-another" / "file").write_text("not ours")
        monkeypatch.setattr(installation, "library", lambda: NEW)
        if not killed_at(number, target, state):
            assert number > 10
            break
        between = content(target) if target.exists() else {}
        assert between in (OLD, NEW, {}), "half of a library"
        foretold = installation.run(str(target), state=state, check_mode=True)
        done = installation.run(str(target), state=state)
        assert (foretold.changed, foretold.actions, foretold.after) == (done.changed, done.actions, done.after)
        again = installation.run(str(target), state=state)
        assert not again.changed and not again.actions
        assert (content(target) if target.exists() else {}) == (NEW if state == "present" else {})
        assert sorted(entry.name for entry in target.parent.iterdir()) == [".wheels_ops.of-another", *(["wheels_ops"] if state == "present" else [])]
    else:
        pytest.fail("it never came to an end")
