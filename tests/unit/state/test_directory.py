# SPDX-License-Identifier: GPL-3.0-or-later
"""A state directory that somebody else can change is refused, with the directory, its owner or mode, and what to do."""

from __future__ import annotations

import os
import struct
import typing as t
from pathlib import Path

import pytest

from wheels_ops.remedies import deployment
from wheels_ops.results import OpsError
from wheels_ops.services import ledger
from wheels_ops.state import directory

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "above/state"
    made.mkdir(parents=True, mode=0o755)
    return made


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
@pytest.mark.parametrize("which", ["above", "above/state"])
def test_one_that_others_may_write_is_refused(tmp_path: Path, place: Path, which: str, mode: int) -> None:
    (tmp_path / which).chmod(mode)
    if which == "above" and mode == 0o1777 and os.geteuid() == 0:
        assert directory.require(place) == place, "as /tmp: nobody can rename there what belongs to others"
        return
    with pytest.raises(OpsError, match=f"has the mode {mode:04o}, so that others can change.*chmod go-w {tmp_path / which}"):
        directory.require(place)


def test_one_that_does_not_exist_yet_is_refused_for_what_is_above_it(tmp_path: Path, place: Path) -> None:
    assert directory.require(place / "a/b") == place / "a/b"
    place.chmod(0o777)
    with pytest.raises(OpsError, match=f"{place} above it has the mode 0777"):
        directory.require(place / "a/b")


@root
@pytest.mark.root
@pytest.mark.parametrize("which", ["above", "above/state"])
def test_one_of_somebody_else_is_refused(tmp_path: Path, place: Path, which: str) -> None:
    os.chown(tmp_path / which, NOBODY, NOBODY)
    with pytest.raises(OpsError, match=f"belongs to (nobody|uid 65534).*chown root: {tmp_path / which}"):
        directory.require(place)


@root
@pytest.mark.root
@pytest.mark.parametrize(("gid", "refused"), [(0, False), (NOBODY, True)])
def test_a_group_counts_as_others_but_for_ones_own(place: Path, gid: int, refused: bool) -> None:
    os.chown(place, 0, gid)
    place.chmod(0o775)
    if refused:
        with pytest.raises(OpsError, match="has the mode 0775"):
            directory.require(place)
    else:
        assert directory.require(place) == place


def test_links_are_followed_and_what_they_lead_to_is_looked_at(tmp_path: Path, place: Path) -> None:
    (tmp_path / "link").symlink_to("above/state")
    assert directory.require(tmp_path / "link/deep") == tmp_path / "link/deep"
    (tmp_path / "above").chmod(0o777)
    with pytest.raises(OpsError, match=f"{tmp_path}/above above it has the mode 0777"):
        directory.require(tmp_path / "link/deep")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OpsError, match="loop of links"):
        directory.require(tmp_path / "loop")


@root
@pytest.mark.root
def test_a_link_of_somebody_else_is_refused(tmp_path: Path, place: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place)
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(OpsError, match="belongs to (nobody|uid 65534)"):
        directory.require(link)


@pytest.mark.parametrize("path", ["relative", "/a/../b", ""])
def test_a_path_that_another_run_would_understand_otherwise_is_refused(path: str) -> None:
    with pytest.raises(OpsError, match="Give an absolute path without"):
        directory.require(path)


READERS: t.Dict[str, t.Callable[[str], t.Any]] = {
    "query": deployment.query,
    "begin": lambda state: deployment.begin(state, "a", holder="one"),
    "predicted": lambda state: deployment.begin(state, "a", holder="one", check_mode=True),
    "hold": lambda state: deployment.hold(state, kind="prepare", holder="one"),
    "let go": lambda state: deployment.let_go(state, holder="one"),
    "end": lambda state: deployment.end(state, "a", holder="one", state=deployment.FINISHED),
    "ledger": ledger.state_dir,
}


@pytest.mark.parametrize("reader", READERS)
def test_everything_that_uses_it_refuses_it_and_leaves_it_alone(place: Path, reader: str) -> None:
    place.chmod(0o777)
    with pytest.raises(OpsError, match="is refused"):
        READERS[reader](str(place))
    assert list(place.iterdir()) == []


@root
@pytest.mark.root
def test_an_access_list_counts_as_others(place: Path) -> None:
    """The user ``nobody`` may write there, and the mode shows it as the right of the owner's group."""
    undefined = 2**32 - 1
    entries = ((0x01, 7, undefined), (0x02, 7, NOBODY), (0x04, 0, undefined), (0x10, 7, undefined), (0x20, 0, undefined))  # acl(5)
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.chown(place, 0, 0)
    try:
        os.setxattr(place, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    with pytest.raises(OpsError, match=f"others can change.*chmod go-w {place}"):
        directory.require(place)
