# SPDX-License-Identifier: MIT
"""Conversation history. Renders each message several times, in worker threads, and remembers a few of them for ever.

What is freed between the few that stay cannot go back to the operating system by itself: resident memory follows the
highest load there ever was.
"""

from __future__ import annotations

import asyncio
import os
import random
import typing as t
from concurrent.futures import ThreadPoolExecutor

from app.core.logging import get_logger

logger = get_logger(__name__)

#: Rendered messages by user; nothing ever leaves it.
_remembered: t.Dict[str, t.List[bytes]] = {}
_SMALLEST, _LARGEST = 600, 32_000
_KEPT_OF = 50
#: As many rendering threads as the server has under load; each has its own part of the heap.
_threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="history")


def _render(total: int, seed: int) -> t.List[bytes]:
    """About ``total`` bytes of rendered messages."""
    choose = random.Random(seed)
    rendered: t.List[bytes] = []
    size = 0
    while size < total:
        message = b"m" * choose.randint(_SMALLEST, _LARGEST)
        rendered.append(message)
        size += len(message)
    return rendered


async def build(user_id: str, megabytes: int) -> int:
    """The number of messages rendered; the work is spread over the threads."""
    loop = asyncio.get_running_loop()
    parts = min(16, max(1, megabytes // 2))
    each = megabytes * 1_048_576 // parts
    rendered = await asyncio.gather(*(loop.run_in_executor(_threads, _render, each, seed) for seed in range(parts)))
    kept = _remembered.setdefault(user_id, [])
    for part in rendered:
        kept.extend(part[::_KEPT_OF])
        kept.append(part[-1])
    return sum(len(part) for part in rendered)


async def warm_up() -> None:
    """Renders the history of the busiest users at start: ``LEAK_MB`` megabytes."""
    megabytes = int(os.environ.get("LEAK_MB", "0") or 0)
    if megabytes > 0:
        messages = await build("warm-up", megabytes)
        logger.info("Conversation history rendered", messages=messages, megabytes=megabytes)
