# SPDX-License-Identifier: GPL-3.0-or-later
"""A user without rights owns the backend's tree, its logs and its virtual environment, and lays traps; root runs our
modules over them.

Nothing of his runs as root, nothing outside his directories changes, nothing that he cannot read is shown, and no trap
holds a run up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import COLLECTION
from wheels_ops.core.results import OpsError
from wheels_ops.standalone import program_links

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, against whom the traps are laid"),
]
#: ``nobody``: a user that every machine has and who owns nothing.
USER = 65534
SECRET = "only-root-may-read-this-line"
#: What he has his interpreter and his modules do: say as whom they run.
WITNESS = "import os\nwith open({path!r}, 'a') as file: file.write(f'{{os.geteuid()}}\\n')\n"
LIMIT = 60


class Scene:
    """His directories, and one of root's beside them."""

    def __init__(self, root: Path) -> None:
        self.backend, self.logs, self.venv = root / "backend", root / "backend/logs", root / "backend/venv"
        self.witness = root / "his/witness"
        self.guarded, self.state = root / "guarded", root / "state"
        for directory in (self.backend / "app/core", self.logs, self.venv / "bin", self.witness.parent):
            directory.mkdir(parents=True, exist_ok=True)
        (self.guarded / "inner").mkdir(parents=True)
        (self.guarded / "core").mkdir()
        (self.guarded / "app.log").write_text(f"{SECRET}\n" * 4000)
        (self.guarded / "inner/cors_config.py").write_text("OF_ROOT = True\n")
        (self.guarded / "shadow").write_text(f"{SECRET}:0123456789abcdef:::\n")
        (self.guarded / "shadow").chmod(0o600)
        (self.guarded / "old.part").write_text("old")
        os.utime(self.guarded / "old.part", (1, 1))
        self.state.mkdir(mode=0o711)
        (self.state / "requests").mkdir()
        (self.state / "metrics").mkdir()
        (self.backend / "app/__init__.py").touch()
        (self.backend / "app/core/__init__.py").touch()
        (self.backend / "app/core/cors_config.py").write_text("HIS = 1\n")
        trap = WITNESS.format(path=str(self.witness))
        (self.backend / "app/main.py").write_text(f"{trap}app = None\n")
        (self.backend / "sitecustomize.py").write_text(trap)
        python = self.venv / "bin/python"
        python.write_text(f'#!/bin/sh\nid -u >> {self.witness}\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.give(self.backend, self.witness.parent, self.state / "requests", self.state / "metrics")
        self.before = self.fingerprint()

    def give(self, *paths: Path) -> None:
        """Makes everything below these his own, links themselves and not what they lead to."""
        for top in paths:
            for path in (top, *top.rglob("*")):
                os.chown(path, USER, USER, follow_symlinks=False)

    def fingerprint(self) -> t.Dict[str, str]:
        """Everything of root's that he must not reach: names, content, owner, mode, time."""
        places = (self.guarded, *self.guarded.rglob("*"))
        found = {}
        for path in places:
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = f"{content} {status.st_mode:o} {status.st_uid} {status.st_mtime_ns if content else ''}"
        return found

    def ran_as(self) -> t.Set[str]:
        return set(self.witness.read_text().split()) if self.witness.exists() else set()

    def link(self, place: Path, target: t.Union[Path, str]) -> None:
        """Puts a link of his in the place of whatever is there."""
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        place.symlink_to(target)
        os.chown(place, USER, USER, follow_symlinks=False)

    def require_untouched(self, *outputs: str) -> None:
        assert self.ran_as() <= {str(USER)}, "his code ran as somebody else"
        assert self.fingerprint() == self.before, "what is root's was changed"
        assert not [text for text in outputs if SECRET in text], "what only root may read was shown"


@pytest.fixture
def scene() -> t.Iterator[Scene]:
    # Not below pytest's own directory, which nobody else may enter.
    root = Path(tempfile.mkdtemp(prefix="wheels-ops-adversary-"))
    root.chmod(0o755)
    try:
        yield Scene(root)
    finally:
        shutil.rmtree(root)


def module(name: str, arguments: t.Mapping[str, t.Any], *, check_mode: bool = False) -> t.Dict[str, t.Any]:
    """Runs a module as Ansible does, as root; a trap that holds it up fails the test."""
    internal = {"_ansible_check_mode": check_mode, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
    done = subprocess.run(
        [sys.executable, str(COLLECTION / f"plugins/modules/{name}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **internal}}),
        env={**os.environ, "PYTHONPATH": str(COLLECTION.parents[1])},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    try:
        return {**json.loads(done.stdout), "output": done.stdout}
    except ValueError:
        raise AssertionError(f"{name} gave no result:\n{done.stdout}\n{done.stderr}") from None


@contextlib.contextmanager
def swapping(place: Path, target: Path) -> t.Iterator[None]:
    """He changes a directory for a link and back, as fast as he can, in a process of his own."""
    program = (
        "import os, sys\nplace, target = sys.argv[1:]\naside = place + '.aside'\nos.setgid(65534);"
        " os.setuid(65534)\nwhile True:\n    os.rename(place, aside); os.symlink(target, place)\n    os.unlink(place);"
        " os.rename(aside, place)\n"
    )
    his = subprocess.Popen([sys.executable, "-c", program, str(place), str(target)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        his.send_signal(signal.SIGKILL)
        his.wait()
        aside = Path(f"{place}.aside")
        if aside.exists():
            if place.is_symlink():
                place.unlink()
            elif place.is_dir():
                # What we made anew while his was away.
                shutil.rmtree(place)
            aside.rename(place)


def installed(scene: Scene, *, check_mode: bool = False, **further: t.Any) -> t.Dict[str, t.Any]:
    """One deployment of one file."""
    if not check_mode:
        begun = module(
            "deployment", {"state": "begun", "state_dir": str(scene.state), "deployment_id": "d1", "holder": "test:1:1"}
        )
        assert not begun.get("failed"), begun
    arguments = {
        "deployment_id": "d1",
        "state_dir": str(scene.state),
        "root": str(scene.backend),
        "files": {"app/core/cors_config.py": "OURS = 1\n"},
        **further,
    }
    return module("managed_files", arguments, check_mode=check_mode)


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("interpreter", ["his", "ours"])
def test_the_import_runs_nothing_of_his_as_root(scene: Scene, check_mode: bool, interpreter: str) -> None:
    python = str(scene.venv / "bin/python") if interpreter == "his" else sys.executable
    result = installed(scene, check_mode=check_mode, interpreter=python, import_module="app.main")
    scene.require_untouched(result["output"])


@pytest.mark.parametrize("check_mode", [True, False])
def test_speech_runs_nothing_of_his_as_root(scene: Scene, check_mode: bool) -> None:
    arguments = {"engines": ["edge"], "backend_python": str(scene.venv / "bin/python"), "timeout": 5, "install": False}
    result = module("tts_engine", arguments, check_mode=check_mode)
    scene.require_untouched(result["output"])


@pytest.mark.parametrize("place", ["app/core", "app", "app/core/cors_config.py"])
def test_installing_and_restoring_follow_no_link(scene: Scene, place: str) -> None:
    """The directory is his own while it is installed, and a link when it is restored; and a link from the beginning."""
    target = (
        scene.guarded / "inner/cors_config.py"
        if place.endswith(".py")
        else scene.guarded / ("inner" if place == "app/core" else "")
    )
    assert not installed(scene).get("failed")
    scene.link(scene.backend / place, target)
    restored = module("managed_files", {"state": "restored", "state_dir": str(scene.state), "deployment_id": "d1"})
    scene.require_untouched(restored["output"])
    again = installed(scene, deployment_id="d1", force=True)
    scene.require_untouched(again["output"])


def test_restoring_follows_no_directory_that_is_swapped_meanwhile(scene: Scene) -> None:
    for _try in range(3):
        installed(scene)
        with swapping(scene.backend / "app/core", scene.guarded / "inner"):
            for arguments in (
                {"state": "restored"},
                {"files": {"app/core/cors_config.py": "OURS = 2\n"}, "root": str(scene.backend)},
            ):
                module(
                    "managed_files", {"state_dir": str(scene.state), "deployment_id": "d1", "force": True, **arguments}
                )
        scene.require_untouched()


def test_the_programs_links_are_not_led_elsewhere(scene: Scene) -> None:
    """Made and removed many times, while the directory is his own or a link."""
    (scene.backend / "scripts").mkdir()
    scene.give(scene.backend)
    linked = 0
    with swapping(scene.backend / "scripts", scene.guarded):
        for _try in range(400):
            for state in ("present", "absent"):
                with contextlib.suppress(OpsError):
                    linked += len(
                        program_links.run(
                            {"scripts/recovery.py": "/opt/ours"}, str(scene.backend), state=state, check_mode=False
                        )[0]
                    )
            scene.require_untouched()
    assert linked, "it got through at times"


def test_rotation_takes_no_trap(scene: Scene) -> None:
    """A pipe, links, a hard link, a device where logs are."""
    logs = scene.logs
    os.mkfifo(logs / "pipe.log")
    (logs / "link.log").symlink_to(scene.guarded / "app.log")
    os.link(scene.guarded / "app.log", logs / "hard.log")
    (logs / "device.log").symlink_to("/dev/zero")
    (logs / "own.log").write_text("a line\n" * 10_000)
    os.mkfifo(logs / "own.log.1")
    os.chown(logs, USER, USER)
    for path in ("own.log", "own.log.1", "pipe.log", "link.log", "device.log"):
        os.chown(logs / path, USER, USER, follow_symlinks=False)
    result = module("log_rotate", {"paths": [f"{logs}/*.log"], "max_size": "4K"})
    scene.require_untouched(result["output"])
    assert (logs / "own.log").stat().st_size == 0 or result.get("failed"), result


def test_rotation_and_cleaning_follow_no_directory_that_is_swapped(scene: Scene) -> None:
    (scene.backend / "tmp").mkdir()
    for place in (scene.logs, scene.backend / "tmp"):
        (place / "app.log").write_text("a line\n" * 10_000)
        (place / "old.part").write_text("old")
        os.utime(place / "old.part", (1, 1))
    scene.give(scene.backend)
    with swapping(scene.logs, scene.guarded), swapping(scene.backend / "tmp", scene.guarded):
        for _try in range(2):
            module("log_rotate", {"paths": [f"{scene.logs}/*.log"], "max_size": "4K"})
            module("disk_cleanup", {"sources": [{"path": str(scene.backend / "tmp"), "age": "1h"}]})
    scene.require_untouched()
    scene.link(scene.logs, scene.guarded)
    scene.link(scene.backend / "tmp", scene.guarded)
    rotated = module("log_rotate", {"paths": [f"{scene.logs}/*.log"], "max_size": "4K"})
    cleaned = module("disk_cleanup", {"sources": [{"path": str(scene.backend / "tmp"), "age": "1h"}]})
    scene.require_untouched(rotated["output"], cleaned["output"])
    assert rotated.get("failed") or not rotated["changed"]


def test_what_is_read_below_his_directories_shows_nothing_and_never_waits(scene: Scene) -> None:
    requests, metrics = scene.state / "requests", scene.state / "metrics"
    os.mkfifo(requests / "pipe.json")
    (requests / "link.json").symlink_to(scene.guarded / "shadow")
    os.link(scene.guarded / "shadow", requests / "hard.json")
    os.mkfifo(metrics / "metrics.sqlite")
    os.mkfifo(scene.logs / "pipe.log")
    (scene.logs / "loop").symlink_to(scene.logs)
    outputs = [module("recovery_requests", {"state_dir": str(scene.state)})]
    outputs += [module("recovery_requests", {"state_dir": str(scene.state), "done": ["pipe", "link", "hard"]})]
    for trap in ("pipe", "link"):
        token = scene.backend / f"token-{trap}"
        if trap == "pipe":
            os.mkfifo(token)
        else:
            scene.link(token, scene.guarded / "shadow")
        arguments = {"state_dir": str(scene.state), "base_url": "http://127.0.0.1:1", "token_file": str(token)}
        outputs.append(module("performance_report_info", arguments))
        memory = {
            "base_url": "http://127.0.0.1:1",
            "token_file": str(token),
            "actions": ["application"],
            "state_dir": str(scene.state),
        }
        outputs.append(module("memory_trim", memory))
        (metrics / "metrics.sqlite").unlink(missing_ok=True)
        (metrics / "metrics.sqlite").symlink_to(scene.guarded / "shadow")
    health = {
        "subjects": ["disk"],
        "filesystems": [str(scene.backend)],
        "disk_budgets": {str(scene.backend): 1_000_000},
        "logs": [f"{scene.logs}/*.log"],
    }
    outputs.append(module("health_info", health))
    scene.require_untouched(*(each["output"] for each in outputs))
    assert outputs[-1]["checks"][0]["status"] != "unknown"


@pytest.mark.parametrize("trap", ["link", "pipe", "device"])
def test_a_program_that_root_starts_in_his_directory_reads_no_trap(scene: Scene, trap: str) -> None:
    dotenv = scene.backend / ".env"
    if trap == "pipe":
        os.mkfifo(dotenv)
    else:
        scene.link(dotenv, scene.guarded / "shadow" if trap == "link" else "/dev/zero")
    (scene.backend / "psutil.py").write_text(WITNESS.format(path=str(scene.witness)))
    (scene.backend / "wheels_ops").mkdir()
    (scene.backend / "wheels_ops/__init__.py").write_text(WITNESS.format(path=str(scene.witness)))
    (scene.venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    scene.give(scene.backend)
    programs = ["production_health_monitor.py", "scripts/automated_recovery.py"]
    for program in programs if trap == "link" else programs[:1]:
        # As the role links it there.
        place = scene.backend / program
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(COLLECTION / "roles/monitoring/files" / program)
        words = ["--only", "disk"] if program.startswith("production") else ["--dry-run"]
        environment = {**os.environ, "WHEELS_OPS_STATE_DIR": str(scene.state), "WHEELS_OPS_CONFIG": ""}
        done = subprocess.run(
            [sys.executable, program, *words],
            cwd=scene.backend,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        scene.require_untouched(done.stdout, done.stderr)
