# SPDX-License-Identifier: MIT
"""The worker processes of one service: how many there are, what one tells the others, and what they count together.

Workers of ``uvicorn --workers`` and of gunicorn have one parent. They meet in a directory that is named after it, of
mode 0700 below the directory for temporary files: a datagram socket for each worker, and small files under ``flock``.
Nobody but the service's own user can write there. A process that has no such parent is alone; all of this is then
local to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import time
import typing as t
import zlib
from pathlib import Path

from app.core.logging import get_logger

logger = get_logger(__name__)

Handler = t.Callable[[t.Dict[str, t.Any]], t.Awaitable[t.Any]]
#: Seconds that an action may take in another worker, and for which an answer may be asked for again.
ACTION_SECONDS, ANSWER_SECONDS = 20.0, 600.0
MAX_MESSAGE, MAX_ANSWERS = 60_000, 64
#: Places in the file of the limits: those of routes, then those of callers, who share one by the checksum of their name.
ROUTE_PLACES, CALLER_PLACES = 64, 1024
_PLACE = struct.Struct("<dd")


def _started(pid: int) -> str:
    """When a process began, in ticks of the kernel: with it a number that was given anew is another process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as source:
            return source.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _parent() -> int:
    """The process that has us as one of its workers; 0 where there is none."""
    spawned = multiprocessing.parent_process()
    if spawned is not None:
        return spawned.pid or 0
    if "gunicorn" not in sys.modules:
        return 0
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as source:
            return os.getppid() if b"gunicorn" in source.read() else 0
    except OSError:
        return 0


class Group:
    """The workers of one parent, as one of them sees them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._socket: t.Optional[socket.socket] = None
        self._loop: t.Optional[asyncio.AbstractEventLoop] = None
        self._handlers: t.Dict[str, Handler] = {}
        self._waiting: t.Dict[str, asyncio.Future[t.Any]] = {}
        self._tasks: t.Set[asyncio.Task[None]] = set()

    # -- who ------------------------------------------------------------------------------------------------------

    def pids(self) -> t.List[int]:
        """The workers that live, this one among them."""
        return sorted({os.getpid(), *self._sockets()})

    def _sockets(self) -> t.Dict[int, Path]:
        """pid -> socket of each worker that lives; those of others are removed."""
        sockets = {}
        for path in self.directory.glob("*.sock"):
            pid, _ignored, started = path.stem.partition("-")
            if _started(int(pid)) == started:
                sockets[int(pid)] = path
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        return sockets

    def _own_path(self) -> Path:
        return self.directory / f"{os.getpid()}-{_started(os.getpid())}.sock"

    # -- what one tells the others --------------------------------------------------------------------------------

    async def open(self, handlers: t.Mapping[str, Handler]) -> None:
        """Begins to listen; ``handlers``: action -> what does it here."""
        self.close()
        self._handlers = dict(handlers)
        path = self._own_path()
        with contextlib.suppress(OSError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        own, self._socket = self._socket, None
        if own is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(own.fileno())
        own.close()
        with contextlib.suppress(OSError):
            self._own_path().unlink()

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                message = json.loads(self._socket.recv(MAX_MESSAGE + 1))
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, ValueError):
                continue
            if "answer" in message:
                future = self._waiting.pop(f"{message.get('id')} {message.get('worker')}", None)
                if future is not None and not future.done():
                    future.set_result(message["answer"])
            elif message.get("action") in self._handlers:
                task = asyncio.ensure_future(self._act(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _act(self, message: t.Mapping[str, t.Any]) -> None:
        try:
            answer = await self._handlers[message["action"]](dict(message.get("arguments") or {}))
        except Exception as error:  # another worker waits for an answer, whatever it is
            logger.error(f"🩺 {message['action']} for another worker failed: {type(error).__name__}: {error}")
            answer = {"error": type(error).__name__}
        self._send(int(message["worker"]), {"id": message["id"], "worker": os.getpid(), "answer": answer})

    def _send(self, pid: int, message: t.Mapping[str, t.Any]) -> bool:
        path = self._sockets().get(pid)
        if self._socket is None or path is None:
            return False
        try:
            self._socket.sendto(json.dumps(message, default=str).encode(), str(path))
        except OSError as error:
            logger.info(f"🩺 Worker {pid} is not told: {type(error).__name__}")
            return False
        return True

    async def tell(
        self, action: str, arguments: t.Optional[t.Mapping[str, t.Any]] = None, timeout: float = ACTION_SECONDS
    ) -> t.Dict[int, t.Any]:
        """Has every other worker do an action; pid -> its answer, ``{"error": ...}`` where none came in time."""
        identifier = secrets.token_hex(8)
        waiting: t.Dict[int, asyncio.Future[t.Any]] = {}
        answers: t.Dict[int, t.Any] = {}
        for pid in self.pids():
            if pid == os.getpid():
                continue
            future: asyncio.Future[t.Any] = asyncio.get_running_loop().create_future()
            self._waiting[f"{identifier} {pid}"] = future
            message = {"id": identifier, "worker": os.getpid(), "action": action, "arguments": dict(arguments or {})}
            if self._send(pid, message):
                waiting[pid] = future
            else:
                answers[pid] = {"error": "not reached"}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=timeout)
        for pid, future in waiting.items():
            self._waiting.pop(f"{identifier} {pid}", None)
            answers[pid] = future.result() if future.done() else {"error": f"no answer within {timeout:g} s"}
        return answers

    # -- what they count together ---------------------------------------------------------------------------------

    def take(self, place: int, burst: float, seconds: float) -> float:
        """A token of a bucket that all workers share: 0 where there was one, else the seconds to wait."""
        with self._locked("limits") as descriptor:
            now = time.monotonic()  # one clock for all processes of this machine
            kept = os.pread(descriptor, _PLACE.size, place * _PLACE.size)
            used, filled = _PLACE.unpack(kept) if len(kept) == _PLACE.size else (0.0, now)
            used = max(0.0, used - max(0.0, now - filled) / seconds)
            wait = 0.0 if used + 1 <= burst else (used + 1 - burst) * seconds
            os.pwrite(descriptor, _PLACE.pack(used + (not wait), now), place * _PLACE.size)
        return wait

    @contextlib.contextmanager
    def _locked(self, name: str) -> t.Iterator[int]:
        descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for some microseconds
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.asynccontextmanager
    async def answer_of(self, key: str) -> t.AsyncIterator[AnswerFile]:
        """The answer that was given to a request with this key; only one worker at a time has it."""
        path = self.directory / f"answer-{key}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # another worker is still at it
                    await asyncio.sleep(0.02)
            yield AnswerFile(descriptor)
        finally:
            os.close(descriptor)
            self._forget_answers()

    def _forget_answers(self) -> None:
        paths = []
        for path in self.directory.glob("answer-*"):
            with contextlib.suppress(OSError):
                paths.append((path.stat().st_mtime, path))
        for _ignored, path in sorted(paths)[:-MAX_ANSWERS]:
            with contextlib.suppress(OSError):
                path.unlink()


class AnswerFile:
    """(status, headers, body) of an answer, for so long as it may be asked for again."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> t.Optional[t.Tuple[int, t.Dict[str, str], bytes]]:
        try:
            kept = json.loads(os.pread(self._descriptor, 1 << 22, 0))
        except ValueError:  # empty, or cut off
            return None
        if not 0 <= time.monotonic() - kept["at"] < ANSWER_SECONDS:
            return None
        return kept["status"], kept["headers"], base64.b64decode(kept["body"])

    def write(self, status: int, headers: t.Mapping[str, str], body: bytes) -> None:
        kept = {"at": time.monotonic(), "status": status, "headers": dict(headers)}
        kept["body"] = base64.b64encode(body).decode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(kept).encode(), 0)


