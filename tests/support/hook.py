# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HTTP receiver of alerts, which fails as often as it is told to."""

from __future__ import annotations

import http.server
import json
import threading
import typing as t


class Hook:
    """An HTTP receiver. ``fail`` answers that many requests with 503 first."""

    def __init__(self) -> None:
        self.bodies: t.List[t.Any] = []
        self.paths: t.List[str] = []
        self.headers: t.List[t.Dict[str, str]] = []
        self.fail = 0
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.paths.append(self.path)
                hook.headers.append(dict(self.headers))
                if hook.fail:
                    hook.fail -= 1
                    self.send_response(503)
                else:
                    hook.bodies.append(body)
                    self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: t.Any) -> None:
                """Nothing is printed."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_error: t.Any) -> None:
        self.server.shutdown()
        self.server.server_close()
