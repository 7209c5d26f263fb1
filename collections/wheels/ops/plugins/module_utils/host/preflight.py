# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run needs of a host, measured before it changes anything: an environment, the backend, rights and space."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import typing as t
from pathlib import Path

from ..core.results import OpsError, Result

#: Seconds for an interpreter to start and to look for its modules.
_TIMEOUT = 60
#: Ends with 0 where every module named as an argument is installed. Only what was compiled for one Python can fail to
#: load where its file is there, so nothing else is imported: importing redis alone takes half a second.
_PROBE = """
import importlib, importlib.util, os, sys
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        sys.exit(1)
    if any(entry.endswith((".so", ".pyd")) for entry in os.listdir(os.path.dirname(spec.origin))):
        importlib.import_module(name)
"""


def environment_works(interpreter: str, modules: t.Sequence[str]) -> bool:
    """Whether that Python starts and has every one of the modules."""
    if not modules or not os.path.isabs(interpreter):
        raise OpsError(
            f"interpreter must be an absolute path and modules at least one name, got {interpreter!r} and {modules!r}."
        )
    try:
        done = subprocess.run(
            [interpreter, "-c", _PROBE, *modules], capture_output=True, check=False, timeout=_TIMEOUT, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


#: Prints the version of a Python, and whether it makes virtual environments with pip in them: Debian keeps that apart.
_VERSION = """
import json, sys
try:
    import ensurepip, venv
except ImportError:
    ensurepip = None
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "venv": ensurepip is not None}))
"""


def system(python: str, *, release: str = "/etc/os-release") -> t.Dict[str, t.Any]:
    """``name`` (``debian 12``), ``machine`` (``x86_64``), ``python`` (``3.11``, empty where there is none) and whether
    it makes virtual environments (``venv``).
    """
    try:
        lines = Path(release).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    words = {name: value.strip("\"' ") for name, _sign, value in (line.partition("=") for line in lines)}
    facts: t.Dict[str, t.Any] = {"python": "", "venv": False}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
        done = subprocess.run([python, "-c", _VERSION], capture_output=True, check=False, timeout=_TIMEOUT, cwd="/")
        facts = json.loads(done.stdout)
    name = f"{words.get('ID', 'unknown')} {words.get('VERSION_ID', '')}".strip()
    return {"name": name, "machine": os.uname().machine, **facts}


def free_space(paths: t.Sequence[str]) -> t.Dict[str, t.Any]:
    """``bytes`` that an ordinary user may still write, and ``path`` of the mount point, where there is the least."""
    spaces = []
    for path in paths:
        try:
            status = os.statvfs(path)
        except OSError as error:
            raise OpsError(f"The free space of {path} cannot be measured: {error.strerror}.") from error
        if status.f_blocks:
            spaces.append((status.f_bavail * status.f_frsize, mount_point(path)))
    if not spaces:
        raise OpsError(f"No file system of {', '.join(paths)} has a size.")
    least, where = min(spaces)
    return {"bytes": least, "path": where}


def mount_point(path: str) -> str:
    """Where the file system of a path is mounted."""
    place = Path(os.path.realpath(path))
    while not os.path.ismount(place):
        place = place.parent
    return str(place)


def _nearest(path: str) -> str:
    """The directory itself, or the nearest one above it that is there."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    return str(place)


def look(
    *,
    interpreter: str,
    modules: t.Sequence[str],
    backend_dir: str,
    application: str,
    state_dir: str,
    system_python: str = "/usr/bin/python3",
) -> Result:
    """The ``system``, whether the ``environment`` works, the ``application`` is there, its ``directory`` is ``writable``,
    and ``free`` space of the backend's directory and the state directory; of what is not there yet, of the directory in
    which it will be made.

    Changes nothing. Raises ``OpsError`` for paths that are none.
    """
    for name, value in (("backend_dir", backend_dir), ("state_dir", state_dir)):
        if not os.path.isabs(value):
            raise OpsError(f"{name} must be an absolute path, got {value!r}.")
    path = Path(backend_dir, application)
    here = path.exists()
    return Result(
        msg=f"{path} is {'there' if here else 'missing'}.",
        extra={
            "system": system(system_python),
            "environment": environment_works(interpreter, modules),
            "application": here,
            "directory": str(path.parent),
            "writable": os.access(path.parent, os.W_OK),
            "free": free_space([_nearest(backend_dir), _nearest(state_dir)]),
        },
    )
