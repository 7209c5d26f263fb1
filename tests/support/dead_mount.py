# SPDX-License-Identifier: GPL-3.0-or-later
"""A mounted filesystem that never answers, as that of an NFS server that is gone: FUSE without a program behind it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import typing as t
from pathlib import Path

_DETACH = 2  # MNT_DETACH


@contextlib.contextmanager
def dead_mount(path: Path) -> t.Iterator[Path]:
    """Mounts it at a directory. Whoever asks for anything on it waits until it is gone. Raises ``OSError`` without the
    right to mount.
    """
    library = ctypes.CDLL(None, use_errno=True)
    path.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if library.mount(b"dead", os.fsencode(path), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield path
        finally:
            library.umount2(os.fsencode(path), _DETACH)
    finally:
        os.close(device)  # ends the connection: who waits gets an error
        path.rmdir()
