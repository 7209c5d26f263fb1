# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server of a few lines with canned answers, and a clock that a test moves by hand."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t
from dataclasses import dataclass, field

#: (status, body): a dictionary or list is sent as JSON, a text as it is.
Answer = t.Tuple[int, t.Any]


@dataclass
class Backend:
    """``routes`` gives the answer of each path, or a list of them, of which the last one stays; ``asked`` counts what
    arrived.
    """

    url: str
    routes: t.Dict[str, t.Union[Answer, t.List[Answer]]]
    asked: t.List[str] = field(default_factory=list)

    def answer(self, path: str) -> Answer:
        self.asked.append(path)
        found = self.routes.get(path, (404, {"detail": "Not Found"}))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found


@contextlib.contextmanager
def serve(routes: t.Dict[str, t.Union[Answer, t.List[Answer]]]) -> t.Iterator[Backend]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = backend.answer(self.path.partition("?")[0])
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_words: t.Any) -> None:
            """Tests read answers, not a log."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    backend = Backend(f"http://127.0.0.1:{server.server_port}", routes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Clock:
    """Stands in for the module ``time``: it stands still unless it is moved, so that a limit is met to
    the millisecond.
    """

    now: float = 1000.0
    slept: t.List[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
