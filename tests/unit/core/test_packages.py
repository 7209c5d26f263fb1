# SPDX-License-Identifier: GPL-3.0-or-later
"""A missing library is named as pip knows it, and nothing is demanded that nothing imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from wheels_ops.core.packages import PACKAGES, package_of
from wheels_ops.health import check

REPOSITORY = Path(__file__).parents[3]
COLLECTION = REPOSITORY / "collections/wheels/ops"
#: Comes with Ansible and is never imported on a host without it.
OF_ANSIBLE = frozenset({"ansible", "ansible_collections", "yaml", "jinja2"})
#: shtab: only for the completion of a shell. urllib3 comes with requests.
OPTIONAL = frozenset({"shtab", "urllib3"})


def imported() -> t.Set[str]:
    """What the library and the modules import that is neither Python's nor theirs."""
    names: t.Set[str] = set()
    for directory in ("module_utils", "modules"):
        for path in (COLLECTION / "plugins" / directory).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"__future__", "wheels_ops"}


def test_what_is_imported_is_what_is_named() -> None:
    assert imported() - OF_ANSIBLE - OPTIONAL == set(PACKAGES)


def test_packages_are_those_that_bring_the_modules() -> None:
    brought = importlib.metadata.packages_distributions()
    assert {module: package for module, package in PACKAGES.items() if package not in brought[module]} == {}


@pytest.mark.parametrize(
    "names",
    [
        yaml.safe_load((COLLECTION / "roles/prerequisites/defaults/main.yml").read_text())["prerequisites_modules"],
        [
            re.split("[<>=]", line)[0]
            for line in (COLLECTION / "meta/ee-requirements.txt").read_text().splitlines()
            if not line.startswith("#")
        ],
    ],
    ids=["role", "execution environment"],
)
def test_nothing_is_demanded_that_nothing_imports(names: t.List[str]) -> None:
    assert set(names) - set(PACKAGES) - set(PACKAGES.values()) == set()


@pytest.mark.parametrize(
    "name, package",
    [("websocket", "websocket-client"), ("psycopg2.extensions", "psycopg2-binary"), ("redis.client", "redis")],
)
def test_missing_library_has_the_name_that_pip_knows(name: str, package: str) -> None:
    assert package_of(ModuleNotFoundError(f"No module named '{name}'", name=name)) == package


def test_check_names_the_package() -> None:
    def probe(*arguments: t.Any) -> t.Any:
        raise ModuleNotFoundError("No module named 'websocket'", name="websocket")

    assert "The library websocket-client is not installed" in check._timed("websocket", probe).message
