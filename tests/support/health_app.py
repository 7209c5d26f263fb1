# SPDX-License-Identifier: GPL-3.0-or-later
"""A small application with the patched monitoring files, whose parts can be broken one at a time while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.support.backend_env import BACKEND_PYTHON, PATCHES
from tests.support.patched_tree import Tree, patched_tree
from tests.support.waiting import free_port, wait_until

TOKEN = "first-token-of-the-tests"  # noqa: S105 - of tests only
OTHER_TOKEN = "second-token-while-rotating"  # noqa: S105 - of tests only
#: What others do to the processors of this machine is no fault of the application: its health would be 503 for it.
BUSY_MACHINE = {
    "CPU_WARNING_THRESHOLD": "1000",
    "CPU_CRITICAL_THRESHOLD": "1000",
    "LOOP_LAG_WARNING_THRESHOLD": "2400",
    "LOOP_BLOCKED_WARNING_THRESHOLD": "1000",
}
#: What the incident report copies by hand; the rest of ours is not there then.
REPORT_FILES = ("monitoring/memory_optimizer.py", "core/performance_monitor.py", "api/v1/system_health.py")
HEALTHY_SQL = """
create table affiliate_sales (id serial primary key, user_id uuid);
create table user_wishlists (id serial primary key, user_id uuid);
create table wishlist_items (id serial primary key, user_id uuid);
alter table user_wishlists enable row level security;
create policy own on user_wishlists using (user_id = auth.uid());
alter table wishlist_items enable row level security;
create policy own on wishlist_items using (exists (select 1 from user_wishlists w where w.user_id = wishlist_items.user_id));
"""

_SPEECH = """
class Service:
    is_initialized = True
    engines = 2
    async def get_service_status(self):
        status = "healthy" if self.engines else "unhealthy"
        return {"status": status, "service_status": status, "initialized": True, "is_initialized": True,
                "engines": {"overall_status": status, "healthy_engines": self.engines, "total_engines": 2, "engines": {}}}
tts_service = Service()
"""
_MAIN = """
import asyncio, contextlib, os, random, time
from app.core.logging import get_logger
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse
import app.services.tts.tts_service as speech
try:
    import app.core.cors_config as cors
    import app.core.websocket_manager as sockets
except ImportError:
    cors = sockets = None

@contextlib.asynccontextmanager
async def lifespan(_):
    get_logger("main").info("the application starts")
    await asyncio.sleep(float(os.environ.get("START_SECONDS", "0")))
    yield
    get_logger("main").info("the application ends in order")

app = FastAPI(lifespan=lifespan)
held = []
survivors = []

@app.middleware("http")
async def csrf(request: Request, call_next):
    if request.method == "POST":
        return JSONResponse({"error": "CSRF Protection"}, status_code=403)
    return await call_next(request)

@app.get("/items/{item}")
async def item(item: str):
    return {"item": item, "process": os.getpid()}

@app.get("/fault/stall")
async def stall(seconds: float):
    time.sleep(seconds)

@app.get("/fault/hog")
async def hog(mb: int):
    held.append(bytearray(os.urandom(1 << 20) * mb)) if mb else held.clear()

@app.get("/fault/fragment")
async def fragment(mb: int):
    # Lets go of that much, of which one block in fifty stays: glibc keeps the pages between them.
    made, used = [], 0
    while used < mb << 20:
        made.append(bytearray(random.randrange(600, 32_000)))
        used += len(made[-1])
    survivors.extend(made[::50])

@app.get("/fault/speech")
async def dead_speech(engines: int):
    speech.tts_service.engines = engines

@app.get("/fault/cors")
async def dead_cors(broken: bool):
    type(cors.cors_config).origins = property(lambda self: ["https://not-allowed.example"]) if broken else kept

@app.get("/fault/sockets")
async def dead_sockets(broken: bool):
    if broken:
        sockets.manager.active_connections = {"one": object()}
    else:
        del sockets.manager.active_connections

@app.get("/fault/error")
async def error():
    raise RuntimeError("the secret text of an exception")

kept = type(cors.cors_config).origins if cors else None
if os.environ.get("ROUTER_ONLY"):
    from app.api.v1 import system_health
    app.include_router(system_health.router, prefix="/api/v1")
else:
    from app.wheels_ops.wiring import install
    install(app)
