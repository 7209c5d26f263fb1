# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a call with SIGKILL before its first change of the disk, in its first write, before its second change, and so
on.
"""

from __future__ import annotations

import io
import os
import signal
import typing as t

#: The functions of ``os`` that change a disk; ``open`` is one where it may write.
_CHANGES = (
    "chmod",
    "chown",
    "fchmod",
    "fchown",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
    "utime",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Points:
    """Counts the points at which a call can be killed, and dies at one of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        self._write = os.write

    def reached(self) -> bool:
        self.count += 1
        return self.count == self.number

    def pass_or_die(self) -> None:
        if self.reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, descriptor: int, content: t.Any) -> int:
        self.pass_or_die()
        view = memoryview(content).cast("B")
        if self.reached():
            self._write(descriptor, view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return self._write(descriptor, content)

    def wrap(self) -> None:
        """Puts the points in front of the interpreter's functions.

        For a child that ends soon: nothing takes them away again.
        """
        for name in _CHANGES:
            setattr(os, name, self._before(getattr(os, name)))
        opener, points, opener_of_files = os.open, self, io.open

        def open_descriptor(path: t.Any, flags: int, *words: t.Any, **options: t.Any) -> int:
            if flags & _WRITES:
                points.pass_or_die()
            return opener(path, flags, *words, **options)

        class File(io.FileIO):
            def write(self, content: t.Any) -> int:
                return points.write(self.fileno(), content)

        def open_file(file: t.Any, mode: str = "r", *words: t.Any, **options: t.Any) -> t.Any:
            if mode != "wb":
                return opener_of_files(file, mode, *words, **options)
            points.pass_or_die()
            return File(file, mode)

        vars(os).update(open=open_descriptor, write=self.write)
        vars(io).update(open=open_file)

    def _before(self, function: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*words: t.Any, **options: t.Any) -> t.Any:
            self.pass_or_die()
            return function(*words, **options)

        return call


def killed_at(number: int, call: t.Callable[[], object]) -> bool:
    """Runs a call in a child that is killed at a point; False where the call ended before it came to so many.

    The process has no threads.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            _Points(number).wrap()
            call()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"The run that was to be killed ended with {code}.")
    return code != 0
