# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the first release, for programs that use them."""

from __future__ import annotations

import subprocess
import sys


def test_names_of_release_1_0_still_import() -> None:
    """Each leads to the module of its present name, with a warning."""
    program = (
        "import importlib, sys, warnings\n"
        "from wheels_ops import _moved\n"
        "for old, new in _moved.MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as raised:\n"
        "        warnings.simplefilter('always')\n"
        "        module = importlib.import_module('wheels_ops.' + old)\n"
        "    assert module is sys.modules['wheels_ops.' + new], old\n"
        "    assert [entry.category for entry in raised] == [DeprecationWarning], old\n"
        "from wheels_ops import thresholds\n"
        "assert thresholds.__name__ == 'wheels_ops.health.thresholds'\n"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")
