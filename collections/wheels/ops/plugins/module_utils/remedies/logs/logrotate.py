# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""logrotate: one rename by it, and permanent policies that it has read before they are installed."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

from ...core import options
from ...core.results import OpsError
from ...host import subprocesses

_SECONDS = 300
#: What a word in a policy may hold; logrotate has no way to escape anything else.
_PLAIN = re.compile(r"[^\x00-\x1f\"'\\{}]+")

_INCLUDE = re.compile(rb"^[ \t]*include[ \t=]+(.*?)[ \t]*$", re.M)


def installed() -> str:
    """The path of logrotate, empty where it is not installed.

    Debian keeps it in /usr/sbin, which is not in every user's PATH.
    """
    return shutil.which("logrotate", path=_search_path()) or ""


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def require() -> str:
    program = installed()
    if not program:
        raise OpsError("logrotate is not installed.", hint="apt-get install logrotate")
    return program


def _quoted(path: str) -> str:
    if not _PLAIN.fullmatch(path):
        raise OpsError(
            f"{path!r} holds a character that logrotate cannot read.",
            hint="Name the log without quotes, braces and backslashes.",
        )
    return f'"{path}"'


def _identity(status: os.stat_result) -> str:
    """User and group of a directory, as ``su`` takes them; empty where one has no name, as logrotate takes no numbers."""
    import grp
    import pwd

    try:
        return f"{pwd.getpwuid(status.st_uid).pw_name} {grp.getgrgid(status.st_gid).gr_name}"
    except KeyError:
        return ""


def _run(words: t.Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocesses.run(words, timeout=_SECONDS, environment={**os.environ, "TZ": "UTC", "LC_ALL": "C"})
    except subprocess.TimeoutExpired as error:
        raise OpsError(f"{words[0]} did not end within {_SECONDS} s.", hint="Run it by hand.") from error
    except OSError as error:
        raise OpsError(
            f"Cannot run {words[0]}: {error.strerror}.", hint="Give the full path of a program of this host."
        ) from error


def rename(directory: str, name: str, part: str) -> bool:
    """Has logrotate rename a log of ``directory`` to ``part``, which begins with ``name``. The caller makes the new
    log, tells the writers and compresses. False where the directory belongs to a user without a name: then there is
    nobody whose rights logrotate could take, and the caller renames.

    Its retention, compression and creation are left out: it compresses before writers have let go, and its own
    ``create`` races with theirs.
    """
    program = require()
    status = os.stat(directory)
    if not _identity(status):
        return False
    # logrotate refuses directories that others than root may write, unless it is told whose rights to take.
    shared = os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & 0o022)
    with tempfile.TemporaryDirectory(prefix="wheels-ops-") as place:
        policy = Path(place, "policy")
        lines = [
            f"{_quoted(glob.escape(os.path.join(directory, name)))} {{",
            f"  su {_identity(status)}" if shared else "",
            "  size 1",
            "  rotate 1000",
            "  nocreate",
            "  nocompress",
            "  nomail",
            "  nocopytruncate",
            "  dateext",
            f"  dateformat {part[len(name) :]}",
            "}",
        ]
        policy.write_bytes(os.fsencode("\n".join([*filter(None, lines), ""])))
        policy.chmod(0o600)
        done = _run([program, "--force", "--state", str(Path(place, "state")), str(policy)])
    if done.returncode or not os.path.lexists(os.path.join(directory, part)):
        raise OpsError(
            f"logrotate did not rename {directory}/{name}: {done.stderr.strip() or 'it gave no reason'}.",
            hint="The log is as it was.",
        )
    return True


def require_program(command: t.Sequence[str]) -> None:
    """Raises ``OpsError`` where the first word of ``reopen`` is no program of this host: better now than when the log
    was renamed.
    """
    if command and command[0] and not shutil.which(command[0], path=_search_path()):
        raise OpsError(
            f"reopen runs {command[0]!r}, which is no program of this host.", hint="Give its full path, or install it."
        )


def tell(command: t.Sequence[str]) -> None:
    """Runs the command that tells writers to reopen. Raises ``OpsError`` where it fails."""
    done = _run(list(command))
    if done.returncode:
        raise OpsError(
            f"{shlex.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}",
            hint=(
                "Nothing is lost: the renamed log stays plain until its writer lets go. Correct reopen, and run it"
                " again."
            ),
        )


#: Where logrotate's packages keep policies; each file is read by the nightly run.
POLICIES = "/etc/logrotate.d"
MAIN = "/etc/logrotate.conf"
_POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FREQUENCIES: t.Tuple[str, ...] = ("hourly", "daily", "weekly", "monthly")
_MARK = "# Written by wheels.ops. Changes are lost with the next run."