"""


class Answer(t.NamedTuple):
    status: int
    headers: t.Mapping[str, str]
    body: bytes

    def json(self) -> t.Any:
        return json.loads(self.body)


class HealthApp:
    """The running application; ``request`` never raises for a status."""

    def __init__(self, tree: Tree, port: int, process: subprocess.Popen[bytes]) -> None:
        self.tree, self.port, self.process = tree, port, process
        self.url = f"http://127.0.0.1:{port}"

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        timeout: float = 20.0,
        data: t.Optional[bytes] = None,
        more: t.Optional[t.Mapping[str, str]] = None,
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in {**headers, **(more or {})}.items()}
        if token:
            sent["X-Ops-Token"] = token
        request = urllib.request.Request(self.url + path, method=method, headers=sent, data=data)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout) as answer:
                return Answer(
                    answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
                )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {name.lower(): value for name, value in error.headers.items()}, error.read())

    def health(self) -> t.Dict[str, t.Any]:
        """The detailed document."""
        return t.cast(t.Dict[str, t.Any], self.request("GET", "/api/v1/system/health", token=TOKEN).json())

    def check(self, name: str) -> str:
        """The status of one check, or ``absent``."""
        found = self.health()["checks"].get(name)
        return str(found[0]["status"]) if found else "absent"

    def logged(self) -> str:
        return "\n".join(entry.get("event", "") for entry in self.tree.logged())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: t.Any, **named: t.Any) -> None:
        return None


@contextlib.contextmanager
def health_app(
    *environments: t.Mapping[str, str],
    files: t.Optional[t.Sequence[str]] = None,
    uvicorn: t.Sequence[str] = (),
    state: t.Optional[Path] = None,
    wait: bool = True,
    **env: str,
) -> t.Iterator[HealthApp]:
    """Runs it under the backend's interpreter; ``environments`` and ``env`` are its environment beside the essentials,
    ``state`` its state directory.

    ``wait``: until it answers.
    """
    directory = Path(tempfile.mkdtemp(prefix="wops-health-"))
    if files is None:
        own = [
            str(path.relative_to(PATCHES))
            for path in (PATCHES / "wheels_ops").glob("*.py")
            if path.name != "__init__.py"
        ]
        files = [*REPORT_FILES, "core/cors_config.py", "core/websocket_manager.py", *own]
    tree = patched_tree(directory, *files)
    for name, text in (("services/tts/tts_service", _SPEECH), ("main", _MAIN)):
        target = directory / "app" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for package in (path for path in (directory / "app").rglob("*") if path.is_dir()):
        (package / "__init__.py").touch()
    port = free_port()
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    environment.update(
        PYTHONPATH=str(directory),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
        WHEELS_OPS_TOKEN=f"{TOKEN},{OTHER_TOKEN}",
    )
    environment.update(BUSY_MACHINE)
    environment.update(
        {
            "WHEELS_OPS_STATE_DIR": str(state or directory / "state"),
            **{name: value for one in environments for name, value in one.items()},
            **env,
        }
    )
    words = [
        str(BACKEND_PYTHON),
        "-m",
        "uvicorn",
        "app.main:app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "warning",
        *uvicorn,
    ]
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(
            words, cwd=directory, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    app = HealthApp(tree, port, process)

    def up() -> bool:
        if process.poll() is not None:
            raise RuntimeError((directory / "output").read_text())
        return app.request("GET", "/items/1", timeout=5).status == 200

    try:
        if wait:
            wait_until(up, timeout=60, what="the application")
        yield app
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


class Relay:
    """A TCP relay that can swallow everything (``black hole``) or close its door (``refuse``), and open again."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._hole = self._stopping = False
        self._sockets: t.List[socket.socket] = []
        self.port = free_port()
        self._listener: t.Optional[socket.socket] = None
        self._thread: t.Optional[threading.Thread] = None
        self.open()

    def open(self) -> None:
        self._hole = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._thread.start()

    def black_hole(self) -> None:
        self._hole = True

    def refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    close = refuse

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """What is in flight when the hole opens is lost, as on a network that drops packets."""
        try:
            while True:
                for source in select.select([client, server], [], [], 1)[0]:
                    data = source.recv(65536)
                    if self._hole:
                        continue
                    if not data:
                        raise OSError("closed")
                    (server if source is client else client).sendall(data)
        except (OSError, ValueError):
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.close()


@contextlib.contextmanager
def frozen(process: subprocess.Popen[bytes]) -> t.Iterator[None]:
    """SIGSTOP for a server and all that belongs to it, for as long as the block lasts."""
    root = psutil.Process(process.pid)
    members = [root, *root.children(recursive=True)]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
    try:
        yield
    finally:
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()
