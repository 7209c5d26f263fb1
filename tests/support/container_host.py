# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of its own with systemd as its first process, in a container made from the fleet's image; the repository is
mounted read-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from ansible.module_utils.common.parameters import PASS_VARS

from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "molecule/fleet/image/build"
MODULES = REPOSITORY / "collections/wheels/ops/plugins/modules"


class Unavailable(RuntimeError):
    """Why this machine starts no such host."""


class ContainerHost:
    """A running host. Commands go in by ``podman exec``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(
        self,
        *words: str,
        stdin: str = "",
        check: bool = True,
        env: t.Optional[t.Mapping[str, str]] = None,
        user: str = "root",
    ) -> subprocess.CompletedProcess[str]:
        options = ["--interactive", f"--user={user}", *(f"--env={key}={value}" for key, value in (env or {}).items())]
        done = subprocess.run(
            ["podman", "exec", *options, self.name, *words], input=stdin, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def address(self) -> str:
        """Its address, which this machine reaches."""
        words = ["podman", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", self.name]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat > "$0"', path, stdin=text)

    def unit(self, name: str, command: str, **service: str) -> None:
        """Installs and starts a unit; ``service`` are further lines of its section."""
        lines = "".join(f"{key}={value}\n" for key, value in service.items())
        self.write(
            f"/etc/systemd/system/{name}.service",
            f"[Unit]\nDescription={name}\n[Service]\nExecStart={command}\n{lines}",
        )
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", name)

    def show(self, unit: str, name: str) -> str:
        """One property, by systemctl: the witness that shares no code with ours."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def user(self, name: str) -> None:
        """Makes a user without any right, who can start the interpreters that are mounted, wherever they lie."""
        self.run("useradd", "--create-home", name)
        for path in (sys.base_prefix, str(REPOSITORY)):
            for directory in [*Path(path).parents][:-1]:
                self.run(
                    "chmod", "o+x", str(directory), check=False
                )  # the directories above a mount are the container's own

    def module(
        self, name: str, arguments: t.Mapping[str, t.Any], *, check_mode: bool = False, user: str = "root"
    ) -> t.Dict[str, t.Any]:
        """Runs one of our modules as Ansible does, with its arguments on standard input; gives its result."""
        internal = {"check_mode": check_mode, "diff": True, "remote_tmp": "/tmp", "inject_invocation": True}
        # ansible-core before 2.21 shows the arguments always, and refuses to be asked.
        internal = {f"_ansible_{name}": value for name, value in internal.items() if name in PASS_VARS}
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, **internal}}
        done = self.run(
            sys.executable,
            str(MODULES / f"{name}.py"),
            stdin=json.dumps(given),
            check=False,
            user=user,
            env={"PYTHONPATH": str(REPOSITORY / "collections")},
        )
        try:
            return t.cast("t.Dict[str, t.Any]", json.loads(done.stdout))
        except ValueError:
            raise AssertionError(f"{name} gave no result:\n{done.stdout}\n{done.stderr}") from None

    def playbook(self, text: str, *words: str) -> str:
        """Runs a playbook inside, against itself; gives its output."""
        self.write("/root/play.yml", text)
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_HOME": "/root/.ansible",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        }
        done = self.run(
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "-c",
            "local",
            "/root/play.yml",
            *words,
            env=environment,
        )
        return done.stdout


@contextlib.contextmanager
def container_host(capabilities: t.Sequence[str] = (), *, debian: str = "12") -> t.Iterator[ContainerHost]:
    """A fresh host. Raises ``Unavailable`` where podman, root or an OCI runtime is missing.

    ``capabilities``: what its root has beyond that of a container, ``SYS_ADMIN`` for example.
    """
    if os.geteuid() or not shutil.which("podman"):
        raise Unavailable("needs root and podman")
    name = f"wops-test-{secrets.token_hex(4)}"
    bases = {str(REPOSITORY), os.path.realpath(sys.base_prefix), os.path.realpath(_backend_base())}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(bases) if path not in ("/", "/usr")]
    mounts += [f"--cap-add={capability}" for capability in capabilities]
    done = subprocess.run(
        [str(BUILD), "--debian", debian, "--run", name, *mounts], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(done.stderr.strip()[-500:])
    host = ContainerHost(name)
    try:
        wait_until(
            lambda: host.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"),
            timeout=60,
            what="systemd",
        )
        yield host
    finally:
        subprocess.run(
            ["podman", "rm", "--force", "--ignore", "--time=0", "--volumes", name], capture_output=True, check=False
        )


def _backend_base() -> str:
    """Where the backend's interpreter has its standard library."""
    link = REPOSITORY / ".venv-backend/bin/python"
    return str(Path(os.path.realpath(link)).parents[1]) if link.exists() else sys.base_prefix
