# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a program whose code another user controls as that user, never as root.

It gets a HOME and a TMPDIR of its own, an environment of its own, no descriptor of ours, no terminal, no way to gain
rights, no network where that is asked for and the host can do it, and a time limit after which its whole process group
is killed. A program that a third user may write is refused before (``require_trusted``).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import grp
import json
import os
import pwd
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.results import OpsError
from . import child, subprocesses

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What of our own environment every program gets: none of it holds a secret.
_PASSED = frozenset({"LANG", "LANGUAGE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})
#: What an installer needs to reach its index; there may be a password in it.
_OF_INSTALLERS = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"})
#: What a service manager says to one process, and to no other.
_OF_ONE_PROCESS = (
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
)
_PREFIX = "wheels-ops-run-"
_MAX_OUTPUT = 64 * 2**20
#: How long we read on after a program has ended, where something that it started holds its output open.
_GRACE = 0.5


@dataclass(frozen=True)
class Identity:
    """As whom a program runs. ``trusted``: the users who may write its code."""

    uid: int
    gid: int
    groups: t.Tuple[int, ...]
    name: str
    home: str
    trusted: t.FrozenSet[int]


@dataclass(frozen=True)
class Completed:
    """What a program did. ``network``: whether it had one."""

    returncode: int
    stdout: bytes
    stderr: bytes
    user: str
    network: bool


class TimedOut(OpsError):
    """The program was killed when its time was over."""


def effective_uid() -> int:
    return os.getresuid()[1]


def identity(uid: int, gid: int = -1, *, trusted: t.Collection[int] = ()) -> Identity:
    """A user by number. ``gid``: the group of one who has no entry in the user database."""
    every = frozenset({0, uid, *trusted})
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        group = gid if gid >= 0 else uid
        return Identity(uid, group, (group,), str(uid), "", every)
    return Identity(
        uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name, entry.pw_dir, every
    )


def _number_of(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OpsError(
            f"There is no user {user} on this host.",
            hint="Name the user that the backend runs as with wheels_ops_backend_user.",
        ) from None


def owner_of(paths: t.Iterable[t.Union[str, Path]], *, user: str = "", uid: t.Optional[int] = None) -> Identity:
    """As whom the code in ``paths`` is run: ``user``, or ``uid`` (of the service that runs it), or its owner.

    Root's code may run as root; where anybody else owns one of the paths, root is never the answer. Who is not root
    runs what is his own or root's. Raises ``OpsError`` for a user that does not exist or that we may not become, and
    for code of another user where we are not root.
    """
    owner, group = 0, 0
    for path in paths:
        for status in _statuses(path):
            if status.st_uid and not owner:
                owner, group = status.st_uid, status.st_gid
                first = path
    ours = effective_uid()
    requested_uid = _number_of(user) if user else uid
    if ours:
        if user and requested_uid != ours:
            raise OpsError(
                f"Only root may run a program as {user}.", hint=f"Run this task with become: true, or as {user}."
            )
        if owner not in (0, ours):
            raise OpsError(
                f"{first} belongs to {identity(owner).name}: it is not run as {identity(ours).name}.",
                hint="Run this task as root, or as the owner.",
            )
        return identity(ours)
    chosen_uid = requested_uid or owner
    return identity(chosen_uid, group if chosen_uid == owner else -1, trusted={owner})


def _statuses(path: t.Union[str, Path]) -> t.Iterator[os.stat_result]:
    for look in (os.lstat, os.stat):
        with contextlib.suppress(OSError):
            yield look(path)


def _private_groups(who: Identity) -> t.List[int]:
    """The groups that nobody but the trusted users is in."""
    names = {user.pw_name for user in pwd.getpwall() if user.pw_uid in who.trusted}
    groups = {group.gr_gid: set(group.gr_mem) for group in grp.getgrall()}
    groups.setdefault(who.gid, set())
    for user in pwd.getpwall():
        groups.setdefault(user.pw_gid, set()).add(user.pw_name)
    return sorted(gid for gid, members in groups.items() if members <= names)


@contextlib.contextmanager
def private_directory(who: Identity) -> t.Iterator[Path]:
    """A directory of ours that the user can pass, with a ``home`` and a ``tmp`` that are his alone; removed afterwards.

    What a killed run left is removed by the next: while we live, the directory is locked.
    """
    top = Path(tempfile.gettempdir())
    for leftover in top.glob(f"{_PREFIX}*"):
        _remove_dead(leftover)
    while True:
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(place):
            break
        os.close(lock)  # another run took it for a dead one's before it was locked
    try:
        place.chmod(0o711)
        for name in ("home", "tmp"):
            make_private(place / name, who)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)  # by descriptors on Linux
        os.close(lock)


def make_private(path: Path, who: Identity) -> None:
    """A directory in one of ours that is the user's alone."""
    path.mkdir(mode=0o700)
    if who.uid != effective_uid():
        os.chown(path, who.uid, who.gid)


def _remove_dead(place: Path) -> None:
    try:
        status = place.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != effective_uid():
            return
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    except OSError:
        pass  # its run lives
    finally:
        os.close(lock)


def installer_environment() -> t.Dict[str, str]:
    """Of our own environment, what pip or uv needs: proxies, the index, certificates."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _OF_INSTALLERS or name.startswith(("PIP_", "UV_"))
    }


def environment_for(who: Identity, place: Path, extra: t.Mapping[str, str]) -> t.Dict[str, str]:
    """The whole environment of a program: what it needs, ``extra``, and directories of its own."""
    ours = ("PYTHONPATH",) if who.uid == effective_uid() else ()
    passed = {
        name: value for name, value in os.environ.items() if name in _PASSED or name in ours or name.startswith("LC_")
    }
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", **passed, **extra}
    for name in _OF_ONE_PROCESS:
        environment.pop(name, None)
    if who.home:
        # Packages that pip installed for the user alone lie below his real home.
        environment.setdefault("PYTHONUSERBASE", os.path.join(who.home, ".local"))
        environment.update(USER=who.name, LOGNAME=who.name)
    temporary = str(place / "tmp")
    return {
        **environment,
        "HOME": str(place / "home"),
        "TMPDIR": temporary,
        "TMP": temporary,
        "TEMP": temporary,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(
    words: t.Sequence[str],
    who: Identity,
    place: Path,
    *,
    timeout: float,
    cwd: t.Union[str, Path] = "/",
    environment: t.Optional[t.Mapping[str, str]] = None,
    stdin: bytes = b"",
    network: bool = True,
) -> Completed:
    """Runs a program to its end as ``who``. ``place``: of ``private_directory``. ``environment``: beside what every
    program gets.

    ``network`` False: without one, where the host can do that; the result says whether it could. Raises ``TimedOut``
    after ``timeout`` seconds, when the process group is killed, and ``OpsError`` where the program cannot be started as
    that user.
    """
    settings = {
        "action": "exec",
        "words": list(words),
        "environment": environment_for(who, place, environment or {}),
        "cwd": str(cwd),
        "network": network,
    }
    completed, report = _start(settings, who, timeout=timeout, stdin=stdin, what=os.path.basename(words[0]))
    if "error" in report:
        raise OpsError(f"{words[0]} cannot be started as {who.name}: {report['error']}.")
    return completed


def require_trusted(
    who: Identity,
    *,
    interpreters: t.Sequence[str] = (),
    directories: t.Sequence[t.Union[str, Path]] = (),
    timeout: float = 60,
) -> None:
    """Raises ``OpsError`` where somebody else than root, the owner and ``who`` may write an interpreter, what it
    imports, or a directory above it.
    """
    user_site = [os.path.join(who.home, ".local", "lib")] if who.home and who.uid else []
    settings = {
        "action": "inspect",
        "programs": list(interpreters),
        "directories": [*map(str, directories), *user_site],
    }
    _refuse(_ask(settings, who, timeout)["problems"], who)


def stage(
    who: Identity,
    source: str,
    destination: t.Optional[Path],
    files: t.Mapping[str, bytes],
    *,
    left_out: t.Sequence[str],
    timeout: float = 180,
) -> None:
    """Copies a tree, with ``files`` in it, into a directory of ``who``, by his own rights. Raises ``OpsError`` where a
    third user may write its code.

    ``destination`` None: the tree is looked at alone.
    """
    settings = {
        "action": "stage",
        "source": source,
        "destination": str(destination) if destination else "",
        "left_out": list(left_out),
        "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }
    _refuse(_ask(settings, who, timeout)["problems"], who)


def packages_of(who: Identity, interpreter: str) -> t.Dict[str, t.Any]:
    """``environment`` (whether the interpreter belongs to a virtual environment), ``versions`` by package, and
    ``modules``; nothing of it is run.
    """
    return _ask({"action": "packages", "interpreter": interpreter}, who, 60)


def _refuse(problems: t.Sequence[str], who: Identity) -> None:
    if problems:
        others = f"other than root and {who.name}" if who.uid else "other than root"
        raise OpsError(
            f"Nothing of it is run, as users {others} control it: {'; '.join(problems)}.",
            hint=(
                "Nothing was changed. Take the right to write away (chmod go-w), or give it to the owner of the"
                " application (chown)."
            ),
        )


def _ask(settings: t.Mapping[str, t.Any], who: Identity, timeout: float) -> t.Dict[str, t.Any]:
    completed, report = _start(
        {"cwd": "/", "network": True, "uids": sorted(who.trusted), "gids": _private_groups(who), **settings},
        who,
        timeout=timeout,
        what=settings["action"],
    )
    if "result" not in report:
        reason = report.get("error") or completed.stderr.decode(errors="replace").strip()[-500:]
        raise OpsError(
            f"Cannot look at the application as {who.name}: {reason}.",
            hint="Nothing was changed. May that user read it, and is there room?",
        )
    return t.cast(t.Dict[str, t.Any], report["result"])


def _python() -> str:
    """An interpreter of ours; the system's where this user may not reach our own, in a home of root's for example."""
    if os.access(sys.executable, os.X_OK, effective_ids=True):
        return sys.executable
    return shutil.which("python3", path=PATH) or sys.executable


def _source() -> str:
    loader = getattr(child, "__loader__", None)
    source = loader.get_source(child.__name__) if loader is not None else None
    if not source:
        raise OpsError(
            "The source of wheels.ops is not there.", hint="This is a defect of wheels.ops; please report it."
        )
    return str(source)


def _start(
    settings: t.Mapping[str, t.Any], who: Identity, *, timeout: float, what: str, stdin: bytes = b""
) -> t.Tuple[Completed, t.Dict[str, t.Any]]:
    """Starts the child between us and the program; gives what it did, and what the child reported before."""
    content = json.dumps({**settings, "uid": who.uid, "gid": who.gid, "groups": list(who.groups)}).encode()
    settings_out, settings_in = os.pipe()
    report_out, report_in = os.pipe()
    words = [_python(), "-I", "-S", "-c", _source(), str(settings_out), str(report_in)]
    try:
        process = subprocesses.start(
            words, cwd="/", environment={"PATH": PATH, "LC_ALL": "C.UTF-8"}, descriptors=(settings_out, report_in)
        )
    except OSError as error:
        for descriptor in (settings_in, report_out):
            os.close(descriptor)
        raise OpsError(f"{words[0]} cannot be started: {error.strerror}.") from error
    finally:
        os.close(settings_out)
        os.close(report_in)
    try:
        with os.fdopen(settings_in, "wb") as stream, contextlib.suppress(BrokenPipeError):
            stream.write(content)
            stream.flush()
        output, errors, report = _communicate(process, report_out, stdin, timeout, what)
    finally:
        os.close(report_out)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # also what the program left behind
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    parsed: t.Dict[str, t.Any] = {}
    for line in report.splitlines():
        parsed.update(json.loads(line))
    return Completed(process.returncode, output, errors, who.name, bool(parsed.get("network", True))), parsed


def _communicate(
    process: subprocess.Popen[bytes], report: int, stdin: bytes, timeout: float, what: str
) -> t.Tuple[bytes, bytes, bytes]:
    """Feeds and reads a process until it has ended.

    Something that it started, and that holds a pipe open, is not waited for.
    """
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise ValueError("the process needs pipes for its input, its output and its errors")
    outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), report: bytearray()}
    feed = process.stdin.fileno()
    view = memoryview(stdin)
    until = time.monotonic() + timeout
    end = 0.0
    with selectors.DefaultSelector() as selector:
        for descriptor in outputs:
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(feed, False)
        selector.register(feed, selectors.EVENT_WRITE)
        while selector.get_map():
            now = time.monotonic()
            if not end and _has_ended(process):
                end = now
            if now > until or (end and now > end + _GRACE):
                break
            for key, _events in selector.select(0.05):
                descriptor = key.fd
                if descriptor == feed:
                    try:
                        view = view[os.write(descriptor, view[:65536]) :] if view else view
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        view = view[:0]
                    if not view:
                        selector.unregister(descriptor)
                        process.stdin.close()
                        break
                    continue
                part = os.read(descriptor, 65536)
                if not part:
                    selector.unregister(descriptor)
                elif len(outputs[descriptor]) < _MAX_OUTPUT:
                    outputs[descriptor] += part
    while not _has_ended(process):
        if time.monotonic() > until:
            raise TimedOut(f"{what} was not done within {timeout:g} s.", hint="")
        time.sleep(0.01)
    return tuple(bytes(output) for output in outputs.values())  # type: ignore[return-value]  # three of them


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended.

    It is not reaped yet, so that its number, which names its group too, is nobody else's when that is killed.
    """
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
