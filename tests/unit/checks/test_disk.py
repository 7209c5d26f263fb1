# SPDX-License-Identifier: GPL-3.0-or-later
"""How full filesystems, directories with a budget and logs are, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import types
import typing as t
from pathlib import Path

import pytest

from wheels_ops.checks import disk
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import Thresholds

LIMITS = Thresholds(70, 90)


def _filesystem(monkeypatch: pytest.MonkeyPatch, **uses: t.Tuple[float, float]) -> None:
    """Filesystems of 1000 blocks and 1000 inodes, of which these percents are in use."""

    def statvfs(path: str) -> t.Any:
        blocks, inodes = uses[path]
        free = 1000 - int(10 * blocks)
        return types.SimpleNamespace(
            f_blocks=1000,
            f_bfree=free,
            f_bavail=free,
            f_frsize=4096,
            f_files=1000,
            f_ffree=1000 - int(10 * inodes),
        )

    monkeypatch.setattr(disk.os, "statvfs", statvfs)


def _on_disk(*paths: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in paths)


def _check(*args: t.Any, **options: t.Any) -> Check:
    return disk.check(*args, **{"thresholds": LIMITS, **options})


def test_a_filesystem_as_df_shows_it(tmp_path: Path) -> None:
    use = disk.filesystem(str(tmp_path))
    words = subprocess.run(
        ["df", "--output=size,used,avail,pcent,ipcent", "--block-size=1", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    _size, used, available, percent, inodes = words.stdout.splitlines()[1].split()
    # Others write meanwhile: a hundredth of the filesystem at most.
    assert abs(use["used_bytes"] - int(used)) <= 0.01 * (int(used) + int(available))
    assert abs(use["available_bytes"] - int(available)) <= 0.01 * (int(used) + int(available))
    assert -1.5 <= use["percent"] - int(percent.rstrip("%")) <= 1
    if inodes != "-":
        assert -1.5 <= use["inodes_percent"] - int(inodes.rstrip("%")) <= 1


def test_what_is_kept_for_root_is_neither_used_nor_available(monkeypatch: pytest.MonkeyPatch) -> None:
    use = types.SimpleNamespace(f_blocks=1000, f_bfree=250, f_bavail=50, f_frsize=4096, f_files=400, f_ffree=300)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: use)
    assert disk.filesystem("/x") == {
        "percent": 93.75,
        "inodes_percent": 25.0,
        "used_bytes": 750 * 4096,
        "available_bytes": 50 * 4096,
    }


def test_a_filesystem_without_inodes_or_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Btrfs counts no inodes; /proc has no blocks."""
    use = types.SimpleNamespace(f_blocks=0, f_bfree=0, f_bavail=0, f_frsize=4096, f_files=0, f_ffree=0)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: use)
    assert disk.filesystem("/x") == {"percent": 0, "inodes_percent": 0, "used_bytes": 0, "available_bytes": 0}


def test_a_filesystem_of_one_byte_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    use = types.SimpleNamespace(f_blocks=1, f_bfree=0, f_bavail=0, f_frsize=1, f_files=1, f_ffree=0)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: use)
    assert disk.filesystem("/x") == {"percent": 100, "inodes_percent": 100, "used_bytes": 1, "available_bytes": 0}


def test_what_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    with pytest.raises(OpsError, match=f"filesystem of {absent}: No such file"):
        disk.filesystem(absent)
    with pytest.raises(OpsError, match=f"look at {absent}: No such file"):
        disk.directory_bytes(absent)


def test_a_directory_counts_every_file_below_it_once(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "one/two").mkdir(parents=True)
    (place / "other").mkdir()
    files = [place / "a", place / "one/b", place / "one/two/c", place / "other/d"]
    for size, path in enumerate(files, start=1):
        path.write_bytes(b"x" * 10_000 * size)
    with (place / "sparse").open("wb") as file:
        file.truncate(10**9)
    os.link(files[0], place / "other/the same")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * 500_000)
    (place / "link").symlink_to(outside)
    (place / "link to a file").symlink_to(outside / "large")
    links = [place / "link", place / "link to a file"]
    assert disk.directory_bytes(str(place)) == _on_disk(*files, *links)
    # du counts the directories' own blocks besides.
    words = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(place)],
        capture_output=True,
        text=True,
        check=True,
    )
    directories = [place, place / "one", place / "one/two", place / "other"]
    assert disk.directory_bytes(str(place)) == int(words.stdout.split()[0]) - _on_disk(*directories)


