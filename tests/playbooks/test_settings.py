# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables that an inventory names and that cannot be used: every playbook, and a role alone, refuse them by name and
without their value.
"""

from __future__ import annotations

import json
import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.collection import BIN, COLLECTION, REPOSITORY, run

CASE = """
wheels_ops_database_dsn: "{{ vault_wheels_ops_database_dsn }}"
wheels_ops_redis_url: "{{ vault_wheels_ops_redis_url }}"
monitoring_subjects: [database, rls, disk]
"""


def play(place: Path, playbook: str, variables: str, *words: str) -> t.Tuple[int, str]:
    """A playbook on this machine with an inventory of these variables: exit status, and everything that was said, in
    one line.
    """
    group = place / "group_vars"
    group.mkdir(exist_ok=True)
    (group / "backend.yml").write_text(variables)
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
        "wheels_ops_state_dir": str(place / "state"),
        "wheels_ops_report_dir": str(place / "reports"),
    }
    (place / "hosts.yml").write_text(json.dumps({"all": {"children": {"backend": {"hosts": {"here": host}}}}}))
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        str(place / "hosts.yml"),
        playbook,
        *words,
        cwd=place,
        ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "collections"),
        ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
        ANSIBLE_HOME=str(place / "home"),
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr).replace("''", "'")


@pytest.mark.parametrize("name", ["deploy", "recover"])
def test_a_playbook_names_a_variable_without_its_vault(tmp_path: Path, name: str) -> None:
    status, said = play(tmp_path, f"wheels.ops.{name}", CASE)
    assert status != 0
    for variable in ("wheels_ops_database_dsn", "wheels_ops_redis_url"):
        assert f"{variable} cannot be evaluated: 'vault_{variable}' is undefined." in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("path", sorted((COLLECTION / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_every_playbook_requires_usable_variables_first(path: Path) -> None:
    """Only what cannot change a host may come before it."""
    first = next(
        (play for play in yaml.safe_load(path.read_text()) if "tasks" in play and play["hosts"] != "localhost"), None
    )
    if path.stem == "require_hosts":
        assert first is None
        return
    assert first is not None
    tasks = [task for entry in first["tasks"] for task in entry.get("block") or [entry]]
    others = [task for task in tasks if not {"ansible.builtin.assert", "ansible.builtin.raw"} & set(task)]
    assert others[0]["ansible.builtin.import_tasks"] == "tasks/require_settings.yml"


def test_the_example_inventory_needs_its_vault(tmp_path: Path) -> None:
    example = (REPOSITORY / "inventories/production.example/group_vars/backend/main.yml").read_text()
    status, said = play(tmp_path, "wheels.ops.health", example)
    assert status != 0
    assert set(re.findall(r"(wheels_ops_\w+) cannot be evaluated", said)) == {
        "wheels_ops_database_dsn",
        "wheels_ops_redis_url",
    }


SECRET = "hidden-7c1f"
#: What is wrong with each, in words that do not repeat the value.
UNUSABLE = f"""
in_between: "{{{{ further_away }}}}"
further_away: "{{{{ vault_far_away }}}}"
wheels_ops_backend_user: "{{{{ in_between }}}}"
wheels_ops_services:
  - name: pam-backend
    gate: {{type: http, url: "http://x:{SECRET}@127.0.0.1/{{{{ vault_in_a_list }}}}"}}
