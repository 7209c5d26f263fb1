# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""logrotate: one rename by it, and permanent policies that it has read before they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

from .results import OpsError

_SECONDS = 300
#: What a word in a policy may hold; logrotate has no way to escape anything else.
_PLAIN = re.compile(r"[^\x00-\x1f\"'\\{}]+")


def installed() -> str:
    """The path of logrotate, empty where it is not installed. Debian keeps it in /usr/sbin, which is not in every user's PATH."""
    return shutil.which("logrotate", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin") or ""


def require() -> str:
    program = installed()
    if not program:
        raise OpsError("logrotate is not installed.", hint="apt-get install logrotate")
    return program


def _quoted(path: str) -> str:
    if not _PLAIN.fullmatch(path):
        raise OpsError(f"{path!r} holds a character that logrotate cannot read.", hint="Name the log without quotes, braces and backslashes.")
    return f'"{path}"'


def _identity(status: os.stat_result) -> str:
    import grp
    import pwd

    try:
        return f"{pwd.getpwuid(status.st_uid).pw_name} {grp.getgrgid(status.st_gid).gr_name}"
    except KeyError as error:
        raise OpsError("The directory of the log belongs to a user without a name.", hint="Give it to a user of this host.") from error


def _run(words: t.Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired as error:
        raise OpsError(f"{words[0]} did not end within {_SECONDS} s.", hint="Run it by hand.") from error
    except OSError as error:
        raise OpsError(f"Cannot run {words[0]}: {error.strerror}.", hint="Give the full path of a program of this host.") from error


def rename(directory: str, name: str, part: str) -> None:
    """Has logrotate rename a log of ``directory`` to ``part``, which begins with ``name``. The caller makes the new log, tells the writers and compresses.

    Its retention, compression and creation are left out: it compresses before writers have let go, and its own ``create`` races with theirs.
    """
    program = require()
    status = os.stat(directory)
    # logrotate refuses directories that others than root may write, unless it is told whose rights to take.
    shared = os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & 0o022)
    with tempfile.TemporaryDirectory(prefix="wheels-ops-") as place:
        policy = Path(place, "policy")
        lines = [
            f"{_quoted(os.path.join(directory, name))} {{",
            f"  su {_identity(status)}" if shared else "",
            "  size 1", "  rotate 1000", "  nocreate", "  nocompress", "  nomail", "  nocopytruncate", "  dateext", f"  dateformat {part[len(name) :]}", "}",
        ]  # fmt: skip
        policy.write_text("\n".join([*filter(None, lines), ""]), encoding="utf-8")
        policy.chmod(0o600)
        done = _run([program, "--force", "--state", str(Path(place, "state")), str(policy)])
    if done.returncode or not os.path.lexists(os.path.join(directory, part)):
        raise OpsError(f"logrotate did not rename {directory}/{name}: {done.stderr.strip() or 'it gave no reason'}.", hint="The log is as it was.")


def tell(command: t.Sequence[str]) -> None:
    """Runs the command that tells writers to reopen. Raises ``OpsError`` where it fails."""
    done = _run(list(command))
    if done.returncode:
        raise OpsError(
            f"{shlex.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}",
            hint="Nothing is lost: the renamed log stays plain until its writer lets go. Correct reopen, and run it again.",
        )
