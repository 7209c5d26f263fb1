# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server whose CORS policy a test chooses, right or wrong in a known way."""

from __future__ import annotations

import contextlib
import http.server
import threading
import typing as t

Policy = t.Callable[[http.server.BaseHTTPRequestHandler], t.Tuple[int, t.Dict[str, str]]]


@contextlib.contextmanager
def serve(policy: Policy) -> t.Iterator[t.Tuple[str, t.List[t.Tuple[str, t.Dict[str, str]]]]]:
    """Runs it; gives its URL and the list of requests (method, headers) that it gets."""
    seen: t.List[t.Tuple[str, t.Dict[str, str]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            seen.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
            status, headers = policy(self)
            self.send_response(status)
            for name, value in {"Content-Length": "2", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        do_GET = do_OPTIONS = answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
