# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The journal of what changes one host: its state, and the originals of every file that a deployment replaced.

    STATE_DIR/deploy.lock                           who changes this host now (see ``state.lock``)
    STATE_DIR/deployments/ID/manifest.json          kind, state, step, and for every file its original and our checksum
    STATE_DIR/deployments/ID/originals/SHA256       the originals, by content

The manifest is written before a file is touched. What was interrupted is found by the next run:

    kind      state         interrupted; then deploy                rollback                recover, maintenance, monitor
    deploy    begun         goes on under the same id               rolls it back           refuse
    deploy    rolling_back  installs it anew, under the same id     finishes the rollback   refuse
    recover   begun         closes it: it replaces no file          closes it               close it

A rollback that left a file alone, because somebody had changed it after us, ends as ``partly_rolled_back``: still in
force, so that a later rollback can bring the original back, and in nobody's way.

Originals that are already kept are never replaced by a file of ours. Manifests of the first version have no ``kind``;
their id has it. A manifest that cannot be read stops nothing but the rollback of its own deployment.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import time
import typing as t
from pathlib import Path

from ..core.results import OpsError, Result
from ..host import marked_blocks, run_as
from ..host.files import read_regular, sha256
from . import directory as state_directory
from . import documents, leftovers, lock

#: ``begun`` and ``rolling_back`` are of a run that works or was interrupted; the others are ends.
BEGUN, ROLLING_BACK, FINISHED, ROLLED_BACK = "begun", "rolling_back", "finished", "rolled_back"
PARTLY_ROLLED_BACK = "partly_rolled_back"
_OPEN = (BEGUN, ROLLING_BACK)
#: What changes a host. Only a deployment replaces files, so only its journal matters to others.
DEPLOY, RECOVER, ROLLBACK, MAINTENANCE, MONITOR, PREPARE = KINDS = (
    "deploy",
    "recover",
    "rollback",
    "maintenance",
    "monitor",
    "prepare",
)
#: These work with an interrupted deployment: the first two end it, the last does not touch the backend.
_OVER_INTERRUPTED = (DEPLOY, ROLLBACK, PREPARE)
#: Of the ids of recovery, which the first version had instead of ``kind``.
RECOVER_PREFIX = "recover-"
LOCK_EXPIRES = lock.EXPIRES
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")

Manifest = t.Dict[str, t.Any]
now = lock.now


def kind_of(manifest: t.Mapping[str, t.Any]) -> str:
    """What kind of run a manifest is of."""
    return str(manifest.get("kind") or (RECOVER if str(manifest["id"]).startswith(RECOVER_PREFIX) else DEPLOY))


