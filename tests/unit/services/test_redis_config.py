# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis's configuration file and its dumps."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.services import redis_config


def test_a_configuration_file_is_read_as_redis_reads_it(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("save 60 10000\nAPPENDONLY yes\n")
    (tmp_path / "last-a.conf").write_text("dbfilename a.rdb\n")
    (tmp_path / "last-b.conf").write_text('dbfilename "b c.rdb"\n')
    file = tmp_path / "redis.conf"
    file.write_text(
        f"# appendonly no\n\n  appendonly no\nsave 3600 1\nport 6379\ndir {tmp_path}\ninclude"
        f" {tmp_path}/more.conf\ninclude {tmp_path}/last-*.conf\n"
    )
    files: t.List[str] = []
    assert redis_config.read(str(file), files=files) == {
        "appendonly": "yes",
        "save": "3600 1 60 10000",
        "dir": str(tmp_path),
        "dbfilename": "b c.rdb",
    }
    assert [Path(name).name for name in files] == ["redis.conf", "more.conf", "last-a.conf", "last-b.conf"]
    file.write_text('save 3600 1\nsave ""\n')
    assert redis_config.read(str(file)) == {"save": ""}
    file.write_text('save ""\nsave 60 1\n')
    assert redis_config.read("/redis.conf", root=str(tmp_path)) == {"save": "60 1"}


def test_a_file_that_is_none_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        redis_config.read(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        redis_config.read(str(tmp_path / "pipe"))
    (tmp_path / "quote").write_text('dir "open\n')
    with pytest.raises(ValueError, match="quotation"):
        redis_config.read(str(tmp_path / "quote"))
    (tmp_path / "circle").write_text(f"include {tmp_path}/circle\nappendonly yes\n")
    assert redis_config.read(str(tmp_path / "circle"))["appendonly"] == "yes"


@pytest.mark.parametrize(
    ("now", "differences", "lost"),
    [
        ("no", {}, ""),
        ("no", {"appendonly": ("no", "yes")}, "turns appendonly on"),
        ("yes", {"appendonly": ("yes", "no")}, ""),
        ("no", {"dir": ("/a", "/b")}, "says dir /b, it runs with /a"),
        ("no", {"dbfilename": ("a", "b")}, "says dbfilename b"),
        ("no", {"appenddirname": ("a", "b")}, ""),
        ("yes", {"appenddirname": ("a", "b")}, "says appenddirname b"),
        ("no", {"save": ("60 1", "")}, ""),
    ],
)
def test_what_the_next_start_would_not_read(now: str, differences: t.Dict[str, t.Tuple[str, str]], lost: str) -> None:
    outlook = redis_config.Outlook({"appendonly": now}, differences)
    assert (lost in outlook.why_lost()) if lost else outlook.why_lost() == ""
    assert outlook.certain is (set(differences) <= {"save"})
    assert not redis_config.Outlook({"appendonly": now}, unknown="a reason").certain


def test_the_newest_dumps_stay(tmp_path: Path) -> None:
    dump = tmp_path / "dump.rdb"
    names = []
    for number in range(6):
        replacement = tmp_path / "temp"
        replacement.write_text(f"dump {number}")
        replacement.chmod(0o640)
        replacement.rename(dump)  # as Redis does
        names.append(redis_config.set_aside(str(tmp_path), "dump.rdb", now=1e9 + number))
        assert redis_config.set_aside(str(tmp_path), "dump.rdb", now=1e9 + number) == names[-1], (
            "again within the second"
        )
    copies = sorted(path for path in tmp_path.iterdir() if path != dump)
    assert [str(path) for path in copies] == names[-3:]
    assert [path.read_text() for path in copies] == ["dump 3", "dump 4", "dump 5"] and copies[
        0
    ].stat().st_mode & 0o777 == 0o640


def test_what_is_no_dump_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "dump.rdb").symlink_to(tmp_path / "secret")
    with pytest.raises(OpsError, match="no regular file"):
        redis_config.set_aside(str(tmp_path), "dump.rdb")
    with pytest.raises(OpsError, match="could not be set aside: No such file"):
        redis_config.set_aside(str(tmp_path), "other.rdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.rdb", "secret"]
