# SPDX-License-Identifier: GPL-3.0-or-later
"""How deploy, rollback and recover go from host to host: which are reached when one fails.

What is done on a host is replaced, the playbooks are as installed.
"""

from __future__ import annotations

import json
import re
import shutil
import typing as t
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
#: What a rollback needs around that: no lock, no preflight, and a verdict.
AROUND = {
    "playbooks/tasks/lock.yml": "- ansible.builtin.set_fact: {lock_environment: {}, lock_holder: me}\n",
    "playbooks/tasks/unlock.yml": "- ansible.builtin.meta: noop\n",
    "playbooks/tasks/rollback_host.yml": HOST
    + "- ansible.builtin.set_fact: {rollback_verdict: {healthy: true, message: ''}, rollback_files: {msg: ''}}\n",
    "roles/prerequisites/tasks/main.yml": "- ansible.builtin.meta: noop\n",
}


@pytest.fixture(scope="module")
def collections(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rolling")
    shutil.copytree(installed, place / "collections", symlinks=True)
    collection = place / "collections/ansible_collections/wheels/ops"
    for name in ("deploy_host", "recover_host"):
        (collection / f"playbooks/tasks/{name}.yml").write_text(HOST)
    for path, text in AROUND.items():
        (collection / path).write_text(text)
    (place / "ansible.cfg").touch()
    return place / "collections"


def play(collections: Path, name: str, inventory: str, **variables: object) -> t.Tuple[int, str]:
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        inventory,
        f"wheels.ops.{name}",
        "-e",
        json.dumps({"wheels_ops_hosts": "all", **variables}),
        cwd=collections.parent,
        ANSIBLE_COLLECTIONS_PATH=str(collections),
        ANSIBLE_CONFIG=str(collections.parent / "ansible.cfg"),
        ANSIBLE_HOME=str(collections.parent / "home"),
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def four(collections: Path) -> str:
    """Four hosts; ``c`` would be reached through a port at which nothing answers where ``c`` is named in ``away``."""
    place = collections.parent / "hosts.yml"
    away = {
        "ansible_connection": "{{ 'ssh' if 'c' in away | default('') else 'local' }}",
        "ansible_host": "127.0.0.1",
        "ansible_port": 1,
    }
    hosts = {name: {"ansible_connection": "local"} for name in "abd"}
    place.write_text(json.dumps({"all": {"hosts": {**hosts, "c": away}}}))
    return str(place)


@pytest.mark.parametrize(
    ("playbook", "serial", "bad", "finished", "untouched"),
    [
        ("deploy", 2, "", "abcd", ""),
        ("deploy", 1, "b", "a", ""),
        ("deploy", 2, "b", "a", "cd"),
        ("deploy", [1, 3], "c", "abd", ""),
        ("rollback", 2, "b", "a", "cd"),
    ],
)
def test_no_batch_is_begun_after_a_failure(
    collections: Path, four: str, playbook: str, serial: object, bad: str, finished: str, untouched: str
) -> None:
    status, out = play(collections, playbook, four, wheels_ops_serial=serial, bad=bad or "nobody")
    assert (status == 0) == (not bad), out
    assert "".join(sorted(re.findall(r"finished ([a-d])", out))) == finished, out
    assert "".join(sorted(set(re.findall(r"failed, so ([a-d]) was not touched", out)))) == untouched, out


@pytest.mark.parametrize(
    ("serial", "bad", "away", "finished"), [(1, "", "", "abcd"), (1, "a", "c", "bd"), (2, "a,b", "", "cd")]
)
def test_a_host_that_cannot_be_recovered_keeps_no_other_from_it(
    collections: Path, four: str, serial: object, bad: str, away: str, finished: str
) -> None:
    status, out = play(collections, "recover", four, wheels_ops_serial=serial, bad=bad or "nobody", away=away)
    assert (status == 0) == (not bad), out
    assert "".join(sorted(re.findall(r"finished ([a-d])", out))) == finished, out
    # The end names every one of them.
    for host in {*bad.split(","), *away} - {""}:
        assert re.search(rf"^{host} .*failed=1", out, re.MULTILINE), out
    # Its heading is there once; the errors of its hosts come in any order, and each shows the task's name again.
    assert "Connection refused" in out.partition("TASK [Require that every host was reached")[2] or not away, out
