# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a journal says that its files lie; a damaged one leads nowhere else."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import files
from wheels_ops.state.leftovers import place_of, sweep, token_of

TOKEN = "0123abcd"


@pytest.mark.parametrize(
    ("name", "entry", "place"),
    [
        ("/etc/a.conf", {}, ("/etc/a.conf", "/")),
        ("/srv/app/core/a.py", {"root": "/srv/app", "relative": "core/a.py"}, ("/srv/app/core/a.py", "/srv/app")),
    ],
)
def test_place_of_gives_path_and_root(name: str, entry: t.Dict[str, t.Any], place: t.Tuple[str, str]) -> None:
    path, root = place_of(name, entry)
    assert (str(path), root) == place


@pytest.mark.parametrize(
    "entry", [{"root": 5}, {"relative": None}, {"root": "srv"}, {"root": "/srv", "relative": "/etc"}, {"relative": ""}]
)
def test_place_of_a_damaged_entry_is_refused_by_name(entry: t.Dict[str, t.Any]) -> None:
    with pytest.raises(OpsError, match="entry for /etc/a.conf is damaged"):
        place_of("/etc/a.conf", entry)


@pytest.mark.parametrize("token", [None, 5, "", "0123ABCD", "0123abc", "0123abcde", "../../xx", "0123abcd\n"])
def test_token_of_what_is_none_is_empty(token: t.Any) -> None:
    """It becomes a part of a file's name."""
    assert token_of({"token": token}) == ""
    assert token_of({"token": TOKEN}) == TOKEN and token_of({}) == ""


def test_sweep_removes_the_very_names_of_the_manifest(tmp_path: Path) -> None:
    """Check mode names the same and removes nothing; entries that cannot be understood keep nothing
    from being swept.
    """
    root = tmp_path / "backend"
    root.mkdir()
    mine = root / files.temporary_name("a.py", TOKEN)
    other = root / files.temporary_name("a.py", "ffffffff")
    for path in (mine, other):
        path.write_text("half")
    manifest = {
        "token": TOKEN,
        "files": {
            "broken": "no entry",
            "worse": {"root": 5},
            str(root / "a.py"): {"root": str(root), "relative": "a.py"},
        },
    }
    assert sweep(tmp_path / "state", [manifest], check_mode=True) == [str(mine)]
    assert mine.exists()
    assert sweep(tmp_path / "state", [{}, manifest]) == [str(mine)]
    assert (mine.exists(), other.exists()) == (False, True)
    assert sweep(tmp_path / "state", [manifest]) == []
