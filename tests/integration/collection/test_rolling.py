# SPDX-License-Identifier: GPL-3.0-or-later
"""How deploy goes from host to host: which are reached when one fails. What is done on a host is replaced, the playbook is as installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.collection import BIN, run

HOST = """
- name: Fail here
  ansible.builtin.fail:
    msg: bad
  when: inventory_hostname in bad.split(',')
- name: Finish
  ansible.builtin.debug:
    msg: "finished {{ inventory_hostname }}"
"""


@pytest.fixture(scope="module")
def collections(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rolling")
    shutil.copytree(installed, place / "collections", symlinks=True)
    (place / "collections/ansible_collections/wheels/ops/playbooks/tasks/deploy_host.yml").write_text(HOST)
    (place / "ansible.cfg").touch()
    return place / "collections"


@pytest.mark.parametrize(
    ("serial", "bad", "finished", "untouched"),
    [
        ("2", "", "abcd", ""),
        ("1", "b", "a", ""),
        ("2", "b", "a", "cd"),
        ("[1, 3]", "c", "abd", ""),
    ],
)
def test_no_batch_is_begun_after_a_failure(collections: Path, serial: str, bad: str, finished: str, untouched: str) -> None:
    done = run(
        str(BIN / "ansible-playbook"), "-i", "a,b,c,d,", "-c", "local", "wheels.ops.deploy", "-e", f'{{"wheels_ops_serial": {serial}}}',
        "-e", f"bad={bad or 'nobody'} wheels_ops_hosts=all", cwd=collections.parent,
        ANSIBLE_COLLECTIONS_PATH=str(collections), ANSIBLE_CONFIG=str(collections.parent / "ansible.cfg"), ANSIBLE_HOME=str(collections.parent / "home"),
    )  # fmt: skip
    assert (done.returncode == 0) == (not bad), done.stdout
    assert "".join(sorted(re.findall(r"finished ([a-d])", done.stdout))) == finished, done.stdout
    assert "".join(sorted(set(re.findall(r"failed, so ([a-d]) was not touched", done.stdout)))) == untouched, done.stdout
