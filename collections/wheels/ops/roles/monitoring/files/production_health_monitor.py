# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measures the health of this host from outside the backend, and changes nothing: see --help.

The work is done by the library of the collection wheels.ops, which the role ``monitoring`` installs beside this file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve()


def find_library() -> Path:
    """The directory of the library: named, installed beside this program, or in the collection that this file is part
    of.
    """
    named = os.environ.get("WHEELS_OPS_LIBRARY")
    places = [directory / name for directory in PROGRAM.parents for name in ("lib/wheels_ops", "plugins/module_utils")]
    for place in [Path(named)] if named else places:
        if (place / "standalone/launcher.py").is_file():
            return place
    sys.stdout.write(
        f"UNKNOWN: {PROGRAM.name} finds no library of wheels.ops. Let the role monitoring install it, or name it with"
        " WHEELS_OPS_LIBRARY.\n"
    )
    raise SystemExit(3)


def load_library() -> None:
    """Makes the library known as the package ``wheels_ops``, whatever its directory is called."""
    if "wheels_ops" in sys.modules:
        return
    place = find_library()
    spec = importlib.util.spec_from_file_location(
        "wheels_ops", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is no package")
    library = importlib.util.module_from_spec(spec)
    sys.modules["wheels_ops"] = library
    spec.loader.exec_module(library)


load_library()

# The package is known from here on, and only a Python that has what it needs may import the rest: hence imports below
# code.
from wheels_ops.standalone.launcher import UNKNOWN, ensure  # noqa: E402 - see above

if __name__ == "__main__":
    problem = ensure(PROGRAM, sys.argv[1:])
    if problem:
        sys.stdout.write(f"UNKNOWN: {problem}\n")
        raise SystemExit(UNKNOWN)

from wheels_ops.standalone.monitor import ProductionHealthMonitor, main, run  # noqa: E402 - see above
from wheels_ops.standalone.program_output import leave  # noqa: E402 - see above

__all__ = ["ProductionHealthMonitor", "main"]

if __name__ == "__main__":
    leave(run())
