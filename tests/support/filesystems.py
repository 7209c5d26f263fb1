# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems of their own for one test, on loop devices and in memory. Root only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

KINDS: t.Tuple[str, ...] = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
MIB = 2**20
#: The least that mkfs of each takes, in MiB.
_LEAST = {"ext4": 8, "xfs": 300, "btrfs": 120, "tmpfs": 1, "overlay": 8}
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}


def require(kind: str) -> None:
    """Skips the test where this kind cannot be made here."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    program = _MAKE.get("ext4" if kind == "overlay" else kind, ("mount",))[0]
    if not _tool(program):
        pytest.skip(f"{program} is not installed")


def _tool(name: str) -> str:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin") or ""


def run(*words: str) -> str:
    """What a program says; raises ``AssertionError`` with its words where it fails."""
    done = subprocess.run([_tool(words[0]) or words[0], *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def mounted(kind: str, place: Path, *, mib: int = 0) -> t.Iterator[Path]:
    """An empty filesystem of ``mib`` MiB, or the least of its kind, mounted in ``place``; gives its directory."""
    require(kind)
    size = max(mib, _LEAST[kind])
    top = place / kind
    top.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        if kind == "tmpfs":
            _mount(stack, "-t", "tmpfs", "-o", f"size={size}M,mode=755", "none", str(top))
        elif kind == "overlay":
            layers = place / "layers"
            layers.mkdir()
            _loop(stack, "ext4", place, layers, size)
            for name in ("lower", "upper", "work"):
                (layers / name).mkdir()
            options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
            _mount(stack, "-t", "overlay", "-o", options, "none", str(top))
        else:
            _loop(stack, kind, place, top, size)
        yield top


def _loop(stack: contextlib.ExitStack, kind: str, place: Path, top: Path, size: int) -> None:
    image = place / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(size * MIB)
    run(*_MAKE[kind], str(image))
    _mount(stack, "-o", "loop", str(image), str(top))


def _mount(stack: contextlib.ExitStack, *words: str) -> None:
    run("mount", *words)
    stack.callback(run, "umount", "--lazy", words[-1])


@contextlib.contextmanager
def read_only(top: Path) -> t.Iterator[None]:
    run("mount", "-o", "remount,ro", str(top))
    try:
        yield
    finally:
        run("mount", "-o", "remount,rw", str(top))


@contextlib.contextmanager
def read_only_view(directory: Path) -> t.Iterator[Path]:
    """The same directory, mounted read-only in another place: a filesystem that is written to stays as it is."""
    view = directory.with_name(f"{directory.name}-view")
    view.mkdir()
    run("mount", "--bind", str(directory), str(view))
    try:
        run("mount", "-o", "remount,bind,ro", str(view))
        yield view
    finally:
        run("umount", str(view))
        view.rmdir()


@contextlib.contextmanager
def attribute(path: Path, letter: str) -> t.Iterator[None]:
    """A file or directory with an attribute of chattr(1), which is taken away again."""
    done = subprocess.run([_tool("chattr") or "chattr", f"+{letter}", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr +{letter} is refused here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        run("chattr", f"-{letter}", str(path))


@contextlib.contextmanager
def full(top: Path, *, leave: int = 0) -> t.Iterator[None]:
    """A filesystem without room, but for ``leave`` bytes."""
    filler = top / ".filler"
    with filler.open("wb") as file:
        for size in (MIB, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), b"\1" * size)
        os.fsync(file.fileno())
        if leave:
            os.ftruncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - leave))
            os.fsync(file.fileno())
    try:
        yield
    finally:
        filler.unlink()
