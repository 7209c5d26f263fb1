# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.supervise COMMAND...``: runs a command and ends whatever it leaves behind.

A test starts servers, and servers start processes in sessions of their own. When the run is interrupted (Ctrl-C,
SIGTERM, or the end of the shell that started it), the command gets the signal and the time to tear down what it set up;
what is left then is ended here. As the subreaper (see prctl(2)) of the run this process is the parent of every orphan,
so none is missed and none of somebody else is met.

Exit status: the command's; 128 plus the signal's number after an interruption.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import types
import typing as t

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
#: Seconds for the command to tear down, and for what is left to end after SIGTERM.
PATIENCE, LAST_WORDS = 40.0, 5.0


def interrupt_on_terminate() -> None:
    """SIGTERM interrupts this process as Ctrl-C does, so that what it set up is torn down.

    Its forks die of it as usual.
    """
    owner = os.getpid()

    def interrupt(number: int, _frame: t.Optional[types.FrameType]) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, interrupt)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _separate() -> None:
    """In the command: Ctrl-C reaches it once, through us, as a second one would cut its clean-up short; nor does it
    outlive us.
    """
    os.setpgid(0, 0)
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)


def descendants() -> t.List[int]:
    """Every process below this one that has not ended."""
    children: t.Dict[int, t.List[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children.setdefault(int(parent), []).append(int(name))
    below: t.List[int] = []
    todo = [os.getpid()]
    while todo:
        below += children.get(todo[-1], [])
        todo += children.get(todo.pop(), [])
    return below


def _send(pids: t.Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _reap() -> t.Dict[int, int]:
    """The exit statuses of the children that have ended, adopted ones too."""
    ended: t.Dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _end_all() -> t.List[int]:
    """Ends every process that is left; gives those that were."""
    left = descendants()
    deadline = time.monotonic() + LAST_WORDS
    _send(left, signal.SIGTERM)
    # A stopped process takes SIGTERM when it goes on.
    _send(left, signal.SIGCONT)
    while descendants():
        _reap()
        if time.monotonic() > deadline:
            _send(descendants(), signal.SIGKILL)
        time.sleep(0.05)
    _reap()
    return left


def main(words: t.Sequence[str]) -> int:
    if not words:
        print("usage: python -m tests.supervise COMMAND...", file=sys.stderr)
        return 2
    received: t.List[int] = []

    def receive(number: int, _frame: t.Optional[types.FrameType]) -> None:
        received.append(number)
        _send([command.pid], signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    _prctl(_SET_CHILD_SUBREAPER, 1)
    parent = os.getppid()
    # A handler of our own also where the shell had SIGINT ignored, as it does in the background; it becomes the default
    # again in the command. Where SIGHUP is ignored, it is so by nohup.
    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    for number in handled:
        signal.signal(number, lambda number, _frame: received.append(number))
    command = subprocess.Popen(words, preexec_fn=_separate)
    for number in handled:
        signal.signal(number, receive)
    _send([command.pid] * len(received), signal.SIGTERM)
    # The shell in between may be killed alone: then nobody waits for this run any more.
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        receive(signal.SIGTERM, None)
    status: t.Optional[int] = None
    deadline: t.Optional[float] = None
    while status is None:
        status = _reap().get(command.pid)
        if received and deadline is None:
            deadline = time.monotonic() + PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            break
        if status is None:
            time.sleep(0.05)
    left = _end_all()
    if received and left:
        print(f"Interrupted: {len(left)} processes of this run were left and have been ended.", file=sys.stderr)
    if received:
        return 128 + received[0]
    return 1 if status is None else status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
