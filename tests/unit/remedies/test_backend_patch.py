# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of ours among somebody else's: check mode, install, again, restore; interrupted anywhere; changed by others."""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support import filesystems
from tests.support.backend_env import ROLE
from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments

NO_PROOF = backend_patch.Proof()


class Host:
    """A directory with a backend, and a state directory with one deployment begun."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "production"
        self.state = str(tmp_path / "state")
        (self.root / "app/core").mkdir(parents=True)
        (self.root / "app/__init__.py").touch()
        (self.root / "app/core/__init__.py").touch()
        (self.root / "app/main.py").write_text('app = []\nif __name__ == "__main__":\n    pass\n')
        cors = self.root / "app/core/cors_config.py"
        cors.write_text("ORIGINS = []\n")
        cors.chmod(0o640)
        os.utime(cors, ns=(1_000_000_000_123_456_789, 1_000_000_000_123_456_789))
        deployments.begin(self.state, "one", holder="me")

    def request(self, **changes: t.Any) -> backend_patch.Request:
        files = {
            "app/core/cors_config.py": b"ORIGINS = ['https://a']\n",
            "app/ours/__init__.py": b"",
            "app/ours/deep/extra.py": b"X = 1\n",
        }
        values = {
            "root": str(self.root),
            "files": files,
            "blocks": {"app/main.py": ["app.append(1)"]},
            "optional_blocks": {"app/none.py": ["pass"]},
            **changes,
        }
        return backend_patch.Request(**values)

    def install(
        self, request: t.Optional[backend_patch.Request] = None, *, name: str = "one", **options: t.Any
    ) -> t.Dict[str, t.Any]:
        return backend_patch.install(
            self.state, name, request or self.request(), options.pop("proof", NO_PROOF), **options
        ).as_dict()

    def tree(self) -> t.Dict[str, t.Tuple[str, int, int]]:
        return {
            str(path.relative_to(self.root)): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mode,
                path.stat().st_mtime_ns,
            )
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        } | {
            f"{path.relative_to(self.root)}/": ("", path.stat().st_mode, 0)
            for path in self.root.rglob("*")
            if path.is_dir()
        }


@contextlib.contextmanager
def somebody_without_rights(place: Path) -> t.Iterator[None]:
    """Works as nobody in a directory, where the tests run as root: root may write everywhere."""
    if os.geteuid():
        yield
        return
    os.chown(place, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_check_then_run_then_again_then_restore(host: Host) -> None:
    original = host.tree()
    predicted = host.install(check_mode=True, want_diff=True)
    assert host.tree() == original
    real = host.install(want_diff=True)
    assert predicted["changed"] is True
    assert {**real, "msg": ""} == {**predicted, "msg": ""}
    assert [action["action"] for action in real["actions"]] == ["replace", "install", "install", "insert block"]
    assert (host.root / "app/core/cors_config.py").read_text() == "ORIGINS = ['https://a']\n"
    assert (host.root / "app/core/cors_config.py").stat().st_mode & 0o777 == 0o640
    assert host.install()["changed"] is False
    foretold = backend_patch.restore(host.state, "one", check_mode=True)
    assert foretold.changed
    backend_patch.restore(host.state, "one")
    assert host.tree() == original
    assert backend_patch.restore(host.state, "one").changed is False


def test_access_lists_and_attributes_are_kept_and_restored(host: Host) -> None:
    cors = host.root / "app/core/cors_config.py"
    try:
        os.setxattr(cors, "user.note", b"\x00\xff")
        filesystems.run("setfacl", "-m", "u:65534:r", str(cors))
    except (AssertionError, OSError) as error:
        pytest.skip(f"the temporary directory takes no access lists or attributes: {error}")

    def extended() -> t.Dict[str, bytes]:
        return {name: os.getxattr(cors, name) for name in os.listxattr(cors)}

    original, tree = extended(), host.tree()
    host.install()
    assert (extended(), len(original)) == (original, 2)
    os.removexattr(cors, "user.note")
    filesystems.run("setfacl", "-b", str(cors))
    backend_patch.restore(host.state, "one")
    assert (extended(), host.tree()) == (original, tree)


def test_a_diff_begins_with_a_summary_and_has_every_line_where_it_is_asked_for(host: Host) -> None:
    brief = [entry["prepared"] for entry in host.install(check_mode=True, want_diff=True, full_diff=False)["diff"]]
    assert re.match(r"4 files below \S+/production: \+\d+ -1 lines\n", brief[0])
    row = r"  (install|replace|insert block) +\+(\d+) +-(\d+)  \S+/(app/\S+)"
    rows = {match[4]: match.groups()[:3] for match in re.finditer(row, brief[0])}
    assert rows["app/core/cors_config.py"] == ("replace", "1", "1")
    assert (rows["app/ours/deep/extra.py"], rows["app/ours/__init__.py"]) == (
        ("install", "1", "0"),
        ("install", "0", "0"),
    )
    assert len(brief) == 2 and "app.append(1)" in brief[1] and "wheels_ops_full_diff" in brief[0]
    full = [entry["prepared"] for entry in host.install(want_diff=True)["diff"]]
    assert len(full) == 5 and full[0].startswith("4 files") and any("+ORIGINS = ['https://a']" in text for text in full)
    back = [entry["prepared"] for entry in _restored_diff(host, full_diff=False)]
    assert "restore" in back[0] and len(back) == 2 and "-app.append(1)" in back[1]
    assert len(_restored_diff(host, full_diff=True)) == 5


def _restored_diff(host: Host, **options: t.Any) -> t.List[t.Dict[str, t.Any]]:
    return backend_patch.restore(host.state, "one", check_mode=True, want_diff=True, **options).diff


@pytest.mark.parametrize(
    ("environment", "door"),
    [
        ({"DATABASE_URL": "postgresql://h/d", "SUPABASE_URL": "https://p", "SUPABASE_KEY": "k"}, "DATABASE_URL"),
        ({"SUPABASE_URL": "https://p", "SUPABASE_SERVICE_ROLE_KEY": "k"}, "SUPABASE_URL"),
        ({"SUPABASE_URL": "https://p"}, "none"),
        ({"DATABASE_URL": "sqlite://"}, "none"),
        ({}, ""),
    ],
)
def test_by_which_door_a_backend_reaches_its_database(environment: t.Dict[str, str], door: str) -> None:
    assert backend_patch.database_access(environment) == door


def test_the_directories_of_the_roles_files_go_with_them(host: Host) -> None:
    """Those in one another, too, and with what Python compiled in them meanwhile."""
    listed = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["backend_patches_directories"]
    paths = [path for name in listed for path in (ROLE / "files" / name).iterdir() if path.is_file()]
    files = {str(path.relative_to(ROLE / "files")): path.read_bytes() for path in paths}
    assert "app/wheels_ops/websocket/session.py" in files
    original = host.tree()
    host.install(host.request(files=files))
    compileall.compile_dir(host.root / "app/wheels_ops", quiet=1)
    assert list((host.root / "app/wheels_ops/websocket/__pycache__").iterdir())
    backend_patch.restore(host.state, "one")
    assert host.tree() == original


@pytest.mark.parametrize("stop_after", range(7))
def test_interrupted_after_any_write_it_is_finished_or_taken_back(
    host: Host, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    original = host.tree()
    real, writes = backend_patch.write_atomically, iter(range(100))

    def dying(*words: t.Any, **options: t.Any) -> None:
        if next(writes) == stop_after:
            raise KeyboardInterrupt
        real(*words, **options)

    monkeypatch.setattr(backend_patch, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt) if stop_after < 6 else contextlib.nullcontext():
        host.install()
    monkeypatch.setattr(backend_patch, "write_atomically", real)
    assert deployments.begin(host.state, "two", holder="me").extra == {
        "deployment_id": "one",
        "resumed": True,
        "holder": "me",
    }
    if stop_after % 2:
        host.install()
        assert host.install()["changed"] is False
    backend_patch.restore(host.state, "one")
    assert host.tree() == original


def test_a_file_that_somebody_changed_is_refused_then_kept(host: Host) -> None:
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    (host.root / "app/core/cors_config.py").write_text("SOMEBODY = 'else'\n")
    deployments.begin(host.state, "two", holder="me")
    request = host.request(files={"app/core/cors_config.py": b"NEW = 1\n"}, blocks={})
    with pytest.raises(OpsError, match="changed by somebody else.*cors_config"):
        host.install(request, name="two")
    assert (host.root / "app/core/cors_config.py").read_text() == "SOMEBODY = 'else'\n"
    forced = host.install(
        host.request(files={"app/core/cors_config.py": b"NEW = 1\n"}, blocks={}, force=True), name="two"
    )
    assert forced["actions"][0]["foreign"] is True
    backend_patch.restore(host.state, "two")
    assert (host.root / "app/core/cors_config.py").read_text() == "SOMEBODY = 'else'\n"


def test_restore_leaves_what_somebody_changed_since_but_takes_our_block_out(host: Host) -> None:
    host.install()
    main = host.root / "app/main.py"
    main.write_text(main.read_text().replace("app = []", "app = ['theirs']"))
    result = backend_patch.restore(host.state, "one")
    assert result.extra["kept"] == [str(main)]
    assert "theirs" in main.read_text()
    assert "wheels.ops" not in main.read_text()


def _roll_back(host: Host, **options: t.Any) -> t.Tuple[Result, str]:
    """As the playbook does: restore, then close; gives the result and the state that the journal has then."""
    deployments.hold(host.state, kind="rollback", holder="me")
    result = backend_patch.restore(host.state, deployments.Journal(host.state).latest(), **options)
    deployments.end(host.state, "one", holder="me", state=deployments.ROLLED_BACK)
    return result, deployments.Journal(host.state).read("one")["state"]


def test_a_rollback_after_a_hand_edit_stays_open_until_it_is_forced(host: Host) -> None:
    original = host.tree()
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    cors, main = host.root / "app/core/cors_config.py", host.root / "app/main.py"
    cors.write_text("SOMEBODY = 'else'\n")
    result, state = _roll_back(host)
    assert state == "partly_rolled_back" and cors.read_text() == "SOMEBODY = 'else'\n"
    (kept,) = re.findall(r"\(original: (\S+)\)", result.msg)
    assert Path(kept).read_text() == "ORIGINS = []\n" and "-e wheels_ops_force=true" in result.msg
    report = deployments.query(host.state).extra
    assert report["partly_rolled_back"] == [{"id": "one", "files": {str(cors): kept}}]
    assert (report["drifted"], report["unfinished"]) == ([], "")
    result, state = _roll_back(host)
    assert state == "partly_rolled_back" and not result.changed
    predicted = backend_patch.restore(host.state, "one", force=True, check_mode=True)
    assert cors.read_text() == "SOMEBODY = 'else'\n"
    result, state = _roll_back(host, force=True)
    assert (predicted.actions, predicted.extra) == (result.actions, result.extra)
    assert state == "rolled_back" and host.tree() == original
    assert Path(result.extra["replaced"][str(cors)]).read_text() == "SOMEBODY = 'else'\n"
    assert deployments.query(host.state).extra["in_force"] == [] and main.exists()


@pytest.mark.parametrize("old_journal", [False, True])
def test_a_file_of_the_backends_own_that_its_owner_changed_is_rolled_back_without_force(
    host: Host, old_journal: bool
) -> None:
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    journal = deployments.Journal(host.state)
    if old_journal:
        manifest = journal.read("one")
        for entry in manifest["files"].values():
            del entry["block"]
        journal.write(manifest)
    main = host.root / "app/main.py"
    main.write_text(main.read_text().replace("app = []", "app = ['theirs']"))
    result, state = _roll_back(host, force=True)
    assert (state, result.extra["kept"], result.extra["replaced"]) == ("rolled_back", [str(main)], {})
    assert "theirs" in main.read_text() and "wheels.ops" not in main.read_text()


def test_a_file_that_nobody_rolled_back_is_replaced_by_the_next_deployment_only_by_force(host: Host) -> None:
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    cors = host.root / "app/core/cors_config.py"
    cors.write_text("SOMEBODY = 'else'\n")
    _roll_back(host)
    deployments.begin(host.state, "two", holder="me")
    with pytest.raises(OpsError, match="changed by somebody else.*cors_config"):
        host.install(name="two")
    host.install(host.request(force=True), name="two")
    assert cors.read_text() == "ORIGINS = ['https://a']\n"


def test_the_proof_keeps_a_release_that_does_not_fit_untouched(host: Host) -> None:
    original = host.tree()
    proof = backend_patch.Proof(sys.executable, "app.main", {})
    for content, message in ((b"def (:\n", "do not compile"), (b"import nothing_of_that_name\n", "cannot be imported")):
        request = host.request(
            files={"app/core/cors_config.py": content}, blocks={"app/main.py": ["import app.core.cors_config"]}
        )
        with pytest.raises(OpsError, match=message):
            host.install(request, proof=proof)
        assert host.tree() == original
    assert host.install(proof=proof)["proof"]["imported"] == "app.main"
    with pytest.raises(OpsError, match="does not exist"):
        host.install(
            host.request(files={"app/core/cors_config.py": b"Y = 1\n"}),
            proof=backend_patch.Proof("/nowhere/python", "app.main"),
        )


#: As the August release has it: a service that wants the running loop of the server when it is imported.
NEEDS_A_LOOP = "import asyncio\nasyncio.get_running_loop()\n"
#: Fails for a reason of its own, wherever the new file is.
BROKEN = "import nothing_of_that_name\n"


def _request(host: Host, content: bytes = b"X = 1\n") -> backend_patch.Request:
    return host.request(
        files={"app/core/cors_config.py": content}, blocks={"app/main.py": ["import app.core.cors_config"]}
    )


def test_the_application_is_imported_as_its_server_imports_it(host: Host) -> None:
    (host.root / "app/main.py").write_text(NEEDS_A_LOOP)
    result = host.install(_request(host), proof=backend_patch.Proof(sys.executable, "app.main"))
    assert (result["proof"]["imported"], result["proof"]["left_out"]) == ("app.main", "")


def test_an_import_that_starts_a_thread_that_does_not_end_is_an_import(host: Host) -> None:
    (host.root / "app/main.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    result = host.install(_request(host), proof=backend_patch.Proof(sys.executable, "app.main"))
    assert result["proof"]["imported"] == "app.main"


@pytest.mark.parametrize("own", [BROKEN, "import sys\nsys.exit('no such setting:\\nMEMORY')\n"])
def test_a_release_that_cannot_be_imported_itself_is_a_warning(host: Host, own: str) -> None:
    (host.root / "app/main.py").write_text(own)
    request, proof = _request(host), backend_patch.Proof(sys.executable, "app.main")
    result = backend_patch.install(host.state, "one", request, proof)
    told = result.extra["proof"]
    assert told["imported"] == "" and "this release cannot be imported for the proof" in told["left_out"]
    assert ("nothing_of_that_name" if own == BROKEN else "no such setting: MEMORY") in told["left_out"]
    assert [told["left_out"] in warning for warning in result.warnings] == [True]
    assert (host.root / "app/core/cors_config.py").read_bytes() == b"X = 1\n"


def test_a_variable_that_the_release_does_not_take_is_no_fault_of_the_release(host: Host) -> None:
    (host.root / "app/main.py").write_text(
        "import os\nassert os.environ.get('SIZE') != 'many', 'SIZE must be a number'\n"
    )
    original = host.tree()
    proof = backend_patch.Proof(sys.executable, "app.main", {"SIZE": "many"}, own_environment={})
    with pytest.raises(OpsError, match="SIZE must be a number"):
        host.install(_request(host), proof=proof)
    assert host.tree() == original


def test_a_release_that_cannot_be_imported_for_another_reason_than_with_the_new_files_stays(host: Host) -> None:
    """Its own file is what is broken in it, and the new one is broken, too: nothing says that the new one is better."""
    (host.root / "app/main.py").write_text("import app.core.cors_config\n")
    (host.root / "app/core/cors_config.py").write_text(BROKEN)
    original = host.tree()
    with pytest.raises(OpsError, match="NameError.*with its own files it fails, too.*nothing_of_that_name"):
        host.install(_request(host, b"undefined\n"), proof=backend_patch.Proof(sys.executable, "app.main"))
    assert host.tree() == original


@pytest.mark.parametrize("path", ["../outside.py", "/etc/passwd", "app/../../x", ""])
def test_paths_stay_below_the_root(host: Host, path: str) -> None:
    with pytest.raises(OpsError, match="not a path below"):
        host.install(host.request(files={path: b""}))


def test_links_are_not_written_through(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (host.root / "app/ours").symlink_to(outside)
    with pytest.raises(OpsError, match="symbolic link"):
        host.install()
    assert list(outside.iterdir()) == []


def test_a_missing_directory_and_a_missing_file_say_what_to_name(host: Host) -> None:
    with pytest.raises(OpsError, match="does not exist.*wheels_ops_backend_dir"):
        host.install(host.request(root="/nowhere"))
    with pytest.raises(OpsError, match=r"missing\.py does not exist"):
        host.install(host.request(blocks={"app/missing.py": ["pass"]}))


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_directory_that_cannot_be_written_is_named_before_anything_is_touched(check_mode: bool) -> None:
    with tempfile.TemporaryDirectory() as place, somebody_without_rights(Path(place)):
        host = Host(Path(place))
        original = host.tree()
        (host.root / "app/core").chmod(0o555)
        try:
            with pytest.raises(
                OpsError, match=r"app/core cannot be written, so app/core/cors_config.py cannot be installed"
            ) as caught:
                host.install(check_mode=check_mode, proof=backend_patch.Proof(sys.executable, "app.main"))
        finally:
            (host.root / "app/core").chmod(0o755)
        assert "become: true" in caught.value.hint and host.tree() == original


def test_a_file_that_is_read_only_is_replaced_also_in_the_proof() -> None:
    everybodys = (
        shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    )  # the tests' own may lie in root's home
    with tempfile.TemporaryDirectory() as place, somebody_without_rights(Path(place)):
        host = Host(Path(place))
        (host.root / "app/core/cors_config.py").chmod(0o444)
        assert host.install(proof=backend_patch.Proof(everybodys, "app.main"))["proof"]["compiled"] > 0
        assert (host.root / "app/core/cors_config.py").stat().st_mode & 0o777 == 0o444
        assert host.install()["changed"] is False


def test_a_file_that_is_no_longer_as_it_was_deployed_is_named(host: Host) -> None:
    assert deployments.query(host.state).extra["drifted"] == []
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    main, cors, extra = (
        str(host.root / name) for name in ("app/main.py", "app/core/cors_config.py", "app/ours/deep/extra.py")
    )
    assert deployments.query(host.state).extra["drifted"] == []
    # Its owner may change main.py, as long as our block stays.
    Path(main).write_text("import os\n" + Path(main).read_text())
    assert deployments.query(host.state).extra["drifted"] == []
    Path(cors).write_text("ORIGINS = ['*']\n")
    Path(extra).unlink()
    assert deployments.query(host.state).extra["drifted"] == [cors, extra]
    Path(main).write_text("app = []\n")
    assert deployments.query(host.state).extra["drifted"] == [cors, main, extra]
    backend_patch.restore(host.state, "one")
    # Services are restarted before the journal is closed: what was restored is no drift that explains their failure.
    assert deployments.query(host.state).extra["drifted"] == []
    deployments.end(host.state, "one", holder="me", state=deployments.ROLLED_BACK)
    assert deployments.query(host.state).extra["drifted"] == []


def test_a_deployment_that_somebody_changed_meanwhile_is_not_closed_and_can_be_rolled_back(host: Host) -> None:
    host.install()
    cors, extra = host.root / "app/core/cors_config.py", host.root / "app/ours/deep/extra.py"
    cors.write_text("THEIRS = 1\n")
    extra.unlink()
    with pytest.raises(OpsError, match=f"2 files are not as deployment one installed them: {cors}, {extra}") as caught:
        deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    assert caught.value.details["drifted"] == [str(cors), str(extra)]
    assert deployments.query(host.state).extra["unfinished"] == "one"
    assert backend_patch.restore(host.state, "one").extra["kept"] == [str(cors)]
    deployments.end(host.state, "one", holder="me", state=deployments.ROLLED_BACK)
    assert "wheels.ops" not in (host.root / "app/main.py").read_text()


def test_a_deployment_is_rolled_back_only_where_its_files_are_gone(host: Host) -> None:
    host.install()
    with pytest.raises(OpsError, match="4 files are still as deployment one installed them"):
        deployments.end(host.state, "one", holder="me", state=deployments.ROLLED_BACK)
    backend_patch.restore(host.state, "one")
    with pytest.raises(OpsError, match="is being rolled back"):
        deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)


def test_a_task_of_a_run_that_lost_its_deployment_installs_nothing_more(host: Host) -> None:
    """A rollback by another run takes the deployment from a task that still works."""
    host.install()
    deployments.hold(host.state, kind="rollback", holder="other", force="me")
    backend_patch.restore(host.state, "one")
    original = host.tree()
    with pytest.raises(OpsError, match="one is rolling_back"):
        host.install()
    deployments.end(host.state, "one", holder="other", state=deployments.ROLLED_BACK)
    with pytest.raises(OpsError, match="one is rolled_back"):
        host.install()
    assert host.tree() == original


def test_an_interrupted_deployment_is_finished_by_another_version_also_by_that_of_the_originals(host: Host) -> None:
    host.install()
    deployments.end(host.state, "one", holder="me", state=deployments.FINISHED)
    deployments.begin(host.state, "two", holder="me")
    host.install(host.request(files={**host.request().files, "app/core/cors_config.py": b"NEWER = 1\n"}), name="two")
    (host.root / "app/core/cors_config.py").write_bytes(
        host.request().files["app/core/cors_config.py"]
    )  # it was killed before this one
    assert deployments.begin(host.state, "three", holder="me").extra["deployment_id"] == "two"
    host.install(name="two")
    deployments.end(host.state, "two", holder="me", state=deployments.FINISHED)
    assert deployments.query(host.state).extra["drifted"] == []
