# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installs this library on a host, out of the very files that run here: what Ansible sent with a module, or the
directory they lie in.
"""

from __future__ import annotations

import fcntl
import importlib.resources
import os
import shutil
import sys
import tempfile
import typing as t
from pathlib import Path

# Ansible sends with a module what its files import: these bring everything that the programs and the command line need.
from .. import command_line
from ..core import options
from ..core.results import OpsError, Result
from ..host.files import sha256
from . import launcher, monitor, program_links, recovery

#: What has to be there for the programs to work.
PROGRAMS = (launcher, monitor, recovery, command_line)
#: The file that says that a directory is ours, and which content it has.
MARK = ".wheels-ops"
#: What became of a program's place.
_DONE = {"link": "linked", "unlink": "removed", "put aside": "put aside", "put back": "put back"}
#: Of no use without Ansible.
LEFT_OUT = ("_ansible.py",)


def library() -> t.Dict[str, bytes]:
    """Every file of the library by its name below its root; a package's ``__init__.py`` is among them."""
    files: t.Dict[str, bytes] = {}

    def collect(place: t.Any, prefix: str) -> None:
        for entry in place.iterdir():
            if entry.name.endswith(".py") and prefix + entry.name not in LEFT_OUT:
                files[prefix + entry.name] = entry.read_bytes()
            elif "." not in entry.name and entry.name != "__pycache__":
                collect(entry, f"{prefix}{entry.name}/")

    root = (__package__ or "").rpartition(".")[0]
    collect(importlib.resources.files(sys.modules[root]), "")
    for module in PROGRAMS:
        name = f"{module.__name__[len(root) + 1 :].replace('.', '/')}.py"
        if name not in files:
            raise OpsError(f"{name} was not sent along.", hint="This is a defect of wheels.ops; please report it.")
    return files


def run(
    path: str,
    *,
    state: str = "present",
    links: t.Optional[t.Mapping[str, str]] = None,
    link_dir: str = "",
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """Makes the directory hold the library and nothing else, or takes it away. One that is not ours is refused.

    ``links``, ``link_dir``: the links of the programs, as ``program_links.run`` takes them.
    """
    target = Path(path)
    options.absolute_path("path", path)
    if len(target.parts) < 3:
        raise OpsError(
            f"path must be a directory below another, got {path!r}.",
            hint="Give the absolute path of a directory of its own, such as /opt/wheels-ops/lib/wheels_ops.",
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OpsError(f"{path} is no directory.", hint="Move it away, or name another path.")
    if target.is_dir() and any(target.iterdir()) and not (target / MARK).is_file():
        raise OpsError(f"{path} holds something that is not ours.", hint="Move it away, or name another path.")
    target_files = library() if state == "present" else {}
    try:
        there = _content(target)
        changed = [name for name in sorted(set(target_files) | set(there)) if target_files.get(name) != there.get(name)]
        if state == "absent" and target.is_dir():
            changed = changed or [MARK]
        leftovers = [str(directory) for directory in _leftovers(target)]
        if (changed or leftovers) and not check_mode:
            _change(target, target_files if changed else None)
    except OSError as error:
        raise OpsError(
            f"Cannot write {path}: {error.strerror}.",
            hint="Give the user of this task the right, or room, and run it again.",
        ) from error
    action = "remove" if state == "absent" else "update" if there else "install"
    would = "would be " if check_mode else ""
    actions: t.List[t.Dict[str, t.Any]] = [{"action": "tidy", "target": name, "changed": True} for name in leftovers]
    sentences = [f"What an interrupted run left {would or 'was '}removed."] if leftovers else []
    if changed:
        actions.append({"action": action, "target": path, "changed": True, "files": len(changed)})
        sentences.append(
            f"{len(changed)} files of the library {would}{'removed' if action == 'remove' else 'written'}."
        )
    linked, left_alone = program_links.run(links or {}, link_dir, state=state, check_mode=check_mode)
    actions += linked
    sentences += [
        f"{each['target']} {would or 'was '}{_DONE[each['action']]}"
        + (f" as {each['kept']}, because it is no valid Python." if each.get("kept") else ".")
        for each in linked
    ]
    return Result(
        changed=bool(actions),
        before={"files": len(there), "content": _digest(there)},
        after={"files": len(target_files), "content": _digest(target_files)},
        actions=actions,
        msg=" ".join(sentences) or "The library is as it is to be.",
        diff=(
            [
                {
                    "before_header": path,
                    "after_header": path,
                    "before": _listing(there, changed),
                    "after": _listing(target_files, changed),
                }
            ]
            if want_diff and changed
            else []
        ),
        extra={"left_alone": left_alone},
    )


def _content(target: Path) -> t.Dict[str, bytes]:
    if not target.is_dir():
        return {}
    files = (entry for entry in target.rglob("*.py") if entry.is_file())
    return {str(entry.relative_to(target)): entry.read_bytes() for entry in files}


def _digest(files: t.Mapping[str, bytes]) -> str:
    return sha256(b"".join(name.encode() + b"\0" + files[name] + b"\0" for name in sorted(files))) if files else ""


def _listing(files: t.Mapping[str, bytes], names: t.Sequence[str]) -> str:
    return "".join(f"{name} {sha256(files[name])[:12]}\n" for name in names if name in files)


def _change(target: Path, files: t.Optional[t.Mapping[str, bytes]]) -> None:
    """Puts the files in the place of what is there, or takes that away where there are none; ``None`` leaves it.

    One run at a time.
    """
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for leftover in _leftovers(target):
            _remove(leftover)
        if files:
            _replace(target, files)
        elif files is not None and target.is_dir():
            # Out of the way first: an interrupted removal leaves no half of a library in its place.
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.rename(target, old)
            _remove(old)
        os.fsync(parent)
    finally:
        os.close(parent)


def _leftovers(target: Path) -> t.List[Path]:
    """What an interrupted run left beside the target: our mark, or nothing at all, is in it."""
    beside = (
        entry for entry in sorted(target.parent.glob(f".{target.name}.*")) if entry.is_dir() and not entry.is_symlink()
    )
    return [entry for entry in beside if (entry / MARK).is_file() or not any(entry.iterdir())]


def _remove(directory: Path) -> None:
    """The mark goes last, so that what an interrupted removal leaves is known as ours."""
    for entry in directory.iterdir():
        if entry.name != MARK:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.rmtree(directory)


def _replace(target: Path, files: t.Mapping[str, bytes]) -> None:
    """The new directory takes the old one's place as a whole: no run of a program sees half of each."""
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = new.with_name(f"{new.name}.old")
    try:
        # The mark is the first, so that an interrupted run's is known as ours.
        for name, content in {MARK: f"{_digest(files)}\n".encode(), **files}.items():
            place = new / name
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.write_bytes(content)
            place.chmod(0o644)
        for directory in (new, *(entry for entry in new.rglob("*") if entry.is_dir())):
            directory.chmod(0o755)
        if target.is_dir():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.is_dir():
                os.rename(old, target)
            raise
    finally:
        for path in (new, old):
            if path.is_dir():
                _remove(path)