def test_a_directory_ends_at_its_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted/theirs").write_bytes(b"x" * 50_000)
    (tmp_path / "ours").write_bytes(b"x" * 20_000)
    monkeypatch.setattr(disk.os, "lstat", lambda path: types.SimpleNamespace(st_dev=-1))
    assert disk.directory_bytes(str(tmp_path)) == _on_disk(tmp_path / "ours")


def test_what_vanishes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 20_000)
    (tmp_path / "file").write_bytes(b"x" * 20_000)
    real = os.scandir

    class Vanished:
        def stat(self, **_: t.Any) -> os.stat_result:
            raise FileNotFoundError

    def scandir(path: str) -> t.List[t.Any]:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return [Vanished(), *real(path)]

    monkeypatch.setattr(disk.os, "scandir", scandir)
    assert disk.directory_bytes(str(tmp_path)) == _on_disk(tmp_path / "file", tmp_path / "open/file")


def test_large_logs_are_regular_files_with_so_many_bytes_on_disk(tmp_path: Path) -> None:
    for name, size in (("large.log", 40_961), ("limit.log", 40_960), ("other.txt", 90_000), ("more.out", 80_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    with (tmp_path / "sparse.log").open("wb") as file:
        file.truncate(10**9)
    (tmp_path / "link.log").symlink_to(tmp_path / "other.txt")
    (tmp_path / "directory.log").mkdir()
    with (tmp_path / "holes.log").open("wb") as file:
        file.truncate(10**9)
        file.write(b"x" * 100_000)
    patterns = [str(tmp_path / "*.log"), str(tmp_path / "*.out"), str(tmp_path / "no*")]
    sizes = {"large.log": 40_961, "more.out": 80_000, "holes.log": _on_disk(tmp_path / "holes.log")}
    assert disk.large_logs(patterns, 40_960) == {str(tmp_path / name): size for name, size in sizes.items()}
    assert sizes["holes.log"] < 10**8
    assert disk.large_logs([str(tmp_path / "directory.log")], 10) == {}


def test_a_large_log_that_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.log", "2.log"):
        (tmp_path / name).write_bytes(b"x" * 9000)
    names = [str(tmp_path / name) for name in ("1.log", "gone.log", "2.log")]
    monkeypatch.setattr(disk.glob, "glob", lambda pattern: names)
    assert sorted(disk.large_logs(["x"], 5000)) == [str(tmp_path / "1.log"), str(tmp_path / "2.log")]


def test_a_log_is_large_from_50_mb_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"at.log": 50_000_000, "over.log": 50_000_001}
    monkeypatch.setattr(disk.glob, "glob", lambda pattern: list(sizes))
    monkeypatch.setattr(
        disk.os,
        "lstat",
        lambda path: types.SimpleNamespace(st_size=sizes[path], st_blocks=10**6, st_mode=0o100644),
    )
    assert disk.large_logs(["x"]) == {"over.log": 50_000_001}
    check = _check([], logs=["x"])
    assert (check.status, check.message) == ("warning", "no filesystem was asked for; 1 log over 50 MB: over.log.")


@pytest.mark.parametrize(
    ("blocks", "inodes", "status", "remedy", "value"),
    [
        (70, 10, "ok", "", 70.0),
        (70.1, 10, "warning", "disk_cleanup", 70.1),
        (10, 70.1, "warning", "disk_cleanup", 70.1),
        (90, 90, "warning", "disk_cleanup", 90.0),
        (90.1, 0, "critical", "disk_cleanup", 90.1),
        (0, 90.1, "critical", "disk_cleanup", 90.1),
    ],
)
def test_a_filesystem_is_graded_by_blocks_and_inodes(
    monkeypatch: pytest.MonkeyPatch,
    blocks: float,
    inodes: float,
    status: str,
    remedy: str,
    value: float,
) -> None:
    _filesystem(monkeypatch, home=(blocks, inodes))
    check = _check(["home"])
    assert (check.name, check.status, check.remedy, check.value, check.unit) == ("disk", status, remedy, value, "%")
    words = "has used" if inodes > blocks else "is"
    assert check.message.startswith(f"home {words} {value:.1f} % ")
    assert ("of its inodes" in check.message) is (inodes > blocks)
    assert check.thresholds == LIMITS.as_dict()
    assert check.details["filesystems"]["home"]["percent"] == pytest.approx(blocks)
    assert check.details["filesystems"]["home"]["inodes_percent"] == pytest.approx(inodes)
    assert (check.details["budgets"], check.details["large_logs"]) == ({}, {})


def test_the_fullest_is_named_and_the_worst_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    _filesystem(monkeypatch, root=(20, 5), home=(95, 5), data=(75, 5))
    for order in (["root", "home", "data"], ["home", "data", "root"]):
        check = _check(order)
        assert (check.status, check.value, check.message) == ("critical", 95.0, "home is 95.0 % full.")
    assert _check(["data", "root"]).status == "warning"
    assert set(check.details["filesystems"]) == {"root", "home", "data"}


def test_the_limits_of_the_incident_report_where_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    _filesystem(monkeypatch, a=(75, 0), b=(76, 0), c=(86, 0))
    assert [disk.check([name]).status for name in "abc"] == ["ok", "warning", "critical"]
    assert disk.check(["a"]).thresholds == {"warning": 75, "critical": 85, "emergency": None}


def test_directories_share_a_budget(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 40_960)
    used = _on_disk(tmp_path / "a/file", tmp_path / "b/file")
    key = f"{tmp_path / 'a'}:{tmp_path / 'b'}"
    check = _check([], budgets={key: used * 2})
    assert (check.status, check.value, check.message) == ("ok", 50.0, f"{key} is 50.0 % full.")
    assert check.details["budgets"] == {key: {"percent": 50.0, "used_bytes": used, "budget_bytes": used * 2}}
    check = _check([], budgets={key: used, str(tmp_path / "a"): used})
    assert (check.status, check.remedy, check.value) == ("critical", "disk_cleanup", 100.0)
    check = _check([], budgets={key: int(used / 0.12345)})
    assert (check.details["budgets"][key]["percent"], check.value) == (12.3, 12.3)


def test_a_large_log_is_a_warning_that_rotation_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filesystem(monkeypatch, root=(20, 5), full=(95, 5))
    for name in ("b.log", "a.log"):
        (tmp_path / name).write_bytes(b"x" * 2_000_000)
    logs = [str(tmp_path / "*.log")]
    check = _check(["root"], logs=logs, log_max_bytes=1_000_000)
    assert (check.status, check.remedy, check.value) == ("warning", "log_rotate", 20.0)
    assert check.message == f"root is 20.0 % full; 2 logs over 1 MB: {tmp_path}/a.log, {tmp_path}/b.log."
    assert check.details["large_logs"] == {f"{tmp_path}/{name}": 2_000_000 for name in ("a.log", "b.log")}
    assert _check(["full"], logs=logs, log_max_bytes=1_000_000).status == "critical"
    fine = _check(["root"], logs=logs, log_max_bytes=3_000_000)
    assert (fine.status, fine.remedy, fine.message) == ("ok", "", "root is 20.0 % full.")


def test_logs_alone_have_no_percentage(tmp_path: Path) -> None:
    check = _check([], logs=[str(tmp_path / "*.log")])
    assert (check.status, check.value, check.message) == ("ok", None, "no filesystem was asked for.")


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(OpsError, match="no disk to measure"):
        _check([])


@pytest.mark.parametrize(
    ("inodes", "status", "remedy"), [(99.5, "critical", "disk_cleanup"), (60.0, "warning", "log_rotate")]
)
def test_inodes_are_called_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inodes: float, status: str, remedy: str
) -> None:
    """df shows room then, and a rotation gives back none of them."""
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * 8192)
    _filesystem(monkeypatch, data=(20, inodes))
    check = _check(["data"], logs=[str(log)], log_max_bytes=100)
    assert (check.status, check.remedy) == (status, remedy)
    assert f"data has used {inodes:.1f} % of its inodes (20.0 % of its bytes)" in check.message
    assert " full" not in check.message
    assert ("delete many small files" in check.message) is (status == "critical")
