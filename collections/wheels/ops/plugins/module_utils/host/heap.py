# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a process' memory is made of, read from /proc/PID/smaps and a few words of /proc/PID/mem, without stopping it:
is a trim worth it?
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import typing as t
from dataclasses import dataclass

#: glibc aligns the heap of every further arena to this (HEAP_MAX_SIZE).
ARENA = 64 * 1024 * 1024
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")
#: These give memory back by themselves, or in another way: malloc_trim does nothing to them.
_ALLOCATORS = ("jemalloc", "mimalloc", "tcmalloc", "ld-musl")


@dataclass(frozen=True)
class Heap:
    """Bytes. ``trim_bound``: malloc_trim can give back no more than this, and gave 91 to 96 % of it where the heap was
    waste. ``other_anonymous``: pymalloc's small objects and large blocks, which only recycling the process gives back.
    """

    rss: int
    trim_bound: int
    other_anonymous: int
    swap: int
    allocator: str


@dataclass
class _Mapping:
    start: int
    end: int
    access: str
    inode: int
    path: str
    rss: int = 0
    anonymous: int = 0
    swap: int = 0


def mappings(pid: t.Union[int, str], proc: str = "/proc") -> t.List[_Mapping]:
    """Raises ``OSError`` where the process is gone or not ours to look into."""
    result: t.List[_Mapping] = []
    fields = {"Rss": "rss", "Anonymous": "anonymous", "Swap": "swap"}
    with open(f"{proc}/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            header = _HEADER.match(line)
            if header:
                result.append(_Mapping(int(header[1], 16), int(header[2], 16), header[3], int(header[4]), header[5]))
                continue
            name, _colon, rest = line.partition(":")
            if name in fields and result:
                setattr(result[-1], fields[name], int(rest.split()[0]) * 1024)
    return result


@contextlib.contextmanager
def _memory(pid: t.Union[int, str], proc: str) -> t.Iterator[t.Optional[int]]:
    """A descriptor of the process' memory; None where the kernel wants more for it than for smaps (Yama's
    ptrace_scope).
    """
    try:
        descriptor = os.open(f"{proc}/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


#: The head of glibc's struct heap_info (malloc/arena.c): its arena, the heap before it, its size, how much of it was
#: ever made usable.
_HEAP_INFO = struct.Struct("@PPNN")


def _heap_sizes(memory: int, addresses: t.Iterable[int]) -> t.List[int]:
    """Bytes of the glibc heaps that begin at ``addresses``, as their heads say.

    Raises ``OSError`` where the memory may not be read.
    """
    sizes = []
    for address in addresses:
        arena, _before, size, usable = _HEAP_INFO.unpack(os.pread(memory, _HEAP_INFO.size, address))
        # An arena lies right behind the head of its first heap. pymalloc's arenas hold objects there.
        if 0 < arena % ARENA <= 256 and 0 < size <= usable <= ARENA:
            sizes.append(size)
    return sizes


def _arena_bytes(mapping: _Mapping, following: t.Optional[_Mapping], memory: t.Optional[int]) -> int:
    """How much of an anonymous mapping may belong to arenas.

    A heap of an arena begins at a multiple of 64 MiB; its unused rest follows without any access. The kernel joins
    neighbours, so that a heap may begin inside a mapping. Where the process' ``memory`` may not be read, position is
    all there is to tell by: one mapping in 32 of pymalloc's, which the kernel lays at multiples of 2 MiB, looks the
    same.
    """
    first = -(-mapping.start // ARENA) * ARENA
    if first >= mapping.end:
        return 0
    if memory is not None:
        try:
            return min(mapping.anonymous, sum(_heap_sizes(memory, range(first, mapping.end, ARENA))))
        except (OSError, struct.error):  # it ended, or has just unmapped this
            pass
    guarded = (
        following is not None
        and following.start == mapping.end
        and following.access.startswith("---")
        and following.end % ARENA == 0
    )
    whole = (mapping.end - first) % ARENA == 0
    if mapping.start != first and not guarded and not whole:
        return 0
    return min(mapping.anonymous, mapping.end - first)


def look(pid: t.Union[int, str], proc: str = "/proc") -> Heap:
    """The memory of one process; takes 5 to 10 ms. Raises ``OSError`` where it may not be read."""
    every = mappings(pid, proc)
    allocator = next(
        (name for name in _ALLOCATORS for mapping in every if name in os.path.basename(mapping.path)), "glibc"
    )
    bound = other = 0
    with _memory(pid, proc) as memory:
        for index, mapping in enumerate(every):
            if mapping.path == "[heap]":
                bound += mapping.anonymous
            elif mapping.inode == 0 and not mapping.path.startswith("[stack") and mapping.access.startswith("rw"):
                arenas = _arena_bytes(mapping, every[index + 1] if index + 1 < len(every) else None, memory)
                bound += arenas
                other += mapping.anonymous - arenas
    return Heap(
        rss=sum(mapping.rss for mapping in every),
        trim_bound=bound if allocator == "glibc" else 0,
        other_anonymous=other,
        swap=sum(mapping.swap for mapping in every),
        allocator=allocator.replace("ld-", ""),
    )
