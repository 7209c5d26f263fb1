# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests of the backend: nothing in a directory that somebody else owns is trusted."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.state.requests import MAX_BYTES, MAX_TEXT, handle

GOOD = {
    "id": "other",
    "time": "2026-11-27T03:00:00Z",
    "kind": "recover",
    "reason": "asked for",
    "requested_by": "token 12",
    "service": "pam-backend",
    "pid": 7,
}


def ids(entries: t.Iterable[t.Mapping[str, str]]) -> t.List[str]:
    return [entry["id"] for entry in entries]


def test_reads_what_is_pending_and_takes_away_only_what_is_done(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(GOOD))
    found = handle(tmp_path)
    assert not found.changed and ids(found.extra["requests"]) == ["a", "b"]
    assert set(found.extra["requests"][0]) == {"id", "time", "kind", "reason", "requested_by", "service"}
    predicted = handle(tmp_path, ["a"], check_mode=True)
    assert (tmp_path / "a.json").exists()
    taken = handle(tmp_path, ["a"])
    assert predicted == taken and taken.changed and (taken.before, taken.after) == ({"pending": 2}, {"pending": 1})
    assert not (tmp_path / "a.json").exists() and (tmp_path / "b.json").exists()
    assert not handle(tmp_path, ["a"]).changed, "a second time there is nothing to take"


def test_without_the_directory_nothing_is_asked_for(tmp_path: Path) -> None:
    assert handle(tmp_path / "absent").extra == {"requests": [], "refused": []}


def test_what_is_no_request_is_refused_and_can_be_taken_away(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({**GOOD, "reason": "a secret of the host"}))
    directory = tmp_path / "requests"
    directory.mkdir()
    (directory / "link.json").symlink_to(secret)
    (directory / "large.json").write_text(" " * (MAX_BYTES + 1))
    (directory / "list.json").write_text("[]")
    (directory / "kind.json").write_text(json.dumps({**GOOD, "kind": "rm -rf"}))
    (directory / "deep.json").write_text("[" * 50_000)
    (directory / "binary.json").write_bytes(b"\xff\xfe")
    os.mkfifo(directory / "pipe.json")
    (directory / ".hidden.tmp").write_text("half")
    found = handle(directory)
    assert found.extra["requests"] == []
    refused = ids(found.extra["refused"])
    assert refused == ["binary", "deep", "kind", "large", "link", "list", "pipe"]
    assert "secret" not in str(found.extra["refused"])
    handle(directory, refused)
    assert os.listdir(directory) == [".hidden.tmp"] and secret.exists()


def test_texts_are_cut_and_of_known_keys(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**GOOD, "reason": "x" * 5000, "requested_by": {"deep": 1}}))
    entry = handle(tmp_path).extra["requests"][0]
    assert len(entry["reason"]) == MAX_TEXT and isinstance(entry["requested_by"], str)


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".hidden", "a" * 101, "a.json"])
def test_an_id_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError, match="no id of a request"):
        handle(tmp_path, [name])


def test_a_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OpsError, match="Cannot read"):
        handle(tmp_path / "link")


def test_traps_in_the_directory_are_refused_at_once_and_show_nothing(tmp_path: Path) -> None:
    """What the backend's user can put there: a pipe, a device, links to files that he cannot read, letters that steer a
    terminal.
    """
    directory = tmp_path / "requests"
    directory.mkdir()
    secret = tmp_path / "of-root.json"
    secret.write_text('{"kind": "recover", "reason": "what only root may read"}')
    os.mkfifo(directory / "a-pipe.json")
    (directory / "b-link.json").symlink_to(secret)
    os.link(secret, directory / "c-hard.json")
    (directory / "d-zero.json").symlink_to("/dev/zero")
    (directory / "e-large.json").write_text('{"kind": "recover", "reason": "' + "x" * 100_000 + '"}')
    (directory / "f-deep.json").write_text("[" * 60_000)
    request = {"kind": "alert", "reason": "\x1b]0;x\x07 from redis://:s3cr3t-word@h:1/0\n# forged"}
    (directory / "g-steers.json").write_text(json.dumps(request))
    result = handle(directory)
    assert [entry["id"] for entry in result.extra["refused"]] == [
        "a-pipe",
        "b-link",
        "c-hard",
        "d-zero",
        "e-large",
        "f-deep",
    ]
    assert [entry["id"] for entry in result.extra["requests"]] == ["g-steers"]
    shown = json.dumps(result.as_dict())
    assert "what only root may read" not in shown
    assert "s3cr3t-word" not in shown
    assert result.extra["requests"][0]["reason"].isprintable()
    # Taken away like any other, what a link leads to is not.
    handle(directory, [entry["id"] for entry in result.extra["refused"]])
    assert sorted(path.name for path in directory.iterdir()) == ["g-steers.json"]
    assert secret.exists()
