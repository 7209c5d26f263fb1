# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a change of an installed library before its first touch of the disk, in its first write, and so on.

``python -m tests.support.killed_installs ROOT STATE`` leaves one library after another as ``ROOT/NUMBER/wheels_ops``,
and prints how many.
"""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

from tests.support.kill_points import killed_at
from wheels_ops.standalone import installation

OLD: t.Dict[str, bytes] = {"__init__.py": b"", "part/__init__.py": b"", "part/one.py": b"one = 1\n", "gone.py": b""}
NEW: t.Dict[str, bytes] = {
    "__init__.py": b"",
    "part/__init__.py": b"",
    "part/one.py": b"one = 2\n",
    "two.py": b"two = 2\n",
}


def main(root: Path, state: str) -> None:
    number = 1
    while True:
        target = root / str(number) / "wheels_ops"
        installation.library = lambda: OLD
        installation.run(str(target))
        installation.library = lambda: NEW
        if not killed_at(number, lambda path=str(target): installation.run(path, state=state)):  # type: ignore[misc]  # bound now
            break
        number += 1
    sys.stdout.write(f"{number - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
