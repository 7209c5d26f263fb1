# SPDX-License-Identifier: GPL-3.0-or-later
"""A user without rights owns the backend's directory, its virtual environment, its logs and what it asks of the host;
root runs every playbook.

Nothing of his runs as root, nothing outside his directories changes, nothing that only root may read is shown or sent
to him, and no trap holds a run up. The tests build on each other, in their order; most of the runs fail or refuse,
which is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support import servers
from tests.support.supervised import Program, Supervisord, supervisord

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, against whom the traps are laid"),
]
#: ``nobody``: a user that every machine has and who owns nothing.
USER = 65534
SECRET = "only-root-may-read-this-line"
#: A playbook that a trap holds up, and no busy machine, takes so many seconds.
LIMIT = 240
WITNESS = "import os\nwith open({path!r}, 'a') as file: file.write(f'{{os.geteuid()}}\\n')\n"
#: What a program imports that is started where he may write.
MODULES = ("sitecustomize", "usercustomize", "psutil", "redis", "requests", "ansible", "wheels_ops")
#: Where a file of an attacker makes him root, or where our own defaults lie: nothing of it is a part of this host's
#: inventory.
HOST = (
    "/etc",
    "/var/spool/cron",
    "/opt/wheels-ops",
    "/var/lib/wheels-ops",
    "/usr/local/lib/wheels-ops",
    "/root/.ssh",
    "/production",
)
#: Other tests may make accounts at the same time. A directory's time and number of names say no more than the names in
#: it.
ACCOUNTS = tuple(
    f"/etc/{name}{end}"
    for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    for end in ("", "-", ".lock", "+")
)


def fingerprint(*roots: t.Union[str, Path]) -> t.Dict[str, str]:
    """Names, kinds, modes, owners, times and contents of everything below some directories.

    Nothing is opened but regular files.
    """
    shape = {}
    for root in map(Path, roots):
        for path in (root, *root.rglob("*")):
            if str(path) in ACCOUNTS or path.name == ".pwd.lock":
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                content = ""
                if stat.S_ISREG(status.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                elif stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                changed = "" if root in (Path("/etc"), path) and path.is_dir() else status.st_mtime_ns
                shape[str(path)] = f"{content} {status.st_mode:o} {status.st_uid}:{status.st_gid} {changed}"
    return shape


@dataclass
class Backend:
    """What answers in the place of the backend: his program, which keeps everything that it is sent."""

    received: t.List[str] = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def his_backend() -> t.Iterator[Backend]:
    backend = Backend()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            backend.received.append(f"{self.requestline}\n{self.headers}")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_OPTIONS = answer

        def log_message(self, *_words: t.Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    backend.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Host:
    """His directories, root's beside them, and the inventory that names both."""

    def __init__(self, root: Path, backend: Backend, services: Supervisord, redis: servers.Redis) -> None:
        self.root, self.his_program, self.redis = root, backend, redis
        self.backend, self.venv, self.state = root / "backend", root / "backend/venv", root / "state"
        self.witness, self.guarded = root / "his/witness", root / "guarded"
        self.variables = {
            "wheels_ops_hosts": "all",
            "ansible_python_interpreter": sys.executable,
            "wheels_ops_venv": sys.prefix,
            "wheels_ops_backend_dir": str(self.backend),
            "wheels_ops_backend_python": str(self.venv / "bin/python"),
            "wheels_ops_backend_user": str(USER),
            "wheels_ops_state_dir": str(self.state),
            "wheels_ops_report_dir": str(root / "reports"),
            "wheels_ops_environment_file": str(self.backend / ".env"),
            "wheels_ops_token_file": str(root / "etc/ops-token"),
            "wheels_ops_log_directories": [str(self.backend / "logs")],
            "wheels_ops_temporary_directories": [str(self.backend / "tmp")],
            "wheels_ops_filesystems": [],
            "wheels_ops_disk_budgets": {f"{self.backend}/logs:{self.backend}/tmp": 1000},
            "wheels_ops_service_manager": "supervisor",
            "wheels_ops_supervisor_socket": services.socket,
            "wheels_ops_scope": "services",
            "wheels_ops_services": [{"name": "pam-backend"}],
            "wheels_ops_redis_url": redis.url,
            "wheels_ops_verify_in_check_mode": True,
            "wheels_ops_base_url": f"http://127.0.0.1:{backend.port}",
            "monitoring_subjects": ["disk", "redis", "services"],
            "wheels_ops_program_dir": str(root / "opt"),
            "wheels_ops_monitor_config": str(root / "etc/monitor.json"),
            "monitoring_schedule": "cron",
            "monitoring_cron_file": str(root / "cron"),
            "monitoring_unit_dir": str(root / "units"),
            "recovery_log_max_size": "4K",
            "database_enabled": False,
            "services_min_healthy_time": 1,
        }
        self._guard()
        self._lay_traps()
        self.before: t.Dict[str, str] = {}
        self.guarded_before = fingerprint(self.guarded)

    def _guard(self) -> None:
        """What is root's. It has the names that would be written or removed behind a link."""
        for name in ("core", "static", "scripts", "logs", "tmp", "etc", "requests"):
            (self.guarded / name).mkdir(parents=True)
            (self.guarded / name / "cors_config.py").write_text("OF_ROOT = True\n")
            (self.guarded / name / "app.log").write_text(f"{SECRET}\n" * 4000)
            (self.guarded / name / "old.part").write_text("old")
            os.utime(self.guarded / name / "old.part", (1, 1))
        for private in (self.guarded / "shadow", self.guarded / "etc/ops-token", self.guarded / "requests/a.json"):
            private.write_text(f"{SECRET}\n")
            private.chmod(0o600)
        self.state.mkdir(mode=0o711)
        (self.root / "units").mkdir()

    def _lay_traps(self) -> None:
        for name in ("app/core", "app/static", "logs", "tmp", "venv/bin", "venv/lib"):
            (self.backend / name).mkdir(parents=True)
        for name in ("requests", "metrics"):
            (self.state / name).mkdir()
        self.witness.parent.mkdir()
        trap = WITNESS.format(path=str(self.witness))
        for name in ("app/__init__", "app/core/__init__"):
            (self.backend / f"{name}.py").touch()
        (self.backend / "app/core/cors_config.py").write_text(f"{trap}HIS = 1\n")
        (self.backend / "app/main.py").write_text(f"{trap}app = None\n")
        for place in (self.backend, self.backend / "logs", self.backend / "tmp", self.state / "requests"):
            for module in MODULES:
                (place / f"{module}.py").write_text(trap)
        system = os.path.realpath("/usr/bin/python3")
        (self.venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
        (self.venv / "bin/python3").symlink_to(system)
        packages = self.venv / f"lib/{Path(system).name}/site-packages"
        packages.mkdir(parents=True)
        (packages / "his.pth").write_text(
            f"import os; open({str(self.witness)!r}, 'a').write(str(os.geteuid()) + chr(10))\n"
        )
        (self.venv / "bin/python").write_text(
            f'#!/bin/sh\nid -u >> {self.witness}\nexec {self.venv}/bin/python3 "$@"\n'
        )
        (self.venv / "bin/python").chmod(0o755)
        for place, name in (
            (self.backend / "logs", "pipe.log"),
            (self.backend / "tmp", "pipe.part"),
            (self.state / "requests", "pipe.json"),
        ):
            os.mkfifo(place / name)
        (self.backend / "logs/own.log").write_text("a line\n" * 10_000)
        (self.backend / "logs/link.log").symlink_to(self.guarded / "logs/app.log")
        (self.backend / "logs/loop").symlink_to(self.backend / "logs")
        (self.backend / "tmp/his.part").write_text("old")
        os.utime(self.backend / "tmp/his.part", (1, 1))
        (self.backend / "tmp/link").symlink_to(self.guarded / "tmp")
        (self.state / "requests/link.json").symlink_to(self.guarded / "requests/a.json")
        os.mkfifo(self.state / "metrics/metrics.sqlite")
        (self.backend / ".env").symlink_to(self.guarded / "shadow")
        self.give(self.backend, self.witness.parent, self.state / "requests", self.state / "metrics")
        # Where the kernel lets him (fs.protected_hardlinks=0).
        program = "import os, sys\nos.setgid(65534); os.setuid(65534)\nos.link(*sys.argv[1:])\n"
        for private, name in ((self.guarded / "logs/app.log", "logs/hard.log"), (self.guarded / "shadow", "tmp/hard")):
            subprocess.run(
                [sys.executable, "-c", program, str(private), str(self.backend / name)],
                capture_output=True,
                check=False,
            )

    @staticmethod
    def give(*paths: Path) -> None:
        """Makes everything below these his own, links themselves and not what they lead to."""
        for top in paths:
            for path in (top, *top.rglob("*")):
                os.chown(path, USER, USER, follow_symlinks=False)

    def swap(self, name: str, target: t.Union[str, Path]) -> None:
        """He moves what is there aside, and puts a link in its place."""
        place = self.backend / name
        if os.path.lexists(place):
            place.rename(f"{place}.aside")
        place.symlink_to(target)
        os.chown(place, USER, USER, follow_symlinks=False)

    def swap_back(self, name: str) -> None:
        place = self.backend / name
        place.unlink()
        with contextlib.suppress(FileNotFoundError):
            Path(f"{place}.aside").rename(place)

    def playbook(self, name: str, *words: str, **further: t.Any) -> t.Tuple[int, str]:
        """Runs it as root, and asks whether anything of root's was touched, run or shown.

        It has done something: a recap is there.
        """
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        variables = json.dumps({**self.variables, **further})
        command = [program, "-i", "here,", "-c", "local", f"playbooks/{name}.yml", "--diff", "-e", variables, *words]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.root / "home"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_PIPELINING": "1",
        }
        self.before = {**fingerprint(*HOST), **self.guarded_before}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        output = done.stdout + done.stderr
        assert (
            "PLAY RECAP" in output and "Internal error in wheels.ops" not in output and "MODULE FAILURE" not in output
        ), output[-4000:]
        try:
            self.require_untouched(output)
        finally:
            self.his_program.received.clear()
        return done.returncode, " ".join(output.split())

    def ran_as(self) -> t.Set[str]:
        return set(self.witness.read_text().split()) if self.witness.exists() else set()

    def require_untouched(self, output: str) -> None:
        assert self.ran_as() <= {str(USER)}, f"his code ran as somebody else:\n{output[-4000:]}"
        after = fingerprint(self.guarded, *HOST)
        changes = {
            path: (self.before.get(path), after.get(path))
            for path in {*self.before, *after}
            if self.before.get(path) != after.get(path)
        }
        assert changes == {}, output[-2000:]
        assert [line[:300] for line in output.splitlines() if SECRET in line] == [], "what only root may read was shown"
        assert [each for each in self.his_program.received if SECRET in each] == [], (
            "what only root may read was sent to him"
        )
        # Reports are the controller's; what is of root's on the host belongs to root, and he can read none of it but by
        # its purpose.
        for path in (*self.state.rglob("*"), *(self.root / "reports").rglob("*")):
            if stat.S_ISREG(path.lstat().st_mode):
                assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture(scope="module")
