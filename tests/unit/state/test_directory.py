# SPDX-License-Identifier: GPL-3.0-or-later
"""A state directory that somebody else can change is refused, with the directory, its owner or mode, and what to do."""

from __future__ import annotations

import grp
import os
import pwd
import struct
import types
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.state import deployments, directory, restarts

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
    with pytest.raises(
        OpsError, match=f"has the mode {mode:04o}, so that others can change.*chmod go-w {tmp_path / which}"
    ):
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
    with pytest.raises(OpsError, match="state_dir must be an absolute path without"):
        directory.require(path)


READERS: t.Dict[str, t.Callable[[str], t.Any]] = {
    "query": deployments.query,
    "begin": lambda state: deployments.begin(state, "a", holder="one"),
    "predicted": lambda state: deployments.begin(state, "a", holder="one", check_mode=True),
    "hold": lambda state: deployments.hold(state, kind="prepare", holder="one"),
    "let go": lambda state: deployments.let_go(state, holder="one"),
    "end": lambda state: deployments.end(state, "a", holder="one", state=deployments.FINISHED),
    "ledger": restarts.state_dir,
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
    entries = (
        (0x01, 7, undefined),
        (0x02, 7, NOBODY),
        (0x04, 0, undefined),
        (0x10, 7, undefined),
        (0x20, 0, undefined),
    )  # acl(5)
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.chown(place, 0, 0)
    try:
        os.setxattr(place, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    with pytest.raises(OpsError, match=f"others can change.*chmod go-w {place}"):
        directory.require(place)


def test_the_whole_way_is_looked_at(tmp_path: Path, place: Path) -> None:
    """Links that lead up, down, sideways and to nothing; what stands at their end counts."""
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/deep").chmod(0o777)
    (tmp_path / "up").symlink_to("other/../above/./state")
    (tmp_path / "above/sideways").symlink_to("../other/deep")
    (tmp_path / "absolute").symlink_to(tmp_path / "other")
    (tmp_path / "nothing").symlink_to("none/deeper")
    assert directory.require(tmp_path / "up/x") == tmp_path / "up/x"
    assert directory.require(tmp_path / "nothing/x") == tmp_path / "nothing/x"
    assert directory.require(str(place)) == place
    for way in ("above/sideways", "absolute/deep", "above/sideways/x"):
        with pytest.raises(OpsError, match=f"{tmp_path}/other/deep above it has the mode 0777"):
            directory.require(tmp_path / way)


def test_as_many_links_as_the_limit_are_followed(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_MAX_LINKS", 2)
    (tmp_path / "one").symlink_to("above")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "three").symlink_to("two")
    assert directory.require(tmp_path / "two/state") == tmp_path / "two/state"
    with pytest.raises(OpsError, match="loop of links"):
        directory.require(tmp_path / "three/state")


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_file_on_the_way_is_refused(tmp_path: Path, place: Path, below: str) -> None:
    (place / "file").write_text("")
    with pytest.raises(OpsError, match=f"cannot be written: {place}/file is no directory") as caught:
        directory.require(f"{place}/file{below}")
    assert "wheels_ops_state_dir" in caught.value.hint


def test_what_cannot_be_reached_is_refused(place: Path) -> None:
    with pytest.raises(
        OpsError, match=f"The state directory {place}/x+ cannot be reached: {place}/x+: File name too long"
    ):
        directory.require(place / ("x" * 300))


@pytest.mark.parametrize("path", ["/a\0b", "/..", "a/b", "./a"])
def test_more_paths_that_are_refused(path: str) -> None:
    with pytest.raises(OpsError, match="state_dir must be an absolute path without '..', got"):
        directory.require(path)


def test_the_root_directory_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.lstat

    def lstat(path: t.Any) -> t.Any:
        status = real(path)
        return types.SimpleNamespace(st_uid=0, st_gid=0, st_mode=0o40777) if str(path) == "/" else status

    monkeypatch.setattr(directory.os, "lstat", lstat)
    with pytest.raises(OpsError, match="/ above it has the mode 0777"):
        directory.require("/none")


def test_the_sticky_bit_of_the_root_directory_keeps_what_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.lstat

    def lstat(path: t.Any) -> t.Any:
        return types.SimpleNamespace(st_uid=0, st_gid=0, st_mode=0o41777) if str(path) == "/" else real(path)

    monkeypatch.setattr(directory.os, "lstat", lstat)
    assert directory.require("/none") == Path("/none")


STATUS = {"st_uid": 0, "st_gid": 0, "st_mode": 0o40755}
USER, GROUP = 4711, 4712


@pytest.mark.parametrize(
    ("changes", "last", "refused"),
    [
        ({}, True, False),
        ({"st_uid": USER}, True, False),
        ({"st_uid": USER + 1}, True, True),
        ({"st_mode": 0o40775}, True, False),
        ({"st_mode": 0o40755, "st_gid": 8}, True, False),
        ({"st_mode": 0o40775, "st_gid": 8}, True, True),
        ({"st_mode": 0o40775, "st_gid": GROUP}, True, False),
        ({"st_mode": 0o40757, "st_gid": GROUP}, True, True),
        ({"st_mode": 0o41777}, True, True),
        ({"st_mode": 0o41777}, False, False),
        ({"st_mode": 0o40777}, False, True),
        ({"st_mode": 0o41777, "st_uid": USER}, False, True),
        ({"st_mode": 0o120777}, True, False),
        ({"st_mode": 0o120777, "st_uid": USER + 1}, True, True),
    ],
)
def test_owner_and_mode_decide(
    monkeypatch: pytest.MonkeyPatch, changes: t.Dict[str, int], last: bool, refused: bool
) -> None:
    status: t.Any = types.SimpleNamespace(**{**STATUS, **changes})
    monkeypatch.setattr(directory.os, "lstat", lambda _path: status)
    monkeypatch.setattr(directory.os, "geteuid", lambda: USER)
    monkeypatch.setattr(directory, "_own_group", lambda gid: gid in (0, GROUP))
    if refused:
        with pytest.raises(OpsError, match="is refused: it (belongs to|has the mode)"):
            directory._check(Path("/x"), Path("/x"), last=last, words=("state directory", "wheels_ops_state_dir"))
    else:
        assert (
            directory._check(Path("/x"), Path("/x"), last=last, words=("state directory", "wheels_ops_state_dir"))
            is status
        )


@pytest.mark.parametrize(
    ("group", "user_gid", "own"),
    [
        (("ops", []), GROUP, True),
        (("ops", ["ops"]), GROUP, True),
        (("ops", ["ops", "eve"]), GROUP, False),
        (("ops", []), GROUP + 1, False),
        (("staff", []), GROUP, False),
        (None, GROUP, False),
    ],
)
def test_a_group_of_one_user_is_that_user(
    monkeypatch: pytest.MonkeyPatch, group: t.Any, user_gid: int, own: bool
) -> None:
    def getgrgid(gid: int) -> t.Any:
        if group is None:
            raise KeyError(gid)
        return types.SimpleNamespace(gr_name=group[0], gr_mem=group[1])

    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: types.SimpleNamespace(pw_name="ops", pw_gid=user_gid))
    assert directory._own_group(GROUP) is own
    assert directory._own_group(0) is True


def test_a_user_without_a_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory._user(0) == "root"

    def getpwuid(uid: int) -> t.Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    assert directory._user(4711) == "uid 4711"


@root
@pytest.mark.root
@pytest.mark.parametrize(
    ("members", "mode", "words"),
    [
        ([], 0o2775, ""),
        (["root"], 0o2775, ""),
        (["alice", "root"], 0o2775, r"members of the group staff \(alice\).*chmod g-w"),
        ([], 0o2777, "so that others can change"),
    ],
)
def test_the_group_of_debians_administrators_counts_as_root_while_it_is_empty(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, members: t.List[str], mode: int, words: str
) -> None:
    """As /var/local is: ``root:staff``, 2775."""
    gid = 50
    group = grp.struct_group(("staff", "x", gid, members))
    monkeypatch.setattr(
        grp, "getgrgid", lambda asked: group if asked == gid else grp.struct_group(("x", "x", asked, []))
    )
    os.chown(tmp_path / "above", 0, gid)
    (tmp_path / "above").chmod(mode)
    if words:
        with pytest.raises(OpsError, match=words):
            directory.require(place)
    else:
        assert directory.require(place) == place
