# SPDX-License-Identifier: GPL-3.0-or-later
"""tts_engine: the interpreter of a backend's environment runs as its owner, not as root, and not at all
in check mode.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.remedies.tts_engine import Options, run

OWNER, THIRD = 54321, 54322
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or ""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not PYTHON or not shutil.which("espeak-ng"),
        reason="needs root, espeak-ng, and a Python for everybody",
    ),
]


class Backend:
    """A virtual environment of another user.

    Its interpreter says as whom it ran before it does what it is told; its pip installs nothing.
    """

    def __init__(self, place: Path) -> None:
        place.chmod(0o755)
        self.witness = place / "witness"
        self.witness.mkdir()
        self.witness.chmod(0o777)
        self.directory = place / "venv"
        self.packages = self.directory / "lib/python3/site-packages"
        self.packages.mkdir(parents=True)
        (self.directory / "bin").mkdir()
        (self.directory / "pyvenv.cfg").write_text("home = /usr/bin\n")
        self.python = self.directory / "bin/python"
        self.python.write_text(
            f"#!/bin/sh\n: > {self.witness}/$$\nls -ldn $HOME $TMPDIR >> {self.witness}/$$\n"
            f'[ "$1 $2" = "-m pip" ] && {{ cp -r {self.packages}/old/* {self.packages}/; exit 0; }}\n'
            f'PYTHONPATH={self.packages} exec {PYTHON} "$@"\n'
        )
        self.python.chmod(0o755)
        self.add("pyttsx3", "2.9", "import shutil\ndef init(): raise OSError('no driver')\n")
        for path in [self.directory, *self.directory.rglob("*")]:
            os.chown(path, OWNER, OWNER)

    def add(self, package: str, version: str, code: str) -> None:
        (self.packages / f"{package}.py").write_text(code)
        information = self.packages / f"{package}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")

    def run(self, *, check_mode: bool = False, **options: t.Any) -> t.Dict[str, t.Any]:
        options = {
            "engines": ("espeak", "pyttsx3"),
            "primary": "fallback",
            "backend_python": str(self.python),
            **options,
        }
        return run(Options(**options), check_mode=check_mode).as_dict()

    def witnesses(self) -> t.Set[t.Tuple[int, int]]:
        return {(path.stat().st_uid, path.stat().st_gid) for path in self.witness.iterdir()}


@pytest.fixture
def backend() -> t.Iterator[Backend]:
    # Not below tmp_path, into which root's pytest lets nobody.
    with tempfile.TemporaryDirectory() as place:
        yield Backend(Path(place))


def test_the_backends_interpreter_runs_as_its_owner_with_directories_of_his_own(backend: Backend) -> None:
    result = backend.run()
    assert result["engine"] == "espeak" and result["after"]["engines"]["pyttsx3"]["version"] == "2.9"
    assert backend.witnesses() == {(OWNER, OWNER)}
    lines = [line.split() for path in backend.witness.iterdir() for line in path.read_text().splitlines()]
    assert len(lines) >= 4 and {(line[0][:10], line[2]) for line in lines} == {("drwx------", str(OWNER))}
    assert not any(os.path.lexists(line[-1]) for line in lines)


def test_packages_are_installed_as_the_owner_of_the_environment(backend: Backend) -> None:
    (backend.packages / "old").mkdir()
    for name in ("pyttsx3.py", "pyttsx3-2.9.dist-info"):
        (backend.packages / name).rename(backend.packages / "old" / name)
    os.chown(backend.packages / "old", OWNER, OWNER)
    predicted = backend.run(check_mode=True, backend_user="nobody")
    assert predicted["changed"] and predicted["actions"][0]["target"] == "pyttsx3" and backend.witnesses() == set()
    real = backend.run(backend_user="nobody")
    assert real["actions"][0]["target"] == "pyttsx3"
    assert (backend.packages / "pyttsx3.py").stat().st_uid == OWNER
    assert {uid for uid, _gid in backend.witnesses()} == {OWNER, 65534}, "pip as the owner, the engines as the backend"


def test_check_mode_reads_the_environment_and_executes_nothing_of_it(backend: Backend) -> None:
    predicted = backend.run(check_mode=True)
    assert backend.witnesses() == set()
    assert predicted["left_out"] == ["pyttsx3"] and "Not verified in check mode: pyttsx3." in predicted["msg"]
    assert predicted["after"]["engines"]["pyttsx3"] == {
        **predicted["before"]["engines"]["pyttsx3"],
        "version": "2.9",
        "present": True,
        "speaks": None,
        "why": "not verified: in check mode nothing of the backend is executed",
    }
    assert predicted["engine"] == "espeak" and predicted["after"]["engines"]["espeak"]["speaks"] is True
    asked = backend.run(check_mode=True, verify_in_check_mode=True)
    assert backend.witnesses() == {(OWNER, OWNER)} and asked["left_out"] == []
    assert set(asked) == set(predicted) == set(backend.run())


def test_an_interpreter_outside_of_an_environment_is_not_run_in_check_mode_either(backend: Backend) -> None:
    (backend.directory / "pyvenv.cfg").unlink()
    predicted = backend.run(check_mode=True)
    assert backend.witnesses() == set() and not predicted["changed"]
    assert "not looked for" in predicted["before"]["engines"]["pyttsx3"]["why"]


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("name", "mode", "owner"),
    [
        ("bin/python", 0o777, OWNER),
        ("bin", 0o777, OWNER),
        ("bin/python", 0o755, THIRD),
        ("lib/python3/site-packages/pyttsx3.py", 0o644, THIRD),
    ],
)
def test_an_environment_that_a_third_user_may_write_is_refused(
    backend: Backend, name: str, mode: int, owner: int, check_mode: bool
) -> None:
    path = backend.directory / name
    os.chown(path, owner, owner)
    path.chmod(mode)
    with pytest.raises(OpsError, match="Nothing of it is run") as caught:
        backend.run(check_mode=check_mode, backend_user=str(OWNER))
    assert str(path) in caught.value.message and backend.witnesses() == set()
