# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program C(wheels-ops), also C(python3 -m wheels_ops.command_line): the library without Ansible."""

from __future__ import annotations

import argparse
import sys
import typing as t

from .core.packages import package_of
from .core.results import OpsError
from .core.version import VERSION
from .rls import cli as rls_cli
from .standalone import health_cli, patch_cli

#: Exit status of every subcommand.
CLEAN, FOUND, UNKNOWN = 0, 1, 2


class _Completion(argparse.Action):
    """Derived from the parser that it is part of. Only who asks for it needs shtab."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: t.Any,
        option_string: t.Optional[str] = None,
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(UNKNOWN, "wheels-ops: the package shtab is missing: pip install shtab\n")
        sys.stdout.write(shtab.complete(parser, values) + "\n")
        parser.exit(CLEAN)


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
    main_parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "fish"),
        help="print the completion of this program for a shell, and end",
    )
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
        name = package_of(error)
        extra = f"pip install 'wheels-ops[{options.command}]', or " if options.command in ("rls", "health") else ""
        sys.stderr.write(f"wheels-ops: the package {name} is missing: {extra}pip install {name}\n")
    except KeyboardInterrupt:
        sys.stderr.write("wheels-ops: interrupted; nothing half done is left\n")
    return UNKNOWN


if __name__ == "__main__":
    raise SystemExit(main())
