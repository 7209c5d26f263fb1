# SPDX-License-Identifier: GPL-3.0-or-later
"""Burns one core until it is ended: ``python hog.py [a word to be found by]``."""

from __future__ import annotations

import itertools

if __name__ == "__main__":
    for _number in itertools.count():
        pass