def place_of(caller: str) -> int:
    """The place of a caller in the file of the limits."""
    return ROUTE_PLACES + zlib.crc32(caller.encode("utf-8", "replace")) % CALLER_PLACES


_groups: t.Dict[int, t.Optional[Group]] = {}


def group() -> t.Optional[Group]:
    """The group that this process belongs to; None where it is alone, or where its directory cannot be made."""
    pid = os.getpid()
    if pid not in _groups:
        _groups.clear()  # those of before a fork are not ours
        _groups[pid] = _join()
    return _groups[pid]


def _join() -> t.Optional[Group]:
    parent = _parent()
    if not parent:
        return None
    base = Path(tempfile.gettempdir())
    directory = base / f"wheels-ops-{os.geteuid()}-{parent}-{_started(parent)}"
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        facts = directory.lstat()
        if directory.is_symlink() or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise PermissionError("it belongs to somebody else")
        _forget_ended_services(base, directory)
    except OSError as error:
        logger.error(f"🩺 The workers of this service do not see each other: {directory}: {error}")
        return None
    return Group(directory)


def _forget_ended_services(base: Path, own: Path) -> None:
    for path in base.glob(f"wheels-ops-{os.geteuid()}-*"):
        words = path.name.split("-")
        ended = len(words) == 5 and words[3].isdigit() and _started(int(words[3])) != words[4]
        if ended and path != own and path.lstat().st_uid == os.geteuid() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def metrics_directory() -> str:
    """Where ``prometheus_client`` keeps the numbers of all workers; empty where there is only one process."""
    joined = group()
    if joined is None:
        return ""
    path = joined.directory / "prometheus"
    path.mkdir(mode=0o700, exist_ok=True)
    return str(path)


def describe() -> t.Dict[str, t.Any]:
    """``pid``, ``number`` and ``of``, and the words for what one worker alone knows: ``this worker (1 of 4)``."""
    joined = group()
    pids = joined.pids() if joined is not None else [os.getpid()]
    number = pids.index(os.getpid()) + 1
    words = f"this worker ({number} of {len(pids)})" if len(pids) > 1 else "the only worker"
    return {"pid": os.getpid(), "number": number, "of": len(pids), "scope": words}


async def open_group(handlers: t.Mapping[str, Handler]) -> None:
    joined = group()
    if joined is not None:
        try:
            await joined.open(handlers)
        except OSError as error:
            logger.error(f"🩺 This worker does not hear the others: {type(error).__name__}: {error}")


def close_group() -> None:
    joined = group()
    if joined is not None:
        joined.close()


async def tell(action: str, arguments: t.Optional[t.Mapping[str, t.Any]] = None) -> t.Dict[int, t.Any]:
    """As ``Group.tell``; empty where this process is alone."""
    joined = group()
    return await joined.tell(action, arguments) if joined is not None else {}
