# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON of the state directory is read as it is, and what is damaged is named with the file and the reason."""

from __future__ import annotations

import datetime
import json
import os
import socket
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.state import documents

ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="root reads what has no mode")


def reason(path: Path) -> str:
    with pytest.raises(documents.Damaged) as caught:
        documents.load(path, hint="Do this.")
    assert isinstance(caught.value, OpsError) and caught.value.path == path
    assert (
        str(caught.value).startswith(f"{path} is damaged: {caught.value.reason}.") and caught.value.hint == "Do this."
    )
    return caught.value.reason


def test_an_object_is_given_and_no_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": [1, "\u00e4"]}\n', encoding="utf-8")
    assert documents.load(tmp_path / "a", hint="") == {"a": [1, "\u00e4"]}
    (tmp_path / "a").write_text("{}")
    assert documents.load(tmp_path / "a", hint="") == {}
    assert documents.load(tmp_path / "b", hint="") is None
    assert documents.load(tmp_path / "c/b", hint="") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is no JSON (Expecting value"),
        (b'{"a": ', "it is no JSON (Expecting value"),
        (b'{"a": "\xff"}', "it is no JSON (byte 7 is no UTF-8)"),
        (b"[" * 100_000, "it is no JSON (it is nested too deeply)"),
        (b"true", "it holds true or false where an object belongs"),
        (b"4711", "it holds a number where an object belongs"),
        (b"4.5", "it holds a number where an object belongs"),
        (b'"text"', "it holds a text where an object belongs"),
        (b"[1]", "it holds a list where an object belongs"),
        (b"null", "it holds null where an object belongs"),
    ],
)
def test_what_is_no_object_is_damaged(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(content)
    assert reason(tmp_path / "a").startswith(words)


def test_neither_links_nor_devices_nor_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    assert reason(tmp_path / "link").startswith("it cannot be read (")
    (tmp_path / "directory").mkdir()
    assert reason(tmp_path / "directory") == "it is no regular file"
    os.mkfifo(tmp_path / "pipe")
    assert reason(tmp_path / "pipe") == "it is no regular file"
    assert reason(tmp_path / "real/a") == f"{tmp_path / 'real'} is no directory"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert reason(tmp_path / "s").startswith("it cannot be read (")


@ordinary_user
def test_what_may_not_be_read_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}")
    (tmp_path / "a").chmod(0)
    with pytest.raises(OpsError, match=r"cannot be read: Permission denied. Run as root"):
        documents.load(tmp_path / "a", hint="")


def test_a_disk_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("{}")

    def broken(*_words: object, **_options: object) -> t.NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(documents, "open", broken, raising=False)
    assert reason(tmp_path / "a") == "it cannot be read (Input/output error)"


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert documents.MAX_BYTES == 64 * 1024 * 1024
    monkeypatch.setattr(documents, "MAX_BYTES", 20)
    (tmp_path / "a").write_text("{" + " " * 18 + "}")
    assert documents.load(tmp_path / "a", hint="") == {}
    (tmp_path / "a").write_text("{" + " " * 19 + "}")
    assert reason(tmp_path / "a") == "it has more than 20 bytes"


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("{}")
    (tmp_path / "bad").write_text("[]")
    (tmp_path / "directory").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    documents.load(tmp_path / "good", hint="")
    for name in ("bad", "directory"):
        reason(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "value"), [(b"[1]", [1]), ('"\u00e4"', "\u00e4"), ('"\u00e4"'.encode(), "\u00e4"), ("null", None)]
)
def test_bytes_and_texts_are_parsed(content: t.Union[bytes, str], value: t.Any) -> None:
    assert documents.parse(content) == value


@pytest.mark.parametrize("content", [b"\xff", "", "{", b"[" * 100_000, "[" * 100_000])
def test_parsing_raises_one_kind_of_error(content: t.Union[bytes, str]) -> None:
    with pytest.raises(ValueError):
        documents.parse(content)


def test_bad_lines_are_counted_and_passed_over() -> None:
    content = b'{"a": 1}\n\n[1]\n \t\n\xff\n{"b": 2}\nnull\n{"c"'
    assert documents.objects(content) == ([{"a": 1}, {"b": 2}], 4)
    assert documents.objects(b"") == documents.objects(b"\n\n") == ([], 0)
    assert documents.objects(b'{"a": 1}\n') == ([{"a": 1}], 0)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (False, "true or false"),
        (0, "a number"),
        (0.5, "a number"),
        ("", "a text"),
        ([], "a list"),
        ({}, "an object"),
        (None, "null"),
        (b"", "bytes"),
    ],
)
def test_values_have_a_name_for_people(value: t.Any, name: str) -> None:
    assert documents.kind(value) == name


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        (0, True),
        (1.5, True),
        (-999_999_999_999, True),
        (999_999_999_999, True),
        (10**12, False),
        (-(10**12), False),
        (10**400, False),
        (float("nan"), False),
        (float("inf"), False),
        (-float("inf"), False),
        (True, False),
        (False, False),
        ("1", False),
        (None, False),
    ],
)
def test_a_time_is_a_finite_number(value: t.Any, usable: bool) -> None:
    assert documents.number(value) is usable


def test_write_makes_directories_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a/b/state.json"
    value = {"z": 1, "a": ["ü", None, 1.5]}
    documents.write(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text().index('"a"') < path.read_text().index('"z"'), "two writers of the same give the same bytes"
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


def test_write_replaces_the_file_and_does_not_write_into_it(tmp_path: Path) -> None:
    """Whoever has it open reads the old content to its end."""
    path = tmp_path / "state.json"
    documents.write(path, {"number": 1})
    with open(path) as file:
        documents.write(path, {"number": 2})
        assert json.load(file) == {"number": 1}
    assert json.loads(path.read_text()) == {"number": 2}


def test_write_writes_what_json_lacks_as_text(tmp_path: Path) -> None:
    documents.write(tmp_path / "a.json", {"at": datetime.date(2026, 1, 2), "path": Path("/a")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"at": "2026-01-02", "path": "/a"}


def test_write_into_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError):
        documents.write(tmp_path / "file/state.json", {})
    assert (tmp_path / "file").read_text() == "kept"


def test_file_of_another_user_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without the rights must not be told to remove a lock that is whole."""
    path = tmp_path / "deploy.lock"
    path.write_text("{}")

    def refuse(*_words: object, **_options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(documents.os, "open", refuse)
    with pytest.raises(OpsError, match=r"deploy.lock cannot be read: Permission denied. Run as root") as caught:
        documents.load(path, hint="Remove the file.")
    assert not isinstance(caught.value, documents.Damaged)
