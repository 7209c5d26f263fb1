# SPDX-License-Identifier: GPL-3.0-or-later
"""A small backend with the PAM endpoint's shape under real uvicorn, for tests and benchmarks of the WebSocket layer.

The stand-in backend needs a database and seconds to start; this needs neither. Extra routes let a test act inside the
process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.support.backend_env import BACKEND_PYTHON, PATCHES
from tests.support.waiting import free_port, wait_until

MAIN = """
import asyncio, contextlib, json, os, time, uuid
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from app.core import websocket_manager
from app.core.websocket_manager import manager
try:
    from app.wheels_ops.websocket.guard import WebSocketGuard
except ImportError:
    WebSocketGuard = None

@contextlib.asynccontextmanager
async def lifespan(app):
    if hasattr(websocket_manager, "startup"):
        await websocket_manager.startup()
    yield
    if hasattr(websocket_manager, "shutdown"):
        await websocket_manager.shutdown()

api = FastAPI(lifespan=lifespan)
messages = []  # chat texts, in the order in which the endpoint read them

@api.websocket("/api/v1/pam/ws/{user_id}")
async def socket(websocket: WebSocket, user_id: str, token: str = ""):
    await websocket.accept()
    if token != f"token-of-{user_id}":
        await websocket.close(4001, "Invalid or missing token")
        return
    connection_id = str(uuid.uuid4())
    await manager.connect(websocket, user_id, connection_id)
    try:
        hello = {"type": "connection", "status": "connected", "connection_id": connection_id}
        await manager.send_personal_message(hello, websocket)
        while True:
            try:
                data = await websocket.receive_json()
            except (ValueError, KeyError):
                await websocket.send_json({"type": "error", "message": "Invalid JSON"})
                continue
            kind = data.get("type") if isinstance(data, dict) else None
            if kind == "ping":
                await websocket.send_json({"type": "pong"})
            elif kind == "pong":
                await manager.handle_pong(connection_id)
            elif kind == "busy":
                await asyncio.sleep(float(data["seconds"]))
                await websocket.send_json({"type": "done"})
            elif kind == "close":
                await websocket.close(int(data["code"]), "as asked")
                return
            elif kind == "flood":
                for number in range(int(data["count"])):
                    flood = {"type": "flood", "number": number, "fill": "x" * int(data["size"])}
                    await websocket.send_text(json.dumps(flood))
            else:
                messages.append(str(data.get("message") if isinstance(data, dict) else data)[:200])
                await websocket.send_json({"type": "chat_response", "message": messages[-1]})
    except WebSocketDisconnect:
        pass
    finally:
        manager.disconnect(user_id, connection_id)

@api.websocket("/spin/{method}/{closes}")
async def spin(websocket: WebSocket, method: str, closes: bool):
    # As the August release has it, whose endpoint goes on after every exception.
    await websocket.accept()
    if closes:
        await websocket.close(4001)
    while True:
        try:
            await getattr(websocket, method)()
        except Exception:
            continue

@api.post("/control/broadcast")
async def broadcast(request: Request):
    body = await request.json()
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(int(body.get("count", 1))):
        news = {"type": "news", "number": body.get("number", 0) + number, "fill": "x" * int(body.get("size", 0))}
        await manager.broadcast(news)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "at": time.time()}

@api.post("/control/send/{user_id}")
async def send(user_id: str, request: Request):
    body = await request.json()
    for number in range(int(body.get("count", 1))):
        note = {"type": "note", "number": body.get("number", 0) + number, "at": time.time()}
        await manager.send_message_to_user(note, user_id)
    return {}

@api.post("/control/clog/{user_id}")
async def clog(user_id: str):
    # Sends until this user, who does not read, holds up a write.
    fill = json.dumps({"type": "filler", "fill": "x" * 60000})
    for number in range(400):
        if any(conn.user_id == user_id for conn in getattr(manager, "blocked", ())):
            return {"messages": number}
        try:
            await asyncio.wait_for(manager.send_message_to_user(fill, user_id), 0.2)
        except asyncio.TimeoutError:
            return {"messages": number}
        await asyncio.sleep(0)
    return {"messages": 0}

@api.post("/control/silence")
async def silence(request: Request):
    # As if nothing had come from any client for so long.
    seconds = float((await request.json())["seconds"])
    for connection in manager.connections.values():
        connection.last_inbound -= seconds
    return {}

