# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make build`` and ``make release`` publish: only what git tracks, bit for bit the same, and Galaxy takes it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import typing as t
import zipfile
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.collection import BIN, run

COLLECTION = "collections/wheels/ops"
ADDRESS = "https://forge.invalid/team/ops"
TOOLS = REPOSITORY / ".venv-release"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def git(place: Path, *words: str) -> str:
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        who.update({f"GIT_{role}_NAME": "x", f"GIT_{role}_EMAIL": "x@x.invalid"})
    return run("git", *words, cwd=place, **who).stdout


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit: everything of this tree that is not ignored."""
    names = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]
    if not names:
        pytest.skip("this tree is no git repository")
    place = tmp_path_factory.mktemp("origin") / "repository"
    place.mkdir()
    there = "\0".join(name for name in names if os.path.lexists(REPOSITORY / name))
    copy = f'tar -C "{REPOSITORY}" --null --no-recursion -T - -cf - | tar -C "{place}" -xf -'
    subprocess.run(["sh", "-c", copy], input=there, text=True, check=True)
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "release")
    return place


def clone(origin: Path, place: Path, umask: str) -> Path:
    subprocess.run(["sh", "-c", f'umask {umask} && git clone -q "{origin}" "{place}"'], check=True)
    (place / ".venv-release").symlink_to(TOOLS)
    return place


def release(place: Path, umask: str, *words: str) -> Path:
    program = f'umask {umask} && exec "$@"'
    command = [sys.executable, "-m", "tests.release", "--output", str(place / "build"), *words]
    done = run("sh", "-c", program, "sh", *command, cwd=place, PYTHONPATH=str(place), SOURCE_DATE_EPOCH="")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "build"


@pytest.fixture(scope="module")
def first(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = clone(origin, tmp_path_factory.mktemp("first") / "clone", "022")
    return release(place, "022", "--release", "--repository", ADDRESS, "--issues", f"{ADDRESS}/issues")


def test_release_is_the_same_bit_for_bit(origin: Path, first: Path, tmp_path: Path) -> None:
    """Another clone, another umask, other times of every file."""
    place = clone(origin, tmp_path / "somewhere-else", "077")
    for path in place.rglob("*"):
        if path.is_file() and ".git" not in path.parts and TOOLS not in path.resolve().parents:
            os.utime(path, (10**9, 10**9))
    second = release(place, "077", "--release", "--repository", ADDRESS, "--issues", f"{ADDRESS}/issues")

    def sums(build: Path) -> t.Dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in build.iterdir()}

    assert sums(first) == sums(second)
    assert len(sums(first)) == 5
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=first, check=False).returncode == 0


def test_release_names_its_addresses_libraries_and_changes(first: Path) -> None:
    (tarball,) = first.glob("*.tar.gz")
    with tarfile.open(tarball) as tar:
        manifest = json.load(tar.extractfile("MANIFEST.json") or pytest.fail("no manifest"))
    assert manifest["collection_info"]["repository"] == ADDRESS
    assert manifest["collection_info"]["issues"] == f"{ADDRESS}/issues"
    (wheel,) = first.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert f"Project-URL: Repository, {ADDRESS}" in archive.read(name).decode()
    (sbom,) = first.glob("*.cdx.json")
    components = {entry["name"]: entry.get("version") for entry in json.loads(sbom.read_text())["components"]}
    locked = [line.split()[0] for line in (REPOSITORY / "requirements/target.txt").read_text().splitlines()]
    assert {name.split("==")[0] for name in locked if "==" in name} == set(components)
    (changelog,) = first.glob("*-CHANGELOG.md")
    version = manifest["collection_info"]["version"]
    assert f"v{version}" in changelog.read_text().replace("\\", "")


def test_release_demands_an_address_and_a_commit(origin: Path, tmp_path: Path) -> None:
    place = clone(origin, tmp_path / "clone", "022")
    command = (sys.executable, "-m", "tests.release", "--release", "--output", str(tmp_path / "build"))
    done = run(*command, cwd=place, PYTHONPATH=str(place))
    assert done.returncode == 1 and "make release REPOSITORY=https://" in done.stderr
    (place / "README.md").write_text("changed")
    done = run(*command, "--repository", ADDRESS, cwd=place, PYTHONPATH=str(place))
    assert done.returncode == 1 and "Commit or discard first:\nM README.md" in done.stderr
    assert not (tmp_path / "build").exists()


def test_galaxy_imports_the_release(first: Path, tmp_path: Path) -> None:
    """The importer that Galaxy runs, without a container and without network."""
    (tarball,) = first.glob("*.tar.gz")
    (tmp_path / "ansible.cfg").touch()
    done = run(
        str(TOOLS / "bin/python"),
        "-m",
        "galaxy_importer.main",
        str(tarball),
        cwd=tmp_path,
        PATH=f"{TOOLS}/bin:{os.environ['PATH']}",
        HOME=str(tmp_path),
        ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"),
        ANSIBLE_HOME=str(tmp_path / "home"),
        GALAXY_IMPORTER_CHECK_REQUIRED_TAGS="1",
        GALAXY_IMPORTER_RUN_ANSIBLE_TEST="0",
        # make lint runs it, with its newest version.
        GALAXY_IMPORTER_RUN_ANSIBLE_LINT="0",
        GALAXY_IMPORTER_TMP_ROOT_DIR=str(tmp_path),
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "Importer processing completed successfully" in said
    assert [line for line in said.splitlines() if line.startswith("ERROR")] == []


@pytest.mark.parametrize("way", ["tarball", "git"])
def test_collection_installs_without_network(origin: Path, first: Path, tmp_path: Path, way: str) -> None:
    source = {"tarball": str(next(first.glob("*.tar.gz"))), "git": f"git+file://{origin}#/{COLLECTION}"}[way]
    (tmp_path / "ansible.cfg").touch()
    variables = {"ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}
    nowhere = {"https_proxy": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    words = ["collection", "install", source, "-p", str(tmp_path / "collections"), "--offline"]
    done = run(str(BIN / "ansible-galaxy"), *words, cwd=tmp_path, **variables, **nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = tmp_path / "collections/ansible_collections/wheels/ops"
    names = git(origin, "ls-files", COLLECTION).split()
    expected = {name[len(COLLECTION) + 1 :] for name in names if not name.endswith("galaxy.yml")}
    assert {name for name in expected if "/fragments/" not in name} <= set(files(installed))


def files(place: Path) -> t.List[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_wheel_installs_without_network(first: Path, tmp_path: Path) -> None:
    (wheel,) = first.glob("*.whl")
    done = run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        "lib",
        str(wheel),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-m", "wheels_ops.command_line", "--version", cwd=tmp_path, PYTHONPATH="lib")
    assert done.stdout.startswith("wheels-ops "), done.stderr


#: What lies about after a day of work: reports of a real host, environments, caches, inventories, secrets.
DIRT = (
    ".cache/x",
    ".env",
    ".mypy_cache/3.11/x.json",
    ".venv/pyvenv.cfg",
    "build/wheels-ops-1.0.0.tar.gz",
    "group_vars/all/vault.yml",
    "hosts.yml",
    "inventories/production/hosts.yml",
    "playbooks/reports/db1.internal/health.json",
    "playbooks/.ansible/x",
    "plugins/modules/__pycache__/health_info.cpython-311.pyc",
    "reports/db1.internal/report.html",
    "roles/monitoring/files/reports/x.json",
    "vault_password",
)
#: What no pattern can know; only git does.
ODD = ("playbooks/db1.yml", "plugins/notes.txt", "my-notes.md")


def test_build_from_a_dirty_tree_holds_only_what_git_tracks(origin: Path, tmp_path: Path) -> None:
    place = clone(origin, tmp_path / "clone", "022")
    tracked = {name[len(COLLECTION) + 1 :] for name in git(place, "ls-files", COLLECTION).split()} - {"galaxy.yml"}

    def dirty(names: t.Sequence[str]) -> None:
        for name in names:
            path = place / COLLECTION / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("db1.internal")

    def content(tarball: Path) -> t.Set[str]:
        with tarfile.open(tarball) as tar:
            return {member.name for member in tar.getmembers() if not member.isdir()} - {"MANIFEST.json", "FILES.json"}

    dirty(DIRT)
    (tmp_path / "ansible.cfg").touch()
    done = run(
        str(BIN / "ansible-galaxy"),
        *("collection", "build", str(place / COLLECTION), "--output-path", str(tmp_path)),
        cwd=tmp_path,
        ANSIBLE_HOME=str(tmp_path / "home"),
        ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"),
    )
    assert done.returncode == 0, done.stderr
    assert content(next(tmp_path.glob("*.tar.gz"))) == tracked
    dirty(ODD)
    assert content(next(release(place, "022").glob("*.tar.gz"))) == tracked