wheels_ops_environment_extra: {{TOKEN: "{SECRET}", OTHER: {{deep: "{{{{ vault_in_a_dictionary }}}}"}}}}
wheels_ops_websocket_token: "{{{{ '{SECRET}: [' | from_yaml }}}}"
wheels_ops_thresholds: "{{{{ site.thresholds }}}}"
site: {{password: "{SECRET}"}}
wheels_ops_filesystems: /{SECRET}
wheels_ops_cors_origins: "https://{SECRET}.example.com"
wheels_ops_log_directories: {{"/var/log": "{SECRET}"}}
wheels_ops_temporary_directories: [/tmp, [{SECRET}]]
wheels_ops_disk_budgets: {{"/var/log": "{SECRET}"}}
wheels_ops_memory_limits_mb: "{SECRET}"
wheels_ops_base_url:
wheels_ops_redis_url: "   "
wheels_ops_websocket_heartbeat_within: "{SECRET}"
wheels_ops_force: "{SECRET}"
wheels_ops_databse_dsn: "{SECRET}"
services_list: "{{{{ vault_of_a_role }}}}"
recovery_log_directories: /var/log
"""


def test_whatever_cannot_be_used_is_named_at_once_and_no_value_is_shown(tmp_path: Path) -> None:
    status, said = play(tmp_path, "wheels.ops.verify", UNUSABLE)
    assert status != 0
    for words in (
        "wheels_ops_backend_user cannot be evaluated: 'vault_far_away' is undefined.",
        "wheels_ops_services cannot be evaluated: 'vault_in_a_list' is undefined.",
        "wheels_ops_environment_extra cannot be evaluated: 'vault_in_a_dictionary' is undefined.",
        "wheels_ops_websocket_token cannot be evaluated: The filter plugin 'ansible.builtin.from_yaml' failed.",
        "wheels_ops_thresholds cannot be evaluated: object of type 'dict' has no attribute 'thresholds'.",
        "services_list cannot be evaluated: 'vault_of_a_role' is undefined.",
        "wheels_ops_filesystems must be a list of texts, got a text.",
        "wheels_ops_cors_origins must be a list of texts, got a text.",
        "wheels_ops_log_directories must be a list of texts, got a dictionary.",
        "wheels_ops_temporary_directories must be a list of texts, got a list with a list in it.",
        "wheels_ops_disk_budgets must be a dictionary of numbers, got a dictionary with a text in it.",
        "wheels_ops_memory_limits_mb must be a dictionary of numbers, got a text.",
        "wheels_ops_base_url must be a text, got nothing (null).",
        "wheels_ops_redis_url must be a text, got blank.",
        "wheels_ops_websocket_heartbeat_within must be a number, got a text.",
        "wheels_ops_force must be true or false, got a text.",
        "recovery_log_directories must be a list of texts, got a text.",
        "Unknown variable wheels_ops_databse_dsn: did you mean wheels_ops_database_dsn?",
    ):
        assert words in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (CASE, "wheels_ops_database_dsn cannot be evaluated: 'vault_wheels_ops_database_dsn' is undefined."),
        (
            f"wheels_ops_log_directories: /var/{SECRET}",
            "wheels_ops_log_directories must be a list of texts, got a text.",
        ),
        (
            "wheels_ops_thresholds: {ram: {warning: 1}}",
            "wheels_ops_thresholds must be usable as thresholds. Unknown threshold 'ram'.",
        ),
    ],
)
def test_a_role_alone_refuses_them_too(tmp_path: Path, variables: str, words: str) -> None:
    (tmp_path / "role.yml").write_text(
        json.dumps(
            [
                {
                    "hosts": "backend",
                    "gather_facts": False,
                    "tasks": [{"ansible.builtin.include_role": {"name": "wheels.ops.monitoring"}}],
                }
            ]
        )
    )
    status, said = play(tmp_path, str(tmp_path / "role.yml"), variables)
    assert status != 0
    assert words in said
    assert SECRET not in said


def test_what_is_of_the_whole_run_is_read_from_the_inventory(tmp_path: Path) -> None:
    """Ansible evaluates ``hosts`` and ``serial`` without any host, where the inventory's variables of hosts are not
    seen.
    """
    (tmp_path / "hosts.yml").write_text(
        json.dumps({"all": {"children": {"others": {"hosts": dict.fromkeys("abcd", {"ansible_connection": "local"})}}}})
    )
    (tmp_path / "group_vars").mkdir()
    settings = tmp_path / "group_vars" / "others.yml"

    def batches() -> t.Tuple[int, str]:
        done = run(
            str(BIN / "ansible-playbook"),
            "-i",
            str(tmp_path / "hosts.yml"),
            str(tmp_path / "batches.yml"),
            cwd=REPOSITORY,
            ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
            ANSIBLE_STDOUT_CALLBACK="default",
        )
        return done.returncode, done.stdout + done.stderr

    play_of_hosts = {
        "hosts": "{{ lookup('wheels.ops.setting', 'wheels_ops_hosts', default='backend') }}",
        "serial": "{{ lookup('wheels.ops.setting', 'wheels_ops_serial', default=1) }}",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.debug": {"msg": "batch {{ ansible_play_batch | join('+') }}"}, "run_once": True}],
    }
    (tmp_path / "batches.yml").write_text(
        json.dumps([{"ansible.builtin.import_playbook": "wheels.ops.require_hosts"}, play_of_hosts])
    )
    settings.write_text("wheels_ops_hosts: others\nwheels_ops_serial: [1, 50%]\n")
    status, said = batches()
    assert status == 0, said
    assert [word for word in ("batch a", "batch b+c", "batch d") if word not in said] == []
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / "c.yml").write_text("wheels_ops_serial: 3\n")
    status, said = batches()
    assert status != 0
    assert (
        "wheels_ops_serial must be the same for every host, as it is of the whole run: that of c is not that of a."
        in " ".join(said.split())
    )


def test_no_default_stands_in_for_a_variable_of_a_site() -> None:
    """Jinja's own ``default`` also takes the place of a variable that cannot be evaluated."""
    swallowed = [
        f"{path.relative_to(COLLECTION)}:{number}"
        for path in (
            *COLLECTION.glob("roles/*/[dtvh]*/*.yml"),
            *COLLECTION.glob("playbooks/**/*.yml"),
            *COLLECTION.glob("roles/*/templates/*"),
        )
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"wheels_ops_\w+(\.\w+)*\)? *(\||is (not )?defined)", line)
    ]
    assert swallowed == []


