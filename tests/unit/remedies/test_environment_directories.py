# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import pwd
import re
import stat
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import environment_directories


def create(root: Path, **options: t.Any) -> Result:
    return environment_directories.create(
        **{
            "state_dir": str(root / "state"),
            "token_file": str(root / "etc/secret/token"),
            "variables_file": str(root / "etc/backend.env"),
            "directories": [str(root / "state/metrics"), str(root / "state/requests")],
            **options,
        }
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_create_and_create_again(tmp_path: Path) -> None:
    predicted = create(tmp_path, check_mode=True)
    assert list(tmp_path.iterdir()) == []
    result = create(tmp_path)
    assert (result.changed, result.actions, result.diff) == (True, predicted.actions, predicted.diff)
    token = (tmp_path / "etc/secret/token").read_text()
    assert re.fullmatch(r"[A-Za-z0-9]{43}\n", token)
    assert mode(tmp_path / "etc/secret/token") == 0o600
    assert [mode(tmp_path / "state" / name) for name in ("metrics", "requests")] == [0o700, 0o700]
    for check_mode in (True, False):
        again = create(tmp_path, check_mode=check_mode)
        assert (again.changed, again.actions, again.diff) == (False, [], [])
    assert (tmp_path / "etc/secret/token").read_text() == token
    assert create(tmp_path / "other").changed
    assert (tmp_path / "other/etc/secret/token").read_text() != token


def test_create_says_what_it_does(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o750)
    (tmp_path / "state/metrics").mkdir(parents=True, mode=0o755)
    (tmp_path / "state/metrics").chmod(0o755)
    uid = os.geteuid()
    result = create(tmp_path, directories=[str(tmp_path / "state/metrics")])
    assert [(action["action"], action["target"], action["was"], action["is"]) for action in result.actions] == [
        ("create", str(tmp_path / "etc/secret"), "absent", f"mode 0755, user {uid}"),
        ("create", str(tmp_path / "etc/secret/token"), "absent", f"mode 0600, user {uid}"),
        ("set", str(tmp_path / "state/metrics"), f"mode 0755, user {uid}", f"mode 0700, user {uid}"),
    ]
    assert mode(tmp_path / "etc") == 0o750, "it may be somebody's home"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_create_for_the_user_of_the_backend(tmp_path: Path) -> None:
    uid = pwd.getpwnam("nobody").pw_uid
    assert create(tmp_path, owner="nobody").changed
    assert not create(tmp_path, owner="nobody").changed
    assert not create(tmp_path, owner=str(uid)).changed, "a user may be named by number"
    token = tmp_path / "etc/secret/token"
    assert [path.stat().st_uid for path in (token, tmp_path / "state/metrics")] == [uid, uid]
    assert ((tmp_path / "state").stat().st_uid, mode(tmp_path / "state")) == (0, 0o711)


def test_create_for_nobody_known(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="owner must be a user of this host, got 'no-such-user'. Name the user"):
        create(tmp_path, owner="no-such-user")
    with pytest.raises(OpsError, match="owner must be a user of this host, got '99999999999'"):
        create(tmp_path, owner="99999999999")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files to anybody")
def test_create_for_another_user_as_nobody_special(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="cannot be given to root: only root may do that"):
        create(tmp_path, owner="root")
    assert not (tmp_path / "etc/secret/token").exists()


def test_create_where_others_may_put_a_link(tmp_path: Path) -> None:
    (tmp_path / "etc/secret").mkdir(parents=True)
    (tmp_path / "etc/secret").chmod(0o777)
    with pytest.raises(OpsError, match="directory of wheels_ops_token_file"):
        create(tmp_path)
    assert list((tmp_path / "etc/secret").iterdir()) == []


def test_create_keeps_a_token_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "etc/secret").mkdir(parents=True)
    (tmp_path / "etc/secret/token").symlink_to("/nowhere")
    create(tmp_path)
    assert (tmp_path / "etc/secret/token").is_symlink()


def test_create_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/metrics").touch()
    with pytest.raises(OpsError, match=r"state/metrics must be a directory\. Move away what is there"):
        create(tmp_path)


def test_create_wants_whole_paths(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="token_file must be an absolute path"):
        create(tmp_path, token_file="token")
