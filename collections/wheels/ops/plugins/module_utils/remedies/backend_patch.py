# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installs files of ours among somebody else's, keeps the originals, and puts them back bit for bit."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .. import programs
from ..files import sha256, write_atomically
from ..results import OpsError, Result
from . import blocks
from .deployment import BEGUN, Journal, now

#: What an application's tree holds that its import does not need, and that can be large.
_NOT_STAGED = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", "venv", ".venv", "env", "node_modules", "*.log", "*.wav", "*.mp3", "*.sqlite*", ".cache")
_PROOF_SECONDS = 180


@dataclass(frozen=True)
class Request:
    """What is to be installed below ``root``: whole files by relative path, and blocks in files that are there.

    ``optional_blocks`` are for files that a release may lack.
    """

    root: str
    files: t.Mapping[str, bytes]
    blocks: t.Mapping[str, t.Sequence[str]] = field(default_factory=dict)
    optional_blocks: t.Mapping[str, t.Sequence[str]] = field(default_factory=dict)
    mode: int = 0o644
    force: bool = False


@dataclass(frozen=True)
class Proof:
    """How the tree is proved before one file of it is replaced: compiled and imported in a copy."""

    interpreter: str = ""
    module: str = ""
    environment: t.Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Change:
    path: Path
    relative: str
    before: t.Optional[bytes]
    after: bytes
    action: str
    foreign: bool


def install(state_dir: str, deployment_id: str, request: Request, proof: Proof, *, check_mode: bool = False, want_diff: bool = False) -> Result:
    """Brings every file and block to what the request says. Interrupted anywhere, the next call finishes it.

    Order: the new tree is proved in a copy; every original is kept and the journal written; only then is each file
    replaced, atomically. Raises ``OpsError`` for a file that somebody changed after we installed it, unless ``force``.
    """
    root = Path(request.root)
    if not root.is_dir():
        raise OpsError(f"The directory {root} does not exist.", hint="Name the directory that holds the backend's `app` with wheels_ops_backend_dir.")
    journal = Journal(state_dir)
    changes = _changes(root, request, journal)
    foreign = [change for change in changes if change.foreign]
    if foreign and not request.force:
        raise OpsError(
            f"{len(foreign)} files were changed by somebody else after wheels.ops installed them: {', '.join(change.relative for change in foreign)}.",
            hint="Look at them (--diff shows what would be lost). To replace them all the same, keeping a copy: -e wheels_ops_force=true.",
            foreign=[change.relative for change in foreign],
            diff=[_diff(change) for change in foreign] if want_diff else [],
        )
    _require_writable(changes)
    proved = _prove(root, changes, proof) if changes and proof.module else {}
    if changes and not check_mode:
        _keep_originals(journal, deployment_id, changes)
        for change in changes:
            _replace(change, request.mode)
    return Result(
        changed=bool(changes),
        before={"files": {change.relative: sha256(change.before) if change.before is not None else None for change in changes}},
        after={"files": {change.relative: sha256(change.after) for change in changes}},
        actions=[
            {"action": change.action, "target": str(change.path), "changed": True, "bytes": len(change.after), "foreign": change.foreign} for change in changes
        ],
        msg=f"{len(changes)} files {'would be ' if check_mode else ''}installed below {root}." if changes else f"Every file below {root} is in place.",
        diff=[_diff(change) for change in changes] if want_diff else [],
        extra={"deployment_id": deployment_id, "proof": proved},
    )


def restore(state_dir: str, deployment_id: str, *, check_mode: bool = False, want_diff: bool = False) -> Result:
    """Puts back every original of a deployment, and takes away what was not there before it.

    A file that somebody changed after us is left as it is, but for our block, and is named in ``kept``.
    """
    journal = Journal(state_dir)
    manifest = journal.read(deployment_id)
    actions: t.List[t.Dict[str, t.Any]] = []
    diffs: t.List[t.Dict[str, t.Any]] = []
    kept: t.List[str] = []
    for name, entry in sorted(manifest["files"].items()):
        path = Path(name)
        current = _read(path)
        original = None if entry["original"] is None else (journal.directory(deployment_id) / "originals" / entry["original"]).read_bytes()
        if current == original:
            if original is None and not check_mode:  # interrupted between making the directory and the file
                _remove_empty_parents(path.parent, entry["made_directories"])
            continue
        target = original
        if current is not None and sha256(current) not in entry["installed"]:
            target = _without_block(current)
            kept.append(name)
            if target == current:
                continue
        actions.append({"action": "remove" if target is None else "restore", "target": name, "changed": True, "bytes": len(target or b"")})
        if want_diff:
            diffs.append(_text_diff(name, current, target))
        if check_mode:
            continue
        if target is None:
            path.unlink()
            _remove_empty_parents(path.parent, entry["made_directories"])
        else:
            write_atomically(path, target, mode=entry["mode"], owner=(entry["uid"], entry["gid"]))
            os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    return Result(
        changed=bool(actions),
        before={"deployment_id": deployment_id, "state": manifest["state"]},
        after={"deployment_id": deployment_id, "state": "restored"},
        actions=actions,
        msg=f"{len(actions)} files {'would be ' if check_mode else ''}put back as they were before deployment {deployment_id}."
        + (f" Left alone, because somebody changed them since: {', '.join(kept)}." if kept else ""),
        diff=diffs,
        extra={"deployment_id": deployment_id, "kept": kept},
    )


