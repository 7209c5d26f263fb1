# SPDX-License-Identifier: GPL-3.0-or-later
"""WebSocket paths are read from the source as FastAPI composes them; FastAPI itself is the witness."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from wheels_ops.services.websocket_routes import websocket_paths

FILES: t.Mapping[str, str] = {
    "app/__init__.py": "",
    "app/main.py": (
        "from fastapi import FastAPI\n"
        "from app.api import v1, live as socket\n"
        "from .api.chat import router as chat_router\n"
        "app: FastAPI = FastAPI()\n"
        "app.include_router(v1.api.router, prefix='/api/v1')\n"
        "app.include_router(chat_router)\n"
        "app.include_router(socket.router, prefix='/live')\n"
        "@app.websocket('/ws')\n"
        "async def direct(websocket): ...\n"
    ),
    "app/api/__init__.py": "",
    "app/api/chat.py": (
        "from fastapi import APIRouter, WebSocket\n"
        "router = APIRouter(prefix='/chat')\n"
        "@router.websocket('/{room}')\n"
        "async def chat(websocket: WebSocket, room: str): ...\n"
    ),
    "app/api/live.py": (
        "from fastapi import APIRouter, WebSocket\n"
        "from app.api.chat import router as nested\n"
        "router, other = APIRouter(), APIRouter(prefix='/other')\n"
        "@other.websocket('/ws')\n"
        "async def more(websocket: WebSocket): ...\n"
        "router.include_router(other)\n"
        "router.include_router(nested, prefix='/nested')\n"
    ),
    "app/api/unmounted.py": (
        "from fastapi import APIRouter\nrouter = APIRouter()\n@router.websocket('/never')\nasync def never(ws): ...\n"
    ),
    "app/api/v1/__init__.py": "from . import api\n",
    "app/api/v1/api.py": (
        "from fastapi import APIRouter, WebSocket\n"
        "router = APIRouter(prefix='/pam')\n"
        "@router.websocket('/ws/{user_id}')\n"
        "async def socket(websocket: WebSocket, user_id: str): ...\n"
    ),
    "app/broken.py": "def (:\n",
}
WITNESS = """
import json
from app.main import app
def paths(routes, prefix=""):
    for route in routes:
        if type(route).__name__ == "APIWebSocketRoute":
            yield prefix + route.path
print(json.dumps(sorted(paths(app.routes))))
"""


def test_paths_are_those_of_fastapi(tmp_path: Path) -> None:
    python = REPOSITORY / ".venv-backend/bin/python"
    if not python.exists():
        pytest.skip("needs .venv-backend")
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run([str(python), "-c", WITNESS], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout)
    assert len(expected) == 5
    assert websocket_paths(str(tmp_path)) == expected


def test_application_without_a_socket(tmp_path: Path) -> None:
    assert websocket_paths(str(tmp_path)) == []
