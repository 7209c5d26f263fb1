# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a few lines against the patched cache service in a process of the backend's interpreter."""

from __future__ import annotations

import json
import subprocess
import textwrap
import typing as t

from tests.support.backend_env import BACKEND_PYTHON
from tests.support.patched_tree import Tree

_PROGRAM = """\
import asyncio, contextlib, dataclasses, datetime as dt, decimal, enum, json, os, sys, time, uuid
from app.services import cache_service as module
from app.services.cache_service import CacheService, CacheUnavailableError, cache_service as cache, get_cache

async def main():
{body}

result = asyncio.run(main())
print(json.dumps(result, default=str))
"""


def program(body: str) -> str:
    """A program whose ``async def main()`` has this body; what it returns is printed as JSON."""
    return _PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    "))


def run(
    tree: Tree,
    redis_url: str,
    body: str,
    *words: str,
    timeout: float = 120.0,
    env: t.Optional[t.Mapping[str, str]] = None,
) -> t.Any:
    return tree.json(program(body), *words, timeout=timeout, env={"REDIS_URL": redis_url, **(env or {})})


class Talk:
    """A program that goes on while the test acts: it prints a JSON line, waits for a line, and so on."""

    def __init__(self, tree: Tree, redis_url: str, body: str, env: t.Optional[t.Mapping[str, str]] = None) -> None:
        head = """
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        def say(value): print(json.dumps(value, default=str), flush=True)
        async def heard(): return (await reader.readline()).decode().strip()
        """
        text = program(textwrap.dedent(head) + textwrap.dedent(body))
        self.process = subprocess.Popen(
            [str(BACKEND_PYTHON), "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=tree.environment({"REDIS_URL": redis_url, **(env or {})}),
            cwd=tree.directory,
        )

    def __enter__(self) -> Talk:
        return self

    def said(self) -> t.Any:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read()[-4000:])
        return json.loads(line)

    def say(self, word: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
