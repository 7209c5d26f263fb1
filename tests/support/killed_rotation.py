# SPDX-License-Identifier: GPL-3.0-or-later
"""A rotation that is killed before one of its steps."""

from __future__ import annotations

import os
import signal
import traceback
import typing as t

from wheels_ops.host import extents

#: What a rotation changes the disk with. Each call is a step before which it may be killed.
STEPS: t.Tuple[t.Tuple[t.Any, str], ...] = (
    (os, "open"),
    (os, "rename"),
    (os, "unlink"),
    (os, "fsync"),
    (os, "fchmod"),
    (os, "utime"),
    (extents, "collapse"),
    (extents, "punch"),
)


def killed_before(step: int, call: t.Callable[[], object]) -> bool:
    """Runs ``call`` in a child that kills itself before its ``step``-th change; False where it came to its end."""
    child = os.fork()
    if child == 0:
        left = [step]

        def wrapped(original: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
            def run(*args: t.Any, **kwargs: t.Any) -> t.Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return run

        try:
            for module, name in STEPS:
                setattr(module, name, wrapped(getattr(module, name)))
            extents.CHUNK = 128 * 1024
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the rotation failed; its traceback is above"
    return os.WIFSIGNALED(status)
