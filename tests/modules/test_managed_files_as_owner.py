# SPDX-License-Identifier: GPL-3.0-or-later
"""The application's code runs as its owner, apart from everything that is root's, and not at all where a third user may
write it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import run_as
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments

#: Users without an entry in the user database.
OWNER, THIRD = 54321, 54322
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or ""
#: Says outside the copy what the code could do: the file that it makes belongs to whom it ran as.
WITNESS = """
import json, os, sys
def attempt(call):
    try:
        call()
    except OSError:
        return False
    return True
os.environ.get("WITNESS") and json.dump({
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "root": attempt(lambda: os.setuid(0)),
    "secret": attempt(lambda: open(os.environ["SECRET"])) or attempt(lambda: open(os.path.join(os.getcwd(), "app", "secret.py"))),
    "private": [oct(os.stat(os.environ[name]).st_mode & 0o7777) + " " + str(os.stat(os.environ[name]).st_uid) for name in ("HOME", "TMPDIR")],
    "environment": dict(os.environ),
    "descriptors": [os.readlink("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd") if attempt(lambda: os.stat("/proc/self/fd/" + name))],
    "no_new_privs": "NoNewPrivs:\\t1" in open("/proc/self/status").read(),
    "leader": os.getsid(0) == os.getpid(),
    "copy": os.getcwd(),
    "pid": os.getpid(),
}, open(os.environ["WITNESS"] + "/" + str(os.getpid()), "w"))
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not PYTHON, reason="needs root, and an interpreter that everybody may run"),
]


class Host:
    def __init__(self, place: Path, state: str) -> None:
        place.chmod(0o755)
        self.place = place
        self.root, self.state = place / "production", state
        self.witness = place / "witness"
        self.witness.mkdir()
        self.witness.chmod(0o777)
        (place / "secret").write_text("root's")
        (place / "secret").chmod(0o600)
        (self.root / "app").mkdir(parents=True)
        (self.root / "app/__init__.py").touch()
        self.main("")
        for path in (self.root, self.root / "app", self.root / "app/__init__.py"):
            os.chown(path, OWNER, OWNER)
        (self.root / "app/secret.py").write_text("root's")
        (self.root / "app/secret.py").chmod(0o600)
        self.interpreter = PYTHON
        deployments.begin(self.state, "one", holder="me")

    def main(self, code: str) -> None:
        (self.root / "app/main.py").write_text(f"{WITNESS}\n{code}\n")
        os.chown(self.root / "app/main.py", OWNER, OWNER)

    def install(self, *, check_mode: bool = False, content: bytes = b"X = 1\n", **proof: t.Any) -> t.Dict[str, t.Any]:
        environment = {"WITNESS": str(self.witness), "SECRET": str(self.place / "secret")}
        request = backend_patch.Request(root=str(self.root), files={"app/extra.py": content})
        proof = {"interpreter": self.interpreter, "module": "app.main", "environment": environment, **proof}
        return backend_patch.install(
            self.state, "one", request, backend_patch.Proof(**proof), check_mode=check_mode
        ).as_dict()

    def testimonies(self) -> t.List[t.Tuple[os.stat_result, t.Dict[str, t.Any]]]:
        return [(path.stat(), json.loads(path.read_text())) for path in sorted(self.witness.iterdir())]


@pytest.fixture
def host() -> t.Iterator[Host]:
    # Not below tmp_path, into which root's pytest lets nobody.
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as state:
        yield Host(Path(place), state)


