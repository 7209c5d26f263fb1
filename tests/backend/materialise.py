# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts one release of the stand-in backend together from its layers.

python -m tests.backend.materialise incident /srv/pam
"""

from __future__ import annotations

import argparse
import shutil
import sys
import typing as t
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: The layers of a release; a file of a later layer replaces that of an earlier one.
RELEASES: t.Mapping[str, t.Tuple[str, ...]] = {
    "incident": ("common", "incident"),
    "first_fix": ("common", "since_first_fix", "first_fix"),
    "august": ("common", "since_first_fix", "august"),
}
#: Files of the layers before it that a release has not.
ABSENT: t.Mapping[str, t.Tuple[str, ...]] = {"august": ("app/monitoring/memory_optimizer.py",)}

#: Programs of the release's own, by the line that is no Python: whoever starts one gets a SyntaxError.
BROKEN_PROGRAMS: t.Mapping[str, int] = {"production_health_monitor.py": 110, "scripts/automated_recovery.py": 102}
WITH_PROGRAMS = ("first_fix", "august")


def materialise(release: str, target: Path) -> Path:
    """Copies the release's files below ``target`` (made if absent, files overwritten), so that ``target/app/main.py``
    is there.

    Raises ``ValueError`` for a release that does not exist.
    """
    if release not in RELEASES:
        raise ValueError(f"there is no release {release!r}; there are: {', '.join(RELEASES)}")
    for layer in RELEASES[release]:
        shutil.copytree(HERE / layer, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ABSENT.get(release, ()):
        (target / name).unlink()
    for name, line in BROKEN_PROGRAMS.items() if release in WITH_PROGRAMS else ():
        program = target / name
        program.parent.mkdir(exist_ok=True)
        lines = ["# SPDX-License-Identifier: MIT", *(f"STEP_{number} = {number}" for number in range(2, line))]
        program.write_text("\n".join([*lines, 'print("the report\\n"; for each in STEPS', ""]))
    return target


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.backend.materialise",
        description="Writes one release of the stand-in backend into a directory.",
    )
    parser.add_argument("release", choices=sorted(RELEASES))
    parser.add_argument("directory", type=Path)
    chosen = parser.parse_args(words)
    sys.stdout.write(f"{materialise(chosen.release, chosen.directory)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
