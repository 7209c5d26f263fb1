# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheel as a release has it, built from a copy of the sources, as nothing may be written among them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.sandbox.binaries import REPOSITORY

UV = str(REPOSITORY / ".venv/bin/uv")


def build(place: Path) -> Path:
    """Builds it in an empty directory; gives its path."""
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "src", "collections"):
        subprocess.run(["cp", "-rL" if name == "src" else "-r", str(REPOSITORY / name), str(source / name)], check=True)
    subprocess.run([UV, "build", "--wheel", "--out-dir", str(place)], check=True, capture_output=True, cwd=source)
    (wheel,) = place.glob("*.whl")
    return wheel
