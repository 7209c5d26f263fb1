# SPDX-License-Identifier: GPL-3.0-or-later
"""The builds of docs/where-it-runs.md, executed with the wheel of this tree instead of a package index; and its tables."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.backend.materialise import materialise
from tests.sandbox.binaries import REPOSITORY
from tests.support.container_host import BUILD
from tests.support.wheel import build
from wheels_ops import command_line
from wheels_ops.health.subjects import REGISTRY
from wheels_ops.remedies import build_patch
from wheels_ops.services import arguments
from wheels_ops.services.model import parse_services
from wheels_ops.standalone import health_cli

PAGE = (REPOSITORY / "docs/where-it-runs.md").read_text(encoding="utf-8")
#: Bytes that the wheel may have: it is downloaded for every build.
LARGEST = 1_200_000


def block(kind: str, number: int = 0) -> str:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def patched(root: Path) -> t.Dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in build_patch.patched_files() if (root / name).is_file()}


def test_build_command_installs_the_patched_files(wheel: Path, tmp_path: Path) -> None:
    """In a checkout, with an empty virtual environment first on the path, as at Render."""
    assert wheel.stat().st_size < LARGEST
    materialise("incident", tmp_path / "backend")
    (tmp_path / "backend/requirements.txt").write_text("")
    python = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
    environment = {
        "PATH": f"{python}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for _time in range(2):
        completed = subprocess.run(
            ["sh", "-c", block("sh")], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        assert patched(tmp_path / "backend") == build_patch.patched_files()
    assert completed.stdout.endswith(f"Every file below {tmp_path}/backend is in place.\n")


@pytest.mark.root
def test_dockerfile_builds_an_image_with_the_patched_files(wheel: Path, tmp_path: Path) -> None:
    """As it stands on the page, but for the first line: its image comes from a registry, ours from Debian packages."""
    if os.geteuid() or not shutil.which("podman"):
        pytest.skip("needs root and podman")
    runtime = subprocess.run([str(BUILD), "--runtime"], capture_output=True, text=True, check=False)
    if runtime.returncode:
        pytest.skip(runtime.stderr.strip()[-300:])
    (base,) = subprocess.run([str(BUILD)], capture_output=True, text=True, check=True).stdout.split()
    materialise("incident", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    shutil.copy(wheel, tmp_path)
    first, _newline, rest = block("dockerfile").partition("\n")
    assert first == "FROM python:3.11-slim"
    lines = [
        f"FROM {base}",
        "RUN python3 -m venv /usr/local/python",
        "ENV PATH=/usr/local/python/bin:/usr/bin:/bin PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/backend",
    ]
    (tmp_path / "Dockerfile").write_text("\n".join(lines) + "\n" + rest)
    name = f"wops-test-build-{secrets.token_hex(4)}"
    podman = ["podman", "--runtime", runtime.stdout.strip()]
    try:
        built = subprocess.run(
            [*podman, "build", "--isolation=chroot", "--network=host", "--tag", name, "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        # Without the release's own packages its import fails with and without the new files, which is said.
        assert "this release cannot be imported" in built.stdout + built.stderr
        # Containers may not raise the limits of their parent.
        limits = ["--ulimit=nofile=10000:10000", "--ulimit=nproc=4096:4096"]
        words = ["run", "--rm", "--network=none", *limits, name]
        for command, status in (("patch check .", 0), ("patch remove .", 0)):
            completed = subprocess.run(
                [*podman, *words, "wheels-ops", *command.split()], capture_output=True, text=True, check=False
            )
            assert completed.returncode == status, completed.stdout + completed.stderr
        listing = subprocess.run(
            [*podman, *words, "sh", "-c", "sha256sum app/core/cors_config.py app/wheels_ops/wiring.py"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    finally:
        subprocess.run(["podman", "rmi", "--force", "--ignore", name], capture_output=True, check=False)
    files = build_patch.patched_files()
    expected = {
        path: subprocess.run(["sha256sum"], input=files[path], capture_output=True, check=True)
        .stdout.decode()
        .split()[0]
        for path in ("app/core/cors_config.py", "app/wheels_ops/wiring.py")
    }
    assert {line.split()[1]: line.split()[0] for line in listing} == expected


def test_health_commands_are_understood(tmp_path: Path) -> None:
    (line,) = [line for line in block("sh", 1).splitlines() if line.startswith("wheels-ops")]
    options = command_line.parser().parse_args(shlex.split(line)[1:])
    assert options.url == "https://api.example.com" and options.origin == ["https://www.example.com"]
    job = yaml.safe_load(block("yaml", 1))
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert command_line.parser().parse_args(container["command"][1:]).json


def test_services_of_compose_are_understood() -> None:
    variables = yaml.safe_load(block("yaml"))
    assert variables["wheels_ops_service_manager"] in arguments.MANAGER["service_manager"]["choices"]
    services = parse_services(variables["wheels_ops_services"])
    assert [(service.name, service.unit) for service in services] == [("redis", "redis"), ("api", "shop:api")]


def test_page_names_every_option_variable_and_subject() -> None:
    for variables in health_cli.VARIABLES.values():
        assert [name for name in variables if f"`{name}`" not in PAGE] == []
    for name in ("health", "patch install", "patch remove", "patch check"):
        words = [*name.split(), *(["DIR"] if "patch" in name else [])]
        for option in vars(command_line.parser().parse_args(words)):
            word = f"--{option.replace('_', '-')}"
            if option not in ("command", "action", "directory", "run", "lock_force", "print_completion"):
                assert word in PAGE, (name, word)
    for subject in REGISTRY:
        title = {"rls": "policies", "tts": "speech", "celery": "Celery"}.get(subject.name, subject.title)
        row = next(line for line in PAGE.splitlines() if line.startswith("| Check") and title.lower() in line.lower())
        assert ("wheels-ops health" in row) != subject.needs_host, subject.name
