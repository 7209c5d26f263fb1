# SPDX-License-Identifier: GPL-3.0-or-later
"""Patched backend files on their own: an ``app`` package with nothing else but the logging and settings they import.

The programs run under the backend's interpreter; what they print as JSON is what a test looks at.
"""

from __future__ import annotations

import json
import os
import subprocess
import typing as t
from pathlib import Path

from tests.support.backend_env import BACKEND_PYTHON, PATCHES

_LOGGING = """\
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(open({log!r}, "a", buffering=1)),
                    processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
def get_logger(name=None):
    return structlog.get_logger(name)
"""
_CONFIG = """\
import os
class Settings:
    ENVIRONMENT = os.environ.get("STUB_ENVIRONMENT") or None
settings = Settings()
if os.environ.get("STUB_REDIS_DSN"):
    from pydantic import RedisDsn, TypeAdapter
    settings.REDIS_URL = TypeAdapter(RedisDsn).validate_python(os.environ["STUB_REDIS_DSN"])
def get_settings():
    return settings
"""


class Tree(t.NamedTuple):
    """``directory`` holds ``app``; ``log`` gets one JSON object for each line that the patched files log."""

    directory: Path
    log: Path

    def logged(self) -> t.List[t.Dict[str, t.Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def environment(
        self, extra: t.Optional[t.Mapping[str, str]] = None, ahead: t.Sequence[Path] = ()
    ) -> t.Dict[str, str]:
        """For a program that imports ``app``; directories ``ahead`` come first on its path."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, [*ahead, self.directory])),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(extra or {}),
        }

    def run(
        self,
        program: str,
        *words: str,
        timeout: float = 120.0,
        check: bool = True,
        env: t.Optional[t.Mapping[str, str]] = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program text to its end."""
        done = subprocess.run(
            [str(BACKEND_PYTHON), "-c", program, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(env),
            cwd=self.directory,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return done

    def json(
        self, program: str, *words: str, timeout: float = 120.0, env: t.Optional[t.Mapping[str, str]] = None
    ) -> t.Any:
        """The JSON that a program prints last."""
        return json.loads(self.run(program, *words, timeout=timeout, env=env).stdout.splitlines()[-1])


#: What every file of ``app/wheels_ops`` may import.
LEAVES = (
    "wheels_ops/env.py",
    "wheels_ops/memory_budget.py",
    "wheels_ops/rate_limit.py",
    "wheels_ops/redis_url.py",
    "wheels_ops/workers.py",
)


def patched_tree(directory: Path, *files: str) -> Tree:
    """Builds it in an empty ``directory``; ``files`` are relative to ``backend_patches/files/app``.

    Where one of them is of ``wheels_ops``, the leaves of that package come along.
    """
    if any(name.startswith("wheels_ops/") for name in files):
        files = tuple(dict.fromkeys((*LEAVES, *files)))
    log = directory / "log.jsonl"
    for name, text in (("logging", _LOGGING.format(log=str(log))), ("config", _CONFIG)):
        target = directory / "app" / "core" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for name in files:
        target = directory / "app" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(PATCHES / name)
    for package in [directory / "app", *(path for path in (directory / "app").rglob("*") if path.is_dir())]:
        (package / "__init__.py").touch()
    return Tree(directory, log)
