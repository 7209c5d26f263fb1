# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The journal of a deployment on one host: its lock, its state, and the originals of every file it replaced.

    STATE_DIR/deploy.lock                           who deploys now
    STATE_DIR/deployments/ID/manifest.json          state, steps, and for every file its original and our checksum
    STATE_DIR/deployments/ID/originals/SHA256       the originals, by content

The manifest is written before a file is touched. Whatever is interrupted is found by the next run, which goes on under
the same id: originals that are already kept are never replaced by a file of ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import typing as t
from pathlib import Path

from ..files import read_json, sha256, write_json
from ..host.files import read_regular
from ..results import OpsError, Result
from . import blocks, leftovers

#: ``begun`` may be resumed or taken back; the others are ends.
BEGUN, FINISHED, ROLLED_BACK = "begun", "finished", "rolled_back"
#: A lock whose holder cannot be asked is taken over after this many seconds.
LOCK_EXPIRES = 1800.0


class Journal:
    """Everything under one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.root = Path(state_dir)
        self.deployments = self.root / "deployments"
        self.lock = self.root / "deploy.lock"

    def directory(self, name: str) -> Path:
        if not name or name.startswith(".") or "/" in name:
            raise OpsError(f"{name!r} is no deployment id.")
        return self.deployments / name

    def read(self, name: str) -> t.Dict[str, t.Any]:
        manifest = read_json(self.directory(name) / "manifest.json")
        if manifest is None:
            known = ", ".join(entry["id"] for entry in self.all()[-5:]) or "none"
            raise OpsError(f"There is no deployment {name} on this host.", hint=f"Known: {known}.")
        return t.cast(t.Dict[str, t.Any], manifest)

    def write(self, manifest: t.Mapping[str, t.Any]) -> None:
        write_json(self.directory(manifest["id"]) / "manifest.json", manifest)

    def all(self) -> t.List[t.Dict[str, t.Any]]:
        """Every manifest, oldest first."""
        found = [read_json(path) for path in self.deployments.glob("*/manifest.json")]
        return sorted((entry for entry in found if entry), key=lambda entry: (entry["began_at"], entry["id"]))

    def open_one(self) -> t.Optional[t.Dict[str, t.Any]]:
        """The deployment that was begun and not ended, if any."""
        unfinished = [entry for entry in self.all() if entry["state"] == BEGUN]
        return unfinished[-1] if unfinished else None

    def in_force(self) -> t.List[t.Dict[str, t.Any]]:
        """The deployments whose files are installed now, newest first."""
        return [entry for entry in reversed(self.all()) if entry["state"] != ROLLED_BACK]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def begin(
    state_dir: str,
    name: str,
    *,
    holder: str,
    dead_holders: t.Sequence[str] = (),
    failing: t.Sequence[str] = (),
    force: bool = False,
    check_mode: bool = False,
) -> Result:
    """Takes the lock and opens the journal; goes on with a deployment that was interrupted.

    ``holder`` names the run that deploys; a lock held by one of ``dead_holders`` (the controller asked and found no such
    process) is taken over, and so is one that is older than half an hour. ``failing`` names the checks that fail before it, for whoever
    takes the deployment back. Gives ``deployment_id`` and ``resumed``.
    """
    journal = Journal(state_dir)
    held = read_json(journal.lock)
    stale = held and (force or held["holder"] in dead_holders or time.time() - held["since"] > LOCK_EXPIRES)
    if held and held["holder"] != holder and not stale:
        raise OpsError(
            f"Another deployment holds this host: {held['holder']}, since {held['at']}.",
            hint=f"Wait for it. If it is dead, its lock ends {LOCK_EXPIRES / 60:.0f} minutes after it was taken, or at once with wheels_ops_lock_force=true.",
            lock=held,
        )
    unfinished = journal.open_one()
    resumed = unfinished["id"] if unfinished else ""
    result = Result(
        changed=False,  # bookkeeping, not a change to the backend
        before={"lock": held["holder"] if held else "", "unfinished": resumed},
        after={"lock": holder, "unfinished": ""},
        actions=[],
        msg=f"Deployment {resumed} was interrupted at step {unfinished['step']!r}; this run finishes it." if unfinished else f"Deployment {name} begins.",
        extra={"deployment_id": resumed or name, "resumed": bool(resumed), "holder": held["holder"] if held else ""},
    )
    if check_mode:
        return result
    _require_writable(journal.root)
    _take(journal, holder, replace=bool(stale) or bool(held and held["holder"] == holder))
    if not unfinished:
        try:
            journal.write({"id": name, "state": BEGUN, "step": "begun", "began_at": now(), "holder": holder, "failing_before": list(failing), "files": {}})
        except OpsError:
            journal.lock.unlink()
            raise
    return result


def _require_writable(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OpsError(
            f"The state directory {root} cannot be written: {error.strerror}.", hint="Choose another with wheels_ops_state_dir, or run as root."
        ) from error


def _take(journal: Journal, holder: str, *, replace: bool) -> None:
    entry = {"holder": holder, "since": time.time(), "at": now(), "host": socket.gethostname()}
    if replace:
        write_json(journal.lock, entry)
        return
    # The link decides between two that come at once, and puts the lock there with its content: whenever this is killed, or finds the
    # disk full, no lock stays behind that nobody can read.
    new = journal.root / f".deploy.lock.{os.getpid()}.{threading.get_ident()}"
    try:
        write_json(new, entry)
        os.link(new, journal.lock)
    except FileExistsError as error:
        raise OpsError("Another deployment took this host at the same moment.", hint="Wait for it.") from error
    finally:
        new.unlink(missing_ok=True)


def step(state_dir: str, name: str, what: str) -> None:
    """Notes how far a deployment has come."""
    journal = Journal(state_dir)
    manifest = journal.read(name)
    manifest["step"] = what
    journal.write(manifest)


def end(state_dir: str, name: str, *, holder: str, state: str, check_mode: bool = False) -> Result:
    """Closes the journal with ``finished`` or ``rolled_back`` and gives the lock back.

    A deployment that replaced no file leaves no journal behind.
    """
    journal = Journal(state_dir)
    manifest = read_json(journal.directory(name) / "manifest.json")
    result = Result(msg=f"Deployment {name}: {state}.", before={"state": manifest["state"] if manifest else ""}, after={"state": state})
    result.extra = {"failing_before": manifest.get("failing_before", []) if manifest else []}
    if check_mode:
        return result
    if manifest is not None:
        if manifest["files"]:
            manifest.update(state=state, step="end", ended_at=now())
            journal.write(manifest)
        else:
            (journal.directory(name) / "manifest.json").unlink()
            with contextlib.suppress(OSError):
                journal.directory(name).rmdir()
    held = read_json(journal.lock)
    if held and held["holder"] == holder:
        journal.lock.unlink()
    return result


def drifted(journal: Journal) -> t.List[str]:
    """The files that are no longer as the deployments in force left them, sorted.

    A file of the backend's own that holds our block may change around it as its owner likes.
    """
    newest: t.Dict[str, t.Mapping[str, t.Any]] = {}
    for manifest in journal.in_force():
        for name, entry in manifest["files"].items():
            newest.setdefault(name, entry)
    found = []
    for name, entry in newest.items():
        installed = entry["installed"]
        try:
            there = read_regular(*leftovers.place_of(name, entry))
        except OpsError:
            there = None
        if there is None:
            found.append(name)
            continue
        content = there[0]
        if sha256(content) not in installed and not blocks.has(content.decode("utf-8", "replace")):
            found.append(name)
    return sorted(found)


def query(state_dir: str) -> Result:
    """What is open, what is in force, and what of it is no longer as it was installed; changes nothing."""
    journal = Journal(state_dir)
    held = read_json(journal.lock)
    unfinished = journal.open_one()
    in_force = [entry["id"] for entry in journal.in_force()]
    return Result(
        before={"in_force": in_force},
        after={"in_force": in_force},
        msg=f"In force: {', '.join(in_force) or 'no deployment'}.",
        extra={
            "holder": held["holder"] if held else "",
            "resumed": False,
            "deployment_id": unfinished["id"] if unfinished else (in_force[0] if in_force else ""),
            "unfinished": unfinished["id"] if unfinished else "",
            "in_force": in_force,
            "drifted": drifted(journal),
        },
    )
