# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The patched files in a directory from which an image or a release is built, where Ansible reaches no host.

What is installed, and how it is kept and rolled back, is what the role ``backend_patches`` does on a host
(``backend_patch``); the journal and the originals lie in ``.wheels-ops`` below the directory unless another place is
named.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import time
import typing as t
from pathlib import Path

from ..core.results import OpsError, Result
from ..host import files
from ..state import deployments, holder
from . import backend_patch
from .backend_patch import Proof, Request

#: Below the directory that is patched.
STATE_DIRECTORY = ".wheels-ops"
#: The application's module, to which our block is added.
MAIN = "app/main.py"
#: The package beside ours in the wheel that holds the patched files.
DATA_PACKAGE = "wheels_ops_backend"
#: What the role adds to the backend's own files; a test compares both with its defaults.
BLOCKS: t.Mapping[str, t.Sequence[str]] = {
    MAIN: (
        "from app.wheels_ops.wiring import install as _wheels_ops_install",
        "",
        "_wheels_ops_install(app, globals())",
    ),
}
OPTIONAL_BLOCKS: t.Mapping[str, t.Sequence[str]] = {
    "app/core/config.py": (
        "from app.wheels_ops.wiring import plain_redis_url as _wheels_ops_plain_redis_url",
        "",
        "_wheels_ops_plain_redis_url(globals())",
    ),
    "app/core/logging.py": (
        "from app.wheels_ops.readable_log import install as _wheels_ops_readable_log",
        "",
        "_wheels_ops_readable_log(globals())",
    ),
    "app/workers/celery.py": (
        "from app.wheels_ops.wiring import install_celery as _wheels_ops_install_celery",
        "",
        "_wheels_ops_install_celery(globals())",
    ),
}
#: Keeps what lies in the state directory out of a commit of the directory.
_IGNORED = b"*\n"