def policy_text(
    paths: t.Sequence[str],
    *,
    max_size: int,
    keep: int,
    frequency: str,
    compress: bool,
    reopen: t.Sequence[str],
    mode: t.Optional[int] = None,
    owner: str = "",
    group: str = "",
    allow_loss: bool = False,
) -> str:
    """A permanent policy for logs whose writers are told to reopen, or that nobody holds open (``reopen`` empty needs
    ``allow_loss``).

    ``delaycompress`` leaves the newest part plain, so that a writer that has not let go yet writes into nothing that is
    being compressed.
    """
    for word in reopen:
        if not word or "\n" in word or "\0" in word:
            raise OpsError(
                f"{word!r} cannot be a word of reopen.", hint="Give the command as a list of words on one line."
            )
    created = " ".join(filter(None, ["create", f"{mode:04o}" if mode is not None else "", owner, group]))
    if (owner or group) and (mode is None or not owner or not group):
        raise OpsError("logrotate takes mode, owner and group together.", hint="Give all three, or none.")
    lines = [
        _MARK,
        " ".join(_quoted(path) for path in paths) + " {",
        f"    {frequency}",
        f"    maxsize {max_size}",
        f"    rotate {keep}",
        "    missingok",
        "    notifempty",
        "    nomail",
        "    dateext",
        "    dateformat .%Y%m%d-%H%M%S",
    ]
    directories = {os.path.dirname(path) for path in paths}
    shared = sorted({_identity(os.stat(path)) for path in directories if os.path.isdir(path) and _shared(path)})
    if "" in shared:
        open_to_others = [path for path in directories if os.path.isdir(path) and os.stat(path).st_mode & 0o022]
        if open_to_others:
            raise OpsError(
                f"{min(open_to_others)} belongs to a user without a name, and others may write there: logrotate refuses"
                " it.",
                hint="Give it to a user of this host, or take the right to write from group and others (chmod go-w).",
            )
        shared.remove("")
    if len(shared) > 1:
        raise OpsError("The directories of these logs belong to different users.", hint="Write one policy for each.")
    lines += [f"    su {shared[0]}"] if shared else []
    lines += ["    compress", "    delaycompress"] if compress else ["    nocompress"]
    if reopen:
        lines += [
            f"    {created}",
            "    sharedscripts",
            "    postrotate",
            f"        {shlex.join(reopen)}",
            "    endscript",
        ]
    elif allow_loss:
        lines += ["    copytruncate"]
    else:
        raise OpsError(
            "A permanent policy needs to tell the writers to reopen.",
            hint=(
                "Give the command in reopen. Where they cannot, run state: rotated from a timer; it takes the head out"
                " in place."
            ),
        )
    return "\n".join([*lines, "}", ""])


def _shared(path: str) -> bool:
    status = os.stat(path)
    return status.st_uid != 0 or bool(status.st_mode & 0o022)


def validated(text: str, others: t.Sequence[Path] = (), *, replaces: t.Optional[Path] = None) -> None:
    """Has ``logrotate -d`` read a policy, which changes nothing. And once more after the ``others``, whose own faults do
    not count, and without the policy of an earlier run that it ``replaces``.

    Raises ``OpsError`` with what it does not understand, or what is named twice.
    """
    program = require()
    with tempfile.TemporaryDirectory(prefix="wheels-ops-") as place:
        policy = Path(place, "policy")
        policy.write_bytes(os.fsencode(text))
        policy.chmod(0o600)
        done = _run([program, "--debug", "--state", str(Path(place, "state")), str(policy)])
        read = [
            _without_inclusion(replaces, other, Path(place, f"other-{number}")) for number, other in enumerate(others)
        ]
        words = [program, "--debug", "--state", str(Path(place, "state")), *map(str, read), str(policy)]
        together = _run(words).stderr if others else ""
    # It ends with 0 for some mistakes, and only says "error:".
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    errors += [line for line in together.splitlines() if f"{policy}:" in line and "duplicate log entry" in line]
    if done.returncode or errors:
        raise OpsError(
            f"logrotate refuses the policy: {'; '.join(errors) or done.stderr.strip()}.", hint="Nothing was installed."
        )


def _without_inclusion(replaced: t.Optional[Path], policy: Path, copy: Path) -> Path:
    """A policy, or a copy that does not include the ``replaced`` one, nor the directory that holds it: whose other files
    are given one by one.
    """
    try:
        content = policy.read_bytes()
    except OSError:
        return policy

    def keep(match: re.Match[bytes]) -> bytes:
        target = os.path.realpath(match[1].strip(b"\"'"))
        leads = replaced and target in map(os.path.realpath, (os.fsencode(replaced), os.fsencode(replaced.parent)))
        return b"" if leads else match[0]

    without = _INCLUDE.sub(keep, content)
    if without == content:
        return policy
    copy.write_bytes(without)
    copy.chmod(0o600)
    return copy


def policy_path(name: str, directory: str = POLICIES) -> Path:
    # logrotate passes over names with a dot or a tilde without saying so.
    options.matching("name", name, _POLICY, "1 to 64 letters, digits, - and _ (not first)")
    return Path(directory, name)


def current(path: Path) -> t.Optional[str]:
    """The policy in place, None where there is none. Raises ``OpsError`` for one that is not ours."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OpsError(f"Cannot read {path}: {error.strerror}.", hint="Run as root.") from error
    if path.is_symlink() or not text.startswith(_MARK):
        raise OpsError(f"{path} was not written by wheels.ops.", hint="Choose another name, or move that file away.")
    return text
