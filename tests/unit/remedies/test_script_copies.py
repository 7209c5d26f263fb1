# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.database.scripts import Script
from wheels_ops.remedies import script_copies

SCRIPTS = [Script("repair.sql", "select 1;\n", undo="select 2;\n"), Script("plain", "select 3;\n")]


def test_write_and_write_again(tmp_path: Path) -> None:
    directory = tmp_path / "state/sql"
    names = [str(directory / name) for name in ("repair.sql", "repair.undo.sql", "plain")]
    assert script_copies.write(str(directory), SCRIPTS, check_mode=True) == names
    assert not directory.exists()
    assert script_copies.write(str(directory), SCRIPTS) == names
    assert [Path(name).read_text() for name in names] == ["select 1;\n", "select 2;\n", "select 3;\n"]
    assert {stat.S_IMODE(Path(name).stat().st_mode) for name in names} == {0o644}
    assert script_copies.write(str(directory), SCRIPTS) == []
    Path(names[1]).write_text("select 4;\n")
    assert script_copies.write(str(directory), SCRIPTS) == names[1:2]
    assert Path(names[1]).read_text() == "select 2;\n"


def test_write_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="Cannot write .*/no/such/place.sql: No such file or directory"):
        script_copies.write(str(tmp_path), [Script("no/such/place.sql", "select 1;")])