def latest(state_dir: str) -> str:
    """The id of the newest deployment that is in force. Raises ``OpsError`` where there is none."""
    found = Journal(state_dir).in_force()
    if not found:
        raise OpsError("No deployment is in force on this host.", hint="There is nothing to take back.")
    return str(found[0]["id"])


def _read(path: Path) -> t.Optional[bytes]:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OpsError(f"Cannot read {path}: {error.strerror}.") from error


def _inside(root: Path, relative: str) -> Path:
    """The absolute path; refuses to leave the root, also through a link."""
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise OpsError(f"{relative!r} is not a path below {root}.")
    path = root.joinpath(*pure.parts)
    for parent in [path, *path.parents]:
        if parent == root:
            break
        if parent.is_symlink():
            raise OpsError(f"{parent} is a symbolic link.", hint="Files are not written through links: name the real directory.")
    return path


def _changes(root: Path, request: Request, journal: Journal) -> t.List[_Change]:
    found = []
    for relative, content in request.files.items():
        path = _inside(root, relative)
        before = _read(path)
        if before != content:
            action = "install" if before is None else "replace"
            found.append(_Change(path, relative, before, content, action, _foreign(path, before, journal)))
    for relative, lines in {**request.blocks, **request.optional_blocks}.items():
        path = _inside(root, relative)
        before = _read(path)
        if before is None and relative not in request.blocks:
            continue
        if before is None:
            raise OpsError(f"{path} does not exist.", hint="The block that wires the patched files in goes into it. Is this the backend's directory?")
        try:
            after = blocks.insert(before.decode("utf-8"), lines, path=str(path)).encode("utf-8")
        except UnicodeDecodeError as error:
            raise OpsError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from error
        if before != after:
            # Whoever edits main.py edits a file of his own: only our block is ours.
            found.append(_Change(path, relative, before, after, "insert block", False))
    return found


def _foreign(path: Path, before: t.Optional[bytes], journal: Journal) -> bool:
    """Whether somebody changed the file after we installed it; the first time, whatever is there is the original."""
    if before is None:
        return False
    for manifest in journal.in_force():
        entry = manifest["files"].get(str(path))
        if entry is not None:
            checksum = sha256(before)
            return checksum not in entry["installed"] and checksum != entry["original"]
    return False


def _keep_originals(journal: Journal, deployment_id: str, changes: t.Sequence[_Change]) -> None:
    directory = journal.directory(deployment_id)
    manifest = journal.read(deployment_id)
    if manifest["state"] != BEGUN:
        raise OpsError(f"Deployment {deployment_id} is {manifest['state']}.", hint="Begin a new one.")
    (directory / "originals").mkdir(mode=0o700, exist_ok=True)
    for change in changes:
        entry = manifest["files"].get(str(change.path))
        if entry is None:
            entry = _entry(change)
            if change.before is not None:
                write_atomically(directory / "originals" / entry["original"], change.before)
            manifest["files"][str(change.path)] = entry
        checksum = sha256(change.after)
        if checksum not in entry["installed"]:
            entry["installed"].append(checksum)
        if change.foreign and change.before is not None:
            write_atomically(directory / "originals" / sha256(change.before), change.before)
            entry["replaced_by_force"] = sha256(change.before)
    manifest["step"] = "files"
    manifest["files_at"] = now()
    journal.write(manifest)


def _entry(change: _Change) -> t.Dict[str, t.Any]:
    made = []
    for parent in change.path.parents:
        if parent.exists():
            break
        made.append(str(parent))
    status = os.stat(change.path if change.before is not None else next(parent for parent in change.path.parents if parent.exists()))
    return {
        "original": None if change.before is None else sha256(change.before),
        "installed": [],
        "mode": status.st_mode & 0o7777 if change.before is not None else None,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "made_directories": made,
    }


