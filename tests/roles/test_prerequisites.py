# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual environment on a host that has no pip and reaches no package index; a system that is none of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.container_host import ContainerHost, Unavailable, container_host

pytestmark = [pytest.mark.root, pytest.mark.slow]
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: wheels.ops.prerequisites, tasks_from: venv.yml}
"""
#: Nothing answers there: what is installed comes from the wheels.
NO_INDEX = "http://127.0.0.1:9/simple"


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as host:
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


@pytest.fixture(scope="module")
def wheels(host: ContainerHost) -> t.Iterator[Path]:
    """The wheels for that host, where it can read them."""
    version = host.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
    machine = host.run("uname", "-m").stdout.strip()
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=cache))
    try:
        program = [sys.executable, str(REPOSITORY / "requirements/wheelhouse"), str(place), machine, version]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no package index here: {done.stderr[-200:]}")
        yield place
    finally:
        shutil.rmtree(place)


def refused(host: ContainerHost, *words: str) -> str:
    with pytest.raises(AssertionError) as caught:
        host.playbook(PLAY, *words)
    return re.sub(r"\s+", " ", str(caught.value))


def test_system_that_is_none_of_ours_is_refused(host: ContainerHost) -> None:
    said = refused(host, "-e", '{"prerequisites_systems": ["debian 99"]}')
    assert re.search(r"localhost is debian \d+ with Python 3\.\d+; the virtual environment is made on debian 99", said)
    assert host.run("test", "-e", "/opt/wheels-ops", check=False).returncode


def test_wheels_of_another_host_are_refused(host: ContainerHost) -> None:
    said = refused(host, "-e", "wheels_ops_wheelhouse=/nowhere")
    assert re.search(r"There is no /nowhere/3\.\d+-\w+ with the wheels .* make wheelhouse PYTHONS=3\.\d+", said)


def test_environment_from_wheels_alone(host: ContainerHost, wheels: Path) -> None:
    assert host.run("python3", "-m", "pip", "--version", check=False).returncode, "the host has no pip of its own"
    host.write("/etc/pip.conf", f"[global]\nindex-url = {NO_INDEX}\n")
    said = host.playbook(PLAY, "-e", f"wheels_ops_wheelhouse={wheels}")
    assert "failed=0" in said
    modules = "import pglast, psycopg2, redis, requests, websocket"
    host.run("/opt/wheels-ops/venv/bin/python", "-c", modules)
    assert host.run("test", "-e", "/opt/wheels-ops/wheels", check=False).returncode
    again = host.playbook(PLAY)
    assert re.search(r"changed=0 ", again), again