@api.post("/control/hold")
async def hold(request: Request):
    # Longest CPU time of one turn of the event loop while a broadcast runs, in milliseconds.
    worst, ended = 0.0, False
    async def probe():
        nonlocal worst
        before = time.thread_time()
        while not ended:
            await asyncio.sleep(0)
            now = time.thread_time()
            worst, before = max(worst, now - before), now
    task = asyncio.ensure_future(probe())
    await asyncio.sleep(0.05)
    worst = 0.0
    await manager.broadcast({"type": "news", "number": (await request.json())["number"], "fill": "x" * 1000})
    await asyncio.sleep(0.3)
    ended = True
    await task
    return {"milliseconds": worst * 1000}

@api.get("/control/stats")
async def stats():
    answer = await manager.get_connection_stats()
    answer["open"] = getattr(getattr(api, "guard", None), "open", None)
    answer["pid"], answer["messages"] = os.getpid(), messages
    answer["rss"] = int(open("/proc/self/statm").read().split()[1]) * 4096
    answer["metadata"] = [dict(manager.connection_metadata[name]) for name in list(manager.connection_metadata)[:10]]
    return answer

@api.get("/page")
async def page():
    return HTMLResponse("<!doctype html><title>pam</title><script src=/api/v1/pam/socket.js></script>")

app = api
if os.environ.get("GUARD", "1") == "1" and WebSocketGuard is not None:
    app = api.guard = WebSocketGuard(api)
"""
LOGGING = """
import logging, sys
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")

def get_logger(name=None):
    return logging.getLogger(name)
"""


@dataclass
class SocketBackend:
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    log: Path
    words: t.List[str]
    environment: t.Dict[str, str]

    def url(self, user: str, extra: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1/pam/ws/{user}?token=token-of-{user}{extra}"

    def request(
        self,
        method: str,
        path: str,
        body: t.Any = None,
        *,
        timeout: float = 60.0,
        headers: t.Optional[t.Dict[str, str]] = None,
    ) -> t.Tuple[int, t.Any]:
        """Status and parsed JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            payload = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
            connection.request(method, path, payload, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def stats(self) -> t.Dict[str, t.Any]:
        return t.cast(t.Dict[str, t.Any], self.request("GET", "/control/stats")[1])

    def broadcast(self, **body: t.Any) -> t.Dict[str, t.Any]:
        return t.cast(t.Dict[str, t.Any], self.request("POST", "/control/broadcast", body, timeout=120)[1])

    def send(self, user: str, **body: t.Any) -> None:
        self.request("POST", f"/control/send/{user}", body)

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def start(self) -> None:
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self.words, cwd=self.directory, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

        def up() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"uvicorn ended:\n{self.logged()[-3000:]}")
            return self.request("GET", "/control/stats", timeout=5)[0] == 200

        wait_until(up, timeout=60, what="the WebSocket backend")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> float:
        """Seconds it took to end."""
        import time

        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return time.monotonic() - began


@contextlib.contextmanager
def socket_backend(
    *,
    guard: bool = True,
    manager_file: t.Optional[Path] = None,
    package: bool = True,
    options: t.Sequence[str] = (),
    **environment: t.Any,
) -> t.Iterator[SocketBackend]:
    """Runs until the block ends; ``environment`` adds variables.

    ``manager_file`` replaces our manager (a benchmark's peer); without the ``package`` our manager is all that was
    copied.
    """
    directory = Path(tempfile.mkdtemp(prefix="wops-ws-"))
    try:
        for folder in ("app", "app/core"):
            (directory / folder).mkdir()
            (directory / folder / "__init__.py").touch()
        (directory / "app/main.py").write_text("# SPDX-License-Identifier: GPL-3.0-or-later" + MAIN)
        (directory / "app/core/logging.py").write_text(LOGGING)
        shutil.copy(manager_file or PATCHES / "core/websocket_manager.py", directory / "app/core/websocket_manager.py")
        if package:
            (directory / "app/wheels_ops").mkdir()
            for name in ("__init__.py", "memory_budget.py", "rate_limit.py"):
                shutil.copy(PATCHES / "wheels_ops" / name, directory / "app/wheels_ops")
            shutil.copytree(PATCHES / "wheels_ops/websocket", directory / "app/wheels_ops/websocket")
            shutil.copytree(PATCHES / "static", directory / "app/static")
        port = free_port()
        variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        variables.update(GUARD="1" if guard else "0", PYTHONDONTWRITEBYTECODE="1")
        variables.update({name: str(value) for name, value in environment.items()})
        words = [
            str(BACKEND_PYTHON),
            "-m",
            "uvicorn",
            "app.main:app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-access-log",
            *options,
        ]
        server = SocketBackend(
            port, directory, t.cast("subprocess.Popen[bytes]", None), directory / "uvicorn.log", words, variables
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
