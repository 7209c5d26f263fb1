# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one lock of everything that changes a host: ``deploy.lock`` in the state directory.

    {"holder": ID, "since": SECONDS, "at": TIME, "host": NAME, "purpose": "deploy"}

``holder`` is the id of the run (see ``holder``), ``at`` when it took the lock, ``since`` when it last renewed it, in
seconds since the epoch by the clock of this host, which is the only one that writes it. The tasks of a playbook are
processes of their own, so the lock is a file that outlives them; it is read and replaced under a guard, a lock of the
kernel that ends with its process, so that of many takers exactly one gets it.

Who may take it from its holder:

- alive: its process runs, on this host or on the controller that asks. Nobody, however old the lock is.
- dead: its process has ended. Everybody, at once.
- unknown: it runs on another controller, which cannot be asked from here. Everybody, ``EXPIRES`` seconds after the last
  renewal, or where the time of that renewal lies further in the future than that: the clock was set back, and the time
  says nothing any more.

Renewal: the playbooks give ``WHEELS_OPS_LOCK_HOLDER`` and ``WHEELS_OPS_LOCK_DIR`` to every task. Each of our modules
renews the lock when it begins, and every ``RENEWAL`` seconds while it works, however long that takes; it fails where
the lock was lost. Between two of our modules there are only tasks of ansible.builtin, of which the longest installs
packages (minutes), far from ``EXPIRES``. A person can take the lock from a living or unknown holder by giving its id,
so that nobody takes it from another than he means.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
import threading
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.results import OpsError
from ..host.files import sweep_directory
from . import directory, documents
from . import holder as holders

NAME = "deploy.lock"
EXPIRES = 1800.0
RENEWAL = 60.0
#: A module renews no lock that was renewed so recently (seconds): a run of short modules would write it again and
#: again.
_FRESH = 10.0
#: How long another process may stay between reading and replacing a file of ours, which takes milliseconds.
_WAIT = 10.0
HOLDER_VARIABLE, DIRECTORY_VARIABLE = "WHEELS_OPS_LOCK_HOLDER", "WHEELS_OPS_LOCK_DIR"
_HINT = "Make sure that no run works on this host, then remove the file."

_Function = t.TypeVar("_Function", bound=t.Callable[..., t.Any])


@dataclass(frozen=True)
class Entry:
    """Who holds the lock. ``renewed`` in seconds since the epoch."""

    holder: str
    renewed: float
    at: str
    purpose: str

    @property
    def title(self) -> str:
        return "Another deployment" if self.purpose in ("", "deploy") else f"Another run ({self.purpose})"


def read(root: Path) -> t.Optional[Entry]:
    """Who holds the lock, None for nobody. Raises ``Damaged`` for a file that does not say so."""
    path = root / NAME
    value = documents.load(path, hint=_HINT)
    if value is None:
        return None
    holder, since = value.get("holder"), value.get("since")
    if not isinstance(holder, str) or not holder:
        raise documents.Damaged(path, f"holder is {documents.kind(holder)}", _HINT)
    if not documents.number(since):
        raise documents.Damaged(path, f"since is {documents.kind(since)}, not a time in seconds", _HINT)
    at, purpose = value.get("at"), value.get("purpose", "")
    return Entry(
        holder,
        float(t.cast(float, since)),
        at if isinstance(at, str) else "an unknown time",
        purpose if isinstance(purpose, str) else "",
    )


def holder_of(root: Path) -> str:
    """The id of the holder, empty for nobody and for a damaged lock."""
    try:
        entry = read(root)
    except documents.Damaged:
        return ""
    return entry.holder if entry else ""


