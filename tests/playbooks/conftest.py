# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox for each file, beside any that runs in the repository's own directory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from tests.sandbox import lifecycle, supervisor
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Facts, Sandbox

#: Gates that hold for one second are enough here; production's default is three.
FAST = ("-e", "services_min_healthy_time=1")
#: Stands in for a proxy: a line each time, with what was asked for and whether the backend answers.
PROXY = """
printf '%s %s\\n' "$0" "$(curl -s -o /dev/null -w '%{http_code}' -m 20 "$2/health")" >> "$1"
"""


@dataclass(frozen=True)
class Run:
    """A finished playbook."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """The sum of changed= in the recap."""
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))

    @property
    def changed_tasks(self) -> t.List[str]:
        """The names of the tasks that changed something, in order."""
        found: t.List[str] = []
        task = ""
        for line in self.output.splitlines():
            named = re.match(r"TASK \[(.*)\] \*", line)
            task = named.group(1) if named else task
            if line.startswith("changed: ") and (not found or found[-1] != task):
                found.append(task)
        return found

    @property
    def text(self) -> str:
        """The output with line breaks and indentation folded, as messages are wrapped."""
        return re.sub(r"\s+", " ", self.output)


class Stage:
    """The sandbox, the playbooks that run on it, and witnesses that share no code with them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        #: The tasks of which check mode said that they would change something.
        self.predicted: t.List[str] = []

    @property
    def facts(self) -> Facts:
        return self.sandbox.facts()

    @property
    def words(self) -> t.List[str]:
        """What every playbook is given beside its own words."""
        proxy = {
            f"wheels_ops_{name}_command": ["sh", "-c", PROXY, name, str(self._proxy_log), self.facts.base_url]
            for name in ("drain", "restore")
        }
        return [*FAST, "-e", json.dumps(proxy)]

    @property
    def _proxy_log(self) -> Path:
        return self.sandbox.directory / "proxy.log"

    def proxy_requests(self) -> t.List[str]:
        """What the proxy was asked for since the last call, such as ``drain 200``."""
        lines = self._proxy_log.read_text().splitlines() if self._proxy_log.exists() else []
        self._proxy_log.unlink(missing_ok=True)
        return lines

    def command(self, name: str, *words: str) -> t.List[str]:
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [program, "-i", "inventories/sandbox", f"playbooks/{name}.yml", *self.words, *words]

    def environment(self) -> t.Dict[str, str]:
        return {
            **os.environ,
            "WHEELS_OPS_SANDBOX": str(self.sandbox.directory),
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(REPOSITORY / ".ansible"),
            "ANSIBLE_FORCE_COLOR": "0",
        }

    def installed_playbook(self, collections: Path, name: str, *words: str) -> Run:
        """The playbook of an installed collection, from a directory that has nothing of the repository."""
        program, inventory = (
            str(Path(sys.executable).with_name("ansible-playbook")),
            str(REPOSITORY / "inventories/sandbox"),
        )
        place = collections.parent
        environment = {
            **self.environment(),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CONFIG": str(place / "ansible.cfg"),
            "ANSIBLE_HOME": str(place / "home"),
        }
        command = [program, "-i", inventory, f"wheels.ops.{name}", *self.words, *words]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        return Run(done.returncode, done.stdout + done.stderr)

    def playbook(self, name: str, *words: str, environment: t.Optional[t.Mapping[str, str]] = None) -> Run:
        done = subprocess.run(
            self.command(name, *words),
            cwd=REPOSITORY,
            env={**self.environment(), **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def sql(self, statement: str) -> t.List[t.Tuple[t.Any, ...]]:
        connection = psycopg2.connect(self.facts.database_dsn)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def rpc(self) -> t.Any:
        return supervisor.rpc(self.sandbox)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Stage]:
    """A sandbox in the broken state, of this file alone."""
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    try:
        lifecycle.start_servers(sandbox)
        lifecycle.break_it(sandbox)
        yield Stage(sandbox)
    finally:
        lifecycle.down(sandbox)
