# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that change one host, as processes that can be killed anywhere: deploy, rollback, recover, maintenance, the
standalone recovery.

Each does at the level of the library what its playbook or program does. Who believes that he holds the lock also takes
a lock of the kernel on a witness, which shares no code with ours and ends with its process: where that one is taken by
a process that lives, there are two holders.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import sys
import typing as t
from dataclasses import replace
from pathlib import Path

from wheels_ops.checks import suite
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import backend_patch
from wheels_ops.standalone import recovery
from wheels_ops.standalone.settings import Settings
from wheels_ops.state import deployments, holder, lock

KINDS = ("deploy", "rollback", "recover", "maintenance", "standalone")
FILES = (
    "app/core/one.py",
    "app/core/two.py",
    "app/services/three.py",
    "app/services/four.py",
    "app/ours/deep/five.py",
    "app/ours/six.py",
)
#: These are not there before the first deployment.
ADDED = FILES[4:]
#: What changes something on a disk, as the interpreter announces it (PEP 578).
TOUCHING = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.truncate",
    "os.link",
    "tempfile.mkstemp",
}
#: How a run ends: done, refused with one clear error, an invariant broken. A killed one ends by its signal.
DONE, REFUSED, BROKEN = 0, 3, 4


class Host:
    """A tree, its state directory, and the witness beside them."""

    def __init__(self, place: Path) -> None:
        self.place, self.root, self.state = place, place / "production", place / "state"
        self.witness = place / "witness"
        self.witness.touch()
        self.complaints = place / "complaints"
        for name in FILES:
            if name not in ADDED:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_text(self.content(name, 0))
        (self.root / "app/main.py").write_text("app = []\n")
        self.original = self.listing()

    @staticmethod
    def content(name: str, version: int) -> str:
        return f"# {name}\nVERSION = {version}\n" + "# filler\n" * 2000

    def request(self, version: int) -> backend_patch.Request:
        files = {name: self.content(name, version).encode() for name in FILES}
        return backend_patch.Request(root=str(self.root), files=files, blocks={"app/main.py": ["app.append(1)"]})

    def listing(self) -> t.Dict[str, str]:
        """Everything in the tree: modes, times and contents of files, and what has no business there."""
        return {str(path.relative_to(self.root)): _shown(path) for path in sorted(self.root.rglob("*"))}

    def versions(self) -> t.Set[int]:
        """Which versions are in the tree: 0 is the original, where the added files are missing and main.py has no
        block. -1: none of ours.
        """
        found = set()
        for name in FILES:
            path = self.root / name
            text = path.read_text() if path.exists() else self.content(name, 0) if name in ADDED else ""
            found.add(next((version for version in range(10) if text == self.content(name, version)), -1))
        if ("wheels.ops" in (self.root / "app/main.py").read_text()) == (0 in found):
            found.add(-1)
        return found


def _shown(path: Path) -> str:
    status = path.stat()
    content = f"{status.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else ""
    return f"{status.st_mode:o} {content}"


class Run:
    """One run, in a process of its own."""

    def __init__(self, host: Host, kind: str, number: int, *, version: int, kill_at: int) -> None:
        self.kind, self.kill_at = kind, kill_at
        self.pid = os.fork()
        if not self.pid:
            status = BROKEN
            try:
                if kill_at:
                    sys.addaudithook(_killing(kill_at))
                status = _Work(host, number, version).run(kind)
            except BaseException as error:  # what a user would see as a traceback
                with open(host.complaints, "a", encoding="utf-8") as file:
                    file.write(f"{kind}: {type(error).__name__}: {error}\n")
            finally:
                os._exit(status)

    def wait(self) -> int:
        """Its exit status; minus the signal that killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _killing(number: int) -> t.Callable[[str, t.Tuple[t.Any, ...]], None]:
    seen = 0

    def look(event: str, arguments: t.Tuple[t.Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in TOUCHING or writes:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return look


class _Work:
    def __init__(self, host: Host, number: int, version: int) -> None:
        self.host, self.number, self.version = host, number, version
        self.state, self.name = str(host.state), holder.name_of(os.getpid())

    def run(self, kind: str) -> int:
        try:
            getattr(self, kind)()
        except OpsError as error:
            if not error.hint or "Traceback" in str(error):
                raise
            return REFUSED
        return DONE

    @contextlib.contextmanager
    def held(self, kind: str) -> t.Iterator[None]:
        deployments.hold(self.state, kind=kind, holder=self.name)
        try:
            with self.witnessed():
                yield
        finally:
            deployments.let_go(self.state, holder=self.name)

    @contextlib.contextmanager
    def witnessed(self) -> t.Iterator[None]:
        descriptor = os.open(self.host.witness, os.O_RDWR)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                other = os.pread(descriptor, 20, 0).decode()
                if other and holder.started(int(other)):
                    raise AssertionError(f"two holders: {other} and {os.getpid()}") from None
                # The kernel is about to end the other one.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    @contextlib.contextmanager
    def untouched(self) -> t.Iterator[None]:
        before = self.host.listing()
        yield
        assert self.host.listing() == before, "the tree changed under a run that replaces no file"

    def deploy(self) -> None:
        with self.held("deploy"):
            begun = deployments.begin(self.state, f"2025073{self.number:05d}", holder=self.name)
            name = begun.extra["deployment_id"]
            try:
                backend_patch.install(self.state, name, self.host.request(self.version), backend_patch.Proof())
                deployments.end(self.state, name, holder=self.name, state=deployments.FINISHED, release=False)
            except OpsError:
                backend_patch.restore(self.state, name)
                deployments.end(self.state, name, holder=self.name, state=deployments.ROLLED_BACK, release=False)
                raise

    def rollback(self) -> None:
        with self.held("rollback"):
            name = backend_patch.latest(self.state)
            backend_patch.restore(self.state, name)
            deployments.end(self.state, name, holder=self.name, state=deployments.ROLLED_BACK, release=False)

    def recover(self) -> None:
        with self.held("recover"), self.untouched():
            begun = deployments.begin(self.state, f"recover-{self.number}", kind="recover", holder=self.name)
            deployments.end(
                self.state, begun.extra["deployment_id"], holder=self.name, state=deployments.FINISHED, release=False
            )

    def maintenance(self) -> None:
        with self.held("maintenance"), self.untouched():
            lock.renew(self.host.state, self.name)

    def standalone(self) -> None:
        settings = replace(
            Settings(checks=suite.Options(subjects=("disk",), filesystems=())), state_dir=self.host.state
        )
        with (
            recovery.AutomatedRecovery(settings)._held(f"recover-{self.number}", ["disk"]),
            self.witnessed(),
            self.untouched(),
        ):
            pass