@contextlib.contextmanager
def guard(root: Path) -> t.Iterator[None]:
    """Keeps everybody else from reading and replacing the lock and the manifests meanwhile.

    The directory has to exist.
    """
    with exclusive(root / f".{NAME}.guard", "takes the lock"):
        yield


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> t.Iterator[None]:
    """A lock of the kernel on a file that is there only while it is held.

    Raises ``OpsError`` where another process keeps it.
    """
    until = time.monotonic() + _WAIT
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OpsError(
                f"The state directory {path.parent} cannot be written: {error.strerror}.",
                hint="Choose another with wheels_ops_state_dir, or run as root.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, descriptor):
                break
        except OSError:
            if time.monotonic() >= until:
                who = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(descriptor)
                raise OpsError(
                    f"Another process ({who}) {what} in {path.parent}.", hint="Wait for it to end."
                ) from None
            time.sleep(0.02)
        os.close(descriptor)
    try:
        with contextlib.suppress(OSError):  # a full disk: it is there for the message alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether a name still means the open file: its last holder removed it meanwhile otherwise."""
    try:
        there, ours = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def changes_files(function: _Function) -> _Function:
    """For a function of a state directory that installs or restores files: no two such processes work beside each
    other.

    The lock of the run keeps runs apart; this keeps a task whose run was killed, and which still works, from the next
    run's.
    """

    @functools.wraps(function)
    def alone(state_dir: str, *words: t.Any, **options: t.Any) -> t.Any:
        root = directory.require(state_dir)
        if options.get("check_mode") or not root.is_dir():
            return function(state_dir, *words, **options)
        with exclusive(root / ".files.lock", "installs or restores files with the state"):
            return function(state_dir, *words, **options)

    return t.cast(_Function, alone)


@dataclass(frozen=True)
class Claim:
    """That the lock can be had. ``previous``: who holds it now, ``note``: why it can be taken from him, a sentence."""

    previous: str = ""
    note: str = ""
    #: When the same run took it.
    at: str = ""


def claim(
    root: Path, holder: str, *, living: t.Collection[str] = (), dead: t.Collection[str] = (), force: str = ""
) -> Claim:
    """Looks whether a run may take the lock; changes nothing. Raises ``OpsError`` that names the holder where it may
    not.

    ``living`` and ``dead`` are ids of which the caller knows it; ``force`` is the id of the holder from whom to take
    the lock.
    """
    if not holder:
        raise OpsError("The lock has no holder.", hint="Name the run with holder.")
    try:
        entry = read(root)
    except documents.Damaged as damaged:
        return _claim_damaged(damaged)
    if entry is None:
        return Claim()
    if entry.holder == holder:
        return Claim(holder, at=entry.at)
    escape = f"-e wheels_ops_lock_force={entry.holder} (automated_recovery.py: --lock-force {entry.holder})"
    if force == entry.holder:
        return Claim(entry.holder, f"The lock was taken from {entry.holder}, as was asked for.")
    if force:
        raise OpsError(
            f"{entry.title} holds this host: {entry.holder}, since {entry.at}. wheels_ops_lock_force must be the id of"
            f" that holder, got {force!r}.",
            hint=f"To take the lock from it: {escape}.",
            lock={"holder": entry.holder, "at": entry.at},
        )
    able, reason, hint = _standing(entry, living, dead)
    if not able:
        raise OpsError(
            f"{entry.title} holds this host: {entry.holder}, since {entry.at}. {reason}",
            hint=f"{hint} To take the lock from it all the same: {escape}.",
            lock={"holder": entry.holder, "at": entry.at},
        )
    return Claim(entry.holder, f"The lock of {entry.holder} was taken over. {reason}")


def _standing(entry: Entry, living: t.Collection[str], dead: t.Collection[str]) -> t.Tuple[bool, str, str]:
    """Whether a lock can be taken over, why or why not, and what to do where it cannot."""
    here = holders.judge(entry.holder)
    if entry.holder in living or here == holders.ALIVE:
        return False, "Its process is alive.", "Wait for it to end, or stop it."
    if entry.holder in dead or here == holders.DEAD:
        return True, "Its process has ended.", ""
    age = time.time() - entry.renewed
    if age > EXPIRES:
        return True, f"It cannot be asked from here, and last renewed the lock {age / 60:.0f} minutes ago.", ""
    if age < -EXPIRES:
        return (
            True,
            (
                f"It cannot be asked from here, and its time stamp lies {-age / 60:.0f} minutes in the future: the"
                " clock was set back."
            ),
            "",
        )
    reason = f"It cannot be asked from here whether it is alive; it last renewed the lock {age:.0f} s ago."
    if age < 0:
        reason = (
            f"It cannot be asked from here whether it is alive; its time stamp lies {-age:.0f} s in the future, as the"
            " clock was set back."
        )
    return False, reason, f"Wait for it to end. If it is dead, its lock expires in {(EXPIRES - age) / 60:.0f} minutes."


def _claim_damaged(damaged: documents.Damaged) -> Claim:
    """A damaged lock was written by no run, and is renewed by none: it expires as well."""
    try:
        age = abs(time.time() - os.lstat(damaged.path).st_mtime)
    except OSError:
        age = 0.0
    if age <= EXPIRES or damaged.path.is_dir():
        raise damaged
    return Claim("", f"{damaged} It was taken over, as it is {age / 60:.0f} minutes old.")


def write(root: Path, holder: str, purpose: str, *, at: str = "") -> None:
    """Puts a lock there, under the guard, after a ``claim``. ``at``: when it was taken, for a renewal."""
    entry = {
        "holder": holder,
        "since": time.time(),
        "at": at or now(),
        "host": socket.gethostname(),
        "purpose": purpose,
    }
    documents.write(root / NAME, entry)


def remove(root: Path) -> None:
    """Takes the lock away, under the guard."""
    (root / NAME).unlink(missing_ok=True)


def renew(root: Path, holder: str) -> None:
    """Says that a run still works. Raises ``OpsError`` where it does not hold the lock any more."""
    entry = read(root)
    _require_held(entry, holder)
    if entry is not None and not 0 <= time.time() - entry.renewed < _FRESH:
        with guard(root):
            entry = read(root)
            _require_held(entry, holder)
            if entry is not None:
                write(root, holder, entry.purpose, at=entry.at)


def _require_held(entry: t.Optional[Entry], holder: str) -> None:
    if entry is None or entry.holder != holder:
        raise OpsError(
            f"This run ({holder}) does not hold the lock of this host any more;"
            f" {f'{entry.holder} does' if entry else 'nobody does'}.",
            hint=(
                "Nothing more is changed. Somebody took the lock over, or removed it; look at this host, then run the"
                " playbook again."
            ),
        )


def release(root: Path, holder: str) -> bool:
    """Gives the lock back; False where another run, or nobody, holds it."""
    if not root.is_dir() or holder_of(root) != holder:
        return False
    with guard(root):
        if holder_of(root) != holder:
            return False
        remove(root)
    return True


@contextlib.contextmanager
def heartbeat(root: Path, holder: str) -> t.Iterator[None]:
    """Renews the lock now, and every ``RENEWAL`` seconds until the end.

    Raises ``OpsError`` where it is lost before the beginning.
    """
    renew(root, holder)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(RENEWAL):
            with contextlib.suppress(OpsError):  # the next module of the run fails for it
                renew(root, holder)

    thread = threading.Thread(target=beat, daemon=True, name="wheels-ops-lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)


@contextlib.contextmanager
def of_the_run(environment: t.Mapping[str, str]) -> t.Iterator[None]:
    """The ``heartbeat`` of the run that started this process, where it says that it holds a lock."""
    holder, root = environment.get(HOLDER_VARIABLE, ""), environment.get(DIRECTORY_VARIABLE, "")
    if holder and root:
        with heartbeat(directory.require(root), holder):
            yield
    else:
        yield


def sweep(root: Path) -> None:
    """Removes what a killed process left in the state directory. For a run that has just taken the lock."""
    for place in (root, *root.glob("deployments/*"), *root.glob("deployments/*/originals")):
        sweep_directory(place)
    for path in root.glob("deployments/*"):
        with contextlib.suppress(OSError):
            path.rmdir()  # one that was killed before its manifest was there


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
