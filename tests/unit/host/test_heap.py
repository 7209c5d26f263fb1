# SPDX-License-Identifier: GPL-3.0-or-later
"""The heap of a process, found in recorded memory maps."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from wheels_ops.host import heap

SMAPS = """\
55d0c1c00000-55d0d1c00000 rw-p 00000000 00:00 0                          [heap]
Rss:              262144 kB
Anonymous:        262144 kB
Swap:                  0 kB
7f3a00000000-7f3a02000000 rw-p 00000000 00:00 0
Rss:               30000 kB
Anonymous:         30000 kB
Swap:                  4 kB
7f3a02000000-7f3a04000000 ---p 00000000 00:00 0
Rss:                   0 kB
Anonymous:             0 kB
7f3a11000000-7f3a19000000 rw-p 00000000 00:00 0
Rss:              100000 kB
Anonymous:        100000 kB
Swap:                  0 kB
7f3a20000000-7f3a20100000 r-xp 00000000 fe:00 1234                       /usr/lib/x86_64-linux-gnu/libc.so.6
Rss:                1000 kB
Anonymous:             0 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                 100 kB
Anonymous:           100 kB
"""


def test_the_heap_is_told_from_small_objects(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "smaps").write_text(SMAPS)
    found = heap.look(5, proc=str(tmp_path))
    assert found.trim_bound == (262144 + 30000) * 1024  # the heap, and the arena with its guard
    assert found.other_anonymous == 100000 * 1024  # a mapping that merely is large
    assert found.swap == 4096 and found.allocator == "glibc"


@pytest.mark.parametrize(
    ("library", "name"),
    [("libjemalloc.so.2", "jemalloc"), ("libmimalloc.so.2.0", "mimalloc"), ("ld-musl-x86_64.so.1", "musl")],
)
def test_other_allocators_are_not_trimmed(tmp_path: Path, library: str, name: str) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "smaps").write_text(SMAPS.replace("libc.so.6", library))
    found = heap.look(5, proc=str(tmp_path))
    assert found.allocator == name and found.trim_bound == 0


def test_small_objects_that_end_where_a_heap_could_are_told_from_one_by_its_head(tmp_path: Path) -> None:
    """The kernel lays pymalloc's memory at multiples of 2 MiB: by its position alone, every 32nd such mapping looks
    like a heap.
    """
    (tmp_path / "5").mkdir()
    mappings = [
        ("04000000-04800000", 8192),
        ("09a00000-10000000", 90000),
        ("13f00000-18000000", 66000),
        ("18000000-1c000000", 0),
    ]
    access = {"18000000-1c000000": "---p"}
    text = "".join(
        f"{name} {access.get(name, 'rw-p')} 00000000 00:00 0\nRss: {size} kB\nAnonymous: {size} kB\n"
        for name, size in mappings
    )
    (tmp_path / "5" / "smaps").write_text(text)
    arena = 64 * 1024 * 1024
    with (tmp_path / "5" / "mem").open("wb") as memory:
        memory.truncate(0x20000000)
        for address, head in (
            (0x4000000, (0x4000030, 0, 8192 * 1024, 8192 * 1024)),
            (0x14000000, (0x4000030, 0x4000000, arena, arena)),
        ):
            memory.seek(address)
            memory.write(struct.pack("@PPNN", *head))
        memory.seek(0xC000000)
        memory.write(struct.pack("@PPNN", 7, 0xC0001A0, 0xC0021A0, 0xC0041A0))  # a pool of pymalloc's
    found = heap.look(5, proc=str(tmp_path))
    assert found.trim_bound == 8192 * 1024 + min(arena, 66000 * 1024)
    assert found.other_anonymous == 90000 * 1024 + 66000 * 1024 - arena
