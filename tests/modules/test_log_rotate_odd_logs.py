# SPDX-License-Identifier: GPL-3.0-or-later
"""One odd log among others: it is refused in words that name what is in the way, the others are rotated, and nothing of
ours stays behind. And what a log has beside its content is kept.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support import filesystems, log_writer
from tests.support.module_run import run_module
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.remedies.logs import archive, logrotate, rotate

SIZE = 40_000
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, attributes, other users")
LINES = b"line of a log\n" * (SIZE // 10)


def make(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(LINES)


def refused(paths: t.Sequence[str], **options: t.Any) -> OpsError:
    """The error of a run, and before it the same one of check mode, which changes nothing."""
    chosen = rotate.Options(**{"max_size": SIZE, **options})
    directories = {os.path.dirname(path) for path in paths}
    before = {directory: sorted(os.listdir(directory)) for directory in directories}
    with pytest.raises(OpsError) as foreseen:
        rotate.run(paths, chosen, check_mode=True)
    assert {directory: sorted(os.listdir(directory)) for directory in directories} == before
    with pytest.raises(OpsError) as raised:
        rotate.run(paths, chosen)
    assert foreseen.value.details["refused"] == raised.value.details["refused"]
    return raised.value


def left(directory: Path) -> t.List[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


@ROOT
@pytest.mark.parametrize(("letter", "word"), [("a", "append-only"), ("i", "immutable")])
@pytest.mark.parametrize("strategy", ["auto", "logrotate", "copytruncate"])
def test_an_attribute_is_named_and_the_others_are_rotated(
    tmp_path: Path, letter: str, word: str, strategy: str
) -> None:
    make(tmp_path, "a.log", "b.log", "c.log")
    with filesystems.attribute(tmp_path / "b.log", letter):
        error = refused([f"{tmp_path}/*.log"], strategy=strategy, allow_loss=True, reopen=("true",))
    assert f"{tmp_path}/b.log has the attribute {word}" in error.message
    assert error.hint == f"Remove it with chattr -{letter} {tmp_path}/b.log."
    assert [(tmp_path / name).stat().st_size for name in ("a.log", "c.log")] == [0, 0]
    assert (tmp_path / "b.log").read_bytes() == LINES
    assert error.details["changed"] and error.details["rotated"] == 2
    assert not left(tmp_path)


@ROOT
def test_an_attribute_of_the_directory_is_named(tmp_path: Path) -> None:
    make(tmp_path / "kept", "a.log")
    make(tmp_path / "free", "a.log")
    with filesystems.attribute(tmp_path / "kept", "a"):
        error = refused([f"{tmp_path}/kept/a.log", f"{tmp_path}/free/a.log"])
        assert os.listdir(tmp_path / "kept") == ["a.log"]
    assert f"{tmp_path}/kept has the attribute append-only" in error.message
    assert (tmp_path / "free/a.log").stat().st_size == 0


@ROOT
def test_a_small_log_is_no_reason_to_fail(tmp_path: Path) -> None:
    make(tmp_path, "a.log")
    with filesystems.attribute(tmp_path / "a.log", "a"):
        assert not rotate.run([f"{tmp_path}/a.log"], rotate.Options()).changed


@ROOT
def test_a_read_only_mount_is_named(tmp_path: Path) -> None:
    make(tmp_path / "free", "a.log")
    with filesystems.mounted("ext4", tmp_path / "disk") as top:
        make(top, "a.log")
        with filesystems.read_only(top):
            error = refused([f"{top}/a.log", f"{tmp_path}/free/a.log"])
    assert f"{top}/a.log lies on a filesystem that is mounted read-only, at {top}." in error.message
    assert (tmp_path / "free/a.log").stat().st_size == 0


@ROOT
@pytest.mark.parametrize("how", ["append", "plain", "nobody"])
def test_a_full_disk_is_called_so(tmp_path: Path, how: str) -> None:
    with filesystems.mounted("ext4", tmp_path / "disk") as top:
        make(top, "a.log")
        with filesystems.full(top), open(os.devnull if how == "nobody" else top / "a.log", "ab") as file:
            # Another process has it open: what we have open ourselves is no writer.
            flags = os.O_WRONLY | (os.O_APPEND if how == "append" else 0)
            opened = os.open(file.name, flags)
            with subprocess.Popen(
                [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(opened,)
            ):
                os.close(opened)
                file.close()
                with pytest.raises(OpsError) as raised:
                    rotate.run([f"{top}/a.log"], rotate.Options(max_size=SIZE))
        assert f"mounted at {top}, is full" in raised.value.message
        assert "cannot take a range" not in raised.value.message
        assert (top / "a.log").read_bytes() == LINES and not left(top)


def test_a_rename_is_reported_although_the_compression_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.log", "b.log")
    write_part = archive.write_part

    def fails(directory: int, part: str, *args: t.Any, **more: t.Any) -> t.Optional[int]:
        if part.startswith("a.log"):
            raise OpsError("There is no room for the rotated part.")
        return write_part(directory, part, *args, **more)

    monkeypatch.setattr(archive, "write_part", fails)
    with pytest.raises(OpsError, match="no room for the rotated part") as raised:
        rotate.run([f"{tmp_path}/*.log"], rotate.Options(max_size=SIZE))
    details = raised.value.details
    assert details["changed"] and details["rotated"] == 2 and list(details["refused"]) == [f"{tmp_path}/a.log"]
    [part] = tmp_path.glob("a.log.*Z")
    assert details["actions"][0]["rotated_to"] == str(part) and part.read_bytes() == LINES
    monkeypatch.setattr(archive, "write_part", write_part)
    again = rotate.run([f"{tmp_path}/*.log"], rotate.Options(max_size=SIZE))
    assert [action["action"] for action in again.actions] == ["compress"]
    assert not part.exists() and gzip.decompress(Path(f"{part}.gz").read_bytes()) == LINES


def test_a_log_with_a_hole_at_its_head_is_punched_by_auto_although_its_writer_appends(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    hole = 64 * 4096
    with log.open("wb") as file:
        file.truncate(hole)
    start = log_writer.fill(tmp_path / "lines", 2_000_000)
    with log.open("ab") as file:
        file.write((tmp_path / "lines").read_bytes())
    options = rotate.Options(max_size=500_000, keep=100)
    with log_writer.writer(log, "append", start=start) as (_process, stop):
        foreseen = rotate.run([str(log)], options, check_mode=True)
        actions = rotate.run([str(log)], options).actions
        wait_until(lambda: rotate.disk_bytes(log.stat()) > 8192)
        with pytest.raises(OpsError, match="has holes"):
            rotate.run([str(log)], rotate.Options(max_size=4096, strategy="collapse"), check_mode=True)
        written = stop()
    assert [action["strategy"] for action in (*foreseen.actions, *actions)] == ["punch", "punch"]
    counts = log_writer.account(log_writer.read(tmp_path, log.name).replace(b"\0", b""), written)
    assert (counts["lost"], counts["doubled"], counts["torn"]) == (0, 0, 0)


def test_a_hole_that_was_punched_is_not_packed(tmp_path: Path) -> None:
    """A log of a terabyte, of which a megabyte is on the disk, whose writer has ended."""
    log = tmp_path / "a.log"
    with log.open("wb") as file:
        file.seek(2**40)
        file.write(LINES)
    [action] = rotate.run([str(log)], rotate.Options(max_size=SIZE)).actions
    assert gzip.decompress(Path(action["rotated_to"]).read_bytes()) == LINES


@ROOT
def test_a_log_that_is_a_mount_point_is_rotated_in_place(tmp_path: Path) -> None:
    make(tmp_path, "a.log", "outside")
    os.truncate(tmp_path / "a.log", 0)
    filesystems.run("mount", "--bind", str(tmp_path / "outside"), str(tmp_path / "a.log"))
    try:
        with pytest.raises(OpsError, match="is a mount point"):
            rotate.run([f"{tmp_path}/a.log"], rotate.Options(max_size=SIZE, strategy="rename"))
        [action] = rotate.run([f"{tmp_path}/a.log"], rotate.Options(max_size=SIZE)).actions
        assert action["strategy"] in ("collapse", "punch")
        assert rotate.disk_bytes((tmp_path / "outside").stat()) < SIZE and not left(tmp_path)
    finally:
        filesystems.run("umount", str(tmp_path / "a.log"))


@ROOT
def test_a_directory_whose_lock_is_held_refuses_its_logs_alone(tmp_path: Path) -> None:
    make(tmp_path / "held", "a.log")
    make(tmp_path / "free", "a.log")
    with subprocess.Popen(
        ["flock", str(tmp_path / "held"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as own:
        assert own.stdin is not None and own.stdout is not None
        own.stdin.write(b"ready\n")
        own.stdin.flush()
        assert own.stdout.readline()
        with pytest.raises(OpsError, match="Another run rotates logs in"):
            rotate.run([f"{tmp_path}/held/a.log", f"{tmp_path}/free/a.log"], rotate.Options(max_size=SIZE))
        own.stdin.close()
    assert (tmp_path / "free/a.log").stat().st_size == 0


@ROOT
def test_a_directory_of_a_user_without_a_name(tmp_path: Path) -> None:
    make(tmp_path / "logs", "a.log")
    log = tmp_path / "logs/a.log"
    start = log_writer.fill(log, SIZE)
    for path in (tmp_path / "logs", log):
        os.chown(path, 54_321, 54_321)
    with log_writer.writer(log, "reopen", start=start) as (process, stop):
        options = rotate.Options(max_size=SIZE // 2, strategy="logrotate", reopen=("kill", "-HUP", str(process.pid)))
        [action] = rotate.run([str(log)], options).actions
        written = stop()
    assert action["strategy"] == "logrotate" and log.stat().st_uid == 54_321
    assert log_writer.account(log_writer.read(log.parent, log.name), written)["lost"] == 0
    policies = tmp_path / "policies"
    policies.mkdir()
    policy = rotate.manage_policy(
        "present", "x", [str(log)], rotate.Options(reopen=("true",)), directory=str(policies)
    ).after["policy"]
    assert "    su " not in str(policy)
    filesystems.run("logrotate", "--force", "--state", str(tmp_path / "state"), str(policies / "x"))
    assert log.stat().st_size == 0


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.log")
    make(tmp_path, name, "plain.log")
    done = run_module("log_rotate", paths=[f"{tmp_path}/*.log"], max_size=str(SIZE))
    assert not done.get("failed") and done["changed"] and done["rotated"] == 2, done
    assert sorted(action["target"] for action in done["actions"]) == [
        f"{tmp_path}/caf\\xe9.log",
        f"{tmp_path}/plain.log",
    ]
    assert (tmp_path / name).stat().st_size == 0
    assert [entry["before_header"] for entry in done["diff"]][0] == f"{tmp_path}/caf\\xe9.log"
    (tmp_path / name).write_bytes(LINES)
    os.link(tmp_path / name, tmp_path / "other")
    failed = run_module("log_rotate", paths=[f"{tmp_path}/caf*.log"], max_size=str(SIZE))
    assert failed["msg"].startswith(f"{tmp_path}/caf\\xe9.log has 2 hard links.")


@pytest.mark.skipif(not logrotate.installed(), reason="this machine has no logrotate")
def test_a_policy_for_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    make(tmp_path / "logs", os.fsdecode(b"caf\xe9.log"))
    path = os.fsdecode(os.fsencode(tmp_path) + b"/logs/caf\xe9.log")
    options = rotate.Options(reopen=("true",))
    results = [
        rotate.manage_policy("present", "x", [path], options, directory=str(policies)).changed for _again in range(2)
    ]
    assert results == [True, False] and b"caf\xe9.log" in (policies / "x").read_bytes()
    filesystems.run("logrotate", "--force", "--state", str(tmp_path / "state"), str(policies / "x"))
    assert Path(path).stat().st_size == 0


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("how", "strategy"), [("", "rename"), ("append", "collapse"), ("plain", "punch"), ("reopen", "logrotate")]
)
def test_access_lists_and_attributes_are_kept(tmp_path: Path, how: str, strategy: str, compress: bool) -> None:
    log = tmp_path / "a.log"
    start = log_writer.fill(log, SIZE)
    log.chmod(0o640)
    try:
        filesystems.run("setfacl", "-m", "u:65534:r", str(log))
        os.setxattr(log, "user.shipper", b"offset\x00\xff")
        if os.geteuid() == 0:
            os.setxattr(log, "security.selinux", b"system_u:object_r:httpd_log_t:s0")
    except (AssertionError, OSError) as error:
        pytest.skip(f"the temporary directory takes no access lists or attributes: {error}")
    # A new file of this directory would have another list.
    filesystems.run("setfacl", "-d", "-m", "u:12345:rwx", str(tmp_path))

    def kept(path: Path) -> t.Tuple[t.Dict[str, bytes], int, int]:
        return (
            {name: os.getxattr(path, name) for name in os.listxattr(path)},
            path.stat().st_mode,
            path.stat().st_uid,
        )

    before = kept(log)
    assert len(before[0]) >= 2
    options: t.Dict[str, t.Any] = {"max_size": SIZE // 2, "strategy": strategy, "compress": compress}
    if how:
        with log_writer.writer(log, how, start=start) as (process, stop):
            reopen = ("kill", "-HUP", str(process.pid)) if how == "reopen" else ()
            actions = rotate.run([str(log)], rotate.Options(reopen=reopen, **options)).actions
            stop()
    else:
        actions = rotate.run([str(log)], rotate.Options(**options)).actions
    part = Path(actions[0]["rotated_to"])
    assert (kept(log), kept(part)) == (before, before)
    assert "user:65534:r--" in filesystems.run("getfacl", "-nc", str(log))
    assert json.dumps(actions)
