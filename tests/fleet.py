# SPDX-License-Identifier: GPL-3.0-or-later
"""What molecule/fleet needs beside Ansible: facts, the judgement of the load, and one command for all of it.

python -m tests.fleet facts DIRECTORY                          DIRECTORY/fleet.json: addresses on each host, secrets; made once
python -m tests.fleet watched DIRECTORY                        ends with 0 when nothing of the load was lost or done twice
python -m tests.fleet test                                     molecule test -s fleet, beside any other fleet on this machine
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import asdict
from pathlib import Path

from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Facts
from tests.support.waiting import wait_until

STEPS = [
    "destroy",
    "syntax",
    "create",
    "prepare",
    "check",
    "converge",
    "idempotence",
    "side_effect",
    "verify",
    "destroy",
]
_DERIVED = ("database_dsn", "database_url", "redis_url", "base_url", "health_token")


def facts(directory: Path) -> int:
    """The same on every host of a fleet, as each reaches its own parts; a new fleet has secrets of its own."""
    file = directory / "fleet.json"
    if not file.exists():
        made = Facts(
            directory="/production",
            postgres_port=5432,
            redis_port=6379,
            http_port=8000,
            database_password=secrets.token_hex(16),
            app_database_password=secrets.token_hex(16),
            redis_password=secrets.token_hex(16),
            secret_key=secrets.token_hex(32),
        )
        bases = {
            os.path.realpath(sys.base_prefix),
            str(Path(os.path.realpath(REPOSITORY / ".venv-backend/bin/python")).parents[1]),
        }
        content = {
            "facts": asdict(made),
            **{name: getattr(made, name) for name in _DERIVED},
            "repository": str(REPOSITORY),
            "mounts": sorted({str(REPOSITORY), *bases} - {"/", "/usr"}),
        }
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
            json.dump(content, output, indent=1)
    return 0


def events(directory: Path) -> t.List[t.Dict[str, t.Any]]:
    """What the load wrote, once it has ended."""
    file = directory / "watch.jsonl"
    wait_until(
        lambda: file.exists() and '"kind": "end"' in file.read_text()[-4000:], timeout=180, what="the load's end"
    )
    return [json.loads(line) for line in file.read_text().splitlines()]


def watched(directory: Path) -> int:
    """Judges the load: nothing of it may be lost, or done twice."""
    every = events(directory)
    count = {kind: sum(event["kind"] == kind for event in every) for kind in ("http", "message", "socket")}
    end = every[-1]
    bad = [event for event in every if event.get("error")]
    sys.stdout.write(
        f"{count['http']} requests, {len(bad)} failed; {count['message']} messages over {count['socket']} sockets,"
        f" {len(end['lost_messages'])} lost; {end['tasks']} tasks, {len(end['lost_tasks'])} lost,"
        f" {len(end['doubled_tasks'])} twice.\n"
    )
    for event in bad[:20]:
        sys.stdout.write(f"{event}\n")
    # Under load that did not come through at all, nothing can be lost.
    done = count["http"] and count["message"] and end["tasks"]
    return int(bool(not done or bad or end["lost_messages"] or end["lost_tasks"] or end["doubled_tasks"]))


def unavailable() -> str:
    """Why this machine starts no fleet; empty where it does."""
    return "it needs root and podman" if os.geteuid() or not shutil.which("podman") else ""


def environment_of(place: str) -> t.Dict[str, str]:
    """For Molecule and Ansible: a fleet under names of its own, and nothing of the home directory."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOLECULE_EPHEMERAL_DIRECTORY": f"{place}/molecule",
        "WHEELS_OPS_FLEET": f"wops-{secrets.token_hex(3)}",
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_HOME": f"{place}/home",
        "HOME": f"{place}/user",
        "NO_COLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }


def test() -> int:
    """The whole scenario under names of its own."""
    reason = unavailable()
    if reason:
        sys.stdout.write(f"The fleet is left out: {reason}.\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="wops-fleet-") as place:
        programs = Path(sys.executable).parent
        environment = environment_of(place)
        words = [str(programs / "molecule"), "test", "-s", "fleet", *sys.argv[2:]]
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line)
        status = process.wait()
    found = re.findall(r"fleet \S+ (\w+): Executed: Successful", "".join(lines).rpartition("DETAILS")[2])
    if status == 0 and found != STEPS:  # a step that was passed over would be green
        sys.stdout.write(f"Only these steps were done: {found}\n")
        return 1
    return status


def main(words: t.Sequence[str]) -> int:
    if words[:1] == ["test"]:
        return test()
    if len(words) == 2 and words[0] in ("facts", "watched"):
        return (facts if words[0] == "facts" else watched)(Path(words[1]))
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
