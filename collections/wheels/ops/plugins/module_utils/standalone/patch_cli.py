# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``wheels-ops patch install|check|remove DIR``: the patched backend files in a build, for a Dockerfile or a build
command.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import typing as t
from pathlib import Path

from ..core.results import OpsError, Result, escape_names

CLEAN, FOUND, UNKNOWN = 0, 1, 2
#: How the remedy's messages name what here are options.
_WORDS: t.Tuple[t.Tuple[str, str], ...] = (
    ("-e wheels_ops_force=true", "--force"),
    ("with wheels_ops_backend_python", "with --python"),
    ("with wheels_ops_state_dir", "with --state-dir"),
    ("with wheels_ops_backend_dir", "as DIR"),
    (" (become: true)", ""),
    ("the user of this task", "this user"),
    ("deployment build-", "installation build-"),
)
_LOCK = re.compile(r"-e wheels_ops_lock_force=(\S+) \(.*?--lock-force \S+\)")


def register(commands: t.Any) -> None:
    """Adds ``patch`` with its own subcommands."""
    patch = commands.add_parser(
        "patch",
        help="the patched backend files in a build directory: install, check, remove",
        description=(
            "Install the patched backend files below a directory from which an image or a release is built. DIR is the"
            " directory that holds app/main.py."
        ),
    )
    actions = patch.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser("install", help="install the patched files; keeps the originals")
    _common(install)
    _further(install)
    install.add_argument("--check", action="store_true", help="change nothing; exit with 1 where something would be")
    check = actions.add_parser("check", help="the same as install --check")
    _common(check)
    _further(check)
    check.set_defaults(check=True)
    remove = actions.add_parser("remove", help="restore the originals, bit for bit")
    _common(remove)
    remove.add_argument("--check", action="store_true", help="change nothing; exit with 1 where something would be")
    for each in (install, check, remove):
        each.set_defaults(run=run)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the directory that holds app/main.py")
    parser.add_argument("--diff", action="store_true", help="show the lines that change")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument(
        "--force", action="store_true", help="also replace what somebody changed after it was installed; keeps a copy"
    )
    parser.add_argument(
        "--lock-force", default="", metavar="ID", help="take the lock from the run that a refusal names"
    )
    parser.add_argument(
        "--state-dir", default="", metavar="PATH", help="where the originals are kept (default: DIR/.wheels-ops)"
    )


def _further(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--python",
        default="",
        metavar="PATH",
        help=(
            "import app.main with the new files in a copy under this Python, with this environment, before anything is"
            " replaced"
        ),
    )


def run(options: argparse.Namespace) -> int:
    """Exit status: 0 done, or nothing to do; 1 something would change, or could not be restored; 2 refused."""
    from ..remedies import build_patch

    arguments: t.Dict[str, t.Any] = {
        "force": options.force,
        "lock_force": options.lock_force,
        "check_mode": options.check,
        "want_diff": options.diff,
    }
    try:
        if options.action == "remove":
            result = build_patch.remove(options.directory, options.state_dir, **arguments)
        else:
            result = build_patch.install(options.directory, options.state_dir, python=options.python, **arguments)
    except OpsError as error:
        return _refuse(error, options)
    except KeyboardInterrupt:
        sys.stderr.write("wheels-ops: interrupted; run it again, and it is finished\n")
        return UNKNOWN
    if options.json:
        document = {
            **result.as_dict(),
            "msg": _named(result.msg),
            "warnings": [_named(text) for text in result.warnings],
        }
        sys.stdout.write(json.dumps(escape_names(document), indent=1) + "\n")
    else:
        _print(result, Path(options.directory).resolve())
    return FOUND if (options.check and result.changed) or result.extra.get("kept") else CLEAN


def _refuse(error: OpsError, options: argparse.Namespace) -> int:
    text = _named(str(error))
    differences = t.cast("t.List[t.Dict[str, t.Any]]", error.details.get("diff") or [])
    if options.json:
        details = {"failed": True, "msg": text, "foreign": error.details.get("foreign", []), "diff": differences}
        sys.stdout.write(json.dumps(escape_names(details), indent=1) + "\n")
    else:
        _print_differences(differences)
    sys.stderr.write(f"wheels-ops: {text}\n")
    return UNKNOWN


def _print(result: Result, root: Path) -> None:
    _print_differences(result.diff)
    for each in result.actions:
        target = each["target"]
        name = target[len(f"{root}/") :] if target.startswith(f"{root}/") else target
        sys.stdout.write(f"{each['action']:12}  {escape_names(name)}\n")
    sys.stdout.write(f"{escape_names(_named(result.msg))}\n")
    for text in result.warnings:
        sys.stderr.write(f"wheels-ops: {_named(text)}\n")


def _print_differences(differences: t.Iterable[t.Mapping[str, t.Any]]) -> None:
    for each in differences:
        sys.stdout.write(escape_names(each["prepared"]))


def _named(text: str) -> str:
    """A message of the remedy, in the words of this program."""
    for variable, option in _WORDS:
        text = text.replace(variable, option)
    return _LOCK.sub(r"--lock-force \1", text).replace("wheels_ops_lock_force", "--lock-force")