def patched_files() -> t.Dict[str, bytes]:
    """The content of every patched file by its path below the backend's directory.

    Raises ``OpsError`` where this copy of the library came without them, as that on a host does.
    """
    library = Path(__file__).resolve().parents[1]
    places = (library.parent / DATA_PACKAGE, library.parents[1] / "roles/backend_patches/files")
    for place in places:
        if (place / "app/wheels_ops/wiring.py").is_file():
            return {
                path.relative_to(place).as_posix(): path.read_bytes()
                for path in sorted(place.rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
            }
    raise OpsError(
        "This copy of wheels.ops has no patched files.",
        hint="Install the wheel (pip install wheels-ops), or use the role backend_patches.",
    )


def install(
    directory: str,
    state_dir: str = "",
    *,
    python: str = "",
    force: bool = False,
    lock_force: str = "",
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """Installs the patched files below ``directory``; a second call changes nothing, and one after a kill finishes.

    ``python``: the interpreter under which the application is imported with the new files, in a copy and with the
    environment of this process, before one of them is replaced; without it nothing of the application is executed.
    Raises ``OpsError`` for a directory that is no such backend, for a file that somebody changed after us, unless
    ``force``, and where another run holds the lock, unless ``lock_force`` is its id.
    """
    root = _backend(directory)
    state = _state(root, state_dir)
    request = Request(
        root=str(root), files=patched_files(), blocks=BLOCKS, optional_blocks=OPTIONAL_BLOCKS, force=force
    )
    journal = deployments.Journal(state)
    unfinished = journal.open_one()
    name = unfinished["id"] if unfinished else _name(journal)
    proof = Proof(
        interpreter=python, module="app.main" if python else "", environment=os.environ, own_environment=os.environ
    )
    prediction = backend_patch.install(state, name, request, proof, check_mode=True, want_diff=want_diff)
    if check_mode or not (prediction.changed or unfinished):
        return prediction
    run = holder.name_of(os.getpid())
    _make_state(root, Path(state))
    deployments.begin(state, name, holder=run, force=lock_force)
    try:
        result = backend_patch.install(state, name, request, proof, want_diff=want_diff)
    except OpsError:
        if not journal.read(name)["files"]:
            deployments.end(state, name, holder=run, state=deployments.ROLLED_BACK)
        raise
    deployments.end(state, name, holder=run, state=deployments.FINISHED)
    return result


def remove(
    directory: str,
    state_dir: str = "",
    *,
    force: bool = False,
    lock_force: str = "",
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """Rolls back everything that was installed below ``directory``, the newest first.

    A file that somebody changed after us stays as it is, but for our block, unless ``force``. The journal and the
    originals are kept as long as they hold what is nowhere else, and removed otherwise. In check mode only the newest
    installation is considered: what lies below it is not on the disk.
    """
    root = _directory(directory)
    state = _state(root, state_dir)
    journal = deployments.Journal(state)
    result = Result(msg=f"Nothing of ours is installed below {root}.")
    kept: t.List[str] = []
    if check_mode:
        if journal.in_force() or journal.open_one():
            result = backend_patch.restore(state, journal.latest(), force=force, check_mode=True, want_diff=want_diff)
        return result
    done: t.Set[str] = set()
    run = holder.name_of(os.getpid())
    while any(manifest["id"] not in done for manifest in journal.in_force()):
        name = next(manifest["id"] for manifest in journal.in_force() if manifest["id"] not in done)
        done.add(name)
        deployments.hold(state, kind=deployments.ROLLBACK, holder=run, deployment_id=name, force=lock_force)
        step = backend_patch.restore(state, name, force=force, want_diff=want_diff)
        deployments.end(state, name, holder=run, state=deployments.ROLLED_BACK)
        kept += step.extra["kept"]
        result = Result(
            changed=result.changed or step.changed,
            before=result.before or step.before,
            after=step.after,
            actions=[*result.actions, *step.actions],
            msg=step.msg if len(done) == 1 else f"{result.msg} {step.msg}",
            diff=[*result.diff, *step.diff],
            extra={**step.extra, "kept": kept},
        )
    if not journal.in_force() and not _copies(journal):
        _remove_state(root, Path(state))
    return result


def _directory(directory: str) -> Path:
    root = Path(os.path.abspath(directory))
    if not root.is_dir():
        raise OpsError(f"The directory {root} does not exist.", hint="Name the directory that holds the backend's app.")
    return root


def _backend(directory: str) -> Path:
    """The directory as an absolute path. Raises ``OpsError`` where it holds no application that our block fits."""
    root = _directory(directory)
    content = files.read_regular(root / MAIN)
    if content is None:
        raise OpsError(
            f"{root} holds no {MAIN}.", hint="Name the directory that holds the backend's `app`, such as backend."
        )
    try:
        tree = ast.parse(content[0])
    except (SyntaxError, ValueError) as error:
        raise OpsError(
            f"{root / MAIN} is not valid Python: {error}.", hint="Repair it before it can be patched."
        ) from error
    if not _binds(tree, "app"):
        raise OpsError(
            f"{root / MAIN} has no application by the name `app` at its top level.",
            hint="Our block ends that file and calls install(app, ...): assign the application there, also where a"
            " function makes it (app = create_app()).",
        )
    return root


def _binds(tree: ast.AST, name: str) -> bool:
    """Whether a module binds the name at its top level, inside ``if``, ``try`` and ``with`` as well. A star import may
    bind any.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                return True
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.Import):
            # `import app.core` binds the package of that name, which is not the application.
            if any(alias.asname == name for alias in node.names):
                return True
            continue
        if isinstance(node, ast.alias) and (node.asname or node.name) in (name, "*"):
            return True
        if _binds(node, name):
            return True
    return False


def _state(root: Path, state_dir: str) -> str:
    return os.path.abspath(state_dir) if state_dir else str(Path(files.real_directory(root), STATE_DIRECTORY))


def _name(journal: deployments.Journal) -> str:
    """An id that no deployment here has."""
    base = time.strftime("build-%Y%m%dT%H%M%S", time.gmtime())
    names = {manifest["id"] for manifest in journal.all()}
    return next(name for name in (base, *(f"{base}-{number}" for number in range(2, 1000))) if name not in names)


def _make_state(root: Path, state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state.parent == root.resolve():
            files.write_atomically(state / ".gitignore", _IGNORED, mode=0o600)
    except OSError as error:
        raise OpsError(
            f"Cannot write {state}: {error.strerror}.", hint="Name a directory of yours with --state-dir."
        ) from error


def _copies(journal: deployments.Journal) -> bool:
    """Whether the journal keeps a copy of what somebody wrote himself."""
    manifests, damaged = journal.scan()
    entries = (entry for manifest in manifests for entry in manifest["files"].values())
    return bool(damaged) or next((True for entry in entries if "replaced_by_force" in entry), False)


def _remove_state(root: Path, state: Path) -> None:
    """Removes the state directory where it is the one that we made below the directory."""
    if state == Path(files.real_directory(root), STATE_DIRECTORY) and (state / ".gitignore").is_file():
        with contextlib.suppress(OSError):
            shutil.rmtree(state)
