# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the repository for mutants, and the tests that are run there. The working tree is only read."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = Path("collections/wheels/ops/plugins/module_utils")
#: What grades, locks and remembers; ``make mutants`` goes over these.
SCOPE = (
    "checks/*.py",
    "health/thresholds.py",
    "health/scores.py",
    "health/check.py",
    "state/deployments.py",
    "state/directory.py",
    "state/documents.py",
    "state/holder.py",
    "state/lock.py",
)
#: The unit tests of a file where they are not to be told from names and imports: every test of a remedy imports the
#: lock and the journal for its own sake.
TESTS: t.Dict[str, t.Tuple[str, ...]] = {
    "checks/dead_peer.py": ("tests/unit/checks/test_websocket.py",),
    "state/deployments.py": ("tests/unit/state/test_deployments.py",),
    "state/directory.py": ("tests/unit/state/test_directory.py",),
    "state/documents.py": ("tests/unit/state/test_documents.py",),
    "state/holder.py": ("tests/unit/state/test_holder.py", "tests/unit/state/test_lock.py"),
    "state/lock.py": ("tests/unit/state/test_lock.py",),
}
_NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".sandbox",
    ".cache",
    ".ansible",
    ".*_cache",
    "build",
    "dist",
    ".hypothesis",
)


class BrokenTests(RuntimeError):
    """The tests of a file do not pass without a mutant either, or there are none."""


def targets(only: t.Sequence[str] = ()) -> t.List[str]:
    """Files of the library, relative to it: those of ``only`` (files, directories or patterns), else ``SCOPE``."""
    root = REPOSITORY / LIBRARY
    paths: t.Set[Path] = set()
    for pattern in only or SCOPE:
        name = pattern if (root / pattern).exists() or pattern.endswith("*.py") or only == () else f"{pattern}.py"
        matches = set((root / name).rglob("*.py")) if (root / name).is_dir() else set(root.glob(name))
        if only and not matches:
            raise BrokenTests(f"There is no {pattern} in {LIBRARY}.")
        paths |= matches
    return sorted(str(path.relative_to(root)) for path in paths if path.name != "__init__.py")


def tests_of(target: str) -> t.List[t.List[str]]:
    """The tests of a file, in groups: of its name, other unit tests that import it, tests with servers that do."""
    module = target[: -len(".py")].replace("/", ".")
    name = module.rpartition(".")[2]
    groups: t.List[t.List[str]] = [[], [], []]
    explicit = TESTS.get(target, ())
    for path in sorted((REPOSITORY / "tests").glob("*/**/test_*.py")):
        relative = str(path.relative_to(REPOSITORY))
        unit = relative.startswith("tests/unit/")
        imported = not (unit and explicit) and name in path.read_text(encoding="utf-8") and module in _imports(path)
        if not (imported or relative in explicit):
            continue
        groups[0 if unit and re.match(f"test_{name}(_|$)", path.stem) else 1 if unit else 2].append(relative)
    return [group for group in groups if group]


@functools.cache
def _imports(path: Path) -> t.Set[str]:
    """The modules of the library that a file imports by name, without the library's own name."""
    names: t.Set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    prefixes = ("wheels_ops.", "ansible_collections.wheels.ops.plugins.module_utils.")
    return {name[len(prefix) :] for name in names for prefix in prefixes if name.startswith(prefix)}


class Group(t.NamedTuple):
    """Test files that are run together, and how long they take."""

    tests: t.List[str]
    seconds: float


class Tree:
    """One copy of the repository with a process that runs tests in it. Close it: it is a directory and a process."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mutants-")
        # Short names: sockets of tests stand below this directory, and theirs may have 107 characters.
        self.root = Path(self._directory.name) / "r"
        self._process: t.Optional[subprocess.Popen[str]] = None
        try:
            shutil.copytree(REPOSITORY, self.root, symlinks=True, ignore=_NOT_COPIED)
            for name in (".venv", ".venv-backend", ".cache"):
                if (REPOSITORY / name).exists():
                    (self.root / name).symlink_to(REPOSITORY / name)
            environment = {**os.environ, "PYTHONPATH": "", "TMPDIR": self._directory.name}
            words = [sys.executable, "-m", "tests.mutants.warm"]
            self._process = subprocess.Popen(
                words,
                cwd=self.root,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._directory.cleanup()

    def run(self, tests: t.Sequence[str], seconds: float) -> t.Tuple[t.Optional[int], float]:
        """pytest's exit status (None: not ended in time) and how long it took."""
        process = t.cast("subprocess.Popen[str]", self._process)
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"tests": list(tests), "seconds": seconds}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise BrokenTests("The process that runs the tests has ended.")
        answer = json.loads(line)
        return answer["code"], answer["seconds"]

    def output(self) -> str:
        """What the last run wrote."""
        return (self.root / "output.txt").read_text(errors="replace")

    def baseline(self, target: str, groups: t.Sequence[t.Sequence[str]]) -> t.List[Group]:
        """The groups with their seconds, without a mutant. Leaves out files that fail, which notice nothing.

        Raises ``BrokenTests`` where none is left.
        """
        usable: t.List[Group] = []
        failures: t.List[str] = []
        for group in groups:
            code, seconds = self.run(group, 600)
            files = list(group)
            if code not in (0, 5):
                failures.append(self.output()[-2000:])
                files = [path for path in group if len(group) > 1 and self.run([path], 600)[0] == 0]
            if files and code != 5:
                usable.append(Group(files, seconds))
        if not usable:
            reasons = "\n".join(failures) or "no test imports it"
            raise BrokenTests(f"The tests of {target} must pass before mutants can be tried: {reasons}")
        return usable

    def notices(
        self,
        target: str,
        source: str,
        groups: t.Sequence[Group],
    ) -> str:
        """How a mutant was noticed: ``failed``, ``endless``, or empty for a survivor."""
        path = self.root / LIBRARY / target
        original, times = path.read_text(encoding="utf-8"), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_text(source, encoding="utf-8")
        _forget_bytecode(path)
        try:
            for group in groups:
                code, _ = self.run(group.tests, 20 + 5 * group.seconds)
                if code is None:
                    return "endless"
                if code not in (0, 5):
                    return "failed"
        finally:
            path.write_text(original, encoding="utf-8")
            os.utime(path, ns=times)
            _forget_bytecode(path)
        return ""


def _forget_bytecode(path: Path) -> None:
    """A mutant may be as long as the one before it and be written in the same second: Python would see no change."""
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
