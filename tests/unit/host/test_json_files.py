# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON in files: made with their directories, replaced as a whole."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from wheels_ops.host.json_files import write_json


def test_write_json_makes_directories_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a/b/state.json"
    value = {"z": 1, "a": ["ü", None, 1.5]}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text().index('"a"') < path.read_text().index('"z"'), "two writers of the same give the same bytes"
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


def test_write_json_replaces_the_file_and_does_not_write_into_it(tmp_path: Path) -> None:
    """Whoever has it open reads the old content to its end."""
    path = tmp_path / "state.json"
    write_json(path, {"number": 1})
    with open(path) as file:
        write_json(path, {"number": 2})
        assert json.load(file) == {"number": 1}
    assert json.loads(path.read_text()) == {"number": 2}


def test_write_json_writes_what_json_lacks_as_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"at": datetime.date(2026, 1, 2), "path": Path("/a")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"at": "2026-01-02", "path": "/a"}


def test_write_json_into_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError):
        write_json(tmp_path / "file/state.json", {})
    assert (tmp_path / "file").read_text() == "kept"
