# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in backend's real Celery worker and beat, with our file installed as a deployment installs it, and a short
schedule.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_client

from tests.backend.materialise import materialise
from tests.support.backend_env import BACKEND_PYTHON, environment, install_blocks, overlay
from tests.support.waiting import wait_until

#: Appended to the release's task modules: a task of each class that writes down which number it was called with.
RECORDERS = '''

@celery_app.task(name="{name}", acks_late=True)
def record(n: int) -> int:
    """Appends its number to ``pam:record:{kind}``."""
    client().rpush("pam:record:{kind}", n)
    return n
'''
MODULES = {"analytics": "analytics_tasks", "cleanup": "cleanup_tasks", "notifications": "notification_tasks"}


@dataclass
class CeleryBackend:
    """A directory with the release in it, and the processes that were started there."""

    directory: Path
    redis_url: str
    environment: t.Dict[str, str]
    processes: t.Dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def redis(self) -> t.Any:
        return redis_client.Redis.from_url(self.redis_url, decode_responses=True)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """Starts ``celery -A app.workers.celery WORDS`` under a name; its output goes to ``NAME.log``."""
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(BACKEND_PYTHON), "-m", "celery", "-A", "app.workers.celery", *words],
                cwd=self.directory,
                env={**self.environment, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def worker(self, *words: str, name: str = "worker", **variables: str) -> subprocess.Popen[bytes]:
        """A prefork worker with two children; waits until it takes tasks."""
        process = self.start(
            name, "worker", "--loglevel=info", "--concurrency=2", "-n", f"{name}@test", *words, **variables
        )
        sign = f"pam:worker:heartbeat:{name}@test"
        wait_until(
            lambda: f"{name}@test ready" in self.log(name) or self.redis.exists(sign) or self._ended(name),
            timeout=60,
            what="worker ready",
        )
        return process

    def beat(self, *words: str, name: str = "beat", **variables: str) -> subprocess.Popen[bytes]:
        process = self.start(
            name,
            "beat",
            "--loglevel=info",
            "-s",
            str(self.directory / "celerybeat-schedule"),
            "--pidfile=",
            *words,
            **variables,
        )
        wait_until(lambda: "beat: Starting" in self.log(name) or self._ended(name), timeout=60, what="beat started")
        return process

    def _ended(self, name: str) -> bool:
        if self.processes[name].poll() is not None:
            raise RuntimeError(f"{name} ended with {self.processes[name].returncode}:\n{self.log(name)[-3000:]}")
        return False

    def stop(self, name: str, number: int = signal.SIGTERM, timeout: float = 20) -> None:
        """Signals one process and waits for it; kills its group in the end."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def python(self, code: str, timeout: float = 300) -> str:
        """Runs code in the backend's interpreter and directory, gives what it printed."""
        done = subprocess.run(
            [str(BACKEND_PYTHON), "-c", code],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise AssertionError(done.stderr[-3000:])
        return done.stdout


@contextlib.contextmanager
def celery_backend(
    redis_url: str,
    *,
    release: str = "incident",
    install: bool = True,
    schedule: t.Optional[t.Mapping[str, float]] = None,
    recorders: bool = True,
    look: float = 0.0,
    **env: t.Optional[str],
) -> t.Iterator[CeleryBackend]:
    """A release whose periodic tasks have the intervals of ``schedule`` (by entry name, seconds). Starts nothing.

    ``look`` is how often a worker looks for the throttle and gives its sign of life, in seconds, in place of every
    five.
    """
    directory = Path(tempfile.mkdtemp(prefix="wops-celery-"))
    backend = None
    try:
        materialise(release, directory)
        path = directory / "app/workers/celery.py"
        source = path.read_text()
        for name, seconds in (schedule or {}).items():
            entry = re.compile(rf'("{name}": \{{[^}}]*?"schedule": )[0-9.]+')
            source, count = entry.subn(rf"\g<1>{seconds}", source)
            assert count == 1, f"{count} periodic tasks are called {name}"
        path.write_text(source)
        if recorders:
            for kind, module in MODULES.items():
                target = directory / f"app/workers/tasks/{module}.py"
                text = target.read_text()
                if "client" not in text.split("@celery_app")[0]:
                    text = text.replace("import ran", "import client, ran")
                target.write_text(text + RECORDERS.format(name=f"app.workers.tasks.{module}.record", kind=kind))
        if install:
            overlay(directory, ["wheels_ops"])
            install_blocks(directory)
            if look:
                text = (
                    "\nfrom app.wheels_ops import celery_throttle\n\ncelery_throttle.LOOK_WORKER ="
                    f" celery_throttle.HEARTBEAT = {look}\n"
                )
                path.write_text(path.read_text() + text)
        backend = CeleryBackend(
            directory,
            redis_url,
            environment(directory, database_url="postgresql://localhost/none", redis_url=redis_url, port=0, **env),
        )
        yield backend
    finally:
        if backend is not None:
            for name in list(backend.processes):
                backend.stop(name, signal.SIGKILL)  # what is in the directory is of no use to anybody
        shutil.rmtree(directory, ignore_errors=True)
