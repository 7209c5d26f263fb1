# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a change of an installed library before its first touch of the disk, before its second, and so on.

``killed_installs.py ROOT STATE`` leaves one library after another as ``ROOT/NUMBER/wheels_ops``, and prints how many.
"""

from __future__ import annotations

import os
import sys
import typing as t
from pathlib import Path

from wheels_ops.standalone import installation

OLD: t.Dict[str, bytes] = {"__init__.py": b"", "part/__init__.py": b"", "part/one.py": b"one = 1\n", "gone.py": b""}
NEW: t.Dict[str, bytes] = {"__init__.py": b"", "part/__init__.py": b"", "part/one.py": b"one = 2\n", "two.py": b"two = 2\n"}
#: What changes something on a disk, as the interpreter announces it (PEP 578).
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
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 9):
        raise SystemExit(f"the run that was to be killed ended with {code}")
    return code == 9


def main(root: Path, state: str) -> None:
    number = 1
    while True:
        target = root / str(number) / "wheels_ops"
        installation.library = lambda: OLD
        installation.run(str(target))
        installation.library = lambda: NEW
        if not killed_at(number, target, state):
            break
        number += 1
    sys.stdout.write(f"{number - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