def test_the_import_runs_as_the_owner_apart_from_everything_of_root(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_ROOT", "topsecret")
    inherited = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        proof = host.install()["proof"]
    finally:
        os.close(inherited)
    ((status, said),) = host.testimonies()
    assert (status.st_uid, status.st_gid) == (OWNER, OWNER)
    assert set(said["ids"]) == {OWNER} and not said["root"] and not said["secret"]
    assert said["private"] == [f"0o700 {OWNER}"] * 2
    assert "A_SECRET_OF_ROOT" not in said["environment"] and "topsecret" not in said["environment"].values()
    opened = [name for name in said["descriptors"] if name.startswith("/")]
    assert set(opened) <= {"/dev/null", str(host.witness / str(said["pid"]))}, "the rest is of the event loop"
    assert said["no_new_privs"] and said["leader"]
    for name in (said["copy"], said["environment"]["HOME"], said["environment"]["TMPDIR"]):
        assert not os.path.lexists(name)
    assert (proof["user"], proof["imported"], proof["left_out"]) == (str(OWNER), "app.main", "")
    assert (host.root / "app/extra.py").stat().st_uid == OWNER


@pytest.mark.parametrize("proof", [{"user": "nobody"}, {"user": "65534"}, {"service_uid": 65534}])
def test_the_import_runs_as_the_user_of_the_service(host: Host, proof: t.Dict[str, t.Any]) -> None:
    assert host.install(**proof)["proof"]["user"] == "nobody"
    assert {status.st_uid for status, _said in host.testimonies()} == {65534}


@pytest.mark.parametrize("proof", [{"user": "root"}, {"user": "0"}, {"service_uid": 0}])
def test_the_import_of_another_users_code_never_runs_as_root(host: Host, proof: t.Dict[str, t.Any]) -> None:
    host.install(**proof)
    assert {status.st_uid for status, _said in host.testimonies()} == {OWNER}


def test_the_owner_of_main_py_is_the_owner_also_in_directories_of_root(host: Host) -> None:
    os.chown(host.root, 0, 0)
    os.chown(host.root / "app", 0, 0)
    host.install()
    assert {status.st_uid for status, _said in host.testimonies()} == {OWNER}


def test_check_mode_executes_nothing_unless_it_is_asked_for(host: Host) -> None:
    predicted = host.install(check_mode=True)
    assert host.testimonies() == []
    assert predicted["proof"]["left_out"] == "import app.main: in check mode nothing of the application is executed"
    assert predicted["proof"]["imported"] == predicted["proof"]["user"] == ""
    verified = host.install(check_mode=True, in_check_mode=True)
    assert {status.st_uid for status, _said in host.testimonies()} == {OWNER}
    assert verified["proof"]["imported"] == "app.main" and verified["proof"]["left_out"] == ""
    real = host.install()
    assert predicted["proof"].keys() == real["proof"].keys()
    assert {**predicted, "proof": "", "msg": ""} == {**real, "proof": "", "msg": ""}
    with pytest.raises(OpsError, match="do not compile"):
        host.install(check_mode=True, content=b"def (:\n")


def _environment(host: Host) -> Path:
    """A virtual environment of the owner, whose interpreter is the system's."""
    environment = host.place / "venv"
    packages = environment / "lib/python3/site-packages"
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (environment / "bin/python").symlink_to(PYTHON)
    (packages / "package.py").touch()
    for path in [environment, *environment.rglob("*")]:
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
    host.interpreter = str(environment / "bin/python")
    return environment


def test_an_interpreter_of_the_owner_is_run(host: Host) -> None:
    _environment(host)
    assert host.install()["proof"]["interpreter"] == host.interpreter


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("place", "mode", "owner"),
    [
        ("production", 0o777, OWNER),
        ("production/app", 0o777, OWNER),
        ("production/app/main.py", 0o666, OWNER),
        ("production/app/main.py", 0o644, THIRD),
        ("production/app", 0o755, THIRD),
        ("venv", 0o777, OWNER),
        ("venv/bin", 0o755, THIRD),
        ("venv/lib/python3/site-packages", 0o777, OWNER),
        ("venv/lib/python3/site-packages/package.py", 0o644, THIRD),
        ("", 0o777, 0),
    ],
)
def test_what_a_third_user_may_write_is_refused(
    host: Host, place: str, mode: int, owner: int, check_mode: bool
) -> None:
    _environment(host)
    path = host.place / place
    os.chown(path, owner, owner)
    path.chmod(mode)
    with pytest.raises(OpsError, match="other than root and") as caught:
        # Named, as the owner of the tree is then no guess.
        (
            host.install(user=str(OWNER), check_mode=check_mode)
            if owner != THIRD
            else host.install(service_uid=OWNER, check_mode=check_mode)
        )
    assert str(path) in caught.value.message
    assert host.testimonies() == [] and not (host.root / "app/extra.py").exists()


def test_a_link_to_an_interpreter_is_followed_and_a_group_of_the_owner_alone_may_write(host: Host) -> None:
    (host.root / "app").chmod(0o775)
    host.install()
    os.chown(host.root / "app", OWNER, 65534)
    (host.root / "app").chmod(0o775)
    with pytest.raises(OpsError, match="may be written by group 65534"):
        host.install(content=b"X = 2\n")


def test_code_of_another_user_is_not_run_by_an_ordinary_one(host: Host) -> None:
    os.seteuid(THIRD)
    try:
        with pytest.raises(OpsError, match=f"belongs to {OWNER}: it is not run as {THIRD}"):
            run_as.owner_of([host.root])
        with pytest.raises(OpsError, match="Only root may run a program as nobody"):
            run_as.owner_of(["/usr/bin"], user="nobody")
        assert run_as.owner_of(["/usr/bin"]).uid == THIRD
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def listening() -> t.Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def _connects(server: socket.socket) -> str:
    return f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).close()"


def test_an_import_reaches_no_network_unless_it_fails_without(host: Host) -> None:
    with listening() as server:
        connects = _connects(server)
        host.main(f"try:\n    {connects.replace(chr(10), chr(10) + '    ')}\nexcept OSError:\n    pass")
        proof = host.install()["proof"]
        if proof["network"] != "off":
            pytest.skip("this host gives no network namespace")
        with pytest.raises(BlockingIOError):
            server.accept()
        host.main(connects)
        assert host.install(content=b"X = 2\n")["proof"]["network"] == "on"
        server.accept()[0].close()


def test_an_import_that_does_not_end_is_killed_with_all_that_it_started(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_patch, "_VERIFY_SECONDS", 1)
    host.main("import subprocess, time\nsubprocess.Popen(['sleep', '987'])\ntime.sleep(987)")
    with pytest.raises(OpsError, match="did not end within 1 s"):
        host.install()
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _uid(path.parent) == OWNER]
    assert not any(b"987" in words for words in running)
    assert not (host.root / "app/extra.py").exists()


def _uid(process: Path) -> int:
    try:
        return process.stat().st_uid
    except OSError:
        return -1


def test_what_a_killed_verification_left_is_removed_by_the_next() -> None:
    who = run_as.identity(OWNER)
    dead = Path(tempfile.mkdtemp(prefix="wheels-ops-run-"))
    (dead / "tmp").mkdir()
    with run_as.private_directory(who) as living:
        assert not dead.exists()
        with run_as.private_directory(who):
            assert living.exists()
    assert not living.exists()
