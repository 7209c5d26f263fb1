# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``python3 -m wheels_ops``: the library without Ansible."""

from __future__ import annotations

import argparse
import sys
import typing as t

from .core.results import OpsError
from .core.version import VERSION
from .rls import cli as rls_cli
from .standalone import health_cli, patch_cli

#: Exit status of every subcommand.
CLEAN, FOUND, UNKNOWN = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Every subcommand adds itself with ``register(subparsers)`` and names the function that runs it as ``run``."""
    main_parser = argparse.ArgumentParser(
        prog="wheels-ops",
        description=(
            "Checks and remedies of wheels.ops. Exit status: 0 clean, 1 findings, 2 unknown; of health: 0 healthy,"
            " 1 warning, 2 critical, 3 unknown."
        ),
    )
    main_parser.add_argument("--version", action="version", version=f"wheels-ops {VERSION}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rls_cli.register(commands)
    patch_cli.register(commands)
    health_cli.register(commands)
    return main_parser


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    """Runs one subcommand; gives its exit status."""
    options = parser().parse_args(words)
    try:
        return int(options.run(options))
    except OpsError as error:
        sys.stderr.write(f"wheels-ops: {error}\n")
    except ImportError as error:
        sys.stderr.write(f"wheels-ops: the Python package {error.name} is missing: pip install 'wheels-ops[rls]'\n")
    except KeyboardInterrupt:
        sys.stderr.write("wheels-ops: interrupted; nothing half done is left\n")
    return UNKNOWN


if __name__ == "__main__":
    raise SystemExit(main())
