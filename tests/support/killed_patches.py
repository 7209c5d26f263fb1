# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills an installation of patched files, or its rollback, at every point at which it changes the disk, each in a tree
of its own.

``python -m tests.support.killed_patches PLACE install|restore`` leaves ``PLACE/NUMBER/production`` and
``PLACE/NUMBER/state``, and prints how many.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.kill_points import killed_at
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments

DEPLOYMENT = "one"
FILES = {
    "app/core/cors_config.py": b"ORIGINS = ['https://a']\n",
    "app/added.py": b"Y = 2\n",
    "app/ours/deep/extra.py": b"X = 1\n",
}
BLOCKS = {"app/main.py": ["app.append(1)"]}
_TIME = 1_000_000_000_123_456_789


#: Whose the tree is where root makes it, who is to leave nothing of his own in it.
OWNER = 54321


def make_tree(root: Path) -> None:
    """A backend as it is before a deployment, with times and an owner of its own."""
    (root / "app/core").mkdir(parents=True)
    (root / "app/main.py").write_text('app = []\nif __name__ == "__main__":\n    pass\n')
    (root / "app/core/cors_config.py").write_text("ORIGINS = []\n")
    (root / "app/core/cors_config.py").chmod(0o640)
    for path in (root / "app/core/cors_config.py", root / "app/core", root / "app/main.py", root / "app", root):
        if os.geteuid() == 0:
            os.chown(path, OWNER, OWNER)
        os.utime(path, ns=(_TIME, _TIME))


def request(root: Path) -> backend_patch.Request:
    return backend_patch.Request(root=str(root), files=FILES, blocks=BLOCKS)


def install(place: Path) -> None:
    backend_patch.install(str(place / "state"), DEPLOYMENT, request(place / "production"), backend_patch.Proof())


def restore(place: Path) -> None:
    backend_patch.restore(str(place / "state"), DEPLOYMENT)


def main(places: Path, action: str) -> None:
    number = 1
    while True:
        place = places / str(number)
        make_tree(place / "production")
        deployments.begin(str(place / "state"), DEPLOYMENT, holder="me")
        if action == "restore":
            install(place)
        run = install if action == "install" else restore
        if not killed_at(number, lambda run=run, place=place: run(place)):  # type: ignore[misc]  # bound now
            break
        number += 1
    sys.stdout.write(f"{number - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