def host(redis_server: servers.Redis) -> t.Iterator[Host]:
    # Not below pytest's own directory, which nobody else may enter.
    root = Path(tempfile.mkdtemp(prefix="wheels-ops-adversary-"))
    root.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root)
        backend = stack.enter_context(his_backend())
        services = stack.enter_context(supervisord({"pam-backend": Program("sleep 100000")}))
        yield Host(root, backend, services, redis_server)


#: The names of the files that a deployment brings.
BROUGHT = "app/wheels_ops/wiring.py"


@pytest.mark.parametrize("words", ["prepare", "verify", "health", "deploy --check"])
def test_a_look_and_a_prediction(host: Host, words: str) -> None:
    _status, said = host.playbook(*words.split())
    assert not (host.backend / BROUGHT).exists()
    if words == "deploy --check":
        assert "cannot be imported" in said and "It was check mode: nothing was changed." in said
        assert host.ran_as() == {str(USER)}, "the import was tried, as it was asked for"


def test_a_deployment_writes_behind_no_link(host: Host) -> None:
    host.swap("app/static", host.guarded / "static")
    status, said = host.playbook("deploy", backend_patches_import_module="")
    host.swap_back("app/static")
    assert status and "app/static is a symbolic link" in said
    assert not (host.backend / BROUGHT).exists()


