# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a stranger gets it: built into a tarball and installed into an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sandbox.binaries import REPOSITORY

COLLECTION = REPOSITORY / "collections/wheels/ops"
BIN = Path(sys.executable).parent


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(words), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def install(place: Path) -> Path:
    """Builds and installs below ``place``; gives the directory for ANSIBLE_COLLECTIONS_PATH, which holds nothing but
    our collection.
    """
    (place / "ansible.cfg").touch()
    home = {"ANSIBLE_HOME": str(place / "home"), "ANSIBLE_CONFIG": str(place / "ansible.cfg")}
    built = run(
        str(BIN / "ansible-galaxy"),
        "collection",
        "build",
        str(COLLECTION),
        "--output-path",
        str(place),
        cwd=place,
        **home,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    tarball = next(place.glob("wheels-ops-*.tar.gz"))
    done = run(
        str(BIN / "ansible-galaxy"),
        "collection",
        "install",
        str(tarball),
        "-p",
        str(place / "collections"),
        "--offline",
        cwd=place,
        **home,
    )
    assert done.returncode == 0, done.stderr
    return place / "collections"
