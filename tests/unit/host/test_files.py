# SPDX-License-Identifier: GPL-3.0-or-later
"""Files below a directory of somebody else: no link is followed at any moment, and what is no file is refused without
waiting for it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support import swapped_directory
from wheels_ops.core.results import OpsError
from wheels_ops.host import files
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments

#: When paths were used instead of descriptors, every fifth round wrote through the link.
ROUNDS = 25


@contextlib.contextmanager
def swapping(directory: Path, target: Path) -> t.Iterator[None]:
    words = [sys.executable, swapped_directory.__file__, str(directory), str(target)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout is not None and attacker.stdin is not None
        assert attacker.stdout.readline()
        try:
            yield
        finally:
            attacker.stdin.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that nobody may write to but its owner, with a file of the name that the attacker wants to be
    written.
    """
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "cors_config.py").write_text("SECRET = 1\n")
    os.utime(directory / "cors_config.py", ns=(1, 1))
    return directory


def state_of(directory: Path) -> t.List[t.Tuple[str, str, int, int]]:
    return [
        (path.name, path.read_text(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(directory.iterdir())
    ]


def test_install_and_restore_never_follow_a_directory_that_is_swapped_for_a_link(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "production"
    (root / "app/core").mkdir(parents=True)
    (root / "app/core/cors_config.py").write_text("ORIGINS = []\n")
    before = state_of(outside)
    refused = 0
    with swapping(root / "app/core", outside):
        for number in range(ROUNDS):
            request = backend_patch.Request(
                root=str(root), files={"app/core/cors_config.py": b"X = %d\n" % number, "app/core/new/extra.py": b""}
            )
            name = f"d{number}"
            # A round that was refused leaves its deployment open: the next one has a state of its own.
            state = str(tmp_path / f"state{number}")
            deployments.begin(state, name, holder="me")
            for call in (
                lambda state=state, name=name, request=request: backend_patch.install(
                    state, name, request, backend_patch.Proof()
                ),
                lambda state=state, name=name: backend_patch.restore(state, name),
            ):
                try:
                    call()
                except OpsError:
                    refused += 1
    assert state_of(outside) == before
    assert refused, "the directory was never swapped while a run looked"


def test_a_directory_swapped_between_install_and_restore_is_refused_by_name(tmp_path: Path, outside: Path) -> None:
    root, state = tmp_path / "production", str(tmp_path / "state")
    (root / "app/core").mkdir(parents=True)
    (root / "app/core/cors_config.py").write_text("ORIGINS = []\n")
    deployments.begin(state, "one", holder="me")
    request = backend_patch.Request(
        root=str(root), files={"app/core/cors_config.py": b"X = 1\n", "app/core/new/extra.py": b""}
    )
    backend_patch.install(state, "one", request, backend_patch.Proof())
    before = state_of(outside)
    (root / "app/core").rename(root / "app/aside")
    (root / "app/core").symlink_to(outside)
    with pytest.raises(OpsError, match="app/core is a symbolic link"):
        backend_patch.restore(state, "one")
    assert state_of(outside) == before
    (root / "app/core").unlink()
    (root / "app/aside").rename(root / "app/core")
    backend_patch.restore(state, "one")
    assert (root / "app/core/cors_config.py").read_text() == "ORIGINS = []\n"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _hard_link(path: Path) -> None:
    (path.parent / "second").write_text("ORIGINS = ['theirs']\n")
    os.link(path.parent / "second", path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _device(path: Path) -> None:
    if os.geteuid():
        pytest.skip("a device is made by root")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (_fifo, "not a regular file"),
        (_directory, "not a regular file"),
        (_device, "not a regular file"),
        (_hard_link, "2 hard links"),
        (_link, "symbolic link"),
    ],
)
def test_what_is_no_file_of_one_name_is_refused_and_not_waited_for(
    tmp_path: Path, plant: t.Callable[[Path], None], words: str
) -> None:
    root, state = tmp_path / "production", str(tmp_path / "state")
    cors = root / "app/core/cors_config.py"
    cors.parent.mkdir(parents=True)
    deployments.begin(state, "one", holder="me")
    request = backend_patch.Request(
        root=str(root), files={"app/core/added.py": b"Y = 1\n", "app/core/cors_config.py": b"X = 1\n"}
    )
    plant(cors)
    with pytest.raises(OpsError, match=words) as caught:
        backend_patch.install(state, "one", request, backend_patch.Proof())
    assert str(cors) in caught.value.message and not (cors.parent / "added.py").exists()
    cors.rmdir() if cors.is_dir() else cors.unlink()
    cors.write_text("ORIGINS = []\n")
    backend_patch.install(state, "one", request, backend_patch.Proof())
    cors.unlink()
    (cors.parent / "second").unlink(missing_ok=True)
    plant(cors)
    with pytest.raises(OpsError, match=words):
        backend_patch.restore(state, "one")
    assert (cors.parent / "added.py").exists(), "everything is read before anything is changed"
    if plant in (_fifo, _device):
        assert str(cors) in deployments.query(state).extra["drifted"]


def test_a_tree_reached_through_a_link_of_its_owner_is_patched_where_it_lies(tmp_path: Path) -> None:
    release = tmp_path / "releases/1"
    (release / "app").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1")
    state = str(tmp_path / "state")
    deployments.begin(state, "one", holder="me")
    request = backend_patch.Request(root=str(tmp_path / "current"), files={"app/extra.py": b"X = 1\n"})
    result = backend_patch.install(state, "one", request, backend_patch.Proof())
    assert result.actions[0]["target"] == str(tmp_path / "current/app/extra.py")
    assert (release / "app/extra.py").read_text() == "X = 1\n"
    # The next release takes the name: the rollback goes where the files were written.
    (tmp_path / "releases/2/app").mkdir(parents=True)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("releases/2")
    backend_patch.restore(state, "one")
    assert list((release / "app").iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
def test_root_follows_a_link_of_another_user_only_to_his_own_directory(tmp_path: Path, outside: Path) -> None:
    his = tmp_path / "his"
    (his / "data").mkdir(parents=True)
    (his / "to-outside").symlink_to(outside)
    (his / "to-data").symlink_to("data")
    for path in (his, his / "data", his / "to-outside", his / "to-data"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    with pytest.raises(OpsError, match="symbolic link of another user"):
        files.write_atomically(his / "to-outside/cors_config.py", b"taken")
    with pytest.raises(OpsError, match="symbolic link of another user"):
        files.make_directories(his / "to-outside/new")
    assert [name for name, *_ in state_of(outside)] == ["cors_config.py"]
    files.write_atomically(his / "to-data/report", b"fine")
    assert (his / "data/report").read_bytes() == b"fine"


def test_what_a_killed_writer_left_beside_a_file_of_ours_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    (tmp_path / ".policy.0123abcd.wheels-ops").write_bytes(b"half")
    (tmp_path / ".policy.d.0123abcd.wheels-ops").write_bytes(b"another's")
    files.write_atomically(target, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".policy.d.0123abcd.wheels-ops", "policy"]


def test_the_root_of_the_file_system_is_a_directory_like_another() -> None:
    names, mtime_ns = files.listing(Path("/"), below="/")
    assert (len(names), mtime_ns) == (64, os.stat("/").st_mtime_ns)
    assert files.nearest(Path("/nothing-of-this-name/file"), below="/")[0] == [Path("/nothing-of-this-name")]