def test_every_shared_variable_has_a_kind() -> None:
    """Read without an import, which would need Ansible's loader."""
    table = (COLLECTION / "plugins/plugin_utils/shared_variables.py").read_text()
    kinds = set(re.findall(r'^    "(wheels_ops_\w+)": Variable\(', table, re.M))
    texts = [
        path.read_text()
        for base in ("playbooks", "roles")
        for path in (COLLECTION / base).rglob("*.yml")
        if "files" not in path.parts
    ]
    used = {name for text in texts for name in re.findall(r"'(wheels_ops_\w+)'", text)}
    assert len(used) > 30
    assert used <= kinds


def test_verify_passes_where_nothing_fails_and_says_what_it_did_not_measure(tmp_path: Path) -> None:
    """A DSN that nobody set is no error, and no health either."""
    roomy = "wheels_ops_thresholds: {disk: {warning: 100, critical: 100}}\nwheels_ops_log_directories: []\n"
    status, said = play(tmp_path, "wheels.ops.verify", f"{roomy}monitoring_subjects: [database, rls, disk]\n")
    assert status == 0
    assert (
        "1 healthy, 2 skipped: no database DSN is given (database, rls); 9 left out on purpose: memory, cpu, redis, "
        in said
    )
    assert "[WARNING]: Not measured on this host: database, rls: no database DSN is given." in said
    assert said.count("WARNING") == 1, "no key of a result is one that Ansible has a meaning for"
    assert re.search(r"here : ok=\d+ changed=0 unreachable=0 failed=0 skipped=0 ", said)
    assert "Everything is healthy" not in said
    status, said = play(tmp_path, "wheels.ops.verify", "monitoring_subjects: [database, rls]\n")
    assert status != 0
    assert "Nothing was measured, 2 skipped: no database DSN is given (database, rls)" in said
