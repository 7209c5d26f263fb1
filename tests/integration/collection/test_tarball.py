# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a stranger gets it: built, installed into an empty directory, looked at from there."""

from __future__ import annotations

import json
import os
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.sandbox.binaries import REPOSITORY
from tests.support.collection import BIN, COLLECTION, run


def test_nothing_is_lost_on_the_way(installed: Path) -> None:
    def files(root: Path) -> t.Set[str]:
        return {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    ours = {name for name in files(COLLECTION) if name not in ("galaxy.yml",) and not name.startswith("tests/output")}
    theirs = files(installed / "ansible_collections/wheels/ops") - {"MANIFEST.json", "FILES.json"}
    assert ours == theirs


def test_the_collection_holds_no_directory_link() -> None:
    assert [str(path) for path in COLLECTION.rglob("*") if path.is_symlink() and path.is_dir()] == []


def test_the_top_level_names_lead_into_the_collection() -> None:
    for name in (
        "backend_patches",
        "sql",
        "src/wheels_ops",
        "production_health_monitor.py",
        "scripts/automated_recovery.py",
    ):
        path = REPOSITORY / name
        assert path.is_symlink()
        assert COLLECTION in path.resolve().parents
        assert not os.path.isabs(os.readlink(path))


@pytest.mark.parametrize("playbook", sorted(path.stem for path in (REPOSITORY / "playbooks").glob("*.yml")))
def test_every_playbook_can_be_read_from_the_installed_collection(
    installed: Path, tmp_path: Path, playbook: str
) -> None:
    done = run(
        str(BIN / "ansible-playbook"),
        "--syntax-check",
        "-i",
        "localhost,",
        f"wheels.ops.{playbook}",
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(installed),
        ANSIBLE_CONFIG=str(installed.parent / "ansible.cfg"),
        ANSIBLE_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr


def test_deploy_runs_from_the_installed_collection(installed: Path, tmp_path: Path) -> None:
    """As far as its first look at a host that has no backend."""
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        "here,",
        "-c",
        "local",
        "wheels.ops.deploy",
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(installed),
        ANSIBLE_CONFIG=str(installed.parent / "ansible.cfg"),
        ANSIBLE_HOME=str(tmp_path / "home"),
    )
    assert "No host matches backend" in done.stdout + done.stderr
    extra = json.dumps(
        {
            "wheels_ops_hosts": "all",
            "wheels_ops_backend_dir": "/nowhere",
            "wheels_ops_venv": sys.prefix,
            "ansible_python_interpreter": sys.executable,
        }
    )
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        "here,",
        "-c",
        "local",
        "wheels.ops.deploy",
        "-e",
        extra,
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(installed),
        ANSIBLE_CONFIG=str(installed.parent / "ansible.cfg"),
        ANSIBLE_HOME=str(tmp_path / "home"),
    )
    assert "There is no app/main.py in /nowhere" in done.stdout + done.stderr


def awx_finds(root: Path) -> t.Set[str]:
    """The files that AWX offers as job templates, by its rules: links to directories are not followed."""
    found = set()
    for directory, names, files in os.walk(root, followlinks=False):
        names[:] = [
            name
            for name in names
            if not name.startswith(".") and name not in ("roles", "tasks", "group_vars", "host_vars")
        ]
        for name in files:
            path = Path(directory, name)
            if path.suffix in (".yml", ".yaml") and any(
                line.lstrip(" -").startswith(("hosts:", "import_playbook:", "ansible.builtin.import_playbook:"))
                for line in path.read_text(errors="replace").splitlines()
            ):
                found.add(str(path.relative_to(root)))
    return found


def test_awx_finds_the_playbooks() -> None:
    wanted = {f"playbooks/{name}.yml" for name in ("deploy", "recover", "verify", "rollback", "health")}
    assert wanted <= awx_finds(REPOSITORY)


@pytest.mark.parametrize("role", sorted(path.name for path in (COLLECTION / "roles").iterdir()))
def test_every_default_is_documented_and_every_option_has_its_prefix(role: str) -> None:
    directory = COLLECTION / "roles" / role
    path = directory / "defaults/main.yml"
    defaults = set(yaml.safe_load(path.read_text()) or {}) if path.exists() else set()
    specs = yaml.safe_load((directory / "meta/argument_specs.yml").read_text())["argument_specs"]
    documented = set().union(*(entry.get("options", {}) for entry in specs.values()))
    assert defaults - documented == set()
    assert {name for name in documented | defaults if not name.startswith(f"{role}_")} == set()


def test_every_directory_of_patched_files_is_installed() -> None:
    files = COLLECTION / "roles/backend_patches/files"
    listed = yaml.safe_load((COLLECTION / "roles/backend_patches/defaults/main.yml").read_text())[
        "backend_patches_directories"
    ]
    holding = {
        str(path.parent.relative_to(files))
        for path in files.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.parent.parts)
    }
    assert holding <= set(listed)


def test_the_lock_that_hosts_get_is_the_repositorys() -> None:
    assert (COLLECTION / "roles/prerequisites/files/requirements.txt").read_text() == (
        REPOSITORY / "requirements/target.txt"
    ).read_text()


def test_the_action_group_holds_every_module() -> None:
    modules = {path.stem for path in (COLLECTION / "plugins/modules").glob("*.py")}
    group = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]["ops"]
    assert set(group) == modules
    assert list(group) == sorted(group)
