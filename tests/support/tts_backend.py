# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched speech files in a release of the stand-in backend, and scenarios that run there under the backend's
interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.backend.materialise import materialise
from tests.support.backend_env import BACKEND_PYTHON, environment, overlay
from tests.support.waiting import wait_until

HERE = Path(__file__).resolve().parent
PATCHED = ("services/tts/tts_service.py", "services/tts/fallback_tts.py", "wheels_ops")


@dataclass
class FakeEdge:
    """A running fake edge endpoint: its CONNECT proxy, and a directory whose ``sitecustomize`` makes Python trust its
    CA.
    """

    directory: Path
    proxy: str
    trust: Path

    def mode(self, name: str) -> None:
        (self.directory / "mode.part").write_text(name)
        (self.directory / "mode.part").rename(self.directory / "mode")

    def seen(self, event: str) -> t.List[t.Dict[str, t.Any]]:
        path = self.directory / "seen.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [facts for facts in map(json.loads, lines) if facts["event"] == event]

    @property
    def patient(self) -> t.Dict[str, str]:
        """The same for a test in which the endpoint must win also on a machine that is busy."""
        return {**self.env, "TTS_HEDGE_SECONDS": "30", "TTS_FIRST_AUDIO_SECONDS": "30"}

    @property
    def env(self) -> t.Dict[str, str]:
        return {"TTS_EDGE_PROXY": self.proxy, "PYTHONPATH": str(self.trust), "FAKE_EDGE": str(self.directory)}


@contextlib.contextmanager
def fake_edge() -> t.Iterator[FakeEdge]:
    """Runs the endpoint in a process of its own until the block ends. Needs openssl, espeak-ng and lame."""
    directory = Path(tempfile.mkdtemp(prefix="wops-edge-"))
    process = subprocess.Popen([sys.executable, str(HERE / "fake_edge_tts.py"), str(directory)])
    try:
        wait_until(
            lambda: (directory / "ready.json").exists() or process.poll() is not None, what="the fake edge endpoint"
        )
        ready = json.loads((directory / "ready.json").read_text())
        trust = directory / "trust"
        trust.mkdir()
        (trust / "sitecustomize.py").write_text(
            f"import certifi, pathlib\nbundle = pathlib.Path({str(directory)!r}, 'bundle.pem')\nif not"
            " bundle.exists():\n    bundle.write_text(pathlib.Path(certifi.where()).read_text() +"
            f" pathlib.Path({ready['ca']!r}).read_text())\ncertifi.where = lambda: str(bundle)\n"
        )
        yield FakeEdge(directory, ready["proxy"], trust)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Tree:
    """A release with the patched speech files.

    Its own time limits hold ``patience`` times: on a busy machine they end in text, as they should.
    """

    directory: Path
    patience: float = 1.0

    def run(
        self,
        scenario: str,
        *,
        timeout: float = 400,
        env: t.Optional[t.Mapping[str, t.Optional[str]]] = None,
        **arguments: t.Any,
    ) -> t.Any:
        """Runs a function of ``tts_scenarios.py`` under the backend's interpreter and gives what it returned."""
        variables = environment(
            self.directory, database_url="postgresql://localhost/none", redis_url=None, port=0, **dict(env or {})
        )
        variables.update(LOG_LEVEL="ERROR", TTS_TEST_PATIENCE=str(self.patience))
        words = [
            str(BACKEND_PYTHON),
            str(HERE / "tts_scenarios.py"),
            str(self.directory),
            scenario,
            json.dumps(arguments),
        ]
        done = subprocess.run(
            words, cwd=self.directory, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def tree(release: str = "incident", patience: float = 1.0) -> t.Iterator[Tree]:
    directory = Path(tempfile.mkdtemp(prefix="wops-tts-"))
    try:
        materialise(release, directory)
        overlay(directory, PATCHED)
        (directory / "tmp").mkdir(exist_ok=True)
        yield Tree(directory, patience)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def path_with(directory: Path, **programs: str) -> str:
    """A PATH with only these programs (name with ``_`` for ``-``: shell script) and what a script needs."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, script in programs.items():
        target = directory / name.replace("_", "-")
        target.write_text(f"#!/bin/sh\n{script}\n")
        target.chmod(0o755)
    return str(directory)


def children(pid: t.Optional[int] = None) -> t.List[int]:
    """Processes whose parent is ``pid`` (this process by default)."""
    pid = pid or os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found
