# SPDX-License-Identifier: GPL-3.0-or-later
"""A writer of numbered lines, and the count of what became of them.

Run as a program: ``log_writer.py PATH append|plain|reopen|each|bursty LINES_PER_SECOND START``. It ends on SIGTERM and says
how many lines it wrote. ``reopen`` opens the log again on SIGHUP, ``each`` opens it for every line, ``plain`` does not
append, ``bursty`` writes the lines of a fifth of a second at once.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

#: 96 bytes a line, as an access log has.
FILLER = b" INFO pam request served path=/api/v1/pam/chat status=200 duration_ms=812 user=00000000"
#: A part that is no multiple of the line: the cut has to find a line's beginning.
WIDTH = 11


def line(number: int) -> bytes:
    return b"%0*d%s\n" % (WIDTH, number, FILLER)


def write(path: str, how: str, rate: int, start: int) -> None:
    """Writes until SIGTERM, one call a line, and prints how many lines there are then."""
    state = {"stop": False, "reopen": False}
    signal.signal(signal.SIGTERM, lambda *_: state.update(stop=True))
    signal.signal(signal.SIGHUP, lambda *_: state.update(reopen=True))
    flags = os.O_WRONLY | os.O_CREAT | (0 if how == "plain" else os.O_APPEND)
    descriptor = os.open(path, flags, 0o644)
    if how == "plain":
        os.lseek(descriptor, 0, os.SEEK_END)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number, begun = start, time.monotonic()
    burst = max(1, rate // 5) if how == "bursty" else 1
    while not state["stop"]:
        if state["reopen"]:
            state["reopen"] = False
            os.close(descriptor)
            descriptor = os.open(path, flags, 0o644)
        due = start + int((time.monotonic() - begun) * rate) // burst * burst
        # At most so many before the next look at the signals; a writer that was held off catches up.
        for _ in range(min(due - number, 500)):
            if how == "each":
                os.close(descriptor)
                descriptor = os.open(path, flags, 0o644)
            os.write(descriptor, line(number))
            number += 1
        time.sleep(0.002)
    os.close(descriptor)
    sys.stdout.write(f"{number}\n")


@contextlib.contextmanager
def writer(
    path: Path, how: str = "append", *, rate: int = 20_000, start: int = 0
) -> t.Iterator[t.Tuple[subprocess.Popen[str], t.Callable[[], int]]]:
    """A running writer, and a call that stops it and gives how many lines were written in all."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(path), how, str(rate), str(start)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"

    def stop() -> int:
        process.terminate()
        out = process.communicate(timeout=30)[0]
        return int(out)

    try:
        yield process, stop
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def fill(path: Path, size: int) -> int:
    """A log of about ``size`` bytes; gives how many lines it has."""
    count = size // len(line(0))
    with path.open("wb") as file:
        for begin in range(0, count, 10_000):
            file.write(b"".join(line(number) for number in range(begin, min(begin + 10_000, count))))
    return count


def read(directory: Path, name: str) -> bytes:
    """Every rotated part and the live log, in order; holes left out."""
    parts = sorted(
        (path for path in directory.iterdir() if path.name.startswith(f"{name}.")),
        key=lambda path: _order(path.name.removesuffix(".gz")),
    )
    content = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in parts]
    live = directory / name
    return b"".join(content) + (live.read_bytes() if live.exists() else b"")


def _order(name: str) -> t.Tuple[str, int]:
    stamp, _dash, number = name.rpartition(".")[2].partition("-")
    return stamp, int(number or 0)


def account(content: bytes, written: int) -> t.Dict[str, int]:
    """How many of ``written`` lines are lost, doubled, torn, and how many NUL bytes there are among them."""
    nuls = content.count(b"\0")
    seen: t.Dict[int, int] = {}
    torn = 0
    for entry in content.replace(b"\0", b"").splitlines(keepends=True):
        if len(entry) == len(line(0)) and entry[:WIDTH].isdigit() and entry[WIDTH:] == FILLER + b"\n":
            seen[int(entry[:WIDTH])] = seen.get(int(entry[:WIDTH]), 0) + 1
        else:
            torn += 1
    return {
        "lost": sum(1 for number in range(written) if number not in seen),
        "doubled": sum(count - 1 for count in seen.values()),
        "torn": torn,
        "nuls": nuls,
    }


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
