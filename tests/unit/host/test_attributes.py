# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file has beside its content, and what keeps it from being changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support import filesystems
from wheels_ops.core.results import OpsError
from wheels_ops.host import attributes, files

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets a security label, an attribute or a mount")


def given(path: Path, **values: bytes) -> Path:
    path.write_text("x")
    for name, value in values.items():
        try:
            os.setxattr(path, f"user.{name}", value)
        except OSError as error:
            pytest.skip(f"the temporary directory takes no extended attributes: {error}")
    return path


def shown(path: Path) -> str:
    """Mode, owner, access list and attributes, as getfacl and getfattr show them."""
    return filesystems.run("stat", "-c", "%a %U %G", str(path)) + "".join(
        line
        for words in (("getfacl", "-nc"), ("getfattr", "-d", "-m", "-"))
        for line in filesystems.run(*words, str(path)).splitlines(keepends=True)
        if not line.startswith("# file")
    )


def test_what_replaces_a_file_has_its_access_list_and_attributes(tmp_path: Path) -> None:
    path = given(tmp_path / "report.html", shipper=b"\x00\xff", note=b"kept")
    path.chmod(0o640)
    filesystems.run("setfacl", "-m", "u:65534:rw", str(path))
    if os.geteuid() == 0:
        os.setxattr(path, "security.selinux", b"system_u:object_r:httpd_sys_content_t:s0")
    before = shown(path)
    files.write_atomically(path, b"new", mode=0o640)
    assert (path.read_text(), shown(path)) == ("new", before)
    # A mode without rights of the group would blind everybody in the list.
    files.write_atomically(path, b"newer", mode=0o600)
    assert "user:65534:rw-" in shown(path) and "effective" not in shown(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_file_without_a_list_gets_none_from_its_directory(tmp_path: Path) -> None:
    path = given(tmp_path / "plain", note=b"x")
    os.removexattr(path, "user.note")
    path.chmod(0o644)
    filesystems.run("setfacl", "-d", "-m", "u:65534:rwx", str(tmp_path))
    before = shown(path)
    files.write_atomically(path, b"new", mode=0o644)
    assert shown(path) == before
    files.write_atomically(tmp_path / "fresh", b"new", mode=0o644)
    assert "user:65534" in shown(tmp_path / "fresh"), "a new file has what its directory says"


@ROOT
def test_a_file_that_a_link_has_replaced_gets_nothing_of_what_the_link_leads_to(tmp_path: Path) -> None:
    given(tmp_path / "elsewhere", note=b"of somebody else")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    files.write_atomically(tmp_path / "link", b"new", mode=0o644)
    assert os.listxattr(tmp_path / "link") == [] and (tmp_path / "elsewhere").read_text() == "x"


def test_an_attribute_that_cannot_be_set_is_named_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = given(tmp_path / "file", note=b"kept")

    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(OpsError, match=r"The extended attribute user.note cannot be kept"):
        files.write_atomically(path, b"new", mode=0o644)
    assert path.read_text() == "x" and os.listdir(tmp_path) == ["file"]


def test_as_text_and_back() -> None:
    values = {"user.a": b"\x00\xff", "system.posix_acl_access": bytes(range(64))}
    assert attributes.from_text(attributes.as_text(values)) == values


@ROOT
def test_a_mount_with_a_space_in_its_name_is_named(tmp_path: Path) -> None:
    with filesystems.mounted("tmpfs", tmp_path / "a b\tc") as top:
        (top / "f").touch()
        descriptor = os.open(top / "f", os.O_RDONLY)
        try:
            assert attributes.mount_point(descriptor) == str(top)
            with pytest.raises(OpsError, match="is full") as raised:
                raise attributes.explanation("f", OSError(errno.ENOSPC, "x"), descriptor)
            assert str(top) in raised.value.message
        finally:
            os.close(descriptor)
