# SPDX-License-Identifier: GPL-3.0-or-later
"""Swaps a directory for a link and back, as fast as it can, until its input ends: ``swapped_directory.py DIRECTORY
TARGET``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import sys


def main(directory: str, target: str) -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number in itertools.count():
        with contextlib.suppress(OSError):  # the other side made the directory meanwhile: the next round takes that one
            aside = f"{directory}.{number % 50}"
            os.rename(directory, aside)
            os.symlink(target, directory)
            os.unlink(directory)
            os.rename(aside, directory)
        if number % 100 == 0 and select.select([sys.stdin], [], [], 0)[0]:
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