def _replace(change: _Change, mode: int) -> None:
    try:
        nearest = next(parent for parent in change.path.parents if parent.exists())
        owner = os.stat(change.path if change.before is not None else nearest)
        missing = [parent for parent in change.path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o755)
            with contextlib.suppress(PermissionError):
                os.chown(parent, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise OpsError(f"Cannot make the directory for {change.path}: {error.strerror}.") from error
    kept = owner.st_mode & 0o7777 if change.before is not None else mode
    write_atomically(change.path, change.after, mode=kept, owner=(owner.st_uid, owner.st_gid))


def _require_writable(changes: t.Sequence[_Change]) -> None:
    """Raises ``OpsError`` where a file could not be put into its directory, before anything is touched."""
    for change in changes:
        directory = next(parent for parent in change.path.parents if parent.exists())
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise OpsError(
                f"{directory} cannot be written, so {change.relative} cannot be installed.",
                hint="Nothing was changed. Give the user of this task the right to write there (become: true), or mount it writable.",
            )


def _remove_empty_parents(directory: Path, made: t.Sequence[str]) -> None:
    while str(directory) in made and directory.exists():
        shutil.rmtree(directory / "__pycache__", ignore_errors=True)
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent


def _without_block(content: bytes) -> bytes:
    try:
        return blocks.remove(content.decode("utf-8")).encode("utf-8")
    except UnicodeDecodeError:
        return content


def _prove(root: Path, changes: t.Sequence[_Change], proof: Proof) -> t.Dict[str, t.Any]:
    """Compiles and imports the application with the changes in a copy, so that a release they do not fit stays untouched."""
    if not proof.interpreter or not Path(proof.interpreter).exists():
        raise OpsError(
            f"The backend's Python {proof.interpreter!r} does not exist.",
            hint="Name the interpreter that the backend runs under with wheels_ops_backend_python.",
        )
    with tempfile.TemporaryDirectory(prefix="wheels-ops-proof-") as scratch:
        copy = Path(scratch) / "tree"
        try:
            shutil.copytree(root, copy, ignore=_NOT_STAGED, symlinks=True, ignore_dangling_symlinks=True)
        except (OSError, shutil.Error) as error:
            raise OpsError(f"Cannot copy {root} to prove the new files in a copy: {error}", hint="Is there room in the temporary directory?") from error
        for change in changes:
            target = copy / change.relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # one that is read-only is replaced, not written to, there as here
            target.write_bytes(change.after)
        environment = {**os.environ, **proof.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(copy), *(part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part and Path(part).resolve() != root.resolve())]
        )
        python = [change.relative for change in changes if change.relative.endswith(".py")]
        compiled = _run([proof.interpreter, "-c", "import sys\nfor p in sys.argv[1:]: compile(open(p, 'rb').read(), p, 'exec')", *python], copy, environment)
        if compiled.returncode:
            raise OpsError(f"The new files do not compile under {proof.interpreter}: {_last_lines(compiled)}", hint="Nothing was changed.")
        imported = _run([proof.interpreter, "-c", f"import {proof.module}"], copy, environment)
        if imported.returncode:
            raise OpsError(
                f"The application cannot be imported with the new files (import {proof.module}): {_last_lines(imported)}",
                hint="Nothing was changed. Report this with the release of the backend.",
                stderr=imported.stderr[-4000:],
            )
    return {"compiled": len(python), "imported": proof.module, "interpreter": proof.interpreter}


def _run(command: t.Sequence[str], cwd: Path, environment: t.Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return programs.run(command, timeout=_PROOF_SECONDS, cwd=str(cwd), environment=environment)
    except subprocess.TimeoutExpired as error:
        raise OpsError(f"{' '.join(command[:2])} did not end within {_PROOF_SECONDS} s.", hint="Nothing was changed.") from error


def _last_lines(done: subprocess.CompletedProcess[str]) -> str:
    return " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])


def _diff(change: _Change) -> t.Dict[str, t.Any]:
    return _text_diff(str(change.path), change.before, change.after)


def _text_diff(name: str, before: t.Optional[bytes], after: t.Optional[bytes]) -> t.Dict[str, t.Any]:
    old = (before or b"").decode("utf-8", "replace").splitlines(keepends=True)
    new = (after or b"").decode("utf-8", "replace").splitlines(keepends=True)
    return {"prepared": "".join(difflib.unified_diff(old, new, f"{name} (before)", f"{name} (after)"))}