def test_a_deployment_runs_his_code_as_him(host: Host) -> None:
    host.playbook("deploy")
    assert host.ran_as() == {str(USER)}, "the import was tried"


def test_a_deployment_writes_no_environment_behind_a_link(host: Host) -> None:
    status, said = host.playbook("deploy", backend_patches_import_module="")
    assert status and ".env is a symbolic link" in said
    assert not (host.backend / BROUGHT).exists(), "what had been installed was rolled back"


def test_a_deployment_is_installed_where_it_belongs(host: Host) -> None:
    (host.backend / ".env").unlink()
    host.playbook("deploy", backend_patches_import_module="")
    assert (host.backend / BROUGHT).lstat().st_uid == USER
    assert (host.backend / ".env").is_file()
    assert not (host.backend / "tmp/his.part").exists(), "room was made among the traps"


@pytest.mark.parametrize("words", ["recover", "maintenance --tags weekly"])
def test_a_remedy_follows_no_link(host: Host, words: str) -> None:
    """The cache is cleared all the same, with the token that the backend has: the health API is his own program."""
    host.redis.cli("SET", "user_profile:1", "no expiry")
    for name in ("logs", "tmp"):
        host.swap(name, host.guarded / name)
    host.playbook(*words.split(), recovery_ignore_cooldown=True)
    for name in ("logs", "tmp"):
        host.swap_back(name)


@pytest.mark.parametrize("words", ["deploy", "recover"])
def test_a_token_behind_his_link_is_neither_written_nor_sent(host: Host, words: str) -> None:
    host.redis.cli("SET", "user_profile:1", "no expiry")
    host.swap("etc", host.guarded / ("etc" if words == "recover" else "core"))
    token = str(host.backend / "etc/ops-token")
    status, said = host.playbook(words, wheels_ops_token_file=token, recovery_ignore_cooldown=True)
    host.swap_back("etc")
    assert status and "The directory of wheels_ops_token_file" in said


def test_the_monitor_links_nothing_behind_a_link(host: Host) -> None:
    host.swap("scripts", host.guarded / "scripts")
    status, said = host.playbook("monitor")
    host.swap_back("scripts")
    assert status and "is a link that belongs to another user" in said


def test_a_rollback_restores_behind_no_link(host: Host) -> None:
    host.swap("app/core", host.guarded / "core")
    host.playbook("rollback")
    host.swap_back("app/core")
    host.playbook("rollback")
    assert not (host.backend / BROUGHT).exists()
    assert "HIS = 1" in (host.backend / "app/core/cors_config.py").read_text()
