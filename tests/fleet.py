# SPDX-License-Identifier: GPL-3.0-or-later
"""What molecule/fleet needs beside Ansible: facts, a witness that asks every host all the time, and one command for all
of it.

python -m tests.fleet facts DIRECTORY                          DIRECTORY/fleet.json: addresses on each host, secrets; made once
python -m tests.fleet watch DIRECTORY NAME=ADDRESS ...         asks each host's /health until DIRECTORY/watch.stop is there
python -m tests.fleet watched DIRECTORY                        ends with 0 when at every moment all hosts but one answered
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
import time
import typing as t
from dataclasses import asdict
from pathlib import Path

import requests

from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Facts

STEPS = ["destroy", "syntax", "create", "prepare", "converge", "idempotence", "side_effect", "verify", "destroy"]
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


def watch(directory: Path, hosts: t.Mapping[str, str]) -> int:
    """A line a round: the status that each host answered with, 0 where nobody did.

    A slow answer of a busy machine is an answer.
    """
    with open(directory / "watch.jsonl", "a", encoding="utf-8") as output:
        while directory.is_dir() and not (directory / "watch.stop").exists():
            output.write(json.dumps({name: _status(address) for name, address in hosts.items()}) + "\n")
            output.flush()
            time.sleep(0.2)  # a witness that is no load
    return 0


def _status(address: str) -> int:
    try:
        return requests.get(f"http://{address}:8000/health", timeout=60).status_code
    except requests.RequestException:
        return 0


def watched(directory: Path) -> int:
    """Judges the rounds: at no moment may two hosts be down, nor all of them."""
    rounds: t.List[t.Dict[str, int]] = [
        json.loads(line) for line in (directory / "watch.jsonl").read_text().splitlines()
    ]
    down = [[name for name, status in each.items() if status != 200] for each in rounds]
    worst = max(down, key=len, default=[])
    seen = sorted({name for names in down for name in names})
    sys.stdout.write(
        f"{len(rounds)} rounds; down at some time: {', '.join(seen) or 'none'}; at most {len(worst)} at once.\n"
    )
    if not rounds or len(worst) > 1:
        sys.stdout.write(f"Not served by the others: {worst}\n")
        return 1
    return 0


def test() -> int:
    """The whole scenario under names of its own."""
    if os.geteuid() or not shutil.which("podman"):
        sys.stdout.write("The fleet is left out: it needs root and podman.\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="wops-fleet-") as place:
        programs = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MOLECULE_EPHEMERAL_DIRECTORY": f"{place}/molecule",
            "WHEELS_OPS_FLEET": f"wops-{secrets.token_hex(3)}",
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": f"{place}/home",
            "HOME": f"{place}/user",
            "NO_COLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }
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
    if len(words) >= 2 and words[0] == "watch":
        return watch(Path(words[1]), dict(pair.split("=", 1) for pair in words[2:]))
    if len(words) == 2 and words[0] in ("facts", "watched"):
        return (facts if words[0] == "facts" else watched)(Path(words[1]))
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
