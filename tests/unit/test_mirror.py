# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file has the test file of its name, in the room of its own, so that it is found without a search."""

from __future__ import annotations

import ast
import re
import typing as t
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
COLLECTION = TESTS.parent / "collections/wheels/ops"
LIBRARY, MODULES = COLLECTION / "plugins/module_utils", COLLECTION / "plugins/modules"
APP = COLLECTION / "roles/backend_patches/files/app"

#: What has no test file of its name yet. A name leaves a list when its test is there; none is added.
LIBRARY_WITHOUT: t.FrozenSet[str] = frozenset(
    {
        "checks/dead_peer.py",
        "core/secret_words.py",
        "database/schema_snapshot.py",
        "host/child.py",
        "host/extents.py",
        "host/open_files.py",
        "host/run_as.py",
        "host/subprocesses.py",
        "remedies/disk/sources.py",
        "remedies/logs/archive.py",
        "remedies/logs/logrotate.py",
        "remedies/memory/notes.py",
        "rls/audit/audits.py",
        "rls/audit/baseline.py",
        "rls/audit/lints.py",
        "rls/audit/oracle.py",
        "rls/audit/scratch.py",
        "rls/model/column_details.py",
        "rls/model/transactions.py",
        "rls/module_api.py",
        "rls/repair/compare.py",
        "rls/repair/migration_source.py",
        "rls/repair/plans.py",
        "services/celery_workers.py",
        "services/service_processes.py",
        "standalone/monitor.py",
    }
)
MODULES_WITHOUT: t.FrozenSet[str] = frozenset(
    {
        "cors_info",
        "deployment",
        "health_report",
        "host_library",
        "managed_files",
        "performance_report_info",
        "rls_info",
        "rls_repair",
        "websocket_info",
    }
)
APP_WITHOUT: t.FrozenSet[str] = frozenset(
    {
        "wheels_ops/scores.py",
        "wheels_ops/wiring.py",
    }
)
#: What tests no single file of the library, or all of them.
OF_NO_FILE = frozenset({"test_imports.py", "test_mirror.py", "test_new_check.py"})


def sources(root: Path) -> t.List[str]:
    """The Python files below a directory that hold something, relative to it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.py") if path.name != "__init__.py")


def name_of_test(source: str) -> str:
    """``checks/disk.py`` -> ``checks/test_disk.py``; Python's underscore in front of a name is left out."""
    path = Path(source)
    return str(path.with_name(f"test_{path.stem.lstrip('_')}.py"))


def modules_of(source: str) -> t.List[str]:
    """The Ansible modules that run a file of the library: its tests with servers are theirs."""
    wanted = source[: -len(".py")].replace("/", ".")
    names = []
    for path in MODULES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                if any(name.endswith(f"module_utils.{wanted}") for name in imported):
                    names.append(path.stem)
    return names


def library_tests(source: str) -> t.List[Path]:
    """Where the test file of a file of the library may lie."""
    places = [TESTS / room / name_of_test(source) for room in ("unit", "integration")]
    if source.startswith("remedies/"):
        places += [TESTS / "modules" / f"test_{name}.py" for name in modules_of(source)]
    return places


def test_library_files_have_their_test() -> None:
    without = {source for source in sources(LIBRARY) if not any(place.exists() for place in library_tests(source))}
    assert without == LIBRARY_WITHOUT


def test_modules_have_their_test() -> None:
    without = {path.stem for path in MODULES.glob("*.py") if not (TESTS / "modules" / f"test_{path.name}").exists()}
    assert without == MODULES_WITHOUT


def test_files_of_the_backend_have_their_test() -> None:
    without = {source for source in sources(APP) if not (TESTS / "app" / name_of_test(source)).exists()}
    assert without == APP_WITHOUT


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted((TESTS / "unit").rglob("test_*.py"))
        if (LIBRARY / path.parent.relative_to(TESTS / "unit")).is_dir()
    ],
    ids=lambda path: path.name,
)
def test_unit_tests_name_a_file_of_their_room(path: Path) -> None:
    """``test_FILE.py`` or ``test_FILE_ASPECT.py``: whoever reads the test knows what it tests."""
    room = path.parent.relative_to(TESTS / "unit")
    names = {Path(source).stem.lstrip("_") for source in sources(LIBRARY) if Path(source).parent == room}
    assert path.name in OF_NO_FILE or any(re.match(rf"test_{name}(_|\.)", path.name) for name in names)
