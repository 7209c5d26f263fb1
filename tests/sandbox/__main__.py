# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.sandbox up|break|down|demo|compare|status``: the sandbox's life, as ``make`` calls it."""

from __future__ import annotations

import argparse
import sys

from tests.sandbox import compare, demo, lifecycle
from tests.sandbox.layout import Sandbox

COMMANDS = {
    "up": (lifecycle.up, "start PostgreSQL, Redis, the backend, a Celery worker and beat, and wait until they answer"),
    "break": (lifecycle.break_it, "bring back the eight incidents"),
    "down": (lifecycle.down, "stop everything; the directory stays"),
    "demo": (demo.run, "up, break, deploy, and the table of before and after"),
    "compare": (
        compare.run,
        "memory, slowest request and first audio under the same load, broken and after deploy (3 minutes)",
    ),
    "status": (lifecycle.status, "say what runs, and on which ports"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_call, text) in COMMANDS.items():
        commands.add_parser(name, help=text)
    chosen = parser.parse_args().command
    return COMMANDS[chosen][0](Sandbox())


if __name__ == "__main__":
    sys.exit(main())
