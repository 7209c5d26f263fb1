# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that wastes memory in a known shape, with an endpoint that gives back what gc.collect and malloc_trim can.

Run as a program: ``memory_shapes.py PORT SHAPE MEGABYTES``. Two in a hundred objects survive, scattered; of the shape
``live`` all do, and ``POST /grow`` adds 40 MB to them.
"""

from __future__ import annotations

import ctypes
import gc
import http.server
import json
import random
import sys
import threading
import typing as t

TOKEN = "token-of-the-shapes"

SHAPES: t.Tuple[str, ...] = ("small", "json", "documents", "medium", "threads", "cycles")
KEPT: t.List[t.Any] = []


class Node:
    """An object of a cycle."""

    def __init__(self, size: int) -> None:
        self.payload = bytearray(size)
        self.other: t.Any = self


def medium(size: int, seed: int = 1, together: t.Optional[threading.Barrier] = None) -> None:
    """With ``together``, every thread holds all of its memory before the first lets go: each has an arena of its own
    then.
    """
    chance = random.Random(seed)
    made, used = [], 0
    if together:
        together.wait()
    while used < size:
        block = bytearray(chance.randrange(600, 32_000))
        used += len(block)
        made.append(block)
    # The last pins the top of the arena: without it, glibc gives back by itself.
    KEPT.extend([*made[::50], *made[-1:]])
    if together:
        together.wait()


def waste(shape: str, size: int) -> None:
    """Fills ``size`` bytes and lets go of most."""
    if shape == "small":
        objects: t.List[t.Any] = [f"value-{number:024d}" for number in range(size // 88)]
        KEPT.extend(objects[::50])
    elif shape in ("json", "documents"):
        text = json.dumps({f"key{number}": [number, str(number), number / 7] for number in range(200)})
        documents = [json.loads(text) for _ in range(size // 52_000)]
        KEPT.extend(
            documents[::50]
            if shape == "documents"
            else [part for document in documents for part in list(document.values())[::50]]
        )
    elif shape == "live":
        KEPT.append(b"\1" * size)
    elif shape == "medium":
        medium(size)
    elif shape == "threads":
        together = threading.Barrier(8)
        threads = [threading.Thread(target=medium, args=(size // 8, number, together)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif shape == "cycles":
        gc.disable()
        for _ in range(size // 20_000):
            Node(19_500)
    else:
        raise SystemExit(f"no shape is called {shape}")


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body: t.Mapping[str, t.Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.path.startswith("/api/v1/system/") and self.headers.get("X-Ops-Token") != TOKEN:
            self.send_error(403)
            return
        self.answer({"status": "healthy", "rss": resident()})

    def do_POST(self) -> None:
        if self.headers.get("X-Ops-Token") != TOKEN:
            self.send_error(403)
            return
        before = resident()
        if self.path == "/grow":
            waste("live", 40_000_000)
            self.answer({"rss_before": before, "rss_after": resident()})
            return
        gc.collect()
        if self.path.startswith("/api/v1/system/memory/optimize"):
            ctypes.CDLL(None).malloc_trim(0)
        after = resident()
        self.answer(
            {
                "rss_before": before,
                "rss_after": after,
                "freed_bytes": before - after,
                "type": self.path.partition("?")[2],
            }
        )

    def log_message(self, format: str, *args: t.Any) -> None:  # noqa: A002 - the name that the base class has
        pass


if __name__ == "__main__":
    waste(sys.argv[2], int(sys.argv[3]) * 1_000_000)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