class Journal:
    """Everything under one state directory. Raises ``OpsError`` for a directory that somebody else can change."""

    def __init__(self, state_dir: str) -> None:
        self.root = state_directory.require(state_dir)
        self.deployments = self.root / "deployments"
        self.lock = self.root / lock.NAME
        try:
            os.scandir(self.deployments).close()
        except PermissionError as error:
            raise OpsError(
                f"{self.deployments} cannot be read: {error.strerror}.", hint="Run as root (ansible_become: true)."
            ) from None
        except OSError:
            pass  # not there yet, or no directory: told where it matters

    def directory(self, name: str) -> Path:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise OpsError(f"{name!r} is no deployment id.")
        return self.deployments / name

    def _is_no_directory(self) -> bool:
        return os.path.lexists(self.deployments) and not self.deployments.is_dir()

    def _no_directory(self) -> documents.Damaged:
        hint = "What was deployed cannot be told: restore the directory from a backup, or move it away."
        return documents.Damaged(self.deployments, "it is no directory", hint)

    def find(self, name: str) -> t.Optional[Manifest]:
        """One manifest, None where there is none. Raises ``Damaged`` for one that cannot be used."""
        path = self.directory(name) / "manifest.json"
        if self._is_no_directory():
            raise self._no_directory()
        hint = (
            f"Deployment {name} cannot be rolled back from it: restore the file from a backup, or move {path.parent}"
            " away."
        )
        manifest = documents.load(path, hint=hint)
        if manifest is not None:
            fault = _fault(manifest, name)
            if fault:
                raise documents.Damaged(path, fault, hint)
        return manifest

    def read(self, name: str) -> Manifest:
        manifest = self.find(name)
        if manifest is None:
            names = ", ".join(entry["id"] for entry in self.all()[-5:]) or "none"
            raise OpsError(f"There is no deployment {name} on this host.", hint=f"Known: {names}.")
        return manifest

    def write(self, manifest: t.Mapping[str, t.Any]) -> None:
        path = self.directory(manifest["id"]) / "manifest.json"
        try:
            documents.write(path, manifest)
        except OSError as error:
            raise OpsError(
                f"Cannot write {path}: {error.strerror}.",
                hint=f"Look at {self.deployments}; move away what is no directory.",
            ) from error

    def scan(self) -> t.Tuple[t.List[Manifest], t.List[documents.Damaged]]:
        """Every manifest, oldest first, and those that cannot be used."""
        manifests: t.List[Manifest] = []
        damaged: t.List[documents.Damaged] = []
        if self._is_no_directory():
            damaged.append(self._no_directory())
        for path in sorted(self.deployments.glob("*/manifest.json")):
            if path.parent.name.startswith("."):
                continue
            try:
                manifest = self.find(path.parent.name)
            except documents.Damaged as error:
                damaged.append(error)
                continue
            if manifest is not None:
                manifests.append(manifest)
        return sorted(manifests, key=lambda entry: (entry["began_at"], entry["id"])), damaged

    def all(self) -> t.List[Manifest]:
        """Every manifest that can be used, oldest first."""
        return self.scan()[0]

    def open_one(self) -> t.Optional[Manifest]:
        """The deployment that was begun, or whose rollback was begun, and not ended, if any."""
        unfinished = [entry for entry in self.all() if entry["state"] in _OPEN and kind_of(entry) == DEPLOY]
        return unfinished[-1] if unfinished else None

    def in_force(self) -> t.List[Manifest]:
        """The deployments whose files are installed now, newest first."""
        return [entry for entry in reversed(self.all()) if entry["state"] != ROLLED_BACK and kind_of(entry) == DEPLOY]

    def latest(self) -> str:
        """The deployment to roll back where none is named.

        Raises ``OpsError`` where there is none, or where its manifest is damaged.
        """
        unfinished = self.open_one()
        if unfinished:
            return str(unfinished["id"])
        in_force = self.in_force()
        newest = str(in_force[0]["id"]) if in_force else ""
        for damaged in self.scan()[1]:
            if damaged.path.parent.name > newest and not damaged.path.parent.name.startswith(RECOVER_PREFIX):
                raise OpsError(
                    f"It cannot be told whether {damaged.path.parent.name} is the newest deployment in force:"
                    f" {damaged.message}",
                    hint=f"{damaged.hint} Or name the deployment to roll back: -e wheels_ops_deployment_id=ID.",
                )
        if not newest:
            raise OpsError("No deployment is in force on this host.", hint="There is nothing to roll back.")
        return newest

    def note_rollback(self, manifest: t.Mapping[str, t.Any]) -> None:
        """Notes that the rollback of a deployment begins, before a file of it is touched."""
        if manifest["files"] and manifest["state"] in (BEGUN, FINISHED, PARTLY_ROLLED_BACK):
            self.write({**manifest, "state": ROLLING_BACK, "step": "rollback", "rollback_began_at": now()})

    def settle(self, name: str, digests: t.Mapping[str, str]) -> None:
        """Notes which content (path: SHA-256) each file has after an installation, also where it had it before.

        A deployment that was interrupted may be finished with another version of the files, down to that of the
        originals.
        """
        manifest = self.find(name)
        if manifest is None or manifest["state"] != BEGUN:
            return
        late = {
            path: entry
            for path, entry in manifest["files"].items()
            if path in digests and entry["installed"][-1:] != [digests[path]]
        }
        for path, entry in late.items():
            entry["installed"] = [*(each for each in entry["installed"] if each != digests[path]), digests[path]]
        if late:
            self.write(manifest)

    def _close_others(self) -> None:
        """Closes the journals of killed runs that replace no file. For a run that holds the lock."""
        for manifest in self.all():
            if kind_of(manifest) != DEPLOY and manifest["state"] in _OPEN:
                self.drop(manifest["id"])

    def drop(self, name: str) -> None:
        """Removes the journal of a run that replaced no file, with the originals that it had kept
        before it was killed.
        """
        directory = self.directory(name)
        originals = directory / "originals"
        with contextlib.suppress(OSError):
            # Before the manifest: without it nobody could tell that they are not needed.
            for original in list(originals.iterdir()):
                original.unlink()
            originals.rmdir()
        (directory / "manifest.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


def _fault(manifest: t.Mapping[str, t.Any], name: str) -> str:
    """What is wrong with the shape of a manifest; empty where nothing is."""
    if manifest.get("id") != name:
        return f"its id is not {name}"
    if manifest.get("state") not in (*_OPEN, FINISHED, ROLLED_BACK, PARTLY_ROLLED_BACK):
        return "it has no known state"
    if not isinstance(manifest.get("began_at"), str) or not _TIME.fullmatch(manifest["began_at"]):
        return "began_at is no time"
    if "kind" in manifest and manifest["kind"] not in KINDS:
        return "it has no known kind"
    if not isinstance(manifest.get("step", ""), str):
        return "step is no text"
    if not _texts(manifest.get("failing_before", [])):
        return "failing_before is no list of texts"
    entries = manifest.get("files")
    if not isinstance(entries, dict):
        return f"files is {documents.kind(entries)}"
    for path, entry in entries.items():
        if not os.path.isabs(path) or "\0" in path or ".." in Path(path).parts or not _file(entry):
            return f"its entry for {path!r:.200} has another shape"
    return ""


def _file(entry: t.Any) -> bool:
    def number(key: str, low: int, high: int) -> bool:
        value = entry.get(key)
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    if not isinstance(entry, dict) or not _texts(entry.get("installed")) or not _texts(entry.get("made_directories")):
        return False
    original = entry.get("original", 0)
    has_original = isinstance(original, str) and _SHA256.fullmatch(original) is not None
    owned = number("uid", 0, 2**32 - 2) and number("gid", 0, 2**32 - 2) and number("mtime_ns", -(2**63), 2**63 - 1)
    return owned and ((has_original and number("mode", 0, 0o7777)) or original is None)


def _texts(value: t.Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def begin(
    state_dir: str,
    name: str,
    *,
    holder: str,
    kind: str = "",
    dead_holders: t.Sequence[str] = (),
    living_holders: t.Sequence[str] = (),
    failing: t.Sequence[str] = (),
    force: str = "",
    check_mode: bool = False,
) -> Result:
    """Takes the lock, where the run does not hold it yet, and opens the journal; a deployment goes on with one that was
    interrupted.

    ``holder`` names the run; ``dead_holders`` and ``living_holders`` are those of which the controller knows it,
    ``force`` is the id of the holder from whom to take the lock. ``failing`` names the checks that fail before it, for
    whoever rolls it back. Gives ``deployment_id`` and ``resumed``. Raises ``OpsError`` where somebody else holds the
    lock, and for anything but a deployment where a deployment was interrupted.
    """
    journal = Journal(state_dir)
    journal.directory(name)
    kind = _kind(kind or kind_of({"id": name}))
    with _guarded(journal, check_mode):
        claim = lock.claim(journal.root, holder, living=living_holders, dead=dead_holders, force=force)
        unfinished = journal.open_one()
        _require_none_interrupted(unfinished, kind)
        resumed = unfinished["id"] if unfinished else ""
        if not unfinished:
            _require_new(journal, name)
        result = Result(
            changed=False,  # bookkeeping, not a change to the backend
            before={"lock": claim.previous, "unfinished": resumed},
            after={"lock": holder, "unfinished": ""},
            actions=[],
            msg=f"{_interrupted(unfinished)}; this run finishes it." if unfinished else f"Deployment {name} begins.",
            extra={"deployment_id": resumed or name, "resumed": bool(resumed), "holder": claim.previous},
            warnings=_warnings(journal, claim),
        )
        if check_mode:
            return result
        _take(journal, claim, holder, kind)
        try:
            if unfinished:
                journal.write({**unfinished, "state": BEGUN, "holder": holder})
            else:
                began = {"state": BEGUN, "step": "begun", "began_at": _after_all(journal), "holder": holder}
                journal.write({"id": name, "kind": kind, **began, "failing_before": list(failing), "files": {}})
        except OpsError:
            if claim.previous != holder:
                lock.remove(journal.root)
            raise
    return result


def hold(
    state_dir: str,
    *,
    kind: str,
    holder: str,
    deployment_id: str = "",
    dead_holders: t.Sequence[str] = (),
    living_holders: t.Sequence[str] = (),
    force: str = "",
    if_free: bool = False,
    interpreter: str = "",
    check_mode: bool = False,
) -> Result:
    """Takes the lock for a run of that kind, without a journal. ``deployment_id``: the one that a rollback was told to
    roll back.

    Gives ``unfinished``, the deployment that was interrupted, and ``taken``. With ``if_free`` it is not taken where
    another run holds it, whatever is known of that run: ``holder`` names it, so that the caller can find out.
    ``interpreter`` as for ``query``. Raises as ``begin`` does, and for the rollback of another deployment than the one
    that was interrupted.
    """
    _require_trusted(interpreter)
    journal = Journal(state_dir)
    kind = _kind(kind)
    with _guarded(journal, check_mode):
        other = _other_holder(journal, holder) if if_free else ""
        if other:
            return Result(
                before={"lock": other},
                after={"lock": other},
                msg=f"{other} holds the lock of this host.",
                extra={"holder": other, "unfinished": "", "taken": False},
            )
        claim = lock.claim(journal.root, holder, living=living_holders, dead=dead_holders, force=force)
        unfinished = journal.open_one()
        _require_none_interrupted(unfinished, kind)
        if kind == ROLLBACK and unfinished and deployment_id not in ("", unfinished["id"]):
            raise OpsError(
                f"{_interrupted(unfinished)}, so {deployment_id} cannot be rolled back before it.",
                hint=(
                    "Roll that one back first: ansible-playbook -i INVENTORY playbooks/rollback.yml, without"
                    " wheels_ops_deployment_id."
                ),
            )
        result = Result(
            before={"lock": claim.previous},
            after={"lock": holder},
            msg=f"{holder} holds the lock of this host.",
            extra={"holder": claim.previous, "unfinished": unfinished["id"] if unfinished else "", "taken": True},
            warnings=_warnings(journal, claim),
        )
        if not check_mode:
            _take(journal, claim, holder, kind)
    return result


def _other_holder(journal: Journal, holder: str) -> str:
    """Which other run holds the lock; empty for none, and for a damaged lock, of which nobody can be asked."""
    other = lock.holder_of(journal.root)
    return "" if other == holder else other


def _require_trusted(interpreter: str) -> None:
    if interpreter and os.path.lexists(interpreter):
        run_as.require_trusted(run_as.identity(run_as.effective_uid()), interpreters=[interpreter])


def let_go(state_dir: str, *, holder: str, check_mode: bool = False) -> Result:
    """Gives the lock back, where the run still holds it."""
    root = Journal(state_dir).root
    before = lock.holder_of(root)
    if not check_mode:
        lock.release(root, holder)
    after = "" if before == holder else before
    return Result(
        before={"lock": before},
        after={"lock": after},
        msg=f"{holder} does not hold the lock of this host.",
        extra={"holder": before},
    )


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise OpsError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    return kind


@contextlib.contextmanager
def _guarded(journal: Journal, check_mode: bool) -> t.Iterator[None]:
    if check_mode:
        yield
        return
    _make(journal.root)
    with lock.guard(journal.root):
        yield


def _take(journal: Journal, claim: lock.Claim, holder: str, kind: str) -> None:
    lock.write(journal.root, holder, kind, at=claim.at)
    if claim.previous != holder:
        lock.sweep(journal.root)
    if kind not in (DEPLOY, ROLLBACK):
        # What a killed run left in the trees. A deployment and a rollback remove that themselves, and report it as
        # check mode does.
        leftovers.sweep(journal.root, journal.all())
    journal._close_others()


def _warnings(journal: Journal, claim: lock.Claim) -> t.List[str]:
    return [*([claim.note] if claim.note else []), *(str(damaged) for damaged in journal.scan()[1])]


def _interrupted(manifest: t.Mapping[str, t.Any]) -> str:
    if manifest["state"] == ROLLING_BACK:
        return f"The rollback of deployment {manifest['id']} was interrupted"
    return f"Deployment {manifest['id']} was interrupted at step {manifest.get('step', 'unknown')!r}"


def _require_new(journal: Journal, name: str) -> None:
    """Raises ``OpsError`` where a journal of that id keeps originals: two controllers, or a clock that was set back,
    may name two alike.
    """
    manifest = journal.find(name)
    if manifest is not None and manifest["files"]:
        raise OpsError(
            f"There is a deployment {name} on this host already.",
            hint="Run it again, so that it gets an id of its own.",
        )


def _after_all(journal: Journal) -> str:
    """The present time, or a second after the newest deployment where the clock was set back: which one is the newest
    has to stay true.
    """
    newest = max((manifest["began_at"] for manifest in journal.all()), default="")
    if now() <= newest:
        # Not where the time in a manifest is none, or the last that there is.
        with contextlib.suppress(OverflowError, ValueError):
            return time.strftime(
                "%Y-%m-%dT%H:%M:%SZ", time.gmtime(calendar.timegm(time.strptime(newest, "%Y-%m-%dT%H:%M:%SZ")) + 1)
            )
    return now()


def _require_none_interrupted(unfinished: t.Optional[Manifest], kind: str) -> None:
    if unfinished and kind not in _OVER_INTERRUPTED:
        raise OpsError(
            f"{_interrupted(unfinished)}, so nothing is changed here.",
            hint=(
                "Finish it: ansible-playbook -i INVENTORY playbooks/deploy.yml; or roll it back: ansible-playbook"
                " -i INVENTORY playbooks/rollback.yml"
            ),
            unfinished=unfinished["id"],
        )


def _make(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OpsError(
            f"The state directory {root} cannot be written: {error.strerror}.",
            hint="Choose another with wheels_ops_state_dir, or run as root.",
        ) from error


def step(state_dir: str, name: str, what: str) -> None:
    """Notes how far a deployment has come."""
    journal = Journal(state_dir)
    manifest = journal.read(name)
    manifest["step"] = what
    journal.write(manifest)


def end(
    state_dir: str, name: str, *, holder: str, state: str, release: bool = True, check_mode: bool = False
) -> Result:
    """Closes the journal with ``finished`` or ``rolled_back``, and with ``release`` gives the lock back.

    A deployment that replaced no file leaves no journal behind. Raises ``OpsError``, and changes nothing, where another
    run holds the lock, and where the files on the disk are not those that the state says: a deployment that finishes
    has every file as it installed it, one that was rolled back has none.
    """
    journal = Journal(state_dir)
    manifest = journal.find(name)
    result = Result(
        msg=f"Deployment {name}: {state}.",
        before={"state": manifest["state"] if manifest else ""},
        after={"state": state},
    )
    result.extra = {"failing_before": manifest.get("failing_before", []) if manifest else []}
    if check_mode or not journal.root.is_dir():
        return result
    with lock.guard(journal.root):
        manifest = journal.find(name)
        entry = lock.read(journal.root)
        if (
            entry.holder != holder
            if entry
            else manifest is not None and manifest.get("holder") != holder and manifest["state"] in _OPEN
        ):
            raise OpsError(
                f"{f'{entry.title} holds this host: {entry.holder}' if entry else 'Nobody holds this host'}, so"
                f" {holder} cannot close {name}.",
                hint="The lock was taken over meanwhile. Look at this host, then run the playbook again.",
            )
        if manifest is not None and manifest["files"]:
            _require_on_disk(manifest, state)
            if state == ROLLED_BACK and left_alone(journal, manifest):
                state = PARTLY_ROLLED_BACK
                result.msg, result.after = f"Deployment {name}: partly rolled back.", {"state": state}
            journal.write({**manifest, "state": state, "step": "end", "ended_at": now()})
        elif manifest is not None:
            journal.drop(name)
        if entry and release:
            lock.remove(journal.root)
    return result


def _require_on_disk(manifest: Manifest, state: str) -> None:
    name = manifest["id"]
    if state == FINISHED:
        if manifest["state"] == ROLLING_BACK:
            raise OpsError(f"Deployment {name} is being rolled back.", hint="Run the playbook deploy, or rollback.")
        other = sorted(
            path for path, entry in manifest["files"].items() if not _as_installed(path, entry, entry["installed"][-1:])
        )
        if other:
            raise OpsError(
                f"{len(other)} files are not as deployment {name} installed them: {', '.join(other)}.",
                hint="Somebody changed them meanwhile. Find out who, then deploy again.",
                drifted=other,
            )
    else:
        ours = sorted(
            path
            for path, entry in manifest["files"].items()
            if entry["original"] not in entry["installed"] and _is_ours(path, entry)
        )
        if ours:
            raise OpsError(
                f"{len(ours)} files are still as deployment {name} installed them: {', '.join(ours)}.",
                hint="Roll it back again: ansible-playbook -i INVENTORY playbooks/rollback.yml",
                drifted=ours,
            )


def original_path(journal: Journal, manifest: t.Mapping[str, t.Any], path: str) -> str:
    """Where the original of a file is kept; empty where there was none."""
    original = manifest["files"][path]["original"]
    return str(journal.directory(manifest["id"]) / "originals" / original) if original else ""


def left_alone(journal: Journal, manifest: t.Mapping[str, t.Any]) -> t.Dict[str, str]:
    """The files that we had replaced whole, that somebody changed since, and that are not the originals; each with the
    path of its original.

    What is around our block in a file of the backend's own is its owner's.
    """
    files = {}
    for path, entry in sorted(manifest["files"].items()):
        content = None if entry.get("block") else _content(path, entry)
        checksum = None if content is None else sha256(content)
        if checksum is not None and checksum != entry["original"] and checksum not in entry["installed"]:
            files[path] = original_path(journal, manifest, path)
    return files


def _content(path: str, entry: t.Mapping[str, t.Any]) -> t.Optional[bytes]:
    try:
        there = read_regular(*leftovers.place_of(path, entry))
    except OpsError:
        return None
    return there[0] if there else None


def _as_installed(path: str, entry: t.Mapping[str, t.Any], installed: t.Sequence[str]) -> bool:
    """Whether a file has one of those contents, or is the backend's own and still holds our block."""
    content = _content(path, entry)
    return content is not None and (
        sha256(content) in installed or marked_blocks.has(content.decode("utf-8", "replace"))
    )


def _is_ours(path: str, entry: t.Mapping[str, t.Any]) -> bool:
    content = _content(path, entry)
    return content is not None and sha256(content) in entry["installed"]


def drifted(journal: Journal) -> t.List[str]:
    """The files that are no longer as the deployments in force left them, sorted.

    A file of the backend's own that holds our block may change around it as its owner likes.
    """
    newest: t.Dict[str, t.Mapping[str, t.Any]] = {}
    for manifest in journal.in_force():
        if manifest["state"] in (PARTLY_ROLLED_BACK, ROLLING_BACK):
            continue  # its files are meant to be others by now
        for name, entry in manifest["files"].items():
            newest.setdefault(name, entry)
    return sorted(name for name, entry in newest.items() if not _as_installed(name, entry, entry["installed"]))


def query(state_dir: str, *, interpreter: str = "", directories: t.Optional[t.Mapping[str, str]] = None) -> Result:
    """Who holds the lock, what was interrupted, what is in force, and what of it is no longer as it was installed;
    changes nothing.

    ``interpreter``: the Python that this run goes on with. Raises ``OpsError`` where another user than root and ours
    could write it, what it imports, or a directory above it; nothing of it is run. ``directories``: in which this run
    reads or writes with modules that follow links, each by the variable that names it; the same goes for them.
    """
    for setting, place in (directories or {}).items():
        state_directory.require(place, name=f"directory of {setting}", setting=setting)
    _require_trusted(interpreter)
    journal = Journal(state_dir)
    damaged: t.List[documents.Damaged] = []
    try:
        entry = lock.read(journal.root)
    except documents.Damaged as error:
        entry = None
        damaged.append(error)
    damaged += journal.scan()[1]
    unfinished = journal.open_one()
    in_force = [manifest["id"] for manifest in journal.in_force()]
    return Result(
        before={"in_force": in_force},
        after={"in_force": in_force},
        msg=f"In force: {', '.join(in_force) or 'no deployment'}.",
        extra={
            "holder": entry.holder if entry else "",
            "resumed": False,
            "deployment_id": unfinished["id"] if unfinished else (in_force[0] if in_force else ""),
            "unfinished": unfinished["id"] if unfinished else "",
            "in_force": in_force,
            "drifted": drifted(journal),
            "partly_rolled_back": [
                {"id": manifest["id"], "files": left_alone(journal, manifest)}
                for manifest in journal.in_force()
                if manifest["state"] == PARTLY_ROLLED_BACK
            ],
            "damaged": [{"path": str(each.path), "reason": each.reason} for each in damaged],
        },
        warnings=[str(each) for each in damaged],
    )
