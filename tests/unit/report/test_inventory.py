# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory that a discovery writes beside what a person keeps; Ansible itself is the reader."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError, Result
from wheels_ops.report import inventory

VARIABLES: t.List[t.Dict[str, t.Any]] = [
    {"name": "wheels_ops_base_url", "value": "http://127.0.0.1:9000", "evidence": "where web listens"},
    {"name": "wheels_ops_redis_url", "value": "file:///etc/web.env#REDIS_URL", "evidence": "what web reads"},
    {
        "name": "wheels_ops_services",
        "value": [{"name": "web", "gate": {"type": "http", "url": "{{ wheels_ops_base_url }}/health"}}],
        "evidence": "recognised",
    },
]
MISSING = [{"what": "the origins", "variable": "wheels_ops_cors_origins", "advice": "List them."}]


def write(place: Path, variables: t.Sequence[t.Mapping[str, t.Any]] = VARIABLES, **options: t.Any) -> Result:
    options = {"missing": MISSING, "connection": {"ansible_user": "deploy"}, **options}
    return inventory.write(str(place), "pam-1", variables=variables, want_diff=True, **options)


def read(place: Path) -> t.Dict[str, t.Any]:
    """The variables of the host as Ansible has them."""
    program = str(Path(sys.executable).with_name("ansible-inventory"))
    done = subprocess.run([program, "-i", str(place), "--host", "pam-1"], capture_output=True, text=True, check=True)
    return t.cast("t.Dict[str, t.Any]", json.loads(done.stdout))


def test_ansible_reads_it_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "inventories/production"
    predicted = write(place, check_mode=True)
    assert not place.exists()
    done = write(place)
    assert done.changed
    assert (predicted.actions, predicted.diff) == (done.actions, done.diff)
    variables = read(place)
    assert variables["ansible_user"] == "deploy"
    assert variables["wheels_ops_redis_url"] == "file:///etc/web.env#REDIS_URL"
    assert variables["wheels_ops_services"][0]["gate"]["url"] == "{{ wheels_ops_base_url }}/health"
    again = write(place)
    assert not again.changed
    assert again.diff == []
    assert done.extra["missing"] == ["Not found: the origins. List them."]


def test_what_a_person_set_stays_in_force(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "group_vars/backend").mkdir(parents=True)
    (tmp_path / "group_vars/backend/main.yml").write_text(
        "wheels_ops_base_url: https://pam.example\nwheels_ops_cors_origins: [https://a.example]\n"
        "secret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3030\n"
    )
    done = write(tmp_path)
    assert done.changed
    assert done.extra["kept"] == ["wheels_ops_base_url is set in group_vars/backend/main.yml, which stays in force."]
    assert done.extra["missing"] == []
    variables = (tmp_path / "host_vars/pam-1" / inventory.NAME).read_text()
    assert "127.0.0.1:9000" not in variables
    assert not write(tmp_path).changed


def test_file_that_somebody_edited_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "host_vars/pam-1" / inventory.NAME
    edited = path.read_text() + "mine: 1\n"
    path.write_text(edited)
    with pytest.raises(OpsError, match="was edited by hand") as caught:
        write(tmp_path)
    assert "main.yml" in caught.value.hint
    assert path.read_text() == edited


def test_host_of_another_file_is_not_written_again(tmp_path: Path) -> None:
    hosts = "all:\n  children:\n    backend:\n      hosts:\n        pam-1:\n          ansible_host: 10.0.0.1\n"
    (tmp_path / "hosts.yml").write_text(hosts)
    write(tmp_path)
    assert not (tmp_path / "pam-1.yml").exists()
    assert (tmp_path / "hosts.yml").read_text() == hosts
    assert read(tmp_path)["ansible_host"] == "10.0.0.1"


def test_host_file_that_somebody_edited_is_theirs(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "pam-1.yml"
    path.write_text(path.read_text().replace("deploy", "admin"))
    assert not write(tmp_path).changed
    assert read(tmp_path)["ansible_user"] == "admin"


def test_what_was_found_before_stays_while_something_is_down(tmp_path: Path) -> None:
    write(tmp_path)
    done = write(tmp_path, VARIABLES[1:], complete=False)
    assert read(tmp_path)["wheels_ops_base_url"] == "http://127.0.0.1:9000"
    assert "not found this time" in done.diff[0]["after"]
    write(tmp_path, VARIABLES[1:])
    assert "wheels_ops_base_url" not in read(tmp_path)


@pytest.mark.parametrize("name", ["../x", "-x", "a/b", ""])
def test_name_that_is_no_host_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError):
        inventory.write(str(tmp_path / "inventory"), name, connection={}, variables=[])
    assert not (tmp_path / "inventory").exists()


def test_inventory_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("a: [1\n")
    with pytest.raises(OpsError, match=r"group_vars/all.yml is no YAML, line 2"):
        write(tmp_path)
    assert not (tmp_path / "host_vars").exists()


def test_commented_line_of_an_ini_inventory_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text(
        "[backend]\npam-1\n[backend:vars]\n# wheels_ops_base_url=http://old\n;wheels_ops_redis_url=redis://old\n"
    )
    assert not write(tmp_path).extra["kept"]
    assert read(tmp_path)["wheels_ops_base_url"] == "http://127.0.0.1:9000"
