# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installs files of ours among somebody else's, keeps the originals, and puts them back bit for bit."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..core.results import OpsError, Result
from ..host import attributes, files, marked_blocks, run_as
from ..host.files import sha256, write_atomically
from ..state import leftovers
from ..state.deployments import BEGUN, ROLLED_BACK, Journal, left_alone, now, original_path
from ..state.lock import changes_files

#: What an application's tree holds that its import does not need, and that can be large.
_NOT_STAGED = (
    "__pycache__",
    "*.pyc",
    ".git",
    "venv",
    ".venv",
    "env",
    "node_modules",
    "*.log",
    "*.wav",
    "*.mp3",
    "*.sqlite*",
    ".cache",
)
_VERIFY_SECONDS = 180
#: Compiles each file that it is given.
_COMPILE = "import sys\nfor p in sys.argv[1:]: compile(open(p, 'rb').read(), p, 'exec')"
#: Imports a module as uvicorn does: inside a running event loop, without which some releases cannot be imported. It
#: ends at once, whatever threads and tasks the import started; ``sys.exit`` of the application is a failure as well.
#: The last line of its output is the exception, whose message may have several lines, in one.
_IMPORT = """\
import asyncio, importlib, os, sys, traceback

async def load():
    importlib.import_module(sys.argv[1])

status = 0
try:
    asyncio.run(load())
except BaseException as error:
    traceback.print_exc()
    print("\\n" + " ".join(f"{type(error).__name__}: {error}".split()))
    status = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
#: What differs between two runs of the same failure.
_ADDRESSES = re.compile(r"0x[0-9a-f]+")


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
    """How the tree is verified before one file of it is replaced: compiled and imported in a copy, by the user whose
    code it is.

    ``environment``: with which the new files are imported; ``own_environment``: with which the application runs now,
    and its own files are imported where the new ones fail.

    ``user``: as whom, by name or number; otherwise ``service_uid``, as whom the service runs; otherwise the owner of
    the tree. In check mode nothing of the application is executed unless ``in_check_mode``.
    """

    interpreter: str = ""
    module: str = ""
    environment: t.Mapping[str, str] = field(default_factory=dict)
    own_environment: t.Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    service_uid: t.Optional[int] = None
    in_check_mode: bool = False


@dataclass
class _Change:
    path: Path
    relative: str
    root: str
    status: t.Optional[os.stat_result]
    before: t.Optional[bytes]
    after: bytes
    action: str
    foreign: bool

    @property
    def real(self) -> Path:
        """The path without links above the root; below it none is followed."""
        return Path(self.root, self.relative)


@changes_files
def install(
    state_dir: str,
    deployment_id: str,
    request: Request,
    proof: Proof,
    *,
    check_mode: bool = False,
    want_diff: bool = False,
    full_diff: bool = True,
) -> Result:
    """Brings every file and block to what the request says. Interrupted anywhere, the next call finishes it.

    Order: the new tree is verified in a copy; every original is kept and the journal written; only then is each file
    replaced, atomically. Raises ``OpsError`` for a file that somebody changed after we installed it, unless ``force``.
    """
    root = Path(request.root)
    try:
        real = files.real_directory(root)
    except OSError:
        raise OpsError(
            f"The directory {root} does not exist.",
            hint="Name the directory that holds the backend's `app` with wheels_ops_backend_dir.",
        ) from None
    journal = Journal(state_dir)
    swept = leftovers.sweep(state_dir, journal.all(), check_mode=check_mode)
    changes = _changes(root, real, request, journal)
    foreign = [change for change in changes if change.foreign]
    if foreign and not request.force:
        raise OpsError(
            f"{len(foreign)} files were changed by somebody else after wheels.ops installed them:"
            f" {', '.join(change.relative for change in foreign)}.",
            hint=(
                "Look at them (--diff shows what would be lost). To replace them all the same, keeping a copy: -e"
                " wheels_ops_force=true."
            ),
            foreign=[change.relative for change in foreign],
            diff=[_diff(change) for change in foreign] if want_diff else [],
        )
    _require_writable(changes)
    verified = (
        _verify(real, changes, proof, execute=proof.in_check_mode or not check_mode) if changes and proof.module else {}
    )
    if changes and not check_mode:
        try:
            manifest = _keep_originals(journal, deployment_id, changes)
            for change in changes:
                _replace(change, request.mode, manifest)
        except OSError as error:
            raise OpsError(
                f"Cannot install below {root}: {error.strerror} ({error.filename}).",
                hint="Is somebody changing the tree? Run it again, or roll back.",
            ) from error
    if not check_mode:
        journal.settle(
            deployment_id, {str(root / PurePosixPath(name)): sha256(content) for name, content in request.files.items()}
        )
    return Result(
        changed=bool(changes or swept),
        before={
            "files": {
                change.relative: sha256(change.before) if change.before is not None else None for change in changes
            }
        },
        after={"files": {change.relative: sha256(change.after) for change in changes}},
        actions=[
            *_tidied(swept),
            *(
                {
                    "action": change.action,
                    "target": str(change.path),
                    "changed": True,
                    "bytes": len(change.after),
                    "foreign": change.foreign,
                }
                for change in changes
            ),
        ],
        msg=(
            f"{len(changes)} files {'would be ' if check_mode else ''}installed below {root}."
            if changes
            else f"Every file below {root} is in place."
        ),
        diff=(
            _diffs([(c.action, str(c.path), c.before, c.after) for c in changes], str(root), full_diff)
            if want_diff
            else []
        ),
        extra={"deployment_id": deployment_id, "proof": verified},
        warnings=[_unproved(verified)] if verified.get("user") and verified["left_out"] else [],
    )


@changes_files
def restore(
    state_dir: str,
    deployment_id: str,
    *,
    force: bool = False,
    check_mode: bool = False,
    want_diff: bool = False,
    full_diff: bool = True,
) -> Result:
    """Rolls back every file of a deployment to its original, and removes what was not there before it.

    A file that somebody changed after us is left as it is, but for our block, and is named in ``kept``. With ``force``
    the original takes its place, unless it is a file of the backend's own that held our block; a copy is kept, and named
    in ``replaced``. Everything is
    read before anything is changed. Raises ``OpsError``, with nothing changed, for a link, a FIFO, a device or a
    damaged original. Killed anywhere, the next call ends it.
    """
    journal = Journal(state_dir)
    manifest = journal.read(deployment_id)
    swept = leftovers.sweep(state_dir, journal.all(), check_mode=check_mode)
    actions = _tidied(swept)
    diffs: t.List[_Difference] = []
    spared: t.List[str] = []
    replaced: t.Dict[str, bytes] = {}
    steps: t.List[t.Callable[[], None]] = []
    for name, entry in sorted(manifest["files"].items()):
        real, root = leftovers.place_of(name, entry)
        there = files.read_regular(real, below=root)
        current = None if there is None else there[0]
        original = _original(journal, deployment_id, name, entry)
        if current == original:
            if there is None:  # interrupted between making the directory and the file
                steps.append(functools.partial(_remove_empty_parents, name, entry, real, root))
            elif there[1].st_mtime_ns != entry["mtime_ns"] and manifest["state"] != ROLLED_BACK:
                # An earlier run was killed between the content and its time.
                actions.append({"action": "restore time", "target": name, "changed": True, "bytes": 0})
                steps.append(functools.partial(files.set_time, real, entry["mtime_ns"], below=root))
            continue
        target = original
        if there is not None and sha256(there[0]) not in entry["installed"]:
            files.require_single(real, there[1])
            without = _without_block(there[0])
            entry.setdefault("block", without != current)  # journals of earlier versions do not say
            if force and not entry["block"]:
                replaced[name] = there[0]
            else:
                target = without
                spared.append(name)
                if target == current:
                    continue
        actions.append(
            {
                "action": "remove" if target is None else "restore",
                "target": name,
                "changed": True,
                "bytes": len(target or b""),
            }
        )
        if want_diff:
            diffs.append(("remove block" if entry.get("block") else actions[-1]["action"], name, current, target))
        steps.append(
            functools.partial(
                _put_back,
                name,
                entry,
                real,
                root,
                target,
                there[1] if there and name in spared else None,
                leftovers.token_of(manifest),
            )
        )
    if not check_mode:
        for name, content in replaced.items():
            write_atomically(journal.directory(deployment_id) / "originals" / sha256(content), content)
            manifest["files"][name]["replaced_by_force"] = sha256(content)
        journal.note_rollback(manifest)
        try:
            for step in steps:
                step()
            _restore_directory_times(manifest)
        except OSError as error:
            raise OpsError(
                f"Cannot roll back {error.filename or deployment_id}: {error.strerror}.",
                hint="Remove what is in the way; run it again.",
            ) from error
    would = "would be " if check_mode else ""
    copies = {
        name: str(journal.directory(deployment_id) / "originals" / sha256(text)) for name, text in replaced.items()
    }
    return Result(
        changed=bool(actions),
        before={"deployment_id": deployment_id, "state": manifest["state"]},
        after={"deployment_id": deployment_id, "state": "restored"},
        actions=actions,
        msg=f"{len(actions) - len(swept)} files {would}put back as they were before deployment {deployment_id}."
        + _about_others(journal, manifest, spared, copies, would),
        diff=_diffs(diffs, "/", full_diff),
        extra={"deployment_id": deployment_id, "kept": spared, "replaced": copies},
    )


def _about_others(
    journal: Journal,
    manifest: t.Mapping[str, t.Any],
    kept: t.Sequence[str],
    copies: t.Mapping[str, str],
    would: str,
) -> str:
    """What became of files that somebody changed after us."""
    text = ""
    if copies:
        pairs = ", ".join(f"{name} (a copy {would or 'is '}kept: {copy})" for name, copy in copies.items())
        text += f" Replaced, although somebody changed them since: {pairs}."
    if kept:
        pairs = ", ".join(f"{name} ({_original_of(journal, manifest, name)})" for name in kept)
        text += f" Left alone, because somebody changed them since: {pairs}."
    whole = [name for name in kept if name in left_alone(journal, manifest)]
    if whole:
        text += (
            f" The deployment is partly rolled back. For the originals of {', '.join(whole)}, keeping a copy of what is"
            " there, roll back again with -e wheels_ops_force=true."
        )
    return text


def _original_of(journal: Journal, manifest: t.Mapping[str, t.Any], name: str) -> str:
    path = original_path(journal, manifest, name)
    return f"original: {path}" if path else "not there before"


def _tidied(swept: t.Sequence[str]) -> t.List[t.Dict[str, t.Any]]:
    return [{"action": "tidy", "target": path, "changed": True} for path in swept]


def _original(journal: Journal, deployment_id: str, name: str, entry: t.Mapping[str, t.Any]) -> t.Optional[bytes]:
    if entry["original"] is None:
        return None
    path = journal.directory(deployment_id) / "originals" / entry["original"]
    content = files.read_regular(path)
    if content is None or sha256(content[0]) != entry["original"]:
        raise OpsError(
            f"The original of {name} is {'missing' if content is None else 'damaged'}: {path}.",
            hint="Nothing was changed. Put the file there again from a backup of the state directory.",
        )
    return content[0]


def _put_back(
    name: str,
    entry: t.Mapping[str, t.Any],
    real: Path,
    root: str,
    target: t.Optional[bytes],
    theirs: t.Optional[os.stat_result],
    token: str,
) -> None:
    """``theirs``: the status of a file that somebody changed since, which keeps its owner and mode, and loses our block
    alone.
    """
    if target is None:
        files.remove(real, below=root)
        _remove_empty_parents(name, entry, real, root)
        return
    files.make_directories(real.parent, below=root, mode=0o755)
    if theirs is not None:
        write_atomically(
            real, target, mode=theirs.st_mode & 0o7777, owner=(theirs.st_uid, theirs.st_gid), below=root, token=token
        )
        return
    owner = (entry["uid"], entry["gid"])
    write_atomically(
        real,
        target,
        mode=entry["mode"],
        owner=owner,
        below=root,
        token=token,
        mtime_ns=entry["mtime_ns"],
        # A journal of an earlier release has none: then those of the file that is replaced stay.
        extended=attributes.from_text(entry["extended"]) if "extended" in entry else None,
    )


def _restore_directory_times(manifest: t.Mapping[str, t.Any]) -> None:
    """Gives directories that hold the same names as before the deployment the time that they had then."""
    directories = manifest.get("directories", {})
    for place, entry in directories.items() if isinstance(directories, dict) else ():
        # A time is worth no failed rollback: it is left where the directory, or what the journal says of it, is not as
        # it was.
        with contextlib.suppress(OSError, OpsError, KeyError, TypeError):
            names, mtime_ns = files.listing(Path(place), below=entry["root"])
            if names == entry["names"] and mtime_ns != entry["mtime_ns"]:
                files.set_time(Path(place), entry["mtime_ns"], below=entry["root"])


def database_access(environment: t.Mapping[str, str]) -> str:
    """By which door a backend with this environment reaches its database, as its database guard reads it: the name of a
    variable, or ``none``; empty where nothing is known of the environment.
    """
    if not environment:
        return ""
    if environment.get("DATABASE_URL", "").startswith("postgres"):
        return "DATABASE_URL"
    key = environment.get("SUPABASE_KEY") or environment.get("SUPABASE_SERVICE_ROLE_KEY")
    return "SUPABASE_URL" if key and environment.get("SUPABASE_URL", "").startswith("http") else "none"


def latest(state_dir: str) -> str:
    """The id of the deployment that was interrupted, or of the newest that is in force.

    Raises ``OpsError`` where there is none.
    """
    return Journal(state_dir).latest()


def _require_inside(root: Path, relative: str) -> None:
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise OpsError(f"{relative!r} is not a path below {root}.")


def _changes(root: Path, real: str, request: Request, journal: Journal) -> t.List[_Change]:
    changes = []

    def read(relative: str) -> t.Tuple[Path, t.Optional[bytes], t.Optional[os.stat_result]]:
        _require_inside(root, relative)
        relative = str(PurePosixPath(relative))
        there = files.read_regular(Path(real, relative), below=real)
        return root / relative, there and there[0], there and there[1]

    def add(change: _Change) -> None:
        if change.before == change.after:
            return
        if change.status is not None:
            files.require_single(change.path, change.status)
        changes.append(change)

    for relative, content in request.files.items():
        path, before, status = read(relative)
        action = "install" if before is None else "replace"
        add(
            _Change(
                path,
                relative,
                real,
                status,
                before,
                content,
                action,
                before != content and _foreign(path, before, journal),
            )
        )
    for relative, lines in {**request.blocks, **request.optional_blocks}.items():
        path, before, status = read(relative)
        if before is None and relative not in request.blocks:
            continue
        if before is None:
            raise OpsError(
                f"{path} does not exist.",
                hint="The block that wires the patched files in goes into it. Is this the backend's directory?",
            )
        try:
            after = marked_blocks.insert(before.decode("utf-8"), lines, path=str(path)).encode("utf-8")
        except UnicodeDecodeError as error:
            raise OpsError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from error
        # Whoever edits main.py edits a file of his own: only our block is ours.
        add(_Change(path, relative, real, status, before, after, "insert block", False))
    return changes


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


def _keep_originals(journal: Journal, deployment_id: str, changes: t.Sequence[_Change]) -> t.Dict[str, t.Any]:
    """Writes down everything that will be made, changed or named, before it is; gives the manifest."""
    directory = journal.directory(deployment_id)
    manifest = journal.read(deployment_id)
    if manifest["state"] != BEGUN:
        raise OpsError(f"Deployment {deployment_id} is {manifest['state']}.", hint="Begin a new one.")
    (directory / "originals").mkdir(mode=0o700, exist_ok=True)
    manifest["token"] = leftovers.token_of(manifest) or files.new_token()
    for change in changes:
        entry = manifest["files"].get(str(change.path))
        if entry is None:
            entry = _entry(change, manifest.setdefault("directories", {}))
            if change.before is not None:
                write_atomically(directory / "originals" / entry["original"], change.before)
            manifest["files"][str(change.path)] = entry
        checksum = sha256(change.after)
        # The last one is what has to be there when the deployment ends.
        entry["installed"] = [*(each for each in entry["installed"] if each != checksum), checksum]
        if change.foreign and change.before is not None:
            write_atomically(directory / "originals" / sha256(change.before), change.before)
            entry["replaced_by_force"] = sha256(change.before)
    manifest["step"] = "files"
    manifest["files_at"] = now()
    journal.write(manifest)
    return manifest


def _entry(change: _Change, directories: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
    """What a rollback needs of one file.

    ``directories`` gets the innermost directory that is there, as its time changes with the names in it.
    """
    missing, above = files.nearest(change.real, below=change.root)
    place = change.real.parents[len(missing)]
    if str(place) not in directories:
        names, mtime_ns = files.listing(place, below=change.root)
        directories[str(place)] = {"root": change.root, "names": names, "mtime_ns": mtime_ns}
    status = change.status or above
    return {
        "original": None if change.before is None else sha256(change.before),
        "installed": [],
        "mode": status.st_mode & 0o7777 if change.before is not None else None,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "extended": (
            {} if change.before is None else attributes.as_text(files.read_extended(change.real, below=change.root))
        ),
        "block": change.action == "insert block",
        "made_directories": [str(parent) for parent in list(change.path.parents)[: len(missing)]],
        "root": change.root,
        "relative": change.relative,
    }


def _replace(change: _Change, mode: int, manifest: t.Mapping[str, t.Any]) -> None:
    entry = manifest["files"][str(change.path)]
    status = change.status
    owner = (entry["uid"], entry["gid"]) if status is None else (status.st_uid, status.st_gid)
    directories = [change.real.parents[index] for index in range(len(entry["made_directories"]))]
    files.make_directories(change.real.parent, below=change.root, mode=0o755, owner=owner, ours=directories)
    file_mode = mode if status is None else status.st_mode & 0o7777
    write_atomically(change.real, change.after, mode=file_mode, owner=owner, below=change.root, token=manifest["token"])


def _require_writable(changes: t.Sequence[_Change]) -> None:
    """Raises ``OpsError`` where a file could not be put into its directory, before anything is touched."""
    for change in changes:
        directory = next(parent for parent in change.path.parents if parent.exists())
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise OpsError(
                f"{directory} cannot be written, so {change.relative} cannot be installed.",
                hint=(
                    "Nothing was changed. Give the user of this task the right to write there (become: true), or mount"
                    " it writable."
                ),
            )


def _remove_empty_parents(name: str, entry: t.Mapping[str, t.Any], real: Path, root: str) -> None:
    """Removes the directories that this deployment made for a file, the innermost first, as long as they are empty."""
    for name_parent, parent in zip(Path(name).parents, real.parents):
        if str(name_parent) not in entry["made_directories"] or not files.remove_empty(parent, below=root):
            return


def _without_block(content: bytes) -> bytes:
    try:
        return marked_blocks.remove(content.decode("utf-8")).encode("utf-8")
    except UnicodeDecodeError:
        return content


def _verify(root: str, changes: t.Sequence[_Change], proof: Proof, *, execute: bool) -> t.Dict[str, t.Any]:
    """Compiles and imports the application with the changes in a copy, so that a release they do not fit stays
    untouched.

    Nobody but the owner of the application, the user it runs as and root may write the interpreter, its packages and
    the tree. Where not to ``execute``, our own interpreter compiles the files, and the result says what was left out.
    """
    if not proof.interpreter or not Path(proof.interpreter).exists():
        raise OpsError(
            f"The backend's Python {proof.interpreter!r} does not exist.",
            hint="Name the interpreter that the backend runs under with wheels_ops_backend_python.",
        )
    package = proof.module.partition(".")[0]
    who = run_as.owner_of(
        [
            root,
            Path(root, package),
            Path(root, *proof.module.split(".")).with_suffix(".py"),
            proof.interpreter,
            Path(proof.interpreter).parent,
        ],
        user=proof.user,
        uid=proof.service_uid,
    )
    run_as.require_trusted(who, interpreters=[proof.interpreter])
    python = [change.relative for change in changes if change.relative.endswith(".py")]
    result = {
        "compiled": len(python),
        "imported": "",
        "interpreter": proof.interpreter,
        "user": "",
        "network": "",
        "left_out": "",
    }
    if not execute:
        run_as.stage(who, root, None, {}, left_out=_NOT_STAGED)
        _compile_here(changes)
        return {**result, "left_out": f"import {proof.module}: in check mode nothing of the application is executed"}
    with run_as.private_directory(who) as place:
        trees = _Trees(root, who, place, proof)
        copy = trees.add("tree", {change.relative: change.after for change in changes})
        compiled = trees.run(copy, proof.environment, _COMPILE, *python, network=False)
        if compiled.returncode:
            raise OpsError(
                f"The new files do not compile under {proof.interpreter}: {_last_lines(compiled)}",
                hint="Nothing was changed.",
            )
        imported = trees.load(copy, proof.environment)
        if not imported.returncode:
            return {
                **result,
                "imported": proof.module,
                "user": who.name,
                "network": "on" if imported.network else "off",
            }
        own = trees.load(trees.add("original", {}), proof.own_environment)
    if own.returncode and _fault_of(own) == _fault_of(imported):
        return {
            **result,
            "user": who.name,
            "network": "on" if imported.network else "off",
            "left_out": (
                f"import {proof.module}: this release cannot be imported for the proof, with its own files neither:"
                f" {_fault_of(imported)}"
            ),
        }
    raise OpsError(
        f"The application cannot be imported with the new files (import {proof.module}): {_last_lines(imported)}"
        + (f"; with its own files it fails, too: {_fault_of(own)}" if own.returncode else ""),
        hint="Nothing was changed. Report this with the release of the backend.",
        stderr=imported.stderr.decode(errors="replace")[-4000:],
        user=who.name,
    )


class _Trees:
    """Copies of the application in a private directory, and programs that run in them under its interpreter."""

    def __init__(self, root: str, who: run_as.Identity, place: Path, proof: Proof) -> None:
        self.root, self.who, self.place, self.proof = root, who, place, proof

    def add(self, name: str, contents: t.Mapping[str, bytes]) -> Path:
        """Copies the tree with these contents in it."""
        copy = self.place / name
        run_as.make_private(copy, self.who)
        run_as.stage(self.who, self.root, copy, contents, left_out=_NOT_STAGED)
        return copy

    def run(
        self, copy: Path, environment: t.Mapping[str, str], program: str, *words: str, network: bool
    ) -> run_as.Completed:
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        search = [str(copy), *(path for path in paths if path and os.path.realpath(path) != self.root)]
        return run_as.run(
            [self.proof.interpreter, "-c", program, *words],
            self.who,
            self.place,
            timeout=_VERIFY_SECONDS,
            cwd=copy,
            environment={**environment, "PYTHONPATH": os.pathsep.join(search)},
            network=network,
        )

    def load(self, copy: Path, environment: t.Mapping[str, str]) -> run_as.Completed:
        """Imports without the network; once more with it where that fails, as an application may ask its database when
        it is imported. Raises ``OpsError`` for an import that does not end.
        """
        words = (_IMPORT, self.proof.module)
        try:
            completed = self.run(copy, environment, *words, network=False)
            if not completed.returncode or completed.network:
                return completed
        except run_as.TimedOut:
            pass
        try:
            return self.run(copy, environment, *words, network=True)
        except run_as.TimedOut as error:
            raise OpsError(
                f"import {self.proof.module} did not end within {_VERIFY_SECONDS} s.", hint="Nothing was changed."
            ) from error


def _fault_of(completed: run_as.Completed) -> str:
    """The exception with which an import failed, in one line: the same for the same fault."""
    lines = (completed.stdout.strip() or completed.stderr.strip()).decode(errors="replace").splitlines()
    return _ADDRESSES.sub("0x0", lines[-1]) if lines else f"exit status {completed.returncode}"


def _unproved(verified: t.Mapping[str, t.Any]) -> str:
    return f"The new files compile; {verified['left_out']}. Whether it starts shows after the restart."


def _compile_here(changes: t.Sequence[_Change]) -> None:
    for change in changes:
        if change.relative.endswith(".py"):
            try:
                compile(change.after, change.relative, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                raise OpsError(
                    f"The new files do not compile: {change.relative}: {error}.", hint="Nothing was changed."
                ) from error


def _last_lines(completed: run_as.Completed) -> str:
    return " / ".join(line.strip() for line in completed.stderr.decode(errors="replace").strip().splitlines()[-3:])


def _diff(change: _Change) -> t.Dict[str, t.Any]:
    return _text_diff(str(change.path), change.before, change.after)


#: What is done, the path, the content before and after.
_Difference = t.Tuple[str, str, t.Optional[bytes], t.Optional[bytes]]


def _diffs(differences: t.Sequence[_Difference], root: str, full: bool) -> t.List[t.Dict[str, t.Any]]:
    """Of several files first a summary, one line a file; then the diffs, without ``full`` those of our blocks alone."""
    whole = [(action, name, _text_diff(name, before, after)) for action, name, before, after in differences]
    if len(whole) < 2:
        return [diff for _action, _name, diff in whole]
    rows, total = [], [0, 0]
    for action, name, diff in whole:
        lines = diff["prepared"].splitlines()[2:]
        counts = [sum(line.startswith(sign) for line in lines) for sign in "+-"]
        total = [total[0] + counts[0], total[1] + counts[1]]
        rows.append(f"  {action:<12} {f'+{counts[0]}':>7} {f'-{counts[1]}':>7}  {name}\n")
    head = f"{len(rows)} files below {root}: +{total[0]} -{total[1]} lines\n"
    shown = [diff for action, _name, diff in whole if full or action.endswith("block")]
    tail = (
        ""
        if full
        else "Below are the lines in the backend's own files alone. All of them: -e wheels_ops_full_diff=true\n"
    )
    return [{"prepared": head + "".join(rows) + tail}, *shown]


def _text_diff(name: str, before: t.Optional[bytes], after: t.Optional[bytes]) -> t.Dict[str, t.Any]:
    old = (before or b"").decode("utf-8", "replace").splitlines(keepends=True)
    new = (after or b"").decode("utf-8", "replace").splitlines(keepends=True)
    return {"prepared": "".join(difflib.unified_diff(old, new, f"{name} (before)", f"{name} (after)"))}
