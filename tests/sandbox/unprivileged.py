# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a program that refuses root, as root, without making an account."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import typing as t

#: Any uid that is not 0 will do: inside the namespace it stands for root outside, so files stay where root put them.
_MAPPED = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]


@functools.lru_cache(maxsize=1)
def prefix() -> t.Tuple[str, ...]:
    """The words to put before a command line so that it does not run with uid 0; empty for an ordinary user.

    A user namespace where the kernel allows one, else ``setpriv`` to nobody (then directories must be reachable by it).
    """
    if os.geteuid() != 0:
        return ()
    if shutil.which("unshare") and subprocess.run([*_MAPPED, "true"], capture_output=True, check=False).returncode == 0:
        return tuple(_MAPPED)
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
