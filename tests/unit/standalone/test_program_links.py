# SPDX-License-Identifier: GPL-3.0-or-later
"""The links of the programs in a directory that belongs to somebody else."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.standalone import program_links

LINKS = {"monitor.py": "/opt/ours/monitor.py", "scripts/recovery.py": "/opt/ours/scripts/recovery.py"}


def apply(directory: Path, state: str = "present", **further: t.Any) -> t.Tuple[t.List[str], t.List[str]]:
    actions, left_alone = program_links.run(
        LINKS, str(directory), state=state, check_mode=further.get("check_mode", False)
    )
    return [action["action"] for action in actions], left_alone


def test_links_are_predicted_made_kept_and_removed(tmp_path: Path) -> None:
    assert apply(tmp_path, check_mode=True) == (["link", "link"], [])
    assert not list(tmp_path.iterdir())
    assert apply(tmp_path) == (["link", "link"], [])
    assert {name: os.readlink(tmp_path / name) for name in LINKS} == LINKS
    assert apply(tmp_path) == ([], [])
    assert apply(tmp_path, "absent", check_mode=True) == (["unlink", "unlink"], [])
    assert apply(tmp_path, "absent") == (["unlink", "unlink"], [])
    assert not any(os.path.lexists(tmp_path / name) for name in LINKS)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "monitor.py").write_text("his own\n")
    actions, left_alone = apply(tmp_path)
    assert actions == ["link"] and len(left_alone) == 1 and "monitor.py is not ours and was left alone" in left_alone[0]
    assert apply(tmp_path, "absent")[0] == ["unlink"]
    assert (tmp_path / "monitor.py").read_text() == "his own\n"


def test_without_the_directory_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert apply(tmp_path / "nowhere") == ([], []) and not (tmp_path / "nowhere").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom the link leads astray")
@pytest.mark.parametrize("place", ["his", "his/above/backend", "his/scripts"])
def test_no_link_of_another_user_is_followed(tmp_path: Path, place: str) -> None:
    guarded, link = tmp_path / "guarded", tmp_path / place
    (guarded / "backend").mkdir(parents=True)
    link = link.parent if link.name == "backend" else link
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(guarded)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    directory = tmp_path / place if place != "his/scripts" else tmp_path / "his"
    with pytest.raises(OpsError, match="is a link that belongs to another user"):
        apply(directory)
    assert [path.name for path in guarded.rglob("*")] == ["backend"]
